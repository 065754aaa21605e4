//! Pings between containers: who reaches whom.

use std::net::IpAddr;

use futures::{StreamExt, TryStreamExt};

use super::command_line::CommandLine;
use super::subnet_env::SubnetEnv;
use super::topology::Topology;
use flatnet_plane::failure::{Exit, Failure};

/// The number of pings at a time: enough to be quick, few enough not to measure the machine's load.
const AT_ONCE: usize = 8;

/// One container pinging another.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The number of the container that pings.
    pub from: u8,
    /// The number of the container that is pinged.
    pub to: u8,
    /// The address pinged.
    pub address: IpAddr,
    /// The average round trip of `ping`'s summary, in milliseconds; `None` if at least one of the pings had no answer.
    pub rtt_millis: Option<f64>,
}

/// Has every container ping every other at each of its addresses, three times.
pub async fn all_pairs(topology: &Topology, subnets: &[SubnetEnv]) -> Result<Vec<Pair>, Failure> {
    let numbers = || (1..=topology.hosts).zip(subnets);
    let mut pairs = Vec::new();
    for (from, _) in numbers() {
        for (to, subnet) in numbers().filter(|(to, _)| *to != from) {
            pairs.extend(subnet.container_addresses().map(|address| Pair { from, to, address, rtt_millis: None }));
        }
    }
    let pinged = pairs.into_iter().map(|mut pair| async move {
        pair.rtt_millis = summary(&topology.container(pair.from), pair.address, 3, 0.05).await?;
        Ok(pair)
    });
    futures::stream::iter(pinged).buffered(AT_ONCE).try_collect().await
}

/// Pings `address` from `namespace` `count` times every `interval_secs`. Returns the average round trip in
/// milliseconds, `None` if any ping was lost.
pub async fn summary(namespace: &str, address: IpAddr, count: u32, interval_secs: f64) -> Result<Option<f64>, Failure> {
    let line = format!("ping -n -q -c {count} -i {interval_secs} -W 1 {address}");
    let command = CommandLine::words(&line).inside(namespace);
    let output = tokio::process::Command::from(command.to_command())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot start `{command}`")).caused_by(error))?;
    Ok(average(&String::from_utf8_lossy(&output.stdout), count))
}

/// Reads the two summary lines of iputils' ping.
fn average(output: &str, count: u32) -> Option<f64> {
    let all_received = output.contains(&format!("{count} packets transmitted, {count} received"));
    let times = output.lines().find_map(|line| line.strip_prefix("rtt min/avg/max/mdev = "))?;
    all_received.then(|| times.split('/').nth(1)?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lost_ping_is_not_reachability() {
        let output = |received| {
            format!(
                "PING 10.0.0.2 (10.0.0.2) 56(84) bytes of data.\n\n--- 10.0.0.2 ping statistics ---\n3 packets transmitted, \
                 {received} received, 0% packet loss, time 102ms\nrtt min/avg/max/mdev = 0.044/0.062/0.091/0.020 ms\n"
            )
        };
        assert_eq!(average(&output(3), 3), Some(0.062));
        assert_eq!(average(&output(2), 3), None);
        assert_eq!(average("ping: connect: Network is unreachable\n", 3), None);
    }
}
