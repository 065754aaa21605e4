//! Checks for what commonly breaks an overlay on a host, each with its cause and what to do. Changes nothing.

use flatnet_core::facts::HostFacts;
use flatnet_core::object::IptablesVariant;
use flatnet_kernel::{Kernel, Scope};
use flatnet_model::IfName;
use flatnet_proto::agent::v1::Status;
use serde::Serialize;

use crate::preflight;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing wrong.
    Ok,
    /// May become a problem.
    Warning,
    /// Is one.
    Failure,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at; stable, kebab-case.
    pub name: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found.
    pub cause: String,
    /// What to do; empty if nothing.
    pub hint: String,
}

impl Check {
    fn ok(name: &'static str, cause: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, cause: cause.into(), hint: String::new() }
    }

    fn warning(name: &'static str, cause: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warning, cause: cause.into(), hint: hint.into() }
    }

    fn failure(name: &'static str, cause: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Failure, cause: cause.into(), hint: hint.into() }
    }
}

/// Looks at the host and at what its agent says (`Err`: why none answers).
pub async fn examine<K: Kernel>(kernel: Option<&K>, agent: Result<Status, String>) -> Vec<Check> {
    let mut checks = vec![rights(), programs(), forwarding()];
    checks.extend(agent_checks(agent));
    let Some(kernel) = kernel else { return checks };
    match kernel.facts(&[]).await {
        Ok(facts) => {
            checks.push(dropping(&facts));
            checks.push(features(&facts));
            checks.push(reverse_path(&facts));
            checks.push(foreign_flannel(kernel, &facts).await);
        }
        Err(error) => checks.push(Check::failure("kernel", crate::report::chain(&error), "run as root")),
    }
    checks
}

fn rights() -> Check {
    match preflight::check() {
        Ok(()) => Check::ok("rights", "CAP_NET_ADMIN, and nft is installed"),
        Err(failure) => Check::failure("rights", failure.to_string(), "run as root, with nftables installed"),
    }
}

fn programs() -> Check {
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

fn setting(path: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/sys/{path}")).ok().map(|value| value.trim().to_owned())
}

fn forwarding() -> Check {
    match setting("net/ipv4/ip_forward").as_deref() {
        Some("1") => Check::ok("ip-forward", "net.ipv4.ip_forward is 1"),
        other => Check::failure(
            "ip-forward",
            format!("net.ipv4.ip_forward is {}", other.unwrap_or("not readable")),
            "a running agent sets it; if it does not stay, something else resets it: look in /etc/sysctl.d",
        ),
    }
}

fn agent_checks(agent: Result<Status, String>) -> Vec<Check> {
    let status = match agent {
        Ok(status) => status,
        Err(error) => return vec![Check::failure("agent", error, "start it: agent join ENDPOINT")],
    };
    let mut checks = vec![match status.state.as_str() {
        "converged" => Check::ok("agent", format!("converged at revision {}", status.revision)),
        state => Check::failure("agent", format!("the agent is {state}"), "see the problems below"),
    }];
    checks.extend(status.problems.into_iter().map(|problem| {
        Check::failure("agent-problem", format!("{} [{}]", problem.message, problem.code), problem.hint)
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

fn dropping(facts: &HostFacts) -> Check {
    if facts.dropping_chains.is_empty() {
        return Check::ok("iptables-drops", "no iptables chain drops forwarded or incoming packets");
    }
    let named: Vec<String> = facts
        .dropping_chains
        .iter()
        .map(|chain| {
            let program = match chain.variant {
                IptablesVariant::Nft => "iptables-nft",
                IptablesVariant::Legacy => "iptables-legacy",
            };
            format!("{program} {} {}", chain.family, chain.chain.as_str())
        })
        .collect();
    let lacking = |variant| facts.dropping_chains.iter().any(|chain| chain.variant == variant);
    let program_missing = [(IptablesVariant::Nft, "iptables-nft"), (IptablesVariant::Legacy, "iptables-legacy")]
        .into_iter()
        .find(|(variant, program)| lacking(*variant) && preflight::find_program(program).is_none());
    match program_missing {
        Some((_, program)) => Check::failure(
            "iptables-drops",
            format!("{} can drop our packets, and {program} is not installed to let them pass", named.join(", ")),
            "apt-get install iptables",
        ),
        None => Check::ok(
            "iptables-drops",
            format!("{} can drop packets; the agent keeps a rule at their heads", named.join(", ")),
        ),
    }
}

fn features(facts: &HostFacts) -> Check {
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

fn reverse_path(facts: &HostFacts) -> Check {
    let strict = setting("net/ipv4/conf/all/rp_filter").as_deref() == Some("1");
    let ours: Vec<IfName> =
        facts.interfaces.iter().filter(|interface| interface.ours).map(|interface| interface.name).collect();
    if strict && !ours.is_empty() {
        Check::warning(
            "rp-filter",
            "net.ipv4.conf.all.rp_filter is 1 (strict)",
            "direct routes drop packets that come back another way: set it to 2 (loose) if pings work one way only",
        )
    } else {
        Check::ok("rp-filter", "reverse path filtering is not strict")
    }
}

async fn foreign_flannel<K: Kernel>(kernel: &K, facts: &HostFacts) -> Check {
    let names =
        facts.interfaces.iter().map(|interface| interface.name).filter(|name| name.as_str().starts_with("flannel"));
    let links: Vec<IfName> = names.collect();
    let found = kernel.dump(&Scope { links: links.clone(), ..Scope::default() }).await;
    let described: Vec<String> = found
        .map(|dump| dump.foreign.links.iter().map(|(name, what)| format!("{name} ({what})")).collect())
        .unwrap_or_default();
    if links.is_empty() {
        Check::ok("flannel", "no device of flanneld's")
    } else {
        Check::warning(
            "flannel",
            format!("flanneld left {}", described.join(", ")),
            "if flanneld is gone for good: agent join --take-over, or ip link del",
        )
    }
}
