//! The time from the start of an agent on an empty host to the last route, and of a start over a kernel that is already
//! right.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flatnet_tests::netns::Namespace;
use flatnet_tests::wait::pause;

use crate::Plan;
use crate::host::{DEADLINE, World};
use crate::process::{counter, cpu_seconds, page};
use crate::reference;
use crate::routes::Routes;
use crate::table::{Figures, Table, short};

/// The port at which the agent serves its metrics; etcd's are at its client port.
const METRICS: u16 = 9_100;
const ETCD: u16 = 2_379;

/// flannel's figures: leases, `subnet.env`, all programmed, processor time, warm restart.
const FLANNEL: [(u32, &str, &str, &str, &str); 4] = [
    (100, "128 ms", "193 ms", "0.05 s", "0.17–0.4 s"),
    (1_000, "314 ms", "658 ms", "0.33 s", "0.75–0.9 s"),
    (4_000, "880 ms", "2,396 ms", "0.90 s", "2.1–2.8 s"),
    (8_000, "1,503 / 1,803 ms", "4,380 / 5,120 ms", "2.19 / 2.56 s", "4.1 / 7.8 s"),
];

/// Measures starts at `leases`.
pub fn measure(leases: u32, plan: &Plan, table: &mut Table) {
    let world = World::new(1, "vxlan", leases);
    let host = world.lab.host(1);
    let (mut env, mut all, mut cpu, mut tools, mut nft, mut ratio) = Default::default();
    let mut calls = BTreeMap::new();
    let mut warm = Warm::default();
    for _ in 0..plan.runs {
        world.renew_host(1);
        let routes = Routes::watch(&host);
        let before = etcd_calls(&world);
        let mut agent = world.start(1, &["--http-listen=127.0.0.1:9100"]);
        Figures::push_ms(&mut env, agent.env_written() - agent.began);
        let programmed = routes.wait(leases, DEADLINE) - agent.began;
        Figures::push_ms(&mut all, programmed);
        pause(Duration::from_secs(1));
        let used: &mut Figures = &mut cpu;
        used.0.push(cpu_seconds(agent.pid()));
        calls = difference(&before, &etcd_calls(&world));
        let ruleset = host.ok("nft list table inet flatnet");
        drop(routes);
        agent.kill();
        let again = warm_start(&world, &host, &mut warm);
        world.forget(again);
        world.renew_host(1);
        let took = reference::program(&world, &host, leases, &ruleset);
        Figures::push_ms(&mut tools, took.ip);
        Figures::push_ms(&mut nft, took.nft);
        let ratios: &mut Figures = &mut ratio;
        ratios.0.push(programmed.as_secs_f64() / took.ip.as_secs_f64());
    }
    let quoted = FLANNEL.iter().find(|quoted| quoted.0 == leases).copied().unwrap_or_default();
    table.row(format!("start → subnet.env, {leases} leases"), env.text("ms"), "", quoted.1);
    let bar = 2.0 * tools.median() + 50.0;
    let reference = format!(
        "ip + bridge -batch {}; ratio {}; bar {} ms; nft -f {}",
        tools.text("ms"),
        short(ratio.median()),
        short(bar),
        nft.text("ms")
    );
    table.row(format!("start → all programmed, {leases} leases"), all.text("ms"), reference, quoted.2);
    table.row(format!("processor time of a start, {leases} leases"), cpu.text("s"), "", quoted.3);
    let calls: Vec<String> = calls.iter().map(|(method, count)| format!("{method} {count}")).collect();
    let quoted_calls = format!("Range 5, LeaseTimeToLive {}", 2 * leases + 2);
    table.row(format!("calls to etcd in the first second, {leases} leases"), calls.join(", "), "", &quoted_calls);
    table.row(
        format!("start over a kernel that is right → ready, {leases} leases"),
        warm.ready.text("ms"),
        "",
        quoted.4,
    );
    let writes = if warm.writes.is_empty() { "none".to_owned() } else { format!("{:?}", warm.writes) };
    table.row(format!("kernel writes of that start, {leases} leases"), writes, "", "every object");
}

#[derive(Default)]
struct Warm {
    ready: Figures,
    /// The number of operations by their labels, the most over all runs.
    writes: BTreeMap<String, u64>,
}

/// Starts the agent again on the host as the killed one left it.
fn warm_start(world: &World, host: &Namespace, warm: &mut Warm) -> crate::host::Daemon {
    let agent = world.start(1, &["--http-listen=127.0.0.1:9100"]);
    loop {
        match page(host, METRICS, "/readyz") {
            Some((200, _)) => break,
            _ if agent.began.elapsed() > DEADLINE => panic!("never ready"),
            _ => pause(Duration::from_millis(2)),
        }
    }
    warm.ready.push_ms(Instant::now() - agent.began);
    pause(Duration::from_secs(1));
    let metrics = page(host, METRICS, "/metrics").unwrap().1;
    for line in metrics.lines().filter_map(|line| line.strip_prefix("flatnet_reconcile_ops_total{")) {
        let (labels, count) = line.rsplit_once("} ").unwrap();
        let most = warm.writes.entry(labels.to_owned()).or_default();
        *most = count.parse().unwrap_or(0).max(*most);
    }
    agent
}

/// Returns the number of calls that etcd has begun to answer, by method.
fn etcd_calls(world: &World) -> BTreeMap<String, f64> {
    let etcd = Namespace(world.lab.topology.store().namespace);
    let metrics = page(&etcd, ETCD, "/metrics").expect("etcd has metrics").1;
    let name = "grpc_server_started_total";
    let methods = metrics.lines().filter(|line| line.starts_with(name));
    let methods = methods.filter_map(|line| line.split_once("grpc_method=\"")?.1.split_once('"'));
    methods.map(|(method, _)| (method.to_owned(), counter(&metrics, name, &format!("\"{method}\"")))).collect()
}

fn difference(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let change = |(method, count): (&String, &f64)| {
        let more = count - before.get(method).copied().unwrap_or_default();
        (more > 0.0).then(|| (method.clone(), more))
    };
    after.iter().filter_map(change).collect()
}
