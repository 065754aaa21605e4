//! The step from the store's contents to the wanted kernel objects: one pure function over all networks of this host.
//!
//! A network that cannot be programmed safely is left out with a [`Problem`]; it never takes another one with it. The
//! same holds for a peer inside a network.

mod candidate;
mod check;
mod range;
mod settings;
mod shared;
mod waiting;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flatnet_model::{IfName, Lease, NetworkConfig, NetworkName, NodeId, SubnetKey};
use ipnet::IpNet;

pub use candidate::{admit, admit_changes};

use crate::backend::{NetworkCtx, PublicKey};
use crate::exposure::Exposure;
use crate::facts::HostFacts;
use crate::firewall::FirewallNetwork;
use crate::object::{Datapath, Draft, KernelState};
use crate::outcome::{NetworkOutcome, PeerDecision, PeerOutcome};
use crate::problem::Problem;
use crate::transition::{Stage, ways};
use crate::underlay::Underlay;
use waiting::Waiting;

/// Everything about this host that the desired state depends on.
#[derive(Clone, Copy, Debug)]
pub struct HostInput<'a> {
    /// This node's identity, from which the Ethernet addresses of tunnel devices are derived.
    pub node: NodeId,
    /// The public half of our key, or the reason why there is none.
    pub key: Result<PublicKey, &'a Problem>,
    /// The interface and addresses that carry the tunnels.
    pub underlay: &'a Underlay,
    /// The facts about the host, as they were found.
    pub facts: &'a HostFacts,
    /// The addresses of the store's endpoints, as far as they are known.
    pub store: &'a [IpAddr],
    /// The outsiders that may open connections into the networks, and the store endpoints that containers may not
    /// reach.
    pub exposure: &'a Exposure,
    /// The networks, in the order in which they were joined. Of two that contradict each other, the first is kept.
    pub networks: &'a [NetworkInput<'a>],
}

/// One network of this host.
#[derive(Clone, Copy, Debug)]
pub struct NetworkInput<'a> {
    /// The network's name.
    pub name: &'a NetworkName,
    /// The network's configuration.
    pub config: &'a NetworkConfig,
    /// The subnets this host has leased.
    pub own: SubnetKey,
    /// The stage that this host is at in a change of the network's backend.
    pub stage: Stage<'a>,
    /// The leases that are in force (`NetworkState::resolve`), without our own.
    pub peers: &'a [&'a Lease],
    /// The bridge to make for containers, which gets the subnets' first addresses.
    pub bridge: Option<IfName>,
    /// True if packets that leave the network get this host's address.
    pub masquerade: bool,
    /// The network's part of the guard when it was last programmed; `None`: it is not known in this run.
    pub guard: Option<&'a FirewallNetwork>,
}

/// The state that the kernel should have, and the outcome for each network and peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The objects.
    pub state: KernelState,
    /// The outcome for each input network, in the input's order.
    pub networks: Vec<NetworkOutcome>,
    /// The problems that were found.
    pub problems: Vec<Problem>,
    /// True if a network is not programmed now. What it left in the kernel must stay, including its containers' bridge,
    /// and at most [`crate::diff::Prune::Settled`] may be pruned.
    pub unsettled: bool,
    /// The hosts that are still in each such network.
    waiting: Vec<Waiting>,
    /// The part of the guard of each network that is programmed. The network keeps it if it is refused later.
    pub guards: Vec<FirewallNetwork>,
    /// True if a network is not programmed and its part of the guard is not known. The table that is loaded may let its
    /// peers in, while the one that is wanted lets nobody in.
    pub guard_unknown: bool,
}

impl Desired {
    /// Keeps what was `found` on the own devices of networks that are not programmed now. What belongs to hosts that
    /// were removed is not kept: they must not go on sending, nor be sent to, because a network waits.
    pub fn keep_waiting(&mut self, found: &KernelState) {
        for waiting in &self.waiting {
            waiting.keep(found, &mut self.state);
        }
    }
}

/// Returns the kernel objects wanted on this host.
///
/// The result does not depend on the order of a network's peers. For a network that is not programmed, only what keeps
/// its packets in is wanted: the route that refuses, and its part of the guard as it was when the network was last
/// programmed.
#[must_use]
pub fn desired(host: &HostInput<'_>) -> Desired {
    let sorted: Vec<range::Sorted<'_>> = host.networks.iter().map(|network| range::sort(host, network)).collect();
    let inputs: Vec<NetworkInput<'_>> = std::iter::zip(host.networks, &sorted)
        .map(|(network, sorted)| NetworkInput { peers: &sorted.peers, ..*network })
        .collect();
    let host = &HostInput { networks: &inputs, ..*host };
    let mut making = Making::default();
    let mut accepted = check::Accepted::default();
    let refused: Vec<Option<Problem>> =
        host.networks.iter().map(|network| accepted.admit(host, *network, &mut making.problems).err()).collect();
    let overlays = accepted.ranges();
    for (network, refusal) in host.networks.iter().zip(refused) {
        let ctx = NetworkCtx {
            node: host.node,
            underlay: host.underlay,
            facts: host.facts,
            name: network.name,
            config: network.config,
            own: network.own,
            key: host.key,
            peers: network.peers,
            overlays: &overlays,
        };
        let has_room = |config: &_, beside: &[_]| accepted.has_room(network, config, beside);
        let earlier = network.stage.with_room(network.config, has_room);
        match refusal.map_or_else(|| ways::build(&ctx, &earlier, network.stage, &mut making.draft), Err) {
            Ok(built) => making.programmed(host, network, built),
            Err(problem) => making.refused(host, network, problem),
        }
    }
    for (outcome, sorted) in making.networks.iter_mut().zip(&sorted).filter(|(_, sorted)| !sorted.refused.is_empty()) {
        outcome.peers.extend(sorted.refused.iter().cloned());
        outcome.peers.sort_by_key(|peer| peer.subnets);
        making.problems.extend(sorted.problem.clone());
    }
    making.end(host)
}

/// The desired state while it is made.
#[derive(Default)]
struct Making {
    draft: Draft,
    problems: Vec<Problem>,
    networks: Vec<NetworkOutcome>,
    /// The guard's parts of the networks that are programmed.
    guards: Vec<FirewallNetwork>,
    /// The parts of those that are not, as far as they are known.
    remembered: Vec<FirewallNetwork>,
    /// The parts that shut the others.
    closed: Vec<FirewallNetwork>,
    waiting: Vec<Waiting>,
    guard_unknown: bool,
}

impl Making {
    fn programmed(&mut self, host: &HostInput<'_>, network: &NetworkInput<'_>, built: ways::Ways) {
        shared::add(host, network, &built, &mut self.draft);
        self.guards.push(shared::firewall_network(host, network, &built));
        self.networks.push(NetworkOutcome {
            name: network.name.clone(),
            mtu: built.mtu(),
            devices: built.devices(),
            datapath: built.datapath(),
            ways: built.ways.iter().map(ways::Way::outcome).collect(),
            peers: built.peers,
        });
        self.problems.extend(built.problems);
    }

    fn refused(&mut self, host: &HostInput<'_>, network: &NetworkInput<'_>, problem: Problem) {
        self.waiting.push(Waiting::of(network));
        shared::refuse_unknown(host, network, &mut self.draft);
        match network.guard {
            Some(guard) => self.remembered.push(shared::without_removed(guard, network)),
            None => {
                self.guard_unknown = true;
                self.closed.extend(shared::closed(host, network));
            }
        }
        self.networks.push(not_programmed(network, &problem));
        self.problems.push(problem);
    }

    /// Adds what all networks share.
    fn end(self, host: &HostInput<'_>) -> Desired {
        let Self { mut draft, mut problems, networks, mut guards, remembered, closed, waiting, guard_unknown } = self;
        let programmed = guards.len();
        shared::add_beside(remembered, &mut guards);
        if !guards.is_empty() {
            shared::add_host(host, &guards, &mut draft);
        }
        // Networks that were not programmed in this run only need their tunnels shut.
        shared::add_beside(closed, &mut guards);
        shared::add_guard(host, &guards, &mut draft);
        guards.truncate(programmed);
        problems.sort();
        problems.dedup();
        let unsettled = !waiting.is_empty();
        Desired { state: draft.into_state(), networks, problems, unsettled, waiting, guards, guard_unknown }
    }
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

/// Returns a subnet's first address, which is the bridge's and the containers' gateway.
#[must_use]
pub fn first_address(subnet: IpNet) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from_bits(base.to_bits().saturating_add(1))),
        IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from_bits(base.to_bits().saturating_add(1))),
    }
}

#[cfg(test)]
mod tests;
