//! The comparison of underlay and overlay: TCP throughput and ping latency between the first two hosts, and between
//! their containers.

use std::net::IpAddr;
use std::time::Duration;

use super::command_line::CommandLine;
use super::progress::Progress;
use super::subnet_env::SubnetEnv;
use super::topology::Topology;
use super::{ping, tools};
use flatnet_plane::failure::{Exit, Failure};

/// The number of rounds. Underlay and overlay take turns, so that a noisy moment hits both; the median is shown.
const ROUNDS: usize = 3;
/// The pause between two attempts to reach an iperf3 server that has just been started.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// The number of attempts: 2 s in all.
const ATTEMPTS: u32 = 40;
/// The number of pings per latency figure: half a second's worth.
const PINGS: u32 = 50;

/// One path's figures.
#[derive(Clone, Debug)]
pub struct Figures {
    /// The path's name: `underlay host1 → host2` and the like.
    pub path: String,
    /// The throughput of TCP with one stream, in Gbit/s; `None` without iperf3.
    pub gigabits: Option<f64>,
    /// The average round trip in milliseconds; `None` if pings were lost.
    pub rtt_millis: Option<f64>,
}

struct Path {
    name: String,
    from: String,
    to: String,
    address: IpAddr,
}

/// Measures both paths.
pub async fn measure(
    topology: &Topology,
    subnets: &[SubnetEnv],
    progress: &mut Progress,
) -> Result<Vec<Figures>, Failure> {
    let paths = paths(topology, subnets);
    progress.step("measuring latency");
    let mut figures = Vec::new();
    for path in &paths {
        let rtt_millis = ping::summary(&path.from, path.address, PINGS, 0.01).await?;
        figures.push(Figures { path: path.name.clone(), gigabits: None, rtt_millis });
    }
    if tools::find(tools::IPERF3).is_none() {
        return Ok(figures);
    }
    progress.step("measuring throughput");
    let mut rounds = vec![Vec::new(); paths.len()];
    for round in 1..=ROUNDS {
        progress.detail(&format!("round {round} of {ROUNDS}"));
        for (path, results) in paths.iter().zip(&mut rounds) {
            results.push(throughput(path).await?);
        }
    }
    for (figures, results) in figures.iter_mut().zip(&mut rounds) {
        results.sort_by(f64::total_cmp);
        figures.gigabits = results.get(results.len() / 2).copied();
    }
    Ok(figures)
}

fn paths(topology: &Topology, subnets: &[SubnetEnv]) -> Vec<Path> {
    let (one, two) = (topology.host(1), topology.host(2));
    let mut paths = vec![Path {
        name: "underlay host1 → host2".to_owned(),
        from: one.namespace,
        to: two.namespace,
        address: IpAddr::V4(two.v4),
    }];
    paths.extend(subnets.get(1).and_then(|subnet| subnet.container_addresses().next()).map(|address| Path {
        name: "overlay c1 → c2".to_owned(),
        from: topology.container(1),
        to: topology.container(2),
        address,
    }));
    paths
}

async fn throughput(path: &Path) -> Result<f64, Failure> {
    let server = CommandLine::words("iperf3 --server --one-off").inside(&path.to);
    let mut server = tokio::process::Command::from(server.to_command());
    let quiet = || std::process::Stdio::null();
    let mut server = server
        .stdout(quiet())
        .stderr(quiet())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Failure::new(Exit::Internal, "cannot start iperf3").caused_by(error))?;
    let client = format!("iperf3 --json --time 1 --connect-timeout 1000 --client {}", path.address);
    let client = CommandLine::words(&client).inside(&path.from);
    let mut result = Err(Failure::new(Exit::Unavailable, "iperf3 was not tried"));
    for _ in 0..ATTEMPTS {
        // With --json a refused connection is exit 0 and an output without figures.
        result = client.run().await.and_then(|output| {
            gigabits(&output).ok_or_else(|| Failure::new(Exit::Unavailable, format!("iperf3 has no figures: {output}")))
        });
        if result.is_ok() {
            break;
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
    // The server ends by itself after one client; if it does not, it ends here.
    let _ = server.start_kill();
    let _ = server.wait().await;
    result
}

fn gigabits(output: &str) -> Option<f64> {
    let json: serde_json::Value = serde_json::from_str(output).ok()?;
    json.pointer("/end/sum_received/bits_per_second")?.as_f64().map(|bits| bits / 1e9)
}
