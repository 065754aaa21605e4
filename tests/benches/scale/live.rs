//! A running agent beside many leases: its size, its use of the processor when idle, and how soon it follows.

use std::net::Ipv4Addr;
use std::time::Duration;

use flatnet_plane::store::Write;
use flatnet_tests::lab::wire;
use flatnet_tests::netns::Namespace;
use flatnet_tests::wait::pause;

use crate::Plan;
use crate::host::{DEADLINE, Daemon, World, network};
use crate::leases::{self, BURST};
use crate::probe::{Echo, Prober};
use crate::process::{cpu_seconds, memory_kib};
use crate::routes::Routes;
use crate::table::{Figures, Table, short};
use flatnet_lab::command_line::CommandLine;

/// The time the agent is left alone before its memory is read.
const SETTLE: Duration = Duration::from_secs(6);
/// The time over which its processor time is counted.
const IDLE: Duration = Duration::from_secs(10);
/// The pause between two single leases: long enough for the full pass that follows the last one.
const PAUSE: Duration = Duration::from_millis(150);
/// The subnet and the Ethernet address of the peer that comes and goes.
const PEER: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 0);
const PEER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
const PEER_MAC: &str = "4e:f4:0c:52:b7:8d";

/// flannel's figures: leases, resident memory, one more lease, a burst.
const FLANNEL: [(u32, &str, &str, &str); 4] = [
    (100, "18.5–19 MB", "1.8–3.7 ms", "404–815 ms"),
    (1_000, "20.5 MB (37 MB as released)", "1.8–3.7 ms", "404–815 ms"),
    (4_000, "21–23 MB", "1.8–3.7 ms", "404–815 ms"),
    (8_000, "26 MB", "1.8–3.7 ms", "0.69 / 1.4 s"),
];

/// Measures an agent beside `leases`.
pub fn measure(leases: u32, plan: &Plan, table: &mut Table) {
    let quoted = FLANNEL.iter().find(|quoted| quoted.0 == leases).copied().unwrap_or_default();
    let world = World::new(2, "vxlan", leases);
    let host = world.lab.host(1);
    let routes = Routes::watch(&host);
    let agent = world.start(1, &[]);
    routes.wait(leases, DEADLINE);
    pause(SETTLE);
    let mib = |line: &str| short(memory_kib(agent.pid(), line) / 1024.0);
    let memory = format!("{} MiB ({} anonymous; {} at most)", mib("VmRSS"), mib("RssAnon"), mib("VmHWM"));
    table.row(format!("resident memory, {leases} leases"), memory, "", quoted.1);
    let before = cpu_seconds(agent.pid());
    pause(IDLE);
    let idle = cpu_seconds(agent.pid()) - before;
    let idle = format!("{idle:.2} s in {} s", IDLE.as_secs());
    table.row(format!("processor time when idle, {leases} leases"), idle, "", "≤ 0.02 s in 6–10 s");
    single(leases, plan, &world, &agent, &routes, quoted.2, table);
    burst(leases, plan, &world, &routes, quoted.3, table);
    let after = format!("{} MiB ({} at most)", mib("VmRSS"), mib("VmHWM"));
    table.row(format!("resident memory after that, {leases} leases"), after, "", "");
}

/// Measures one more lease, again and again.
fn single(leases: u32, plan: &Plan, world: &World, agent: &Daemon, routes: &Routes, quoted: &str, table: &mut Table) {
    let (host, other) = (world.lab.host(1), world.lab.host(2));
    hand_made_peer(world, &host, &other, network(agent.subnet()));
    let echo = Echo::start(&other);
    let prober = Prober::new(&host);
    let (mut routed, mut answered) = (Figures::default(), Figures::default());
    let key = leases::key(PEER);
    for sample in 0..plan.samples {
        let value = leases::value(world.lab.topology.host(2).v4, PEER_MAC);
        let probing = std::thread::scope(|scope| {
            let probing = scope.spawn(|| prober.until_answered(PEER_ADDRESS, DEADLINE));
            // Spread over the probe's period.
            pause(Duration::from_micros(2_000 + u64::try_from(sample % 10).unwrap() * 50));
            let began = world.writer.write_one(Write::Put { key: key.clone(), value, lease: None });
            routed.push_ms(routes.wait(leases + 1, DEADLINE).saturating_duration_since(began));
            probing.join().unwrap().saturating_duration_since(began)
        });
        answered.push_ms(probing);
        world.writer.write_one(Write::Delete(key.clone()));
        routes.wait(leases, DEADLINE);
        pause(PAUSE);
    }
    drop(echo);
    let text = |figures: &Figures| {
        let (p50, p99) = (short(figures.median()), short(figures.percentile(99)));
        format!("p50 {p50} ms, p99 {p99} ms, n{}", figures.0.len())
    };
    table.row(format!("new lease → route, beside {leases}"), text(&routed), "", quoted);
    table.row(format!("new lease → first packet answered, beside {leases}"), text(&answered), "", "");
}

/// Makes the other host by hand: a VXLAN device with an address inside the coming peer's subnet, and the way back.
fn hand_made_peer(world: &World, host: &Namespace, other: &Namespace, own: Ipv4Addr) {
    let device = host.json("ip -j link show dev flat.1");
    let own_mac = device[0]["address"].as_str().unwrap();
    let (here, there) = (world.lab.topology.host(1).v4, world.lab.topology.host(2).v4);
    let name = &other.0;
    let lines = [
        format!("ip -n {name} link add vx type vxlan id 1 local {there} dstport 8472 nolearning"),
        format!("ip -n {name} link set vx address {PEER_MAC} mtu 1450 up"),
        format!("ip -n {name} addr add {PEER_ADDRESS}/32 dev vx"),
        format!("ip -n {name} neigh add {own} lladdr {own_mac} dev vx nud permanent"),
        format!("bridge -n {name} fdb add {own_mac} dev vx dst {here}"),
        format!("ip -n {name} route add {own}/24 via {own} dev vx onlink"),
    ];
    wire(&lines.map(|line| CommandLine::words(&line)));
}

/// Measures many leases at once, and their end.
fn burst(leases: u32, plan: &Plan, world: &World, routes: &Routes, quoted: &str, table: &mut Table) {
    let (mut added, mut removed) = (Figures::default(), Figures::default());
    for _ in 0..plan.runs {
        let began = world.writer.write(leases::puts(leases, leases + BURST));
        added.push_ms(routes.wait(leases + BURST, DEADLINE) - began);
        pause(Duration::from_secs(1));
        let began = world.writer.write(leases::deletes(leases, leases + BURST));
        removed.push_ms(routes.wait(leases, DEADLINE) - began);
        pause(Duration::from_secs(1));
    }
    table.row(format!("{BURST} more leases → routes, beside {leases}"), added.text("ms"), "", quoted);
    table.row(format!("{BURST} leases gone → routes gone, beside {leases}"), removed.text("ms"), "", "136–389 ms");
}
