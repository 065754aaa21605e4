//! The checks of `agent doctor`. They look for what commonly breaks an overlay, and say what to do. They change
//! nothing.
//!
//! Each check is a function from what was read (`host::Host`) to one [`Check`]; only [`examine`] asks kernel and
//! programs. Names of checks are stable: people alert on them.

mod agent;
mod devices;
mod evidence;
mod firewall;
mod gre;
mod host;
mod packet;
mod resources;
mod routes;
mod ruleset;
mod settings;
mod wireguard;

use std::time::SystemTime;

use flatnet_core::facts::HostFacts;
use flatnet_core::op::ObjectKey;
use flatnet_kernel::{Kernel, KernelError, Questions, Scope};
use flatnet_proto::agent::v1::Status;
use serde::Serialize;

pub use host::Places;
use host::{Files, Host};
use ruleset::Rules;

use crate::report::Failure;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing is wrong.
    Ok,
    /// It may become a problem.
    Warning,
    /// It is a problem.
    Failure,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The name of what was looked at; stable, kebab-case.
    pub name: &'static str,
    /// The result.
    pub verdict: Verdict,
    /// The finding.
    pub cause: String,
    /// The advice on what to do; empty if there is nothing to do.
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

/// Looks at the host and at what its agent says (`Err`: why no agent answers).
pub async fn examine<K: Kernel>(kernel: Option<&K>, agent: Result<Status, Failure>, places: Places) -> Vec<Check> {
    let files = Files::below("/");
    let mut checks = vec![agent::rights(), agent::programs()];
    checks.extend(agent::said(&agent, &files, &places));
    let mut host = Host {
        files,
        places,
        facts: HostFacts::default(),
        ours: Default::default(),
        devices: Default::default(),
        drops: Vec::new(),
        sightings: Vec::new(),
        detours: Vec::new(),
        status: agent.ok(),
        now: SystemTime::now(),
    };
    if let Some(kernel) = kernel {
        match ask(kernel, &mut host).await {
            Ok(()) => checks.push(agent::features(&host.facts)),
            Err(error) => checks.push(Check::failure("kernel", crate::report::chain(&error), "run as root")),
        }
    }
    let rules = firewall::ruleset().await.map(|listing| Rules::new(&listing));
    let raw = firewall::legacy_raw(&host).await;
    checks.extend([
        resources::modules(&host),
        settings::forwarding(&host),
        settings::writable(&host),
        settings::of_devices(&host),
        settings::advertisements(&host),
        settings::reverse_path(&host),
        firewall::iptables(&host),
        firewall::nftables(&host, rules.as_ref()),
        firewall::docker(&host, rules.as_ref(), &raw),
        devices::flannel(&host),
        devices::clashes(&host),
        devices::mtu(&host),
        gre::carrier(&host),
        wireguard::key(&host),
        wireguard::carrier(&host),
        evidence::drops(&host),
        evidence::detours(&host),
        routes::overlap(&host),
        routes::resolvers(&host),
        settings::neighbours(&host),
        resources::disk(&host),
        resources::clock(&host),
        resources::managers(&host),
    ]);
    ranked(checks)
}

/// Sorts what is broken before what may break, and that before what is well. Equals stay in the order in which they
/// were looked at: first whether the agent may work at all and what it says itself, then what keeps packets from
/// passing, last what is around it.
fn ranked(mut checks: Vec<Check>) -> Vec<Check> {
    checks.sort_by_key(|check| match check.verdict {
        Verdict::Failure => 0,
        Verdict::Warning => 1,
        Verdict::Ok => 2,
    });
    checks
}

/// Asks the kernel for facts, our objects, and what every other device is.
async fn ask<K: Kernel>(kernel: &K, host: &mut Host) -> Result<(), KernelError> {
    let facts = kernel.facts(&Questions { drops: true, sightings: true, ..Questions::host([]) }).await?;
    (host.facts, host.drops, host.sightings) = (facts.host, facts.drops, facts.sightings);
    let links = host.facts.interfaces.iter().map(|interface| ObjectKey::Link(interface.name));
    let dump = kernel.dump(&Scope::also(links)).await?;
    host.ours = dump.state;
    host.devices = dump.foreign.links;
    let ways = Questions { ways: evidence::ways(host), ..Questions::default() };
    host.detours = kernel.facts(&ways).await?.detours;
    Ok(())
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
