//! A machine of a lab, as a test uses it.

use std::fs;
use std::io::Read;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use flatnet_lab::subnet_env::SubnetEnv;
use flatnet_lab::vm::{Machine, Ran};
use serde_json::Value;

use super::template::BOOTED;
use crate::agent::BRIDGE;
use crate::wait::wait_until;

/// The time for a script that should take a second or two here.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(90);
/// The time for something that takes milliseconds outside: machines are ten times slower, and several share two cores
/// with whatever else runs.
pub const SOON: Duration = Duration::from_secs(240);
/// The path of the agent's env file.
const SUBNET_ENV: &str = "/run/flatnet/subnet.env";
/// The number of random bytes given to a clone: enough to be sure that no two draw alike.
const SEED_BYTES: usize = 64;

/// A machine with its name and addresses.
#[derive(Debug)]
pub struct Vm {
    /// Its number, from 1; 0 is the master.
    pub number: u8,
    /// Its host name.
    pub name: String,
    /// The tap device that its card is on, outside.
    pub tap: String,
    machine: Mutex<Machine>,
}

impl Vm {
    /// Wraps a machine that runs and is not configured yet.
    #[must_use]
    pub fn new(number: u8, tap: String, machine: Machine) -> Self {
        let name = if number == 0 { "master".to_owned() } else { format!("host{number}") };
        Self { number, name, tap, machine: Mutex::new(machine) }
    }

    /// Returns the machine's IPv4 address on the underlay.
    #[must_use]
    pub fn address(&self) -> String {
        format!("192.168.33.{}", 10 + self.number)
    }

    /// Returns the machine's IPv6 address on the underlay, which reads like the other.
    #[must_use]
    pub fn address_v6(&self) -> String {
        format!("fd33::{}", 10 + self.number)
    }

    /// Runs a script with bash for at most 90 s.
    pub fn sh(&self, script: &str) -> Ran {
        self.sh_within(script, SCRIPT_TIMEOUT)
    }

    /// Runs a script with bash for at most `timeout`.
    pub fn sh_within(&self, script: &str, timeout: Duration) -> Ran {
        self.machine().sh(script, timeout).unwrap_or_else(|failure| self.lost(&failure))
    }

    /// Runs a script that must succeed; returns what it printed.
    pub fn ok(&self, script: &str) -> String {
        let ran = self.sh(script);
        assert_eq!(ran.rc, 0, "`{script}` in {} failed: {}", self.name, ran.output);
        ran.output
    }

    /// Runs a script that prints JSON.
    pub fn json(&self, script: &str) -> Value {
        let text = self.ok(script);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("`{script}` in {}: {error}: {text}", self.name))
    }

    /// Runs a script again and again until it succeeds; returns what it printed then.
    pub fn wait_for(&self, what: &str, script: &str) -> String {
        wait_until(&format!("{}: {what}", self.name), SOON, || {
            let ran = self.sh(script);
            if ran.rc == 0 { Ok(ran.output) } else { Err(format!("{}{}", ran.output, self.logs())) }
        })
    }

    /// Writes a file.
    pub fn put(&self, path: &str, mode: u32, content: &[u8]) {
        self.machine().put(path, mode, content).unwrap_or_else(|failure| self.lost(&failure));
    }

    /// Starts a program that goes on: its output goes to `/run/NAME.log`, its process id to `/run/NAME.pid`.
    pub fn start(&self, name: &str, command: &str) {
        self.ok(&format!("setsid {command} >>/run/{name}.log 2>&1 & echo $! >/run/{name}.pid"));
    }

    /// Sends a signal, such as `KILL`, to what [`Vm::start`] started, and waits for its end.
    pub fn end(&self, name: &str, signal: &str) {
        self.ok(&format!(
            "pid=$(cat /run/{name}.pid); kill -{signal} $pid; for i in $(seq 600); do kill -0 $pid 2>/dev/null || exit 0; \
             sleep 0.1; done; echo {name} does not end; exit 1"
        ));
    }

    /// Starts an agent that knows the store at `endpoint`, with a bridge and further flags.
    pub fn join(&self, endpoint: &str, flags: &[&str]) {
        self.start("agent", &format!("agent join {endpoint} --bridge {BRIDGE} {}", flags.join(" ")));
    }

    /// Waits until the agent is converged with exactly `peers` programmed peers in its first network; returns its
    /// status.
    pub fn wait_converged(&self, peers: usize) -> Value {
        wait_until(&format!("{}: converged with {peers} peers", self.name), SOON, || {
            let said = self.sh("agent status --json").output;
            let status: Value = serde_json::from_str(&said).map_err(|_| format!("{said}\n{}", self.logs()))?;
            let listed = status.pointer("/networks/0/peers").and_then(Value::as_array);
            let programmed = listed.map_or(0, |peers| peers.iter().filter(|p| p["state"] == "programmed").count());
            let converged = status["state"] == "converged" && programmed == peers;
            if converged { Ok(status) } else { Err(format!("{status}\n{}", self.logs())) }
        })
    }

    /// Returns what the agent wrote for container engines.
    #[must_use]
    pub fn subnet(&self) -> SubnetEnv {
        let text = self.wait_for("subnet.env is written", &format!("cat {SUBNET_ENV}"));
        SubnetEnv::parse(&text).unwrap_or_else(|| panic!("{}: {text}", self.name))
    }

    /// Makes the container `c1`: a network namespace with a cable to the agent's bridge. It has the second address of
    /// each of the host's subnets, and the first as its gateway.
    pub fn attach(&self) {
        let subnet = self.subnet();
        let mtu = subnet.mtu;
        let mut script = format!(
            "set -e\nip netns add c1\nip -n c1 link set lo up\n\
             ip link add c1 mtu {mtu} type veth peer name eth0 mtu {mtu} netns c1\n\
             ip link set c1 master {BRIDGE} up\nip -n c1 link set eth0 up\n"
        );
        for (gateway, address) in subnet.gateways().zip(subnet.container_addresses()) {
            let nodad = if address.is_ipv6() { " nodad" } else { "" };
            script += &format!("ip -n c1 addr add {address}/{} dev eth0{nodad}\n", gateway.prefix_len());
            script += &format!("ip -n c1 route add default via {}\n", gateway.addr());
        }
        self.ok(&script);
    }

    /// Asserts that `address` answers the container `c1`, soon.
    pub fn assert_container_reaches(&self, address: IpAddr) {
        self.wait_for(
            &format!("its container reaches {address}"),
            &format!("ip netns exec c1 ping -nc 1 -W 2 {address}"),
        );
    }

    /// Runs `systemctl reboot`, or what a plain machine has for it; returns when the machine answers again.
    pub fn reboot(&self) {
        let mut machine = self.machine();
        // Answered or not: the machine ends.
        let _ = machine.sh("systemctl --no-block reboot", Duration::from_secs(20));
        machine.wait_rebooted().unwrap_or_else(|failure| self.lost(&failure));
    }

    /// Pulls the plug and switches it on again; returns when it answers.
    pub fn power_cycle(&self) {
        self.machine().power_cycle().unwrap_or_else(|failure| self.lost(&failure));
    }

    /// Gives the machine what clones must not share: random numbers first, then clock, names and addresses.
    pub fn configure(&self) {
        let number = 10 + self.number;
        self.seed();
        self.name_it();
        self.ok(&format!(
            "set -e\n\
             ip link set lo up\n\
             ip link set eth0 address 52:54:00:00:33:{number}\n\
             ip link set eth0 up\n\
             ip addr add 192.168.33.{number}/24 dev eth0\n\
             ip addr add fd33::{number}/64 dev eth0 nodad\n\
             ip route add default via 192.168.33.1\n\
             ip route add default via fd33::1\n"
        ));
    }

    /// Configures a machine with systemd: its network is configured as an administrator would, and so again at each
    /// boot.
    pub fn configure_server(&self) {
        let number = 10 + self.number;
        self.seed();
        self.name_it();
        let network = format!(
            "[Match]\nName=eth0\n[Link]\nMACAddress=52:54:00:00:33:{number}\n[Network]\nAddress=192.168.33.{number}/24\n\
             Address=fd33::{number}/64\nGateway=192.168.33.1\nIPv6AcceptRA=no\nIPv6DuplicateAddressDetection=0\n"
        );
        self.put("/etc/systemd/network/10-eth0.network", 0o644, network.as_bytes());
        self.wait_for("systemd has booted", BOOTED);
        self.ok("systemctl enable --quiet --now systemd-networkd");
        self.wait_for("its network is up", "ip -4 addr show dev eth0 | grep 192.168.33");
    }

    fn seed(&self) {
        let mut seed = [0; SEED_BYTES];
        fs::File::open("/dev/urandom").unwrap().read_exact(&mut seed).unwrap();
        let seed: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
        // random(4): RNDADDENTROPY (bits, bytes, the bytes), and RNDRESEEDCRNG, without which it is used minutes later.
        self.ok(&format!(
            "perl -e 'open(my $r, \"+<\", \"/dev/random\") or die; \
             my $seed = pack(\"ii\", 512, 64) . pack(\"H*\", \"{seed}\"); my $none = 0; \
             defined ioctl($r, 0x40085203, $seed) or die \"entropy: $!\"; \
             defined ioctl($r, 0x5207, $none) or die \"reseed: $!\"'"
        ));
    }

    fn name_it(&self) {
        let name = &self.name;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        self.ok(&format!(
            "set -e\n\
             date -s @{now:.3} >/dev/null\n\
             hostname {name}; echo {name} >/etc/hostname\n\
             printf '127.0.0.1 localhost {name}\\n::1 localhost\\n' >/etc/hosts\n"
        ));
    }

    /// Returns the ends of the logs of the programs started here.
    #[must_use]
    pub fn logs(&self) -> String {
        self.sh("cd /run; for log in *.log; do [ -e $log ] && echo \"== $log\" && tail -n 20 $log; done; \
             [ ! -d /run/systemd/system ] || journalctl -u flatnet-agent -u flatnet-controlplane -n 20 --no-pager -o cat; true")
            .output
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self, failure: &flatnet_agent::report::Failure) -> ! {
        // With causes and hint, which has the end of the console.
        let _ = failure.report();
        panic!("{}: {failure}", self.name)
    }
}
