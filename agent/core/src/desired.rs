//! From what the store says to the kernel objects that are wanted: one pure function over all networks of this host.
//!
//! A network that cannot be programmed safely is left out with a [`Problem`]; it never takes another one with it. The
//! same holds for a peer inside a network.

mod check;
mod outcome;
mod settings;
mod shared;
mod ways;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flatnet_model::{
    BackendConfig, IfName, IpFamily, Lease, NetworkConfig, NetworkName, NodeId, SubnetKey, WireguardKey,
};
use ipnet::IpNet;

pub use outcome::{NetworkOutcome, Path, Paths, PeerDecision, PeerOutcome, Tunnel, WayOutcome};

use crate::backend::{self, Draft, NetworkCtx};
use crate::facts::HostFacts;
use crate::object::{Datapath, KernelState};
use crate::problem::Problem;
use crate::transition::Said;
use crate::underlay::Underlay;

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
    /// Whether a network is not programmed for a reason that may pass ([`crate::problem::ProblemCode::may_pass`]): what it
    /// left in the kernel, its containers' bridge and its part of the guard too, must stay until then.
    pub unsettled: bool,
}

/// The kernel objects wanted on this host.
///
/// Does not depend on the order of a network's peers. A network that is not programmed adds no object at all.
#[must_use]
pub fn desired(host: &HostInput<'_>) -> Desired {
    let mut draft = Draft::default();
    let mut problems = Vec::new();
    let mut accepted = check::Accepted::default();
    let refused: Vec<Option<Problem>> =
        host.networks.iter().map(|network| accepted.admit(host, *network, &mut problems).err()).collect();
    let overlays = accepted.ranges();
    let mut firewall = Vec::new();
    let mut networks = Vec::with_capacity(host.networks.len());
    let mut unsettled = false;
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
                firewall.push(shared::firewall_network(network, &built));
                networks.push(NetworkOutcome {
                    name: network.name.clone(),
                    mtu: built.mtu(),
                    devices: built.devices(),
                    datapath: built.datapath(),
                    ways: built.ways.iter().map(WayOutcome::of).collect(),
                    peers: built.peers,
                });
                problems.extend(built.problems);
            }
            Err(problem) => {
                unsettled |= problem.code.may_pass();
                networks.push(not_programmed(network, &problem));
                problems.push(problem);
            }
        }
    }
    if !firewall.is_empty() {
        shared::add_host(host, &firewall, &mut draft);
    }
    problems.sort();
    problems.dedup();
    Desired { state: draft.into_state(), networks, problems, unsettled }
}

/// Whether a network that this host holds no lease in yet could be programmed beside those of `host`: asked before a lease
/// is taken, since one that cannot be served draws traffic into a hole.
pub fn admit(host: &HostInput<'_>, name: &NetworkName, config: &NetworkConfig) -> Result<(), Problem> {
    backend::check(name, config, host.underlay)?;
    backend::check_host(name, config, host.facts, host.wireguard)?;
    let first = |family| config.pool(family).and_then(|pool| pool.nth(0));
    let v4 = first(IpFamily::V4).and_then(|net| if let IpNet::V4(net) = net { Some(net) } else { None });
    let v6 = first(IpFamily::V6).and_then(|net| if let IpNet::V6(net) = net { Some(net) } else { None });
    // Any subnet will do: which one it will be is not looked at.
    let Ok(own) = SubnetKey::new(v4, v6) else { return Ok(()) };
    let mut accepted = check::Accepted::default();
    let mut unimportant = Vec::new();
    for network in host.networks {
        // One that is refused is not in the way.
        let _ = accepted.admit(host, *network, &mut unimportant);
    }
    let candidate = NetworkInput {
        name,
        config,
        before: &[],
        own,
        said: Said::default(),
        peers: &[],
        bridge: None,
        masquerade: false,
    };
    accepted.consider(host, &candidate)
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
