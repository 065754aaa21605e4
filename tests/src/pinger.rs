//! Pings: every pair once, and a steady stream whose losses are counted.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::agent::Agent;
use crate::lab::Lab;
use crate::netns::Namespace;
use crate::wait::{SOON, wait_until};

/// Pings from every agent's container to every other's, at each of its addresses, until all answer.
pub fn assert_all_pairs(lab: &Lab, agents: &[Agent]) {
    for from in agents {
        for to in agents.iter().filter(|to| to.number != from.number) {
            for address in to.subnet().container_addresses() {
                assert_reaches(&lab.container(from.number), address);
            }
        }
    }
}

/// Asserts that `address` answers `from`, soon.
pub fn assert_reaches(from: &Namespace, address: IpAddr) {
    wait_until(&format!("{} reaches {address}", from.0), SOON, || {
        let ran = from.run(&["ping", "-n", "-c", "1", "-W", "1", &address.to_string()]);
        if ran.code == 0 { Ok(()) } else { Err(format!("{}{}", ran.stdout, ran.stderr)) }
    });
}

/// Asserts that three pings get no answer; returns what `ping` printed.
pub fn assert_does_not_reach(from: &Namespace, address: IpAddr) -> String {
    let ran = from.run(&["ping", "-n", "-c", "3", "-i", "0.1", "-W", "1", &address.to_string()]);
    assert_ne!(ran.code, 0, "{} reaches {address}: {}", from.0, ran.stdout);
    format!("{}{}", ran.stdout, ran.stderr)
}

/// A stream of 100 pings a second: iputils rounds 10 ms up to 17, and 9 ms to 9.
#[derive(Debug)]
pub struct Pinger {
    child: Option<Child>,
    output: PathBuf,
    /// What [`queue_drops`] was at the start.
    dropped_before: u64,
}

/// The losses of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Losses {
    /// Echo requests sent.
    pub sent: u64,
    /// Sequence numbers that were never answered.
    pub lost: Vec<u64>,
    /// The longest time that an answer took.
    pub slowest: Duration,
    /// The other lines of `ping`: errors that came back, warnings.
    pub said: Vec<String>,
    /// How many packets the machine's receive queues had no room for meanwhile, whoever's they were.
    pub queue_drops: u64,
}

impl Losses {
    /// Returns the most that were lost in a row.
    #[must_use]
    pub fn longest(&self) -> u64 {
        let mut longest = 0;
        let mut row = 0;
        for (at, number) in self.lost.iter().enumerate() {
            let goes_on = at > 0 && self.lost[at - 1] + 1 == *number;
            row = if goes_on { row + 1 } else { 1 };
            longest = longest.max(row);
        }
        longest
    }
}

impl Pinger {
    /// Starts a stream and waits for the first answer.
    #[must_use]
    pub fn start(lab: &Lab, from: &Namespace, address: IpAddr) -> Self {
        let output = lab.directory.join(format!("ping-{}-{address}", from.0));
        let file = File::create(&output).unwrap();
        let mut command = from.command(&["ping", "-n", "-i", "0.009", "-W", "2", &address.to_string()]);
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let dropped_before = queue_drops();
        let pinger = Self { child: Some(command.spawn().unwrap()), output, dropped_before };
        wait_until("the first ping is answered", SOON, || {
            let text = pinger.text();
            if text.contains("bytes from") { Ok(()) } else { Err(text) }
        });
        pinger
    }

    /// Ends the stream and counts.
    #[must_use]
    pub fn stop(mut self) -> Losses {
        let mut child = self.child.take().unwrap();
        kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
        child.wait().unwrap();
        let queue_drops = queue_drops().saturating_sub(self.dropped_before);
        Losses { queue_drops, ..losses(&self.text()) }
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself: then there is nothing to do.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn losses(output: &str) -> Losses {
    let sequence = |line: &str| -> Option<u64> {
        let after = line.contains("bytes from").then(|| line.split("icmp_seq=").nth(1))??;
        after.split_whitespace().next()?.parse().ok()
    };
    let answered: std::collections::BTreeSet<u64> = output.lines().filter_map(sequence).collect();
    let summary = output.lines().find(|line| line.contains("packets transmitted"));
    let sent = summary.and_then(|line| line.split_whitespace().next()?.parse().ok());
    let sent: u64 = sent.unwrap_or_else(|| panic!("ping has no summary: {output}"));
    // The last request may have been on its way when ping was ended.
    let last = if answered.contains(&sent) { sent } else { sent - 1 };
    let slowest = output.lines().filter_map(round_trip).max().unwrap_or_default();
    let is_other = |line: &&str| {
        let usual = ["PING ", "--- ", "rtt "].iter().any(|begin| line.starts_with(begin));
        !line.is_empty() && !usual && !line.contains("packets transmitted") && sequence(line).is_none()
    };
    let said = output.lines().filter(is_other).map(str::to_owned).collect();
    Losses {
        sent,
        lost: (1..=last).filter(|number| !answered.contains(number)).collect(),
        slowest,
        said,
        queue_drops: 0,
    }
}

/// Returns how many packets the receive queues of this machine's processors (`net.core.netdev_max_backlog` long, shared
/// by all namespaces) had no room for since it started: the second column of `/proc/net/softnet_stat`. A ping that is
/// lost while this grows may have been one of them.
fn queue_drops() -> u64 {
    let table = fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default();
    table.lines().filter_map(|line| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok()).sum()
}

fn round_trip(line: &str) -> Option<Duration> {
    let millis: f64 = line.split(" time=").nth(1)?.strip_suffix(" ms")?.parse().ok()?;
    Some(Duration::from_secs_f64(millis / 1000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_a_loss_and_a_ping_under_way_at_the_end_is_not() {
        let output = |numbers: &[u64], sent: u64| {
            let lines: Vec<String> =
                numbers.iter().map(|n| format!("64 bytes from 10.1.0.2: icmp_seq={n} ttl=62 time={n}.5 ms")).collect();
            format!("{}\n\n{sent} packets transmitted, {} received, 0% packet loss", lines.join("\n"), numbers.len())
        };
        let slowest = |number: u64| Duration::from_micros(number * 1000 + 500);
        let made = |sent, lost: &[u64], slowest| Losses {
            sent,
            lost: lost.to_vec(),
            slowest,
            said: Vec::new(),
            queue_drops: 0,
        };
        assert_eq!(losses(&output(&[1, 2, 3], 4)), made(4, &[], slowest(3)));
        assert_eq!(losses(&output(&[1, 3], 3)), made(3, &[2], slowest(3)));
        assert_eq!(losses(&output(&[1, 2], 5)), made(5, &[3, 4], slowest(2)));
        let error = "From 10.1.0.1 icmp_seq=2 Destination Host Unreachable";
        let with_error = output(&[1, 3], 3).replacen('\n', &format!("\n{error}\n"), 1);
        assert_eq!(losses(&with_error), Losses { said: vec![error.to_owned()], ..made(3, &[2], slowest(3)) });
        let longest = |lost: &[u64]| made(99, lost, Duration::ZERO).longest();
        assert_eq!([longest(&[]), longest(&[4]), longest(&[1, 3, 4, 5, 9, 10])], [0, 1, 3]);
    }
}
