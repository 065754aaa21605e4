//! Four thousand peers at the kernel's own tunnels: one multipoint GRE device, one WireGuard device.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use flatnet_tests::agent::BRIDGE;
use flatnet_tests::suite::Test;
use flatnet_tests::vm::{Vm, VmLab};

pub fn tests() -> Vec<Test> {
    let test = |name: &str, body: fn()| Test::new(name, body).in_vms();
    vec![
        test("four_thousand_peers_at_one_gre_device_of_the_kernels", || thousands(&GRE)),
        test("four_thousand_peers_at_one_wireguard_device_of_the_kernels", || thousands(&WIREGUARD)),
    ]
}

/// Hosts besides the two that there are.
const PEERS: u32 = 4_000;
/// Operations that etcd takes in one transaction (`--max-txn-ops`).
const TXN: usize = 128;

/// One backend: its names for things, and the tools' way to the same objects.
struct Kind {
    backend: &'static str,
    device: &'static str,
    /// The command that counts the objects of a device: one for each peer.
    count: &'static str,
    /// The script that makes a device `reference` in another namespace and programs it from the files of [`Reference`].
    make: &'static str,
    /// The number of times that is measured: at 4,000 peers of WireGuard an emulated machine takes half a minute.
    rounds: usize,
    program: &'static str,
}

const GRE: Kind = Kind {
    backend: "gre",
    device: "flatgre0",
    count: "ip neigh show dev flatgre0 nud permanent | wc -l",
    make: "ip -n reference link add reference type gre local 192.0.2.1",
    rounds: 3,
    program: "ip -n reference -batch /run/neighbours && ip -n reference -batch /run/routes-onlink",
};

const WIREGUARD: Kind = Kind {
    backend: "wireguard",
    device: "flatwg.51820",
    count: "wg show flatwg.51820 peers | wc -l",
    // With a key, as a device in use: the kernel computes a secret for each peer.
    make: "ip -n reference link add reference type wireguard && wg genkey >/run/key && \
           ip netns exec reference wg set reference private-key /run/key",
    rounds: 1,
    program: "ip netns exec reference wg addconf reference /run/peers && ip -n reference -batch /run/routes",
};

/// Returns the subnet of peer `number`, clear of the two that the agents take from the range's end.
fn subnet(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 64, 1, 0).to_bits() + (number << 8))
}

fn underlay(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 1).to_bits() + number)
}

/// Returns a key nobody has the private half of: 43 characters and the padding are 32 bytes, the last two bits of them
/// zero.
fn key(number: u32) -> String {
    format!("flat{number:05}{:A>34}=", "")
}

impl Kind {
    /// Transactions for `etcdctl txn`, separated by lines of `---`.
    fn leases(&self) -> String {
        let data = |number: u32| match self.backend {
            "wireguard" => format!(r#","BackendData":{{"PublicKey":"{}"}}"#, key(number)),
            _ => String::new(),
        };
        let put = |number: u32| {
            let (ip, backend, data) = (underlay(number), self.backend, data(number));
            let value = format!(r#"{{"PublicIP":"{ip}","BackendType":"{backend}"{data}}}"#);
            format!("put /coreos.com/network/subnets/{}-24 {value:?}", subnet(number))
        };
        let puts: Vec<String> = (0..PEERS).map(put).collect();
        // Nothing is compared.
        let transactions: Vec<String> = puts.chunks(TXN).map(|puts| format!("\n{}\n\n\n", puts.join("\n"))).collect();
        transactions.join("---\n")
    }

    /// Writes the files that the tools read.
    fn reference(&self, vm: &Vm) {
        let (mut neighbours, mut onlink, mut routes, mut peers) =
            (String::new(), String::new(), String::new(), String::new());
        for number in 0..PEERS {
            let (subnet, underlay, key) = (subnet(number), underlay(number), key(number));
            let _ = writeln!(neighbours, "neigh add {subnet} lladdr {underlay} dev reference nud permanent");
            let _ = writeln!(onlink, "route add {subnet}/24 via {subnet} dev reference onlink");
            let _ = writeln!(routes, "route add {subnet}/24 dev reference");
            let _ = writeln!(peers, "[Peer]\nPublicKey = {key}\nEndpoint = {underlay}:51820\nAllowedIPs = {subnet}/24");
        }
        for (name, text) in
            [("neighbours", neighbours), ("routes-onlink", onlink), ("routes", routes), ("peers", peers)]
        {
            vm.put(&format!("/run/{name}"), 0o600, text.as_bytes());
        }
        vm.ok(&format!(
            "ip netns add reference && ip -n reference link set lo up && {} && ip -n reference link set reference up",
            self.make
        ));
    }
}

/// Returns the average of some pings between the containers, in milliseconds.
fn round_trip(vm: &Vm, to: IpAddr) -> f64 {
    let said = vm.ok(&format!("ip netns exec c1 ping -n -q -c 40 -i 0.05 -W 2 {to} | grep rtt"));
    said.split('/').nth(4).and_then(|average| average.parse().ok()).unwrap_or_else(|| panic!("{said}"))
}

/// Returns the milliseconds that `script` takes in the machine.
fn took(vm: &Vm, script: &str) -> u64 {
    let said = vm.ok(&format!(
        "began=$(date +%s%N); {{ {script}; }} >/run/said 2>&1 || {{ tail -n 3 /run/said; exit 1; }}; \
         echo $((($(date +%s%N) - began) / 1000000))"
    ));
    said.trim().parse().unwrap_or_else(|_| panic!("{said}"))
}

fn thousands(kind: &Kind) {
    let lab = VmLab::up(2);
    lab.start_etcd(1);
    lab.configure(&format!(
        r#"{{"Network":"10.64.0.0/10","SubnetLen":24,"SubnetMin":"10.120.0.0","Backend":{{"Type":"{}"}}}}"#,
        kind.backend
    ));
    lab.join_all(&["--no-userspace"]);
    lab.attach_all();
    lab.assert_all_pairs();
    let two = lab.vm(2).subnet().container_addresses().next().unwrap();
    let alone = round_trip(lab.vm(1), two);

    lab.vm(1).put("/run/leases", 0o600, kind.leases().as_bytes());
    lab.vm(1).ok("cd /run && csplit -s -z -f txn. --suppress-matched leases '/^---$/' '{*}' && \
         for each in txn.*; do ETCDCTL_API=3 etcdctl txn <$each >/dev/null || exit 1; done");
    let all = usize::try_from(PEERS).unwrap() + 1;
    lab.each(|vm| {
        vm.wait_converged(all);
        assert_eq!(vm.ok(kind.count).trim(), all.to_string());
    });
    let among = round_trip(lab.vm(1), two);
    lab.assert_all_pairs();

    // From the start of an agent that finds nothing to the last peer, beside the tools, in turns.
    let vm = lab.vm(2);
    kind.reference(vm);
    let routes = format!("[ $(ip route show dev {} | wc -l) -ge {all} ] && [ $({}) = {all} ]", kind.device, kind.count);
    let endpoint = lab.endpoint();
    let (mut ours, mut tools) = (Vec::new(), Vec::new());
    for _ in 0..kind.rounds {
        vm.end("agent", "TERM");
        vm.ok(&format!("ip link del {}; nft delete table inet flatnet", kind.device));
        let join = format!(
            "setsid agent join {endpoint} --bridge {BRIDGE} --no-userspace >>/run/agent.log 2>&1 & echo $! >/run/agent.pid"
        );
        ours.push(took(
            vm,
            &format!("{{ {join}; }}; for i in $(seq 100); do {routes} && break; sleep 0.05; done; {routes}"),
        ));
        vm.wait_converged(all);
        tools.push(took(vm, kind.program));
        vm.ok(&format!("ip -n reference link del reference && {} && ip -n reference link set reference up", kind.make));
    }
    lab.assert_all_pairs();
    ours.sort_unstable();
    tools.sort_unstable();
    println!(
        "figure: {} (kernel), {PEERS} peers at one device: all programmed {:.1} s after the start of an agent that finds nothing, \
         the kernel's own tools need {:.1} s for the peers and routes (median of {} in an emulated machine); pings between two \
         containers take {among:.2} ms, {alone:.2} ms before the {PEERS} came",
        kind.backend,
        ours[kind.rounds / 2] as f64 / 1000.0,
        tools[kind.rounds / 2] as f64 / 1000.0,
        kind.rounds,
    );
}
