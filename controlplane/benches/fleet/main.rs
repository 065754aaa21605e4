//! The number of agents that one control plane carries: a benchmark that prints. Nothing is asserted on time.
//!
//! Agents are the real client over TLS on loopback, all in this process, with no kernel behind them; the server is a
//! process of its own before a real etcd. The method is in docs/benchmarks.md.
//!
//! `make bench-controlplane`, or `cargo bench -p flatnet-controlplane --bench fleet -- [--agents N] [--only PART]`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and one whose assumption fails has no figures to give"
)]

mod agents;
mod embedded;
mod processes;

use std::time::Duration;

use agents::Fleet;
use processes::{Etcd, Scratch, Server};

/// The number of agents unless `--agents` says otherwise.
const AGENTS: u32 = 1_000;
/// The number of changes whose way to every agent is timed.
const CHANGES: u32 = 20;

fn value(flag: &str) -> Option<String> {
    let arguments: Vec<String> = std::env::args().collect();
    let at = arguments.iter().position(|argument| argument == flag)?;
    arguments.get(at + 1).cloned()
}

#[tokio::main]
async fn main() {
    let agents = value("--agents").map_or(AGENTS, |number| number.parse().expect("--agents takes a number"));
    let only = value("--only");
    let has = |part: &str| only.as_deref().is_none_or(|only| only == part);
    let scratch = Scratch::new();
    if has("fleet") {
        fleet(agents, &scratch).await;
    }
    if has("embedded") {
        embedded::measure(&scratch).await;
    }
}

async fn fleet(count: u32, scratch: &Scratch) {
    let etcd = Etcd::start(scratch);
    let server = Server::start(scratch, &["--store", "etcd", "--endpoints", &etcd.endpoint], count);
    let before = server.resident_kib();
    let joined = Fleet::start(count, &server, scratch).await;
    println!("{count} agents join with one token: lease and full snapshot for all after {}", seconds(joined.took));
    joined.fleet.drop_all().await;

    // As after a power cut: certificates and leases are there, every process begins anew.
    drop(server);
    let server = Server::start_again(scratch, &["--store", "etcd", "--endpoints", &etcd.endpoint], count);
    let began = Fleet::start(count, &server, scratch).await;
    println!("the same with certificates, server and agents started anew: {}", seconds(began.took));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = server.resident_kib();
    let each = f64::from(after.saturating_sub(before)) / f64::from(count);
    println!("server: {before} KiB with no agent, {after} KiB with {count}: {each:.0} KiB an agent");
    println!("watches in etcd: {}", etcd.watchers());
    let mut times = began.fleet.changes(&etcd, CHANGES).await;
    times.sort_unstable();
    let at =
        |percent: usize| times.get((times.len() * percent / 100).min(times.len() - 1)).copied().unwrap_or_default();
    println!(
        "one change reaches all of {count}, {CHANGES} times: p50 {:.1} ms, p99 {:.1} ms, worst {:.1} ms",
        millis(at(50)),
        millis(at(99)),
        millis(at(100)),
    );
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
