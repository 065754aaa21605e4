//! The parts that every network needs whatever its backend: the catch-all route, the bridge, settings, the firewall.

use std::collections::BTreeSet;
use std::net::IpAddr;

use flatnet_model::{IfName, IpFamily, Pool};
use ipnet::IpNet;

use super::settings::{self, Device};
use super::{HostInput, NetworkInput, first_address, range};
use crate::backend::{self, Wire};
use crate::firewall::{self, EncryptedTunnel, FirewallHost, FirewallNetwork, FirewallTunnel};
use crate::object::{AddressKey, Draft, Link, LinkKind, PeerSource, Route, RouteKey, RouteVia, SetName, TunnelId};
use crate::outcome::{PeerDecision, PeerOutcome};
use crate::transition::ways::{Way, Ways};

/// Adds what one network needs beside its backend's objects.
pub(super) fn add(host: &HostInput<'_>, network: &NetworkInput<'_>, built: &Ways, draft: &mut Draft) {
    refuse_unknown(host, network, draft);
    if let (Some(bridge), Some(mtu)) = (network.bridge, built.mtu()) {
        draft.links.push((bridge, Link { kind: LinkKind::Bridge, mtu, mac: None, up: true }));
        draft.addresses.extend(network.own.iter().filter_map(|subnet| {
            let address = IpNet::new(first_address(subnet), subnet.prefix_len()).ok()?;
            Some(AddressKey { device: bridge, address })
        }));
    }
    let of_devices = devices(network, built, draft);
    draft.sysctls.extend(of_devices.iter().flat_map(|device| settings::of_device(host.facts, device)));
}

/// Returns the devices of a network, as far as their settings depend on them.
fn devices(network: &NetworkInput<'_>, built: &Ways, draft: &Draft) -> Vec<Device> {
    let mtu = |name: IfName| draft.links.iter().rev().find(|(other, _)| *other == name).map(|(_, link)| link.mtu);
    let mut devices = Vec::new();
    for way in &built.ways {
        for name in way.built.device_names() {
            let families = way.built.devices.iter().filter(|(_, of)| *of == name).map(|(family, _)| *family).collect();
            devices.extend(mtu(name).map(|mtu| Device { name, families, tunnel: true, mtu }));
        }
    }
    devices.extend(network.bridge.zip(built.mtu()).map(|(name, mtu)| {
        let families = network.own.iter().map(|subnet| IpFamily::of(subnet.addr())).collect();
        Device { name, families, tunnel: false, mtu }
    }));
    devices
}

/// Adds the routes that refuse packets no other route of the network takes. So nothing of the network leaves by the
/// default route, whether the network is programmed or not.
pub(super) fn refuse_unknown(host: &HostInput<'_>, network: &NetworkInput<'_>, draft: &mut Draft) {
    let refuses = |range| (RouteKey::unreachable(range), Route { via: RouteVia::Unreachable, source: None });
    draft.routes.extend(range::taken(host, network).into_iter().map(refuses));
}

/// Adds the guards of networks that are not programmed now. Tunnels that another network already has are left out,
/// since the table names each only once.
pub(super) fn add_beside(guards: Vec<FirewallNetwork>, firewall: &mut Vec<FirewallNetwork>) {
    for mut guard in guards {
        let tunnels: Vec<&FirewallTunnel> = firewall.iter().flat_map(|other| &other.tunnels).collect();
        let is_same = |a: &FirewallTunnel, b: &FirewallTunnel| a.id == b.id && a.family == b.family;
        guard.tunnels.retain(|tunnel| !tunnels.iter().any(|other| is_same(tunnel, other)));
        let encrypted: Vec<&EncryptedTunnel> = firewall.iter().flat_map(|other| &other.encrypted).collect();
        guard.encrypted.retain(|tunnel| !encrypted.iter().any(|other| other.port == tunnel.port));
        firewall.push(guard);
    }
}

/// Returns the guard of a network as it was when it was programmed, without hosts that are no longer peers or have
/// moved since.
pub(super) fn without_removed(guard: &FirewallNetwork, network: &NetworkInput<'_>) -> FirewallNetwork {
    let mut there = BTreeSet::new();
    for peer in network.peers {
        let subnets = || peer.subnets.iter();
        // First as `PeerSource::direct` has them, then as they come through a tunnel.
        there.extend(subnets().map(|subnet| (subnet.addr(), subnet)));
        let addresses = [peer.public_ip.map(IpAddr::V4), peer.public_ipv6.map(IpAddr::V6)];
        for at in addresses.into_iter().flatten() {
            there.insert((at, IpNet::from(at)));
            there.extend(subnets().map(|subnet| (at, subnet)));
        }
    }
    let is_there = |source: &&PeerSource| there.contains(&(source.outer, source.inner));
    FirewallNetwork { peers: guard.peers.iter().filter(is_there).copied().collect(), ..guard.clone() }
}

/// Returns the guard of a network that was not programmed in this run: nobody may send by its tunnels, in case a device
/// is there.
pub(super) fn closed(host: &HostInput<'_>, network: &NetworkInput<'_>) -> Option<FirewallNetwork> {
    let mut firewall = empty_guard(host, network);
    for (family, device, wire) in backend::devices(network.config) {
        add_tunnel(network, family, device, wire, [], &mut firewall);
    }
    (!firewall.tunnels.is_empty() || !firewall.encrypted.is_empty()).then_some(firewall)
}

/// Adds a tunnel device of one family. `of_peers`: the lengths that its peers' subnets have, in bits.
fn add_tunnel(
    network: &NetworkInput<'_>,
    family: IpFamily,
    device: IfName,
    wire: Wire,
    of_peers: impl IntoIterator<Item = u8>,
    firewall: &mut FirewallNetwork,
) {
    match wire {
        Wire::Guarded { id, port } => {
            let usual = network.config.pool(family).map(Pool::subnet_len);
            let prefix_lens = of_peers.into_iter().chain(usual).collect();
            firewall.tunnels.push(FirewallTunnel { id, family, prefix_lens, port, device });
        }
        Wire::Encrypted { port } => match firewall.encrypted.iter_mut().find(|tunnel| tunnel.device == device) {
            Some(tunnel) => tunnel.families.push(family),
            None => firewall.encrypted.push(EncryptedTunnel { device, port, families: vec![family] }),
        },
    }
}

/// Adds what the host needs once any network is programmed: forwarding and the firewall.
pub(super) fn add_host(host: &HostInput<'_>, networks: &[FirewallNetwork], draft: &mut Draft) {
    let cidrs = networks.iter().flat_map(|network| &network.cidrs);
    let families = cidrs.map(|cidr| IpFamily::of(cidr.addr())).collect();
    draft.sysctls.extend(settings::of_host(host.facts, &families));
    draft.iptables.extend(firewall::iptables(networks, &host.facts.dropping_chains));
}

/// Adds the table, if there is anything to guard.
pub(super) fn add_guard(host: &HostInput<'_>, networks: &[FirewallNetwork], draft: &mut Draft) {
    if networks.is_empty() {
        return;
    }
    let (ruleset, elements) = firewall::ruleset(networks, firewall_host(host));
    draft.ruleset = Some(ruleset);
    draft.peer_sources = elements.into_iter().collect();
}

/// Returns what the firewall needs to know about the host.
fn firewall_host(host: &HostInput<'_>) -> FirewallHost {
    let addresses = host.facts.interfaces.iter().flat_map(|interface| &interface.addresses).map(IpNet::addr);
    FirewallHost {
        underlay: host.underlay.device,
        uplinks: host.facts.uplinks.clone(),
        addresses: addresses.filter(|address| host.exposure.store.iter().any(|at| at.ip() == *address)).collect(),
        store: host.exposure.store.clone(),
    }
}

/// Returns what the firewall needs to know about a network that is programmed.
pub(super) fn firewall_network(host: &HostInput<'_>, network: &NetworkInput<'_>, built: &Ways) -> FirewallNetwork {
    let mut firewall = empty_guard(host, network);
    for way in &built.ways {
        add_way(network, way, &mut firewall);
    }
    // Only beside a tunnel that encrypts does it matter which peers are not in it yet.
    for way in built.ways.iter().filter(|way| !firewall.encrypted.is_empty() && !backend::encrypts(&way.backend)) {
        firewall.clear_to.extend(&way.reached);
    }
    firewall
}

/// Returns a network without tunnels and peers.
fn empty_guard(host: &HostInput<'_>, network: &NetworkInput<'_>) -> FirewallNetwork {
    FirewallNetwork {
        encrypted: Vec::new(),
        clear_to: Vec::new(),
        direct: BTreeSet::new(),
        exposed_to: host.exposure.interfaces.clone(),
        reachable_from: host.exposure.ranges.iter().chain(&network.config.reachable_from).copied().collect(),
        name: network.name.clone(),
        cidrs: range::taken(host, network),
        own: network.own.iter().collect(),
        masquerade: network.masquerade,
        tunnels: Vec::new(),
        peers: BTreeSet::new(),
    }
}

/// Adds the tunnels of one backend, and the peers that may send by them.
fn add_way(network: &NetworkInput<'_>, way: &Way, firewall: &mut FirewallNetwork) {
    let built = &way.built;
    let wires: Vec<(IpFamily, IfName, Wire)> = built
        .devices
        .iter()
        .filter_map(|(family, device)| Some((*family, *device, backend::wire(&way.backend, *family)?)))
        .collect();
    let id = wires.iter().find_map(|(_, _, wire)| wire.id());
    let peers: BTreeSet<PeerSource> =
        id.map(|id| built.peers.iter().flat_map(|peer| sources(peer, id)).collect()).unwrap_or_default();
    for (family, device, wire) in wires {
        let of_family = peers.iter().map(|source| source.set).filter(|set| set.family == family);
        add_tunnel(network, family, device, wire, of_family.map(|set| set.prefix_len), firewall);
    }
    firewall.peers.extend(peers);
    if backend::has_direct_routes(&way.backend) {
        let direct: Vec<PeerSource> = built.peers.iter().flat_map(unencapsulated).collect();
        let usual = network.config.pools().flat_map(|pool| {
            let family = pool.family();
            [pool.subnet_len(), family.bits()].map(|length| SetName::direct(family, length))
        });
        firewall.direct.extend(direct.iter().map(|source| source.set).chain(usual));
        firewall.peers.extend(direct);
    }
}

/// Returns the sources that a peer may use without a tunnel: its subnets, and its host, which opens connections itself.
/// This includes peers that are reached through a tunnel, since whether two hosts share a link may look different from
/// the other side.
fn unencapsulated(peer: &PeerOutcome) -> impl Iterator<Item = PeerSource> {
    let paths = match peer.decision {
        PeerDecision::Programmed(paths) => [(IpFamily::V4, paths.v4), (IpFamily::V6, paths.v6)],
        PeerDecision::Ignored { .. } | PeerDecision::Unreachable { .. } | PeerDecision::Failed { .. } => {
            [(IpFamily::V4, None), (IpFamily::V6, None)]
        }
    };
    let ways = paths.into_iter().filter_map(|(family, path)| Some((peer.subnets.of(family)?, path?.outer)));
    ways.flat_map(|(subnet, host)| [subnet, IpNet::from(host)].map(PeerSource::direct))
}

/// Returns the sources that a peer may use through the tunnel. This includes peers with a direct route, since whether
/// two hosts share a link may look different from the other side.
fn sources(peer: &PeerOutcome, tunnel: TunnelId) -> impl Iterator<Item = PeerSource> {
    let paths = match peer.decision {
        PeerDecision::Programmed(paths) => [(IpFamily::V4, paths.v4), (IpFamily::V6, paths.v6)],
        PeerDecision::Ignored { .. } | PeerDecision::Unreachable { .. } | PeerDecision::Failed { .. } => {
            [(IpFamily::V4, None), (IpFamily::V6, None)]
        }
    };
    paths.into_iter().filter_map(move |(family, path)| {
        let inner = peer.subnets.of(family)?;
        let set = SetName { tunnel, family, prefix_len: inner.prefix_len() };
        Some(PeerSource { set, outer: path?.outer, inner })
    })
}
