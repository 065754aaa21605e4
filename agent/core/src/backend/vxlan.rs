//! VXLAN (RFC 7348) with permanent entries: learning is off, and there is no multicast and no flooding.
//!
//! An IPv4 overlay travels over an IPv4 underlay on `flat.<VNI>`, an IPv6 overlay over an IPv6 underlay on its twin
//! `flat6.<VNI>`, exactly as flannel does, so that a flanneld peer understands us. A packet to a peer meets, in order:
//!
//! 1. the route of the peer's subnet;
//! 2. its next hop, the subnet's first address, which is taken to be on the device's link;
//! 3. the permanent neighbour of that address (the peer's `VtepMAC`);
//! 4. the forwarding entry of that Ethernet address (the peer's `PublicIP`).

use std::net::IpAddr;

use flatnet_model::{BackendData, IfName, IpFamily, Lease, Mac, NodeId, Vni, VxlanConfig, vtep_mac};
use ipnet::IpNet;

use super::identities::Identities;
use super::mtu::fitting_mtu;
use super::peer::{self, Refusal};
use super::{Backend, Built, Clash, NetworkCtx, Overhead, PublicKey, Wire};
use crate::object::{AddressKey, Datapath, Draft, FdbKey, Link, LinkKind, NeighbourKey, NextHop, TunnelId, VxlanLink};
use crate::outcome::{Path, Paths, Reach, Tunnel as PeerTunnel};
use crate::problem::{Problem, ProblemCode};

impl Backend for VxlanConfig {
    fn has_direct_routes(&self) -> bool {
        self.direct_routing
    }

    fn device(&self, family: IpFamily) -> Option<IfName> {
        device_name(self.vni, family).ok()
    }

    fn wire(&self, _family: IpFamily) -> Option<Wire> {
        Some(Wire::Guarded { id: TunnelId::Vxlan(self.vni), port: self.port })
    }

    fn rival(&self, family: IpFamily) -> Option<IfName> {
        rival(self.vni, family)
    }

    fn clash(&self) -> Option<Clash> {
        // The VNI alone names the device, so different ports do not help.
        Some(Clash { code: ProblemCode::VniConflict, id: format!("VNI {}", self.vni), option: "--vni" })
    }

    fn overhead(&self, underlay: IpFamily) -> Overhead {
        /// UDP 8 (RFC 768), VXLAN 8 (RFC 7348 §5), and the inner Ethernet header 14 (IEEE 802.3), in bytes.
        const INSIDE: u32 = 8 + 8 + 14;
        match underlay {
            // RFC 791: 20 bytes without options.
            IpFamily::V4 => Overhead(20 + INSIDE),
            // RFC 8200: 40 bytes.
            IpFamily::V6 => Overhead(40 + INSIDE),
        }
    }

    fn data(&self, node: NodeId, _key: Option<PublicKey>, family: IpFamily) -> Option<BackendData> {
        Some(BackendData::Vxlan { vni: Some(self.vni), mac: vtep_mac(node, self.vni, family) })
    }

    fn desired(&self, ctx: &NetworkCtx<'_>, out: &mut Draft) -> Result<Built, Problem> {
        let mut problems = Vec::new();
        let mut tunnels = Vec::new();
        for (family, own) in ctx.families() {
            tunnels.push(tunnel(self, ctx, family, own, &mut problems)?);
        }
        let mtu = tunnels.iter().map(|tunnel| tunnel.link.mtu).min().ok_or_else(|| ctx.no_subnet())?;
        for tunnel in &tunnels {
            out.links.push((tunnel.device, tunnel.link.clone()));
            out.addresses.push(AddressKey { device: tunnel.device, address: IpNet::from(tunnel.own.addr()) });
        }
        let peers = peer::decide_all(ctx, &mut problems, |peer| {
            let mut paths = Paths::default();
            for tunnel in &tunnels {
                if peer.subnets.of(tunnel.family).is_some() {
                    paths.set(tunnel.family, path(self, ctx, tunnel, peer)?);
                }
            }
            for tunnel in &tunnels {
                let path = if tunnel.family == IpFamily::V4 { paths.v4 } else { paths.v6 };
                if let (Some(subnet), Some(path)) = (peer.subnets.of(tunnel.family), path) {
                    add(subnet, &path, out);
                }
            }
            Ok(paths)
        });
        let devices = tunnels.iter().map(|tunnel| (tunnel.family, tunnel.device)).collect();
        Ok(Built { mtu, devices, peers, problems, datapath: Datapath::Kernel })
    }
}

/// One of the network's devices, with what its peers claim.
struct Tunnel {
    family: IpFamily,
    device: IfName,
    link: Link,
    own: IpNet,
    own_mac: Mac,
    /// Ethernet addresses, and where they are.
    claims: Identities<Mac, IpAddr>,
}

fn tunnel(
    config: &VxlanConfig,
    ctx: &NetworkCtx<'_>,
    family: IpFamily,
    own: IpNet,
    problems: &mut Vec<Problem>,
) -> Result<Tunnel, Problem> {
    let local = ctx.underlay.address(family).ok_or_else(|| ctx.internal(format!("no {family} underlay")))?;
    let device = device_name(config.vni, family).map_err(|error| ctx.internal(error.to_string()))?;
    let mtu = fitting_mtu(ctx, family, config.overhead(family), config.mtu, problems)?;
    let own_mac = vtep_mac(ctx.node, config.vni, family);
    let kind = LinkKind::Vxlan(VxlanLink { vni: config.vni, port: config.port, local });
    let link = Link { kind, mtu, mac: Some(own_mac), up: true };
    Ok(Tunnel { family, device, link, own, own_mac, claims: Identities::of(published(ctx.peers, family)) })
}

/// Returns the Ethernet addresses that peers publish, each with the place that it is to be at.
fn published<'a>(peers: &[&'a Lease], family: IpFamily) -> impl Iterator<Item = (Mac, &'a Lease, IpAddr)> {
    peers.iter().filter_map(move |peer| {
        let BackendData::Vxlan { mac, .. } = *peer.backend_data(family) else { return None };
        peer.subnets.of(family)?;
        Some((mac, *peer, peer.public_address(family)?))
    })
}

/// Returns the path to `peer` in one family, if what it publishes makes one.
fn path(config: &VxlanConfig, ctx: &NetworkCtx<'_>, tunnel: &Tunnel, peer: &Lease) -> Result<Path, Refusal> {
    let outer = peer::admit(ctx, peer, tunnel.family)?;
    let nexthop_object = tunnel.family == IpFamily::V4 && ctx.facts.features.nexthop_objects;
    if config.direct_routing && peer::on_link(ctx, outer) {
        return Ok(Path { device: ctx.underlay.device, outer, tunnel: None, nexthop_object, key: None });
    }
    let BackendData::Vxlan { vni, mac } = *peer.backend_data(tunnel.family) else {
        return Err(Refusal::failed(
            ProblemCode::PeerNoVtep,
            "it publishes no VtepMAC",
            "restart the peer's agent; a permanent peer needs DirectRouting and this link, or BackendData",
        ));
    };
    if let Some(vni) = vni.filter(|vni| *vni != config.vni) {
        return Err(Refusal::ignored(format!("it receives VNI {vni}, this network's is {}", config.vni)));
    }
    if !mac.is_unicast() {
        return Err(Refusal::failed(
            ProblemCode::PeerBadMac,
            format!("its VtepMAC {mac} cannot be a host's"),
            "restart the peer's agent",
        ));
    }
    if mac == tunnel.own_mac {
        return Err(Refusal::failed(
            ProblemCode::DuplicateMac,
            format!("its VtepMAC {mac} is this host's own"),
            "two hosts with one node id: remove the copied state directory on one of them and restart its agent",
        ));
    }
    if let Some((other, address)) = tunnel.claims.older(&mac, peer, outer) {
        return Err(Refusal::failed(
            ProblemCode::DuplicateMac,
            format!("its VtepMAC {mac} is claimed by the older lease {other} at {address}"),
            "two hosts with one node id: remove the copied state directory on one of them and restart its agent",
        ));
    }
    let through = PeerTunnel { id: TunnelId::Vxlan(config.vni), reach: Reach::Forwarding(mac) };
    Ok(Path { device: tunnel.device, outer, tunnel: Some(through), nexthop_object, key: None })
}

/// Adds the objects that one path needs. A path may change between tunnel and direct route under the same keys, and so
/// in place.
fn add(subnet: IpNet, path: &Path, out: &mut Draft) {
    let base = subnet.addr();
    let hop = match path.tunnel {
        Some(PeerTunnel { reach: Reach::Forwarding(mac), .. }) => {
            out.neighbours.push((NeighbourKey { device: path.device, address: base }, mac.into()));
            out.fdb.push((FdbKey { device: path.device, mac }, path.outer));
            NextHop { gateway: base, device: path.device, onlink: true }
        }
        // `path` gives no other tunnels.
        None | Some(_) => NextHop { gateway: path.outer, device: path.device, onlink: false },
    };
    out.route(subnet, hop, path.nexthop_object);
}

/// Returns `flat.<VNI>`, or over IPv6 `flat6.<VNI>`, which have at most 14 characters.
fn device_name(vni: Vni, family: IpFamily) -> Result<IfName, flatnet_model::net::InvalidIfName> {
    match family {
        IpFamily::V4 => IfName::new(&format!("flat.{vni}")),
        IpFamily::V6 => IfName::new(&format!("flat6.{vni}")),
    }
}

/// Returns flanneld's name for its tunnel device (`vxlan.go`: `flannel.%v`, `flannel-v6.%v`).
pub(super) fn rival(vni: Vni, family: IpFamily) -> Option<IfName> {
    IfName::new(&match family {
        IpFamily::V4 => format!("flannel.{vni}"),
        IpFamily::V6 => format!("flannel-v6.{vni}"),
    })
    .ok()
}

#[cfg(test)]
mod tests;
