//! WireGuard: a packet leaves only if it is encrypted for the peer that holds the destination's subnet.
//!
//! There are flannel's modes: a device for each family over an underlay of that family (`separate`), or one device for
//! both families (`auto`, `ipv4`, `ipv6`). A packet to a peer first meets the route of the peer's subnet, which leads
//! to the device without a next hop. In the device, it meets the peer to which that subnet is allowed. The same list
//! judges packets that come in, so no guard of ours has to. The rules that keep the network's packets off every other
//! device are in [`crate::firewall`].

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use flatnet_model::{
    BackendData, BackendKind, IfName, IpFamily, Lease, NetworkConfig, NodeId, Publication, Revision, SubnetKey,
    WireguardConfig, WireguardKey, WireguardMode,
};
use ipnet::IpNet;

use super::peer::{self, Refusal};
use super::{Backend, Built, NetworkCtx, Overhead, fitting_mtu, published};
use crate::object::{
    AddressKey, Datapath, Draft, Link, LinkKind, NextHop, WireguardLink, WireguardPeer, WireguardPeerKey,
    wireguard_device,
};
use crate::outcome::{Path, Paths};
use crate::problem::{Problem, ProblemCode};
use crate::underlay::Underlay;

/// The backend with its network's options and this host's public key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wireguard {
    pub(super) config: WireguardConfig,
    pub(super) key: WireguardKey,
}

impl Backend for Wireguard {
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

    fn desired(&self, ctx: &NetworkCtx<'_>, out: &mut Draft) -> Result<Built, Problem> {
        let mut problems = Vec::new();
        let datapath = datapath(ctx)?;
        let mut tunnels = Vec::new();
        for families in tunnels_of(&self.config, ctx) {
            tunnels.push(self.tunnel(ctx, families, datapath, &mut problems)?);
        }
        let Some(mtu) = tunnels.iter().map(|tunnel| tunnel.link.mtu).min() else {
            return Err(Problem::new(
                ProblemCode::NoSubnet,
                format!("network {}: this host's lease {} is of none of its families", ctx.name, ctx.own),
                "agent leave --renumber takes a new one",
                ctx.name,
            ));
        };
        for tunnel in &tunnels {
            out.links.push((tunnel.device, tunnel.link.clone()));
            let own = tunnel.families.iter().filter_map(|family| ctx.own.of(*family));
            let addresses = own.map(|own| AddressKey { device: tunnel.device, address: IpNet::from(own.addr()) });
            out.addresses.extend(addresses);
        }
        let claims = Claims::of(ctx.peers);
        let mut programmed: BTreeMap<WireguardPeerKey, WireguardPeer> = BTreeMap::new();
        let peers = peer::decide_all(ctx, &mut problems, |peer| {
            let ways = tunnels
                .iter()
                .filter(|tunnel| tunnel.families.iter().any(|family| peer.subnets.of(*family).is_some()))
                .map(|tunnel| self.way(ctx, tunnel, peer, &claims).map(|way| (tunnel, way)))
                .collect::<Result<Vec<_>, Refusal>>()?;
            let mut paths = Paths::default();
            for (tunnel, way) in ways {
                add(tunnel, way, peer, self.config, &mut programmed, out);
                for family in tunnel.families.iter().filter(|family| peer.subnets.of(**family).is_some()) {
                    paths.set(*family, way.path(tunnel.device));
                }
            }
            Ok(paths)
        });
        out.wireguard_peers.extend(programmed);
        let devices =
            tunnels.iter().flat_map(|tunnel| tunnel.families.iter().map(|family| (*family, tunnel.device))).collect();
        Ok(Built { mtu, devices, peers, problems, datapath })
    }

    fn publication(&self, _node: NodeId, underlay: &Underlay, config: &NetworkConfig) -> Publication {
        let data = |family| BackendData::Wireguard { public_key: self.key, port: Some(self.config.port_of(family)) };
        let mut publication = published(underlay, config, BackendKind::Wireguard);
        if self.config.mode != WireguardMode::Separate {
            publication.public_ip = underlay.public_v4;
            publication.public_ipv6 = underlay.public_v6;
        }
        if config.v4.is_some() {
            publication.data = data(IpFamily::V4);
        }
        if config.v6.is_some() {
            publication.data_v6 = data(IpFamily::V6);
        }
        publication
    }
}

/// Returns the families of the underlay that a network uses: all of its own (`separate`), or one.
pub(super) fn underlays(config: &WireguardConfig, network: &NetworkConfig, underlay: &Underlay) -> Vec<IpFamily> {
    match config.mode {
        WireguardMode::Separate => {
            IpFamily::BOTH.into_iter().filter(|family| network.pool(*family).is_some()).collect()
        }
        WireguardMode::Ipv4 => vec![IpFamily::V4],
        WireguardMode::Ipv6 => vec![IpFamily::V6],
        WireguardMode::Auto if underlay.v4.is_some() => vec![IpFamily::V4],
        WireguardMode::Auto => vec![IpFamily::V6],
    }
}

/// Returns the datapath that will carry the packets.
pub(super) fn datapath(ctx: &NetworkCtx<'_>) -> Result<Datapath, Problem> {
    supported(ctx.facts, ctx.name)
}

/// Returns the datapath that can carry this network's packets here, or a problem if there is none.
pub(super) fn supported(
    facts: &crate::facts::HostFacts,
    network: &flatnet_model::NetworkName,
) -> Result<Datapath, Problem> {
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

/// Returns the families of each tunnel.
fn tunnels_of(config: &WireguardConfig, ctx: &NetworkCtx<'_>) -> Vec<Vec<IpFamily>> {
    let families: Vec<IpFamily> = ctx.families().map(|(family, _)| family).collect();
    match config.mode {
        WireguardMode::Separate => families.into_iter().map(|family| vec![family]).collect(),
        _ if families.is_empty() => Vec::new(),
        _ => vec![families],
    }
}

/// One of the network's devices.
struct Tunnel {
    device: IfName,
    link: Link,
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
        Path { device, outer: self.endpoint.ip(), tunnel: None, nexthop_object: false, wireguard: Some(self.key) }
    }
}

impl Wireguard {
    fn tunnel(
        &self,
        ctx: &NetworkCtx<'_>,
        families: Vec<IpFamily>,
        datapath: Datapath,
        problems: &mut Vec<Problem>,
    ) -> Result<Tunnel, Problem> {
        let internal = |message: String| Problem::new(ProblemCode::Internal, message, "report this as a bug", ctx.name);
        let port = match families.as_slice() {
            [IpFamily::V6] => self.config.port_of(IpFamily::V6),
            _ => self.config.port_of(IpFamily::V4),
        };
        let device = wireguard_device(port).map_err(|error| internal(error.to_string()))?;
        let outer = self.outer(ctx, &families);
        let mut mtu = ctx.underlay.mtu;
        for family in &families {
            mtu = mtu.min(fitting_mtu(ctx, *family, self.overhead(outer), self.config.mtu, problems)?);
        }
        let kind = LinkKind::Wireguard(WireguardLink { port, public_key: Some(self.key), datapath });
        Ok(Tunnel { device, link: Link { kind, mtu, mac: None, up: true }, families })
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
    fn way(&self, ctx: &NetworkCtx<'_>, tunnel: &Tunnel, peer: &Lease, claims: &Claims) -> Result<Way, Refusal> {
        let outer = match (self.config.mode, tunnel.families.as_slice()) {
            (WireguardMode::Separate, [family, ..]) => peer::admit(ctx, peer, *family)?,
            (WireguardMode::Ipv6, _) => peer::admit(ctx, peer, IpFamily::V6)?,
            (WireguardMode::Auto, _) if peer.public_ip.is_none() || ctx.underlay.v4.is_none() => {
                peer::admit(ctx, peer, IpFamily::V6)?
            }
            _ => peer::admit(ctx, peer, IpFamily::V4)?,
        };
        let mut data = tunnel.families.iter().map(|family| peer.backend_data(*family));
        let published = data.find_map(|data| match data {
            BackendData::Wireguard { public_key, port } => Some((*public_key, *port)),
            BackendData::None | BackendData::Vxlan { .. } | BackendData::Gre { .. } => None,
        });
        let Some((key, port)) = published else {
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
        if let Some((other, address)) = claims.older(key, peer) {
            let reason = format!("its PublicKey {key} is claimed by the older lease {other} at {address}");
            return Err(Refusal::failed(ProblemCode::DuplicateKey, reason, ONE_KEY_TWO_HOSTS));
        }
        let LinkKind::Wireguard(link) = tunnel.link.kind else {
            return Err(Refusal::failed(ProblemCode::Internal, "not a WireGuard device", "report this as a bug"));
        };
        Ok(Way { key, endpoint: SocketAddr::new(outer, port.unwrap_or(link.port)) })
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

/// The leases that keys belong to. One key is one host, and the older lease holds, so that a newcomer cannot take over
/// a peer's traffic by publishing its key.
struct Claims(HashMap<WireguardKey, (Revision, SubnetKey, Addresses)>);

/// A lease's underlay addresses: the IPv4 one, the IPv6 one.
type Addresses = (Option<std::net::Ipv4Addr>, Option<std::net::Ipv6Addr>);

impl Claims {
    fn of(peers: &[&Lease]) -> Self {
        let mut claims = HashMap::with_capacity(peers.len());
        for peer in peers {
            for data in [&peer.data, &peer.data_v6] {
                let BackendData::Wireguard { public_key, .. } = data else { continue };
                let claim = (peer.create_revision, peer.subnets, (peer.public_ip, peer.public_ipv6));
                claims
                    .entry(*public_key)
                    .and_modify(|held: &mut (Revision, SubnetKey, Addresses)| *held = claim.min(*held))
                    .or_insert(claim);
            }
        }
        Self(claims)
    }

    /// Returns the older claim on `key` that contradicts `peer` having it: a claim of a host somewhere else.
    fn older(&self, key: WireguardKey, peer: &Lease) -> Option<(SubnetKey, String)> {
        let (_, subnets, (v4, v6)) = *self.0.get(&key)?;
        let elsewhere = subnets != peer.subnets && (v4, v6) != (peer.public_ip, peer.public_ipv6);
        let address = v4.map(|v4| v4.to_string()).or_else(|| v6.map(|v6| v6.to_string())).unwrap_or_default();
        elsewhere.then_some((subnets, address))
    }
}

#[cfg(test)]
mod tests;
