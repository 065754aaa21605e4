//! Checks of what the agent itself says, and of what it needs to run at all.

use flatnet_core::facts::HostFacts;
use flatnet_core::problem::ProblemCode;
use flatnet_proto::agent::v1::Status;

use super::Check;
use super::host::{Files, Places};
use crate::daemon::preflight;
use crate::files::state_dir::LEFT;
use crate::report::Failure;

/// Checks for the rights and the one program that are always needed.
pub(super) fn rights() -> Check {
    match preflight::check() {
        Ok(()) => Check::ok("rights", "CAP_NET_ADMIN, and nft is installed"),
        Err(failure) => Check::failure("rights", failure.to_string(), "run as root, with nftables installed"),
    }
}

/// Checks for the programs that may be needed.
pub(super) fn programs() -> Check {
    let missing: Vec<&str> = ["iptables-nft", "iptables-legacy"]
        .into_iter()
        .filter(|name| preflight::find_program(name).is_none())
        .collect();
    if missing.is_empty() {
        Check::ok("iptables", "iptables-nft and iptables-legacy are installed")
    } else {
        Check::warning(
            "iptables",
            format!("{} not installed", missing.join(" and ")),
            "needed only where somebody's iptables rules drop forwarded packets: apt-get install iptables",
        )
    }
}

/// Checks the agent's own problems, and its peers.
pub(super) fn said(agent: &Result<Status, Failure>, files: &Files, places: &Places) -> Vec<Check> {
    let status = match agent {
        Ok(status) => status,
        Err(_) if files.exists(places.state_dir.join(LEFT)) => {
            let marker = places.state_dir.join(LEFT);
            return vec![Check::warning(
                "agent",
                "this node left its networks, and the service stays stopped",
                format!("to join again: rm {} && systemctl start flatnet-agent", marker.display()),
            )];
        }
        Err(error) => return vec![Check::failure("agent", error.to_string(), "start it: agent join ENDPOINT")],
    };
    let mut checks = vec![match status.state.as_str() {
        "converged" => Check::ok("agent", format!("converged at revision {}", status.revision)),
        state => Check::failure("agent", format!("the agent is {state}"), "see the problems below"),
    }];
    // A problem that leaves the host converged is no failure here either.
    let is_note = |code: &str| ProblemCode::ALL.iter().any(|known| known.is_note() && known.as_str() == code);
    checks.extend(status.problems.iter().map(|problem| {
        let said = format!("{} [{}]", problem.message, problem.code);
        let hint = problem.hint.clone();
        if is_note(&problem.code) {
            Check::warning("agent-problem", said, hint)
        } else {
            Check::failure("agent-problem", said, hint)
        }
    }));
    for network in &status.networks {
        let bad: Vec<&str> = network
            .peers
            .iter()
            .filter(|peer| peer.state == "failed" || peer.state == "unreachable")
            .map(|peer| peer.public_ip.as_str())
            .collect();
        if !bad.is_empty() {
            let cause = format!(
                "network {}: {} of {} peers cannot be reached: {}",
                network.name,
                bad.len(),
                network.peers.len(),
                bad.join(", ")
            );
            checks.push(Check::failure("peers", cause, "agent peers shows each one's state"));
        }
    }
    checks
}

/// Checks what this kernel can do.
pub(super) fn features(facts: &HostFacts) -> Check {
    if facts.features.nexthop_objects {
        Check::ok("kernel-features", "nexthop objects are there")
    } else {
        Check::warning(
            "kernel-features",
            "this kernel has no nexthop objects",
            "works, but more than 1,000 peers take long to program: Linux 5.3 or newer",
        )
    }
}
