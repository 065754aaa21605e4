//! WireGuard: nothing leaves in clear, whatever happens; keys change under traffic; foreign implementations are peers.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flatnet_tests::Families;
use flatnet_tests::agent::{Agent, program};
use flatnet_tests::etcd::Etcd;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::netns::{Namespace, run};
use flatnet_tests::pinger::{self, Pinger};
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, pause, wait_until};

use flatnet_tests::oracle;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The tunnel's device, from its default port.
const DEVICE: &str = "flatwg.51820";

pub fn tests() -> Vec<Test> {
    let test = |name: &str, body: fn()| Test::new(name, body).on_backend("wireguard");
    vec![
        test("nothing_leaves_in_clear_at_start_stop_kill_or_to_unknown_addresses", nothing_in_clear),
        test("what_comes_in_clear_with_an_address_of_the_network_is_dropped", nothing_in_clear_comes_in),
        test("a_key_is_rotated_under_traffic", rotated),
        test("a_key_is_rotated_beside_a_flannel_host", rotated_beside_flannel),
        test("a_key_is_rotated_before_there_is_a_peer", rotated_alone),
        test("a_key_is_not_rotated_while_the_store_is_away", not_rotated),
        test("the_key_survives_a_restart_and_a_reboot", key_kept),
        test("a_killed_agent_is_back_within_a_second", back_soon),
        test("wireguard_go_is_a_peer_once_it_is_named", foreign_peer),
        test("one_tunnel_carries_both_families", one_tunnel),
        test("without_a_module_and_with_no_userspace_it_refuses", refused),
        test("a_key_file_that_others_can_read_is_not_used", exposed_key),
        test("one_key_on_two_hosts_is_said", one_key_twice),
    ]
}

fn shape(hosts: u8) -> Shape {
    Shape { hosts, backend: "wireguard", overlay: Families::V4, underlay: Families::V4 }
}

/// Runs `wg show DEVICE …` on the agent's host.
fn wg(agent: &Agent, arguments: &[&str]) -> String {
    let argv = ["wg", "show"].iter().chain(arguments).map(|word| (*word).to_owned()).collect();
    let ran = run(&mut agent.on_host(argv));
    assert_eq!(ran.code, 0, "wg show {arguments:?}: {}", ran.stderr);
    ran.stdout
}

/// Returns the peers of a device as `wg` sees them: public key to endpoint and allowed addresses.
pub fn peers(agent: &Agent, device: &str) -> BTreeMap<String, (String, String)> {
    let dump = wg(agent, &[device, "dump"]);
    let peer = |line: &str| {
        let words: Vec<&str> = line.split('\t').collect();
        (words[0].to_owned(), (words[2].to_owned(), words[3].to_owned()))
    };
    dump.lines().skip(1).map(peer).collect()
}

/// Returns the published key of each host, by its PublicIP.
fn published(etcd: &Etcd) -> BTreeMap<String, String> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    etcd.subnets()
        .iter()
        .map(|(_, lease)| (text(&lease["PublicIP"]), text(&lease["BackendData"]["PublicKey"])))
        .collect()
}

/// A capture of everything on the underlay, as seen at its bridge.
struct Underlay {
    child: Child,
    file: std::path::PathBuf,
}

impl Underlay {
    fn watch(lab: &Lab) -> Self {
        let file = lab.directory.join("underlay.pcap");
        let said = lab.directory.join("underlay.said");
        let argv = ["tcpdump", "-n", "-U", "--immediate-mode", "-i", "br0", "-w", &file.display().to_string()]
            .map(str::to_owned);
        let mut command = lab.underlay().command(&argv);
        command.stdout(Stdio::null()).stderr(fs::File::create(&said).unwrap());
        let child = command.spawn().unwrap();
        wait_until("tcpdump listens", SOON, || {
            let text = fs::read_to_string(&said).unwrap_or_default();
            if text.contains("listening on") { Ok(()) } else { Err(text) }
        });
        Self { child, file }
    }

    /// Ends it; returns how many packets were WireGuard's, and the lines of those in clear with an address of the
    /// network.
    fn stop(mut self) -> (usize, Vec<String>) {
        pause(Duration::from_millis(200));
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
        self.child.wait().unwrap();
        let read = |filter: &str| {
            let mut command = Command::new("tcpdump");
            command.args(["-n", "-r"]).arg(&self.file).arg(filter);
            run(&mut command).stdout
        };
        let clear = read("net 10.100.0.0/16 or ip6 net fd00:100::/56");
        (read("udp port 51820 or udp port 51821").lines().count(), clear.lines().map(str::to_owned).collect())
    }
}

impl Drop for Underlay {
    fn drop(&mut self) {
        // It may have ended by itself: then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Pings without caring for answers, for as long as it lives.
struct Noise(Vec<Child>);

impl Noise {
    fn start(from: &[Namespace], to: &[IpAddr]) -> Self {
        let ping = |from: &Namespace, to: &IpAddr| {
            let mut command = from.command(&["ping", "-n", "-q", "-i", "0.02", &to.to_string()]);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        Self(from.iter().flat_map(|from| to.iter().map(move |to| ping(from, to))).collect())
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended by itself: then there is nothing to do.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn nothing_in_clear() {
    let lab = Lab::new(&Shape { overlay: Families::Dual, underlay: Families::Dual, ..shape(2) });
    let capture = Underlay::watch(&lab);
    let mut agents = lab.join_all();
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    let mut targets: Vec<IpAddr> = agents[1].subnet().container_addresses().collect();
    let known = targets.clone();
    targets.extend(["10.100.199.9".parse::<IpAddr>().unwrap(), "fd00:100:0:ff::9".parse().unwrap()]);
    let noise = Noise::start(&[lab.container(1), lab.host(1)], &targets);
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGKILL] {
        agents[0].end(signal);
        pause(Duration::from_millis(400));
        agents[0].start();
        agents[0].wait_converged(1);
        pause(Duration::from_millis(200));
    }
    // Somebody else's more specific route past the tunnel, and a device that is gone while nobody puts it back.
    let peer_v4 = lab.topology.host(2).v4;
    for target in known.iter().filter(|target| target.is_ipv4()) {
        lab.host(1).ok(&format!("ip route add {target}/32 via {peer_v4} dev eth0"));
    }
    pause(Duration::from_millis(300));
    for target in known.iter().filter(|target| target.is_ipv4()) {
        lab.host(1).ok(&format!("ip route del {target}/32 via {peer_v4} dev eth0"));
    }
    agents[0].end(Signal::SIGKILL);
    for device in oracle::own_links(&lab.host(1)).iter().filter(|name| name.starts_with("flatwg")) {
        lab.host(1).ok(&format!("ip link del {device}"));
    }
    lab.host(1).ok("ip route flush type unreachable metric 91000");
    pause(Duration::from_millis(400));
    agents[0].start();
    agents[0].wait_converged(1);
    drop(noise);
    pinger::assert_all_pairs(&lab, &agents);
    // The peer leaves: its addresses are unknown from then on.
    let noise = Noise::start(&[lab.container(1)], &known);
    assert_eq!(agents[1].command(&["leave"]).code, 0);
    agents[0].wait_converged(0);
    pause(Duration::from_millis(300));
    drop(noise);
    let (encrypted, clear) = capture.stop();
    println!(
        "figure: wireguard, clear text on the underlay: {} packets, beside {encrypted} encrypted ones",
        clear.len()
    );
    assert!(encrypted > 100, "only {encrypted} packets of WireGuard were seen: the capture is no proof");
    assert!(clear.is_empty(), "{} packets in clear, e.g.\n{}", clear.len(), clear[..clear.len().min(5)].join("\n"));
}

fn nothing_in_clear_comes_in() {
    let lab = Lab::new(&shape(2));
    let agents = lab.join_all();
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    let container: Vec<IpAddr> = agents[0].subnet().container_addresses().collect();
    let inside = container[0];
    let IpAddr::V4(beside) = inside else { unreachable!("the first family is IPv4") };
    let beside = Ipv4Addr::from_bits(beside.to_bits() + 75);
    // The gateway pretends to be a container, of the other host and of this one.
    let other: Vec<IpAddr> = agents[1].subnet().container_addresses().collect();
    let host = lab.topology.host(1).v4;
    let gateway = lab.underlay();
    gateway.ok(&format!("ip route add {inside}/32 via {host} dev br0"));
    for source in ["10.100.199.9".to_owned(), other[0].to_string(), beside.to_string()] {
        gateway.ok(&format!("ip addr add {source}/32 dev lo"));
        let before = received(&lab.container(1));
        gateway.run(&["ping", "-n", "-c", "5", "-i", "0.05", "-W", "1", "-I", &source, &inside.to_string()]);
        assert_eq!(received(&lab.container(1)), before, "packets in clear from {source} reached the container");
        gateway.ok(&format!("ip addr del {source}/32 dev lo"));
    }
    pinger::assert_all_pairs(&lab, &agents);
}

/// Returns the number of echo requests that a container has received.
fn received(container: &Namespace) -> u64 {
    let text = container.ok("cat /proc/net/snmp");
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("Icmp:")).collect();
    let at = rows[0].split_whitespace().position(|name| name == "InEchos").unwrap();
    rows[1].split_whitespace().nth(at).unwrap().parse().unwrap()
}

/// The longest time that a packet may wait for a handshake under a new key.
const PAUSE: Duration = Duration::from_millis(300);

fn rotated() {
    let lab = Lab::new(&shape(3));
    let agents = lab.join_all();
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    let (one, two, three) = (address(&agents[0]), address(&agents[1]), address(&agents[2]));
    let streams = [(1, two), (2, one), (1, three), (2, three)]
        .map(|(from, to)| (from, to, Pinger::start(&lab, &lab.container(from), to)));
    pause(Duration::from_millis(500));
    let before = published(&lab.etcd);
    let since = Instant::now();
    let ran = agents[0].command(&["rotate-key"]);
    let took = since.elapsed();
    assert_eq!(ran.code, 0, "{}{}\n{}", ran.stdout, ran.stderr, agents[0].log());
    let key = ran.stdout.trim().to_owned();
    let own = lab.topology.host(1).v4.to_string();
    assert_eq!(published(&lab.etcd)[&own], key);
    assert_ne!(before[&own], key);
    for peer in &agents[1..] {
        wait_until("the peer speaks to the new key and no longer to the old one", SOON, || {
            let shown = peers(peer, DEVICE);
            let swapped = shown.contains_key(&key) && !shown.contains_key(&before[&own]);
            if swapped { Ok(()) } else { Err(format!("{shown:?}")) }
        });
    }
    pause(Duration::from_secs(1));
    let (mut lost, mut slowest) = (0, Duration::ZERO);
    for (from, to, stream) in streams {
        let losses = stream.stop();
        assert!(losses.sent > 50, "{losses:?}");
        assert!(losses.lost.is_empty(), "c{from} to {to}: {losses:?}");
        slowest = slowest.max(losses.slowest);
        lost += losses.lost.len();
    }
    println!(
        "figure: wireguard, rotate-key under 4 × 100 pings/s: {lost} lost, the slowest answered after {} ms, the command took {} ms",
        slowest.as_millis(),
        took.as_millis()
    );
    assert!(slowest <= PAUSE, "a ping waited {slowest:?} for the new key");
    for agent in &agents {
        agent.wait_converged(2);
        let text = fs::read_to_string(agent.state_dir.join("wireguard.key")).unwrap();
        assert!(!agent.log().contains(text.trim()), "the private key is in the log of host{}", agent.number);
    }
    pinger::assert_all_pairs(&lab, &agents);
}

fn address(agent: &Agent) -> IpAddr {
    agent.subnet().container_addresses().next().unwrap()
}

fn rotated_alone() {
    let lab = Lab::new(&shape(2));
    let mut agents = vec![lab.join(1)];
    agents[0].wait_converged(0);
    for _ in 0..2 {
        assert_eq!(agents[0].command(&["rotate-key"]).code, 0, "{}", agents[0].log());
    }
    agents.push(lab.join(2));
    agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    // And again and again, sooner than the device of a key before is let go of.
    for _ in 0..3 {
        assert_eq!(agents[0].command(&["rotate-key"]).code, 0, "{}", agents[0].log());
        pinger::assert_all_pairs(&lab, &agents);
    }
}

fn not_rotated() {
    let mut lab = Lab::new(&shape(2));
    let agents = lab.join_all();
    let key = fs::read(agents[0].state_dir.join("wireguard.key")).unwrap();
    lab.etcd.end_if_running();
    agents[0].wait_for_problem("store-unreachable");
    let ran = agents[0].command(&["rotate-key"]);
    assert_eq!(ran.code, 5, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("nothing was changed"), "{}", ran.stderr);
    assert_eq!(fs::read(agents[0].state_dir.join("wireguard.key")).unwrap(), key);
}

fn key_kept() {
    let lab = Lab::new(&shape(2));
    let mut agents = lab.join_all();
    let before = published(&lab.etcd);
    let file = agents[0].state_dir.join("wireguard.key");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    agents[0].end(Signal::SIGTERM);
    // As after a reboot: /run and the device are gone.
    fs::remove_dir_all(&agents[0].run_dir).unwrap();
    lab.host(1).ok(&format!("ip link del {DEVICE}"));
    agents[0].start();
    agents[0].wait_converged(1);
    assert_eq!(published(&lab.etcd), before);
    let own = &before[&lab.topology.host(1).v4.to_string()];
    assert_eq!(wg(&agents[0], &[DEVICE, "public-key"]).trim(), own);
}

fn back_soon() {
    let lab = Lab::new(&shape(2));
    let mut agents = lab.join_all();
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    let target = address(&agents[1]);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        agents[0].end(signal);
        // The device and its routes outlive the process: what is sent meanwhile is dropped there.
        assert!(oracle::link(&lab.host(1), DEVICE).is_some());
        let routes = destinations(&lab.host(1));
        agents[0].start();
        let since = Instant::now();
        pinger::assert_reaches(&lab.container(1), target);
        let took = since.elapsed();
        println!(
            "figure: wireguard (userspace), {signal} + start: containers reach each other again after {} ms",
            took.as_millis()
        );
        assert!(took < Duration::from_secs(3), "{took:?}\n{}", agents[0].log());
        agents[0].wait_converged(1);
        assert_eq!(destinations(&lab.host(1)), routes);
    }
}

/// Returns where our routes lead. Whether their device has a carrier just now is left out.
fn destinations(host: &Namespace) -> BTreeMap<String, String> {
    oracle::own_routes(host)
        .into_iter()
        .map(|(to, route)| (to, format!("{} {}", route["type"], route["dev"])))
        .collect()
}

/// A host without an agent, whose tunnel is carried by Debian's wireguard-go.
struct Foreign<'l> {
    lab: &'l Lab,
    host: Agent,
    device: &'static str,
    key: String,
}

impl<'l> Foreign<'l> {
    fn new(lab: &'l Lab, number: u8, device: &'static str, port: u16, address: &str) -> Self {
        let host = lab.agent(number);
        let files = lab.directory.join(format!("host{number}"));
        let mut made = Self { lab, host, device, key: String::new() };
        made.ok(&format!(
            "umask 077; wg genkey > {0}/key; wg pubkey < {0}/key > {0}/pub; wireguard-go {device} >/dev/null 2>&1; \
             wg set {device} listen-port {port} private-key {0}/key; ip addr add {address} dev {device}; \
             ip link set {device} up mtu 1420",
            files.display()
        ));
        fs::read_to_string(files.join("pub")).unwrap().trim().clone_into(&mut made.key);
        made
    }

    fn ok(&self, script: &str) {
        let ran = run(&mut self.host.on_host(vec!["sh".to_owned(), "-ec".to_owned(), script.to_owned()]));
        assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    }

    /// Makes the owner of every other lease a peer, and adds routes by this host's device to those of `agents`.
    fn follow(&self) {
        for (name, lease) in self.lab.etcd.subnets() {
            let (subnet, ip) = (name.replace('-', "/"), lease["PublicIP"].as_str().unwrap());
            let key = lease["BackendData"]["PublicKey"].as_str().unwrap();
            let subnet = subnet.rsplit_once("subnets/").map_or(subnet.as_str(), |(_, subnet)| subnet);
            if key != self.key {
                let device = self.device;
                self.ok(&format!(
                    "wg set {device} peer {key} endpoint {ip}:51820 allowed-ips {subnet}; ip route replace {subnet} dev {device}"
                ));
            }
        }
    }

    fn public_ip(&self) -> String {
        self.lab.topology.host(self.host.number).v4.to_string()
    }
}

impl Drop for Foreign<'_> {
    fn drop(&mut self) {
        // It lives in the namespace's own file system view: ended by its device.
        let _ = self.lab.host(self.host.number).run(&["ip", "link", "del", self.device]);
    }
}

fn foreign_peer() {
    let lab = Lab::new(&shape(3));
    let agents = vec![lab.join(1), lab.join(2)];
    agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    lab.attach_all(&agents);
    let foreign = Foreign::new(&lab, 3, "wg9", 51999, "10.100.3.1/24");
    foreign.follow();
    let program = program().display().to_string();
    let added = format!(
        "{program} network peer add default --subnet 10.100.3.0/24 --public-ip {} --public-key {} --port 51999 --endpoint={}",
        foreign.public_ip(),
        foreign.key,
        lab.topology.endpoint()
    );
    lab.host(1).ok(&added);
    for agent in &agents {
        agent.wait_converged(2);
        pinger::assert_reaches(&lab.container(agent.number), "10.100.3.1".parse().unwrap());
        pinger::assert_reaches(&lab.host(3), self::address(agent));
    }
}

/// flannel adds the new key as a peer when it reads the lease, never takes the old one away, and begins no handshake.
fn rotated_beside_flannel() {
    let lab = Lab::new(&shape(2));
    let agents = vec![lab.join(1)];
    lab.attach_all(&agents);
    let flannel = Foreign::new(&lab, 2, "flannel-wg", 51820, "10.100.3.0/32");
    flannel.ok("ip addr add 10.100.3.2/32 dev lo; ip addr add 10.100.3.3/32 dev lo");
    let lease = serde_json::json!({
        "PublicIP": flannel.public_ip(), "PublicIPv6": null, "BackendType": "wireguard",
        "BackendData": { "PublicKey": flannel.key }
    });
    let granted = lab.etcd.grant(Duration::from_secs(3600));
    lab.etcd.put("/coreos.com/network/subnets/10.100.3.0-24", &lease.to_string(), Some(&granted));
    agents[0].wait_converged(1);
    flannel.follow();
    let (ours, theirs) = (address(&agents[0]), "10.100.3.2".parse().unwrap());
    pinger::assert_reaches(&lab.container(1), theirs);
    for (direction, both) in [("both ways", true), ("one way", false)] {
        let out = Pinger::start(&lab, &lab.container(1), theirs);
        let back = both.then(|| Pinger::start(&lab, &lab.host(2), ours));
        pause(Duration::from_millis(300));
        let ran = agents[0].command(&["rotate-key"]);
        assert_eq!(ran.code, 0, "{}{}\n{}", ran.stdout, ran.stderr, agents[0].log());
        flannel.follow();
        pause(Duration::from_secs(2));
        let (out, back) = (out.stop(), back.map(Pinger::stop));
        let slowest = out.slowest.max(back.as_ref().map(|back| back.slowest).unwrap_or_default());
        let lost = out.lost.len() + back.as_ref().map_or(0, |back| back.lost.len());
        println!(
            "figure: wireguard, rotate-key beside a flannel host, 100 pings/s {direction}: {lost} lost, the slowest answered after {} ms",
            slowest.as_millis()
        );
        assert_eq!(lost, 0, "{out:?} {back:?}");
        assert!(slowest <= PAUSE, "{direction}: {slowest:?}");
    }
    // A host that has not read the new key is still received, by the sessions it has, until its lease is gone.
    let arrive = || {
        let before = received(&lab.container(1));
        lab.host(2).run(&["ping", "-n", "-c", "5", "-i", "0.05", "-W", "1", &ours.to_string()]);
        received(&lab.container(1)) - before
    };
    assert_eq!(agents[0].command(&["rotate-key"]).code, 0);
    assert_eq!(arrive(), 5);
    lab.etcd.delete("/coreos.com/network/subnets/10.100.3.0-24");
    agents[0].wait_converged(0);
    wait_until("the peer is gone", SOON, || match peers(&agents[0], DEVICE) {
        peers if peers.is_empty() => Ok(()),
        peers => Err(format!("{peers:?}")),
    });
    assert_eq!(arrive(), 0);
}

fn one_tunnel() {
    let lab = Lab::without_network(&Shape { overlay: Families::Dual, ..shape(2) });
    let config = r#"{"Network":"10.100.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:100::/56","Backend":{"Type":"wireguard","Mode":"auto","ListenPort":51900,"PersistentKeepaliveInterval":25,"PSK":"DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk8="}}"#;
    lab.etcd.put("/coreos.com/network/config", config, None);
    let agents = lab.join_all();
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    let dump = wg(&agents[0], &["flatwg.51900", "dump"]);
    let peer: Vec<&str> = dump.lines().nth(1).unwrap().split('\t').collect();
    assert_eq!(peer[1], "DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk8=");
    assert!(peer[3].contains("10.100.") && peer[3].contains("fd00:100:"), "{dump}");
    assert_eq!(peer[7], "25", "{dump}");
    assert!(oracle::link(&agents[0].host, "flatwg.51901").is_none());
    assert!(!agents[0].log().contains("DD5y"), "the shared secret is in the log");
}

fn refused() {
    let lab = Lab::new(&shape(1));
    if lab.host(1).run(&["ip", "link", "add", "probe", "type", "wireguard"]).code == 0 {
        println!("figure: wireguard, --no-userspace: this kernel has the module, nothing to refuse");
        return;
    }
    let ran = lab.agent(1).with(&["--no-userspace"]).run();
    assert_eq!(ran.code, 4, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("modprobe wireguard"), "{}", ran.stderr);
    assert!(lab.etcd.subnets().is_empty(), "no lease is taken that cannot be served");
}

fn exposed_key() {
    let lab = Lab::new(&shape(1));
    let mut agent = lab.agent(1);
    fs::create_dir_all(&agent.state_dir).unwrap();
    let file = agent.state_dir.join("wireguard.key");
    fs::write(&file, "SGb+ojrRNDuMePufwtIYhXzA//k6wF3R21tEBgKlzlM=\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    agent.start();
    let problem = agent.wait_for_problem("wireguard-key-file");
    assert!(problem["message"].as_str().unwrap().contains("mode 0644"), "{problem}");
    assert!(lab.etcd.subnets().is_empty());
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    // The next look at the host sees it.
    lab.host(1).ok("ip link add nudge type bridge");
    agent.wait_converged(0);
    assert_eq!(wg(&agent, &[DEVICE, "public-key"]).trim(), "DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk8=");
}

fn one_key_twice() {
    let lab = Lab::new(&shape(3));
    let agents = [lab.join(1), lab.join(2)];
    agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    let mut copy = lab.agent(3);
    fs::create_dir_all(&copy.state_dir).unwrap();
    fs::copy(agents[1].state_dir.join("wireguard.key"), copy.state_dir.join("wireguard.key")).unwrap();
    copy.start();
    for agent in [&agents[0], &agents[1], &copy] {
        let problem = agent.wait_for_problem("duplicate-key");
        assert!(problem["hint"].as_str().unwrap().contains("rotate-key"), "{problem}");
    }
    let allowed: Vec<String> = peers(&agents[0], DEVICE).into_values().map(|(_, allowed)| allowed).collect();
    assert_eq!(allowed, [agents[1].subnet().gateways().next().unwrap().trunc().to_string()]);
    let ran = copy.command(&["rotate-key"]);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    for agent in [&agents[0], &agents[1], &copy] {
        agent.wait_converged(2);
    }
}
