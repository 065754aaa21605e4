//! WireGuard: a packet leaves only if it is encrypted for the peer that holds the destination's subnet.
//!
//! There are flannel's modes: a device for each family over an underlay of that family (`separate`), or one device for
//! both families (`auto`, `ipv4`, `ipv6`). A packet to a peer first meets the route of the peer's subnet, which leads
//! to the device without a next hop. In the device, it meets the peer to which that subnet is allowed. The same list
//! judges packets that come in, so no guard of ours has to. The rules that keep the network's packets off every other
//! device are in [`crate::firewall`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use flatnet_model::{
    BackendData, IfName, IpFamily, Lease, NetworkConfig, NetworkName, NodeId, WireguardConfig, WireguardKey,
    WireguardMode,
};
use ipnet::IpNet;

use super::identities::Identities;
use super::mtu::fitting_mtu;
use super::peer::{self, Refusal};
use super::{Abilities, Backend, Built, Needs, NetworkCtx, Overhead, PublicKey, Wire, families};
use crate::facts::HostFacts;
use crate::object::{
    AddressKey, Datapath, Draft, Link, LinkKind, NextHop, WireguardLink, WireguardPeer, WireguardPeerKey,
    wireguard_device,
};
use crate::outcome::{Path, Paths};
use crate::problem::{Problem, ProblemCode};
use crate::underlay::Underlay;

impl Backend for WireguardConfig {
    fn needs(&self) -> Needs {
        Needs { key: true, ..Needs::default() }
    }

    /// Returns all families of the network (`separate`), or one.
    fn underlays(&self, network: &NetworkConfig, underlay: &Underlay) -> Vec<IpFamily> {
        match self.mode {
            WireguardMode::Separate => families(network).collect(),
            WireguardMode::Ipv4 => vec![IpFamily::V4],
            WireguardMode::Ipv6 => vec![IpFamily::V6],
            WireguardMode::Auto if underlay.v4.is_some() => vec![IpFamily::V4],
            WireguardMode::Auto => vec![IpFamily::V6],
        }
    }

    fn supported(&self, name: &NetworkName, _network: &NetworkConfig, host: &Abilities<'_>) -> Result<(), Problem> {
        datapath(host.facts, name)?;
        host.key.map(drop).map_err(Clone::clone)
    }

    fn device(&self, family: IpFamily) -> Option<IfName> {
        wireguard_device(self.port_of(family)).ok()
    }

    fn wire(&self, family: IpFamily) -> Option<Wire> {
        Some(Wire::Encrypted { port: self.port_of(family) })
    }

    fn overhead(&self, underlay: IpFamily) -> Overhead {
        /// UDP 8 (RFC 768); type, receiver and counter 16, authenticator 16 (WireGuard §5.4.6), in bytes. Padding never
        /// goes beyond the device's MTU.
        const INSIDE: u32 = 8 + 16 + 16;
        match underlay {
            // RFC 791: 20 bytes without options.
            IpFamily::V4 => Overhead(20 + INSIDE),
            // RFC 8200: 40 bytes.
            IpFamily::V6 => Overhead(40 + INSIDE),
        }
    }

    /// Returns both addresses where one device is reached by either.
    fn addresses(&self, network: &NetworkConfig, underlay: &Underlay) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        let is_alone = self.mode == WireguardMode::Separate;
        let of = |pool: bool| pool || !is_alone;
        let (v4, v6) = (of(network.v4.is_some()), of(network.v6.is_some()));
        (underlay.public_v4.filter(|_| v4), underlay.public_v6.filter(|_| v6))
    }

    fn data(&self, _node: NodeId, key: Option<PublicKey>, family: IpFamily) -> Option<BackendData> {
        Some(BackendData::Wireguard { public_key: key?, port: Some(self.port_of(family)) })
    }

    fn desired(&self, ctx: &NetworkCtx<'_>, out: &mut Draft) -> Result<Built, Problem> {
        let mut problems = Vec::new();
        let own = Own { config: *self, key: ctx.key.map_err(Clone::clone)?, datapath: datapath(ctx.facts, ctx.name)? };
        let mut tunnels = Vec::new();
        for families in own.families(ctx) {
            tunnels.push(own.tunnel(ctx, families, &mut problems)?);
        }
        let mtu = tunnels.iter().map(|tunnel| tunnel.link.mtu).min().ok_or_else(|| ctx.no_subnet())?;
        for tunnel in &tunnels {
            out.links.push((tunnel.device, tunnel.link.clone()));
            let subnets = tunnel.families.iter().filter_map(|family| ctx.own.of(*family));
            let addresses = subnets.map(|own| AddressKey { device: tunnel.device, address: IpNet::from(own.addr()) });
            out.addresses.extend(addresses);
        }
        let claims = Identities::of(published(ctx.peers));
        let mut programmed: BTreeMap<WireguardPeerKey, WireguardPeer> = BTreeMap::new();
        let peers = peer::decide_all(ctx, &mut problems, |peer| {
            let ways = tunnels
                .iter()
                .filter(|tunnel| tunnel.families.iter().any(|family| peer.subnets.of(*family).is_some()))
                .map(|tunnel| own.way(ctx, tunnel, peer, &claims).map(|way| (tunnel, way)))
                .collect::<Result<Vec<_>, Refusal>>()?;
            let mut paths = Paths::default();
            for (tunnel, way) in ways {
                add(tunnel, way, peer, own.config, &mut programmed, out);
                for family in tunnel.families.iter().filter(|family| peer.subnets.of(**family).is_some()) {
                    paths.set(*family, way.path(tunnel.device));
                }
            }
            Ok(paths)
        });
        out.wireguard_peers.extend(programmed);
        let devices =
            tunnels.iter().flat_map(|tunnel| tunnel.families.iter().map(|family| (*family, tunnel.device))).collect();
        Ok(Built { mtu, devices, peers, problems, datapath: own.datapath })
    }
}

/// Returns the datapath that can carry a network's packets here, or a problem if there is none.
fn datapath(facts: &HostFacts, network: &NetworkName) -> Result<Datapath, Problem> {
    facts.features.wireguard.ok_or_else(|| {
        Problem::new(
            ProblemCode::WireguardUnsupported,
            format!("network {network}: this kernel has no WireGuard, and no TUN device may stand in for it"),
            "load the module (modprobe wireguard; Linux 5.6 or newer has it), or let this agent do it: without \
             --no-userspace, with /dev/net/tun",
            network,
        )
    })
}

/// Makes the problem of a network that cannot be published yet.
pub(super) fn no_key_yet(network: &NetworkName) -> Problem {
    Problem::new(
        ProblemCode::WireguardNoKey,
        format!("network {network}: this host has no WireGuard key to publish yet"),
        "the agent goes on by itself once its device has one; agent doctor looks at the key file",
        network,
    )
}

/// Makes the reason for which a host has no key that needs none.
pub(super) fn no_network() -> Problem {
    Problem::new(ProblemCode::WireguardNoKey, "no network of this host is WireGuard's", "", "")
}

/// One of the network's devices.
struct Tunnel {
    device: IfName,
    link: Link,
    port: u16,
    /// The families that it carries.
    families: Vec<IpFamily>,
}

/// The way to one peer through one device.
#[derive(Clone, Copy)]
struct Way {
    key: WireguardKey,
    endpoint: SocketAddr,
}

impl Way {
    fn path(self, device: IfName) -> Path {
        Path { device, outer: self.endpoint.ip(), tunnel: None, nexthop_object: false, key: Some(self.key) }
    }
}

/// This host's side of a network: its options, and what this host has for them.
struct Own {
    config: WireguardConfig,
    key: PublicKey,
    datapath: Datapath,
}

impl Own {
    /// Returns the families of each tunnel.
    fn families(&self, ctx: &NetworkCtx<'_>) -> Vec<Vec<IpFamily>> {
        let families: Vec<IpFamily> = ctx.families().map(|(family, _)| family).collect();
        match self.config.mode {
            WireguardMode::Separate => families.into_iter().map(|family| vec![family]).collect(),
            _ if families.is_empty() => Vec::new(),
            _ => vec![families],
        }
    }

    fn tunnel(
        &self,
        ctx: &NetworkCtx<'_>,
        families: Vec<IpFamily>,
        problems: &mut Vec<Problem>,
    ) -> Result<Tunnel, Problem> {
        let port = match families.as_slice() {
            [IpFamily::V6] => self.config.port_of(IpFamily::V6),
            _ => self.config.port_of(IpFamily::V4),
        };
        let device = wireguard_device(port).map_err(|error| ctx.internal(error.to_string()))?;
        let outer = self.outer(ctx, &families);
        let mut mtu = ctx.underlay.mtu;
        for family in &families {
            mtu = mtu.min(fitting_mtu(ctx, *family, self.config.overhead(outer), self.config.mtu, problems)?);
        }
        let kind = LinkKind::Wireguard(WireguardLink { port, public_key: Some(self.key), datapath: self.datapath });
        Ok(Tunnel { device, link: Link { kind, mtu, mac: None, up: true }, port, families })
    }

    /// Returns the underlay family whose headers a packet must have room for. In `auto` it is IPv6, whose headers are
    /// larger, if the underlay has an address of it.
    fn outer(&self, ctx: &NetworkCtx<'_>, families: &[IpFamily]) -> IpFamily {
        match self.config.mode {
            WireguardMode::Separate => families.first().copied().unwrap_or(IpFamily::V4),
            WireguardMode::Ipv4 => IpFamily::V4,
            WireguardMode::Ipv6 => IpFamily::V6,
            WireguardMode::Auto if ctx.underlay.v6.is_none() => IpFamily::V4,
            WireguardMode::Auto => IpFamily::V6,
        }
    }

    /// Returns the way to `peer` through `tunnel`, if what it publishes makes one.
    fn way(&self, ctx: &NetworkCtx<'_>, tunnel: &Tunnel, peer: &Lease, claims: &Keys) -> Result<Way, Refusal> {
        let outer = match (self.config.mode, tunnel.families.as_slice()) {
            (WireguardMode::Separate, [family, ..]) => peer::admit(ctx, peer, *family)?,
            (WireguardMode::Ipv6, _) => peer::admit(ctx, peer, IpFamily::V6)?,
            (WireguardMode::Auto, _) if peer.public_ip.is_none() || ctx.underlay.v4.is_none() => {
                peer::admit(ctx, peer, IpFamily::V6)?
            }
            _ => peer::admit(ctx, peer, IpFamily::V4)?,
        };
        let mut data = tunnel.families.iter().map(|family| peer.backend_data(*family));
        let Some((key, port)) = data.find_map(key_and_port) else {
            return Err(Refusal::failed(
                ProblemCode::PeerNoKey,
                "it publishes no PublicKey",
                "restart the peer's agent; a permanent peer: agent network peer add … --public-key KEY",
            ));
        };
        if key == self.key {
            return Err(Refusal::failed(
                ProblemCode::DuplicateKey,
                "its PublicKey is this host's own",
                ONE_KEY_TWO_HOSTS,
            ));
        }
        if let Some((other, (v4, v6))) = claims.older(&key, peer, (peer.public_ip, peer.public_ipv6)) {
            let address = v4.map(IpAddr::V4).or(v6.map(IpAddr::V6)).map(|at| at.to_string()).unwrap_or_default();
            let reason = format!("its PublicKey {key} is claimed by the older lease {other} at {address}");
            return Err(Refusal::failed(ProblemCode::DuplicateKey, reason, ONE_KEY_TWO_HOSTS));
        }
        Ok(Way { key, endpoint: SocketAddr::new(outer, port.unwrap_or(tunnel.port)) })
    }
}

/// The hint for one key on two hosts.
const ONE_KEY_TWO_HOSTS: &str = "two hosts with one key: `agent rotate-key` on one of them, or remove its copied state \
                                 directory; nothing is sent to the newer one until then";

/// Adds the objects that one way needs. A host that holds two leases (one of them left over) is one peer to which both
/// are allowed.
fn add(
    tunnel: &Tunnel,
    way: Way,
    peer: &Lease,
    config: WireguardConfig,
    programmed: &mut BTreeMap<WireguardPeerKey, WireguardPeer>,
    out: &mut Draft,
) {
    let key = WireguardPeerKey { device: tunnel.device, public_key: way.key };
    let entry = programmed.entry(key).or_insert_with(|| WireguardPeer {
        endpoint: Some(way.endpoint),
        keepalive_secs: config.keepalive_secs,
        psk: config.psk,
        allowed: Vec::new(),
    });
    for subnet in tunnel.families.iter().filter_map(|family| peer.subnets.of(*family)) {
        entry.allowed.push(subnet);
        let gateway: IpAddr = match subnet.addr() {
            IpAddr::V4(_) => [0; 4].into(),
            IpAddr::V6(_) => [0; 16].into(),
        };
        out.route(subnet, NextHop { gateway, device: tunnel.device, onlink: false }, false);
    }
    entry.allowed.sort();
}

/// A host's underlay addresses: the IPv4 one, the IPv6 one.
type Addresses = (Option<Ipv4Addr>, Option<Ipv6Addr>);

/// Keys, and where they are. One key is one host.
type Keys = Identities<WireguardKey, Addresses>;

/// Returns the keys that peers publish, each with the addresses of its host.
fn published<'a>(peers: &[&'a Lease]) -> impl Iterator<Item = (WireguardKey, &'a Lease, Addresses)> {
    peers.iter().flat_map(|peer| {
        let keys = [&peer.data, &peer.data_v6].into_iter().filter_map(key_and_port);
        keys.map(|(key, _)| (key, *peer, (peer.public_ip, peer.public_ipv6)))
    })
}

fn key_and_port(data: &BackendData) -> Option<(WireguardKey, Option<u16>)> {
    let BackendData::Wireguard { public_key, port } = data else { return None };
    Some((*public_key, *port))
}

#[cfg(test)]
mod tests;
