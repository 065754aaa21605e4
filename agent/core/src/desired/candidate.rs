//! Configurations that are not in force on this host, and the checks that decide whether they may come into force.
//!
//! Here, and only here, a network is refused because of what is on this host already. A configuration in force stays in
//! force: a refusal keeps out what is new, and never takes away what runs.

use flatnet_model::{IpFamily, NetworkConfig, NetworkName, SubnetKey};
use ipnet::IpNet;

use super::{HostInput, NetworkInput, check};
use crate::backend::{self, Abilities, NetworkCtx};
use crate::object::Draft;
use crate::problem::{Problem, ProblemCode};
use crate::transition::{Stage, ways};

/// Checks that a network in which this host holds no lease yet could be programmed beside those of `host`. This is
/// asked before a lease is taken, since a lease that cannot be served draws traffic into a hole.
pub fn admit(host: &HostInput<'_>, name: &NetworkName, config: &NetworkConfig) -> Result<(), Problem> {
    backend::check(name, config, host.underlay)?;
    backend::check_host(name, config, &Abilities { facts: host.facts, key: host.key })?;
    let first = |family| config.pool(family).and_then(|pool| pool.nth(0));
    let v4 = first(IpFamily::V4).and_then(|net| if let IpNet::V4(net) = net { Some(net) } else { None });
    let v6 = first(IpFamily::V6).and_then(|net| if let IpNet::V6(net) = net { Some(net) } else { None });
    // Any subnet will do: the checks do not depend on which one it will be.
    let Ok(own) = SubnetKey::new(v4, v6) else { return Ok(()) };
    let mut accepted = check::Accepted::default();
    let mut unimportant = Vec::new();
    for network in host.networks {
        // A network that is refused is not in the way.
        let _ = accepted.admit(host, *network, &mut unimportant);
    }
    let candidate = NetworkInput {
        name,
        config,
        own,
        stage: Stage::default(),
        peers: &[],
        bridge: None,
        masquerade: false,
        guard: None,
    };
    accepted.consider(host, &candidate)?;
    let mut draft = Draft::default();
    ways::build(&ctx(host, &candidate, config), &[], candidate.stage, &mut draft)?;
    let in_the_way =
        draft.links.iter().find_map(|(device, _)| host.facts.interface(*device).filter(|found| !found.ours));
    match in_the_way {
        Some(found) => Err(Problem::new(
            ProblemCode::ForeignObject,
            format!("network {name}: {} is there, is not ours, and has the name of the tunnel device", found.name),
            format!("remove or rename it: ip link delete {}", found.name),
            found.name,
        )),
        None => Ok(()),
    }
}

/// For each network of `host` that has another configuration in the store (`changed`, in the networks' order), decides
/// whether it may come into force. Changes that come together are looked at together, so that two networks may swap
/// something that only one of them can have.
#[must_use]
pub fn admit_changes(host: &HostInput<'_>, changed: &[Option<&NetworkConfig>]) -> Vec<Option<Result<(), Problem>>> {
    let networks: Vec<(&NetworkInput<'_>, Option<&NetworkConfig>)> =
        host.networks.iter().zip(changed.iter().copied().chain(std::iter::repeat(None))).collect();
    let mut refused: Vec<Option<Problem>> =
        networks.iter().map(|(network, new)| alone(host, network, (*new)?).err()).collect();
    // Each round refuses one more.
    while let Some((index, problem)) = contradiction(&networks, &refused) {
        let Some(verdict) = refused.get_mut(index) else { break };
        *verdict = Some(problem);
    }
    let verdict =
        |((_, new), refused): (&(_, Option<&NetworkConfig>), Option<Problem>)| new.map(|_| refused.map_or(Ok(()), Err));
    networks.iter().zip(refused).map(verdict).collect()
}

/// Finds a change that contradicts another network: one that does not change, or one that changes and was joined
/// earlier.
fn contradiction(
    networks: &[(&NetworkInput<'_>, Option<&NetworkConfig>)],
    refused: &[Option<Problem>],
) -> Option<(usize, Problem)> {
    let coming = |index: usize| {
        let (network, new) = networks.get(index)?;
        new.filter(|_| refused.get(index).is_some_and(Option::is_none))
            .map(|config| NetworkInput { config, ..**network })
    };
    let indices = || 0..networks.len();
    indices().find_map(|index| {
        let (now, new) = (networks.get(index)?.0, coming(index)?);
        let mut others = indices().filter(|other| *other != index);
        others.find_map(|other| {
            let (beside, joined_later) = match coming(other) {
                Some(beside) => (beside, index < other),
                None => (*networks.get(other)?.0, false),
            };
            // If it contradicts the other one already, that is no reason to keep it as it is.
            let is_news = !joined_later && check::contradicts(now, &beside).is_ok();
            check::contradicts(&new, &beside).err().filter(|_| is_news).map(|problem| (index, problem))
        })
    })
}

/// Checks that `network` could have the configuration `new`, looking at this host alone.
fn alone(host: &HostInput<'_>, network: &NetworkInput<'_>, new: &NetworkConfig) -> Result<(), Problem> {
    check::swallows(host, network, new)?;
    if network.config.backend.kind() != new.backend.kind() {
        // It is built beside the present one, which stays until peers are reached by the new one.
        return Ok(());
    }
    let build = |config| backend::build(&ctx(host, network, config), &mut Draft::default());
    match (build(network.config), build(new)) {
        (Ok(_), Err(problem)) => Err(problem),
        _ => Ok(()),
    }
}

fn ctx<'a>(host: &HostInput<'a>, network: &NetworkInput<'a>, config: &'a NetworkConfig) -> NetworkCtx<'a> {
    NetworkCtx {
        node: host.node,
        underlay: host.underlay,
        facts: host.facts,
        name: network.name,
        config,
        own: network.own,
        key: host.key,
        peers: &[],
        overlays: &[],
    }
}

#[cfg(test)]
mod tests;
