//! The addresses that are a network's own on this host: those that it hands out, and those that were leased besides.
//!
//! A network may hand out less than its range (`SubnetMin`, `SubnetMax`), and hosts may live in the rest. So nothing is
//! refused, guarded or checked there, except for leases that are there all the same: taken before the bounds were
//! moved, or written by somebody else. Of these, a peer's lease yields to hosts: it cannot take from a host what the
//! host has.

use std::collections::BTreeSet;
use std::net::IpAddr;

use flatnet_model::{IpFamily, Lease, Pool};
use ipnet::IpNet;

use super::{HostInput, NetworkInput};
use crate::host_ranges;
use crate::outcome::{PeerDecision, PeerOutcome};
use crate::problem::{Problem, ProblemCode};

/// Returns the addresses that are the network's and nobody else's: its ranges, without the addresses that are vital to
/// this host.
pub(super) fn taken(host: &HostInput<'_>, network: &NetworkInput<'_>) -> Vec<IpNet> {
    let mut ranges = of(network);
    for (address, _) in vital_inside(host, network) {
        ranges = ranges.into_iter().flat_map(|range| without(range, address)).collect();
    }
    ranges
}

/// Returns the ranges that the network hands out, and the leases beside them.
pub(super) fn of(network: &NetworkInput<'_>) -> Vec<IpNet> {
    let mut ranges: Vec<IpNet> = network.config.pools().flat_map(Pool::handed_out).collect();
    let leased = network.own.iter().chain(network.peers.iter().flat_map(|peer| peer.subnets.iter()));
    ranges.extend(leased.filter(|net| is_beside(network, *net)));
    ranges
}

/// Returns the addresses vital to this host that the network hands out. Addresses in somebody's lease are left out,
/// since they are reached through the network.
pub(super) fn vital_inside(host: &HostInput<'_>, network: &NetworkInput<'_>) -> Vec<(IpAddr, &'static str)> {
    let leased = |address: &IpAddr| {
        let mut subnets = network.own.iter().chain(network.peers.iter().flat_map(|peer| peer.subnets.iter()));
        subnets.any(|subnet| subnet.contains(address))
    };
    let covers = |address: &IpAddr| network.config.pools().any(|pool| pool.hands_out(IpNet::from(*address)));
    let vital = host_ranges::vital(host.facts, host.store).into_iter();
    vital.filter(|(address, _)| covers(address) && !leased(address)).collect()
}

/// Returns true if the lease on `net` is in the network's range, but at least partly outside what the network hands
/// out.
fn is_beside(network: &NetworkInput<'_>, net: IpNet) -> bool {
    network
        .config
        .pool(IpFamily::of(net.addr()))
        .is_some_and(|pool| !pool.hands_out(net) && pool.network().contains(&net))
}

/// Returns `range` without `address`: the other half, the other half of the rest, and so on.
fn without(range: IpNet, address: IpAddr) -> Vec<IpNet> {
    if !range.contains(&address) {
        return vec![range];
    }
    let halves = (range.prefix_len()..range.max_prefix_len()).filter_map(|length| {
        let with = IpNet::new(address, length).ok()?.trunc();
        with.subnets(length + 1).ok()?.find(|half| !half.contains(&address))
    });
    halves.collect()
}

/// The peers of a network whose leases leave the hosts' addresses alone, and the outcome of the others.
pub(super) struct Sorted<'a> {
    /// The accepted peers, in the input's order.
    pub(super) peers: Vec<&'a Lease>,
    /// The outcomes of leases that would take addresses of hosts.
    pub(super) refused: Vec<PeerOutcome>,
    /// One problem for all of them.
    pub(super) problem: Option<Problem>,
}

/// Sorts the peers of `network`. A peer is refused if it lies beside what the network hands out and a host uses an
/// address in it.
pub(super) fn sort<'a>(host: &HostInput<'_>, network: &NetworkInput<'a>) -> Sorted<'a> {
    let mut sorted = Sorted { peers: network.peers.to_vec(), refused: Vec::new(), problem: None };
    let beside = |peer: &Lease| peer.subnets.iter().any(|net| is_beside(network, net));
    if !network.peers.iter().any(|peer| beside(peer)) {
        return sorted;
    }
    let hosts = Hosts::of(host, network);
    sorted.peers.retain(|peer| {
        let mut nets = peer.subnets.iter().filter(|net| is_beside(network, *net));
        let Some(found) = nets.find_map(|net| hosts.inside(net)) else { return true };
        let reason = format!("it is beside what the network hands out, and {found} is in it");
        sorted.refused.push(PeerOutcome { subnets: peer.subnets, decision: PeerDecision::Failed { reason } });
        false
    });
    if let Some(PeerOutcome { subnets, decision: PeerDecision::Failed { reason } }) = sorted.refused.first() {
        // Only one of them is named: a store full of garbage must not fill the log.
        let more = match sorted.refused.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        sorted.problem = Some(Problem::new(
            ProblemCode::NetworkCoversHost,
            format!("network {}: the lease {subnets}{more} is left alone: {reason}", network.name),
            "hosts keep their addresses: agent leave --renumber on the host that holds the lease, or remove it",
            network.name,
        ));
    }
    sorted
}

/// The part of a network's range that hosts use, as far as this host knows: links with neighbours on them, and single
/// addresses to which packets are known to go. A stray address of this host stays its own whatever else leads there, so
/// it is not counted and takes no lease down.
struct Hosts {
    addresses: BTreeSet<IpAddr>,
    links: Vec<IpNet>,
}

impl Hosts {
    fn of(host: &HostInput<'_>, network: &NetworkInput<'_>) -> Self {
        let vital = host_ranges::vital(host.facts, host.store).into_iter().map(|(address, _)| address);
        let underlay = host.underlay;
        let own = IpFamily::BOTH.into_iter().flat_map(|of| [underlay.address(of), underlay.public_address(of)]);
        let peers = network.peers.iter().flat_map(|peer| IpFamily::BOTH.map(|of| peer.public_address(of)));
        let interfaces = host.facts.interfaces.iter().filter(|interface| !interface.ours && !interface.loopback);
        // A link as wide as the network does not say who is where on it, and this host's containers are on links in its
        // subnets.
        let is_of_hosts = |link: &&IpNet| {
            link.prefix_len() < link.max_prefix_len()
                && network.config.pools().any(|pool| pool.network().contains(*link))
                && !network.own.iter().any(|own| own.contains(*link))
        };
        let links = interfaces.flat_map(|interface| &interface.addresses).filter(is_of_hosts);
        Self { addresses: vital.chain(own.chain(peers).flatten()).collect(), links: links.map(IpNet::trunc).collect() }
    }

    /// Returns a link or address of hosts that is in `net`, or that `net` is in.
    fn inside(&self, net: IpNet) -> Option<IpNet> {
        let link = self.links.iter().find(|link| link.contains(&net) || net.contains(*link)).copied();
        let address = || self.addresses.range(net.network()..=net.broadcast()).next().copied().map(IpNet::from);
        link.or_else(address)
    }
}

#[cfg(test)]
mod tests;
