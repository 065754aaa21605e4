//! Networks that are not programmed now. What such a network has in the kernel stays as it was found, except for hosts
//! that were removed meanwhile.

use std::collections::BTreeSet;
use std::net::IpAddr;

use flatnet_model::{BackendData, IfName, Lease, WireguardKey};
use ipnet::IpNet;

use super::NetworkInput;
use crate::backend;
use crate::object::{KernelState, RouteVia, WireguardPeer, WireguardPeerKey};

/// The devices and hosts of a waiting network. They tell its objects from others', and the objects of hosts that are
/// still in it from those of removed ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// The network's tunnels, including those of earlier backends.
    devices: BTreeSet<IfName>,
    /// The subnets of the hosts in it, then the hosts' addresses and their keys.
    subnets: BTreeSet<IpNet>,
    hosts: BTreeSet<IpAddr>,
    keys: BTreeSet<(IpNet, WireguardKey)>,
}

impl Waiting {
    pub(super) fn of(network: &NetworkInput<'_>) -> Self {
        let mut waiting = Self::default();
        for config in network.stage.configs(network.config) {
            waiting.devices.extend(backend::devices(&config).into_iter().map(|(_, device, _)| device));
        }
        for peer in network.peers {
            waiting.subnets.extend(peer.subnets.iter());
            waiting.hosts.extend(peer.public_ip.map(IpAddr::V4));
            waiting.hosts.extend(peer.public_ipv6.map(IpAddr::V6));
            waiting.keys.extend(keys(peer).flat_map(|key| peer.subnets.iter().map(move |subnet| (subnet, key))));
        }
        waiting
    }

    /// Adds to `wanted` the objects on the network's devices that may stay; the rest goes as from any device. If
    /// another network has a device, it belongs to that network alone.
    pub(super) fn keep(&self, found: &KernelState, wanted: &mut KernelState) {
        let is_left = |device: &IfName| !wanted.links.contains_key(device);
        let devices: BTreeSet<IfName> = self.devices.iter().copied().filter(is_left).collect();
        let is_here = |device: &IfName| devices.contains(device);
        let is_there = |address: &IpAddr| self.subnets.iter().any(|subnet| subnet.contains(address));
        wanted
            .links
            .extend(found.links.iter().filter(|(name, _)| is_here(name)).map(|(name, link)| (*name, link.clone())));
        wanted.addresses.extend(found.addresses.iter().filter(|key| is_here(&key.device)));
        let neighbours = found.neighbours.iter().filter(|(key, _)| is_here(&key.device) && is_there(&key.address));
        wanted.neighbours.extend(neighbours.map(|(key, to)| (*key, *to)));
        let fdb = found.fdb.iter().filter(|(key, to)| is_here(&key.device) && self.hosts.contains(to));
        wanted.fdb.extend(fdb.map(|(key, to)| (*key, *to)));
        let peers = found.wireguard_peers.iter().filter(|(key, peer)| is_here(&key.device) && self.is_peer(key, peer));
        wanted.wireguard_peers.extend(peers.map(|(key, peer)| (*key, peer.clone())));
        let nexthops = found.nexthops.iter().filter(|(_, nexthop)| is_here(&nexthop.via.device));
        let nexthops = nexthops.filter(|(_, nexthop)| is_there(&nexthop.via.gateway));
        wanted.nexthops.extend(nexthops.map(|(id, nexthop)| (*id, *nexthop)));
        let leads_here = |via: &RouteVia| match via {
            RouteVia::Object(id) => found.nexthops.get(id).is_some_and(|nexthop| is_here(&nexthop.via.device)),
            via => via.device().is_some_and(|device| is_here(&device)),
        };
        let routes = found
            .routes
            .iter()
            .filter(|(key, route)| leads_here(&route.via) && self.subnets.contains(&key.destination));
        wanted.routes.extend(routes.map(|(key, route)| (*key, *route)));
    }

    /// Returns true if all prefixes that a peer of a device may send from are still leased by the host whose key it is.
    fn is_peer(&self, key: &WireguardPeerKey, peer: &WireguardPeer) -> bool {
        peer.allowed.iter().all(|subnet| self.keys.contains(&(*subnet, key.public_key)))
    }
}

/// Returns the keys that a host has published, for all the ways to it.
fn keys(lease: &Lease) -> impl Iterator<Item = WireguardKey> {
    lease.ways().flatten().filter_map(BackendData::public_key)
}
