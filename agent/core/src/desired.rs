//! From what the store says to the kernel objects that are wanted: one pure function over all networks of this host.
//!
//! A network that cannot be programmed safely is left out with a [`Problem`]; it never takes another one with it. The
//! same holds for a peer inside a network.

mod candidate;
mod check;
mod range;
mod settings;
mod shared;
mod waiting;
mod ways;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flatnet_model::{BackendConfig, IfName, Lease, NetworkConfig, NetworkName, NodeId, SubnetKey, WireguardKey};
use ipnet::IpNet;

pub use candidate::{admit, admit_changes};

use crate::backend::{Draft, NetworkCtx};
use crate::exposure::Exposure;
use crate::facts::HostFacts;
use crate::firewall::FirewallNetwork;
use crate::object::{Datapath, KernelState};
use crate::outcome::{NetworkOutcome, PeerDecision, PeerOutcome};
use crate::problem::Problem;
use crate::transition::Said;
use crate::underlay::Underlay;
use waiting::Waiting;

/// Everything about this host that the desired state depends on.
#[derive(Clone, Copy, Debug)]
pub struct HostInput<'a> {
    /// Who we are: tunnel devices' Ethernet addresses are derived from it.
    pub node: NodeId,
    /// The public half of our WireGuard key, or why there is none.
    pub wireguard: Result<WireguardKey, &'a Problem>,
    /// What carries the tunnels.
    pub underlay: &'a Underlay,
    /// The host as it was found.
    pub facts: &'a HostFacts,
    /// Where the store is: the addresses of its endpoints, as far as they are known.
    pub store: &'a [IpAddr],
    /// Who else may open connections into them, and what containers may not reach.
    pub exposure: &'a Exposure,
    /// The networks, in the order in which they were joined: of two that contradict each other the first is kept.
    pub networks: &'a [NetworkInput<'a>],
}

/// One network of this host.
#[derive(Clone, Copy, Debug)]
pub struct NetworkInput<'a> {
    /// Its name.
    pub name: &'a NetworkName,
    /// Its configuration.
    pub config: &'a NetworkConfig,
    /// Earlier backends of it that this host still receives by, the latest first ([`crate::transition`]).
    pub before: &'a [BackendConfig],
    /// The subnets this host has leased.
    pub own: SubnetKey,
    /// What peers know of this host's lease on them.
    pub said: Said<'a>,
    /// The leases that hold (`NetworkState::resolve`), our own left out.
    pub peers: &'a [&'a Lease],
    /// A bridge for containers to make, with the subnets' first addresses.
    pub bridge: Option<IfName>,
    /// Whether packets that leave the network get this host's address.
    pub masquerade: bool,
    /// Its part of the guard when it was programmed last; `None`: not known in this run.
    pub guard: Option<&'a FirewallNetwork>,
}

/// What the kernel should hold, and what became of each network and peer on the way there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The objects.
    pub state: KernelState,
    /// One entry for each input network, in their order.
    pub networks: Vec<NetworkOutcome>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// Whether a network is not programmed now: what it left in the kernel, its containers' bridge too, must stay, and
    /// [`crate::diff::Prune::Settled`] is all that may go.
    pub unsettled: bool,
    /// Of each such network, who is still in it.
    waiting: Vec<Waiting>,
    /// The part of the guard of each network that is programmed: what it keeps should it be refused later.
    pub guards: Vec<FirewallNetwork>,
    /// Whether a network is not programmed whose part of the guard is not known: the table that is loaded may let its peers
    /// in, the one that is wanted lets nobody in.
    pub guard_unknown: bool,
}

impl Desired {
    /// Wants what networks that are not programmed now have on devices of their own as it was `found`, but for what belongs
    /// to hosts that were removed: those must not go on sending, nor be sent to, because a network waits.
    pub fn keep_waiting(&mut self, found: &KernelState) {
        for waiting in &self.waiting {
            waiting.keep(found, &mut self.state);
        }
    }
}

/// The kernel objects wanted on this host.
///
/// Does not depend on the order of a network's peers. Of a network that is not programmed only what keeps its packets in is
/// wanted: the route that refuses, and its part of the guard as it was when the network was programmed last.
#[must_use]
pub fn desired(host: &HostInput<'_>) -> Desired {
    let mut draft = Draft::default();
    let mut problems = Vec::new();
    let sorted: Vec<range::Sorted<'_>> = host.networks.iter().map(|network| range::sort(host, network)).collect();
    let inputs: Vec<NetworkInput<'_>> = std::iter::zip(host.networks, &sorted)
        .map(|(network, sorted)| NetworkInput { peers: &sorted.peers, ..*network })
        .collect();
    let host = &HostInput { networks: &inputs, ..*host };
    let mut accepted = check::Accepted::default();
    let refused: Vec<Option<Problem>> =
        host.networks.iter().map(|network| accepted.admit(host, *network, &mut problems).err()).collect();
    let overlays = accepted.ranges();
    let mut networks = Vec::with_capacity(host.networks.len());
    let (mut firewall, mut remembered, mut closed) = (Vec::new(), Vec::new(), Vec::new());
    let (mut unsettled, mut guard_unknown) = (false, false);
    let mut waiting = Vec::new();
    for (network, refusal) in host.networks.iter().zip(refused) {
        let ctx = NetworkCtx {
            node: host.node,
            underlay: host.underlay,
            facts: host.facts,
            name: network.name,
            config: network.config,
            own: network.own,
            wireguard: host.wireguard,
            peers: network.peers,
            overlays: &overlays,
        };
        let before = accepted.beside(network);
        match refusal.map_or_else(|| ways::build(&ctx, &before, network.said, &mut draft), Err) {
            Ok(built) => {
                shared::add(host, network, &built, &mut draft);
                firewall.push(shared::firewall_network(host, network, &built));
                networks.push(NetworkOutcome {
                    name: network.name.clone(),
                    mtu: built.mtu(),
                    devices: built.devices(),
                    datapath: built.datapath(),
                    ways: built.ways.iter().map(ways::Way::outcome).collect(),
                    peers: built.peers,
                });
                problems.extend(built.problems);
            }
            Err(problem) => {
                unsettled = true;
                waiting.push(Waiting::of(network));
                shared::refuse_unknown(host, network, &mut draft);
                match network.guard {
                    Some(guard) => remembered.push(shared::without_removed(guard, network)),
                    None => {
                        guard_unknown = true;
                        closed.extend(shared::closed(host, network));
                    }
                }
                networks.push(not_programmed(network, &problem));
                problems.push(problem);
            }
        }
    }
    for (outcome, sorted) in networks.iter_mut().zip(&sorted).filter(|(_, sorted)| !sorted.refused.is_empty()) {
        outcome.peers.extend(sorted.refused.iter().cloned());
        outcome.peers.sort_by_key(|peer| peer.subnets);
        problems.extend(sorted.problem.clone());
    }
    let programmed = firewall.len();
    shared::add_beside(remembered, &mut firewall);
    if !firewall.is_empty() {
        shared::add_host(host, &firewall, &mut draft);
    }
    // Those of networks that were not programmed in this run need nothing but their tunnels shut.
    shared::add_beside(closed, &mut firewall);
    shared::add_guard(host, &firewall, &mut draft);
    firewall.truncate(programmed);
    problems.sort();
    problems.dedup();
    Desired { state: draft.into_state(), networks, problems, unsettled, waiting, guards: firewall, guard_unknown }
}

fn not_programmed(network: &NetworkInput<'_>, problem: &Problem) -> NetworkOutcome {
    let unreachable = |lease: &&Lease| PeerOutcome {
        subnets: lease.subnets,
        decision: PeerDecision::Unreachable { reason: format!("the network is not programmed: {}", problem.code) },
    };
    NetworkOutcome {
        name: network.name.clone(),
        mtu: None,
        devices: Vec::new(),
        datapath: Datapath::Kernel,
        ways: Vec::new(),
        peers: network.peers.iter().map(unreachable).collect(),
    }
}

/// A subnet's first address: the bridge's, the containers' gateway.
#[must_use]
pub fn first_address(subnet: IpNet) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from_bits(base.to_bits().saturating_add(1))),
        IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from_bits(base.to_bits().saturating_add(1))),
    }
}

#[cfg(test)]
mod tests;
