//! VXLAN (RFC 7348) with permanent entries: learning is off, and there is no multicast and no flooding.
//!
//! An IPv4 overlay travels over an IPv4 underlay on `flat.<VNI>`, an IPv6 overlay over an IPv6 underlay on its twin
//! `flat6.<VNI>`, exactly as flannel does, so that a flanneld peer understands us. A packet to a peer meets, in order:
//!
//! 1. the route of the peer's subnet;
//! 2. its next hop, the subnet's first address, which is taken to be on the device's link;
//! 3. the permanent neighbour of that address (the peer's `VtepMAC`);
//! 4. the forwarding entry of that Ethernet address (the peer's `PublicIP`).

use std::collections::HashMap;
use std::net::IpAddr;

use flatnet_model::{
    BackendData, BackendKind, IfName, IpFamily, Lease, Mac, NetworkConfig, NodeId, Publication, Revision, SubnetKey,
    Vni, VxlanConfig, vtep_mac,
};
use ipnet::IpNet;

use super::peer::{self, Refusal};
use super::{Backend, Built, NetworkCtx, Overhead, fitting_mtu, published};
use crate::object::{AddressKey, Datapath, Draft, FdbKey, Link, LinkKind, NeighbourKey, NextHop, VxlanLink};
use crate::outcome::{Path, Paths, Tunnel as PeerTunnel};
use crate::problem::{Problem, ProblemCode};
use crate::underlay::Underlay;

/// The backend with its network's options.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vxlan(pub(super) VxlanConfig);

impl Backend for Vxlan {
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

    fn desired(&self, ctx: &NetworkCtx<'_>, out: &mut Draft) -> Result<Built, Problem> {
        let mut problems = Vec::new();
        let mut tunnels = Vec::new();
        for (family, own) in ctx.families() {
            tunnels.push(self.tunnel(ctx, family, own, &mut problems)?);
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
            out.addresses.push(AddressKey { device: tunnel.device, address: IpNet::from(tunnel.own.addr()) });
        }
        let peers = peer::decide_all(ctx, &mut problems, |peer| {
            let mut paths = Paths::default();
            for tunnel in &tunnels {
                if peer.subnets.of(tunnel.family).is_some() {
                    paths.set(tunnel.family, self.path(ctx, tunnel, peer)?);
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

    fn publication(&self, node: NodeId, underlay: &Underlay, config: &NetworkConfig) -> Publication {
        let data = |family| BackendData::Vxlan { vni: Some(self.0.vni), mac: vtep_mac(node, self.0.vni, family) };
        let mut publication = published(underlay, config, BackendKind::Vxlan);
        if config.v4.is_some() {
            publication.data = data(IpFamily::V4);
        }
        if config.v6.is_some() {
            publication.data_v6 = data(IpFamily::V6);
        }
        publication
    }
}

/// One of the network's devices, with what its peers claim.
struct Tunnel {
    family: IpFamily,
    device: IfName,
    link: Link,
    own: IpNet,
    own_mac: Mac,
    claims: Claims,
}

impl Vxlan {
    fn tunnel(
        &self,
        ctx: &NetworkCtx<'_>,
        family: IpFamily,
        own: IpNet,
        problems: &mut Vec<Problem>,
    ) -> Result<Tunnel, Problem> {
        let internal = |message: String| Problem::new(ProblemCode::Internal, message, "report this as a bug", ctx.name);
        let local = ctx.underlay.address(family).ok_or_else(|| internal(format!("no {family} underlay")))?;
        let device = device_name(self.0.vni, family).map_err(|error| internal(error.to_string()))?;
        let mtu = fitting_mtu(ctx, family, self.overhead(family), self.0.mtu, problems)?;
        let own_mac = vtep_mac(ctx.node, self.0.vni, family);
        let kind = LinkKind::Vxlan(VxlanLink { vni: self.0.vni, port: self.0.port, local });
        let link = Link { kind, mtu, mac: Some(own_mac), up: true };
        Ok(Tunnel { family, device, link, own, own_mac, claims: Claims::of(ctx.peers, family) })
    }

    /// Returns the path to `peer` in one family, if what it publishes makes one.
    fn path(&self, ctx: &NetworkCtx<'_>, tunnel: &Tunnel, peer: &Lease) -> Result<Path, Refusal> {
        let outer = peer::admit(ctx, peer, tunnel.family)?;
        let nexthop_object = tunnel.family == IpFamily::V4 && ctx.facts.features.nexthop_objects;
        if self.0.direct_routing && peer::on_link(ctx, outer) {
            return Ok(Path { device: ctx.underlay.device, outer, tunnel: None, nexthop_object, wireguard: None });
        }
        let BackendData::Vxlan { vni, mac } = *peer.backend_data(tunnel.family) else {
            return Err(Refusal::failed(
                ProblemCode::PeerNoVtep,
                "it publishes no VtepMAC",
                "restart the peer's agent; a permanent peer needs DirectRouting and this link, or BackendData",
            ));
        };
        if let Some(vni) = vni.filter(|vni| *vni != self.0.vni) {
            return Err(Refusal::ignored(format!("it receives VNI {vni}, this network's is {}", self.0.vni)));
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
        if let Some((other, address)) = tunnel.claims.older(mac, peer, outer) {
            return Err(Refusal::failed(
                ProblemCode::DuplicateMac,
                format!("its VtepMAC {mac} is claimed by the older lease {other} at {address}"),
                "two hosts with one node id: remove the copied state directory on one of them and restart its agent",
            ));
        }
        Ok(Path {
            device: tunnel.device,
            outer,
            tunnel: Some(PeerTunnel::Vxlan { vni: self.0.vni, mac }),
            nexthop_object,
            wireguard: None,
        })
    }
}

/// Adds the objects that one path needs. A path may change between tunnel and direct route under the same keys, and so
/// in place.
fn add(subnet: IpNet, path: &Path, out: &mut Draft) {
    let base = subnet.addr();
    let hop = match path.tunnel {
        None | Some(PeerTunnel::GreNeighbour(_) | PeerTunnel::GreRoute(_)) => {
            NextHop { gateway: path.outer, device: path.device, onlink: false }
        }
        Some(PeerTunnel::Vxlan { mac, .. }) => {
            out.neighbours.push((NeighbourKey { device: path.device, address: base }, mac.into()));
            out.fdb.push((FdbKey { device: path.device, mac }, path.outer));
            NextHop { gateway: base, device: path.device, onlink: true }
        }
    };
    out.route(subnet, hop, path.nexthop_object);
}

/// The leases that Ethernet addresses belong to. One address can be at one place only, and the older lease holds, so
/// that a newcomer cannot take over a peer's traffic by publishing its address.
struct Claims(HashMap<Mac, (Revision, SubnetKey, IpAddr)>);

impl Claims {
    fn of(peers: &[&Lease], family: IpFamily) -> Self {
        let mut claims = HashMap::with_capacity(peers.len());
        for peer in peers {
            let BackendData::Vxlan { mac, .. } = *peer.backend_data(family) else { continue };
            let (Some(_), Some(address)) = (peer.subnets.of(family), peer.public_address(family)) else { continue };
            let claim = (peer.create_revision, peer.subnets, address);
            claims
                .entry(mac)
                .and_modify(|held: &mut (Revision, SubnetKey, IpAddr)| *held = claim.min(*held))
                .or_insert(claim);
        }
        Self(claims)
    }

    /// Returns the older claim on `mac` that contradicts `peer` being at `outer`.
    fn older(&self, mac: Mac, peer: &Lease, outer: IpAddr) -> Option<(SubnetKey, IpAddr)> {
        let (_, subnets, address) = *self.0.get(&mac)?;
        (subnets != peer.subnets && address != outer).then_some((subnets, address))
    }
}

/// Returns `flat.<VNI>`, or over IPv6 `flat6.<VNI>`, which have at most 14 characters.
pub(super) fn device_name(vni: Vni, family: IpFamily) -> Result<IfName, flatnet_model::net::InvalidIfName> {
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
