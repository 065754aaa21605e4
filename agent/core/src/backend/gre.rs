//! GRE (RFC 2784, RFC 2890): the plainest tunnel there is, so that a host set up by hand is a working peer.
//!
//! Over IPv4 there is one multipoint device per network, `flatgre<key>`. A packet to a peer meets the route of the
//! peer's subnet, its next hop (the subnet's first address, taken to be on the device's link), and the permanent
//! neighbour of that address, whose link address is the peer's `PublicIP`. The neighbour is always there before the
//! route, and goes after it: the device sends packets that have no neighbour to our own address.
//!
//! Over IPv6 a multipoint device does not transmit (net/ipv6/ip6_gre.c), so there all networks share one `external`
//! device, `flat6gre`, and each peer's route names the tunnel's ends and key. The user-space tunnel reads the same
//! routes, also over IPv4: a TUN device cannot hold neighbours.

use std::net::IpAddr;

use flatnet_model::{BackendData, GreConfig, GreKey, IfName, IpFamily, Lease, Mtu, NetworkConfig, NetworkName, NodeId};
use ipnet::IpNet;

use super::mtu::fitting_mtu;
use super::peer::{self, Refusal};
use super::{Abilities, Backend, Built, Clash, Needs, NetworkCtx, Overhead, PublicKey, Wire, families};
use crate::object::{
    AddressKey, Datapath, Draft, Encap, GreLink, Link, LinkAddress, LinkKind, NeighbourKey, NextHop, Route, RouteKey,
    RouteVia, TunnelId,
};
use crate::outcome::{Path, Paths, Reach, Tunnel};
use crate::problem::{Problem, ProblemCode};

/// The device of all networks over IPv6.
const DEVICE_V6: &str = "flat6gre";

impl Backend for GreConfig {
    fn needs(&self) -> Needs {
        Needs { carriers: true, ..Needs::default() }
    }

    fn supported(&self, name: &NetworkName, network: &NetworkConfig, host: &Abilities<'_>) -> Result<(), Problem> {
        let missing = families(network).find(|family| host.facts.features.gre.of(*family).is_none());
        let Some(family) = missing else { return Ok(()) };
        let module = if family == IpFamily::V4 { "ip_gre" } else { "ip6_gre" };
        Err(Problem::new(
            ProblemCode::ModuleMissing,
            format!("network {name}: this kernel has no GRE over {family}, and user space cannot stand in for it"),
            format!(
                "modprobe {module} (a kernel package for clouds may lack it); or let the agent do it: without --no-userspace, \
                 with /dev/net/tun and CAP_NET_RAW"
            ),
            name,
        ))
    }

    fn device(&self, family: IpFamily) -> Option<IfName> {
        match family {
            IpFamily::V4 => IfName::new(&device_name(self.key)).ok(),
            IpFamily::V6 => IfName::new(DEVICE_V6).ok(),
        }
    }

    fn wire(&self, _family: IpFamily) -> Option<Wire> {
        Some(Wire::Guarded { id: TunnelId::Gre(self.key), port: 0 })
    }

    fn clash(&self) -> Option<Clash> {
        let id = format!("the GRE key {} (0: none)", self.key);
        Some(Clash { code: ProblemCode::GreKeyConflict, id, option: "--key" })
    }

    fn overhead(&self, underlay: IpFamily) -> Overhead {
        // RFC 2784: 4 bytes of flags and protocol; RFC 2890: 4 of key.
        const HEADER: u32 = 4;
        const KEY: u32 = 4;
        match underlay {
            // RFC 791: 20 bytes without options.
            IpFamily::V4 if self.key.is_none() => Overhead(20 + HEADER),
            IpFamily::V4 => Overhead(20 + HEADER + KEY),
            // RFC 8200: 40 bytes; no encapsulation limit (RFC 2473 §4.1.1), which would be 8 more. A network without a
            // key shares its device with networks that have one, and the device has one MTU.
            IpFamily::V6 => Overhead(40 + HEADER + KEY),
        }
    }

    fn data(&self, _node: NodeId, _key: Option<PublicKey>, _family: IpFamily) -> Option<BackendData> {
        Some(BackendData::Gre { key: self.key })
    }

    fn desired(&self, ctx: &NetworkCtx<'_>, out: &mut Draft) -> Result<Built, Problem> {
        let mut problems = Vec::new();
        let mut ends = Vec::new();
        for (family, own) in ctx.families() {
            ends.push(end(self, ctx, family, own, &mut problems)?);
        }
        let mtu = ends.iter().map(|end| end.mtu).min().ok_or_else(|| ctx.no_subnet())?;
        for end in &ends {
            add_device(end, out);
        }
        let peers = peer::decide_all(ctx, &mut problems, |peer| {
            let mut paths = Paths::default();
            for end in ends.iter().filter(|end| peer.subnets.of(end.family).is_some()) {
                paths.set(end.family, path(self, ctx, end, peer)?);
            }
            for end in &ends {
                let path = if end.family == IpFamily::V4 { paths.v4 } else { paths.v6 };
                if let (Some(subnet), Some(path)) = (peer.subnets.of(end.family), path) {
                    add_peer(self.key, end, subnet, &path, out);
                }
            }
            Ok(paths)
        });
        let devices = ends.iter().map(|end| (end.family, end.device)).collect();
        // One family may have its module and the other not. Then user space is reported, because the kernel does not
        // carry all.
        let datapath = ends.iter().map(|end| end.kind.datapath()).max().unwrap_or(Datapath::Kernel);
        Ok(Built { mtu, devices, peers, problems, datapath })
    }
}

/// This host's end of the tunnels of one family.
struct End {
    family: IpFamily,
    device: IfName,
    kind: LinkKind,
    mtu: Mtu,
    /// Our subnet.
    own: IpNet,
    /// Our underlay address.
    local: IpAddr,
}

fn end(
    config: &GreConfig,
    ctx: &NetworkCtx<'_>,
    family: IpFamily,
    own: IpNet,
    problems: &mut Vec<Problem>,
) -> Result<End, Problem> {
    let datapath = ctx.facts.features.gre.of(family).ok_or_else(|| ctx.internal(format!("no GRE over {family}")))?;
    let local = ctx.underlay.address(family).ok_or_else(|| ctx.internal(format!("no {family} underlay")))?;
    let (name, kind) = match local {
        IpAddr::V4(local) => (device_name(config.key), LinkKind::Gre(GreLink { key: config.key, local, datapath })),
        IpAddr::V6(_) => (DEVICE_V6.to_owned(), LinkKind::Gre6(datapath)),
    };
    let device = IfName::new(&name).map_err(|error| ctx.internal(error.to_string()))?;
    let mtu = fitting_mtu(ctx, family, config.overhead(family), config.mtu, problems)?;
    Ok(End { family, device, kind, mtu, own, local })
}

/// Returns the path to `peer` in one family, if what it publishes makes one.
fn path(config: &GreConfig, ctx: &NetworkCtx<'_>, end: &End, peer: &Lease) -> Result<Path, Refusal> {
    let outer = peer::admit(ctx, peer, end.family)?;
    let key = config.key;
    // A host set up by hand publishes no key: it is taken to have the network's.
    if let BackendData::Gre { key: theirs } = *peer.backend_data(end.family)
        && theirs != key
    {
        return Err(Refusal::ignored(format!("it receives GRE key {theirs}, this network's is {key}")));
    }
    let (reach, nexthop_object) = match end.kind {
        LinkKind::Gre(GreLink { datapath: Datapath::Kernel, .. }) => {
            (Reach::Neighbour, ctx.facts.features.nexthop_objects)
        }
        // A nexthop object would not survive the loss of carrier that a TUN device has while no program serves it
        // (net/ipv4/nexthop.c: `nexthop_flush_dev`), and has no place for the tunnel's ends.
        _ => (Reach::Route, false),
    };
    let tunnel = Tunnel { id: TunnelId::Gre(key), reach };
    Ok(Path { device: end.device, outer, tunnel: Some(tunnel), nexthop_object, key: None })
}

/// Adds the device and its address. The device over IPv6 is added once for all networks.
fn add_device(end: &End, out: &mut Draft) {
    let shared = match end.kind {
        LinkKind::Gre6(_) => out.links.iter_mut().find(|(name, _)| *name == end.device),
        _ => None,
    };
    match shared {
        // The MTU that fits the network with the larger headers fits all. A packet that is too large is refused here,
        // where its sender hears of it, rather than fragmented on the underlay.
        Some((_, link)) => link.mtu = link.mtu.min(end.mtu),
        None => {
            let link = Link { kind: end.kind.clone(), mtu: end.mtu, mac: None, up: true };
            out.links.push((end.device, link));
        }
    }
    out.addresses.push(AddressKey { device: end.device, address: IpNet::from(end.own.addr()) });
}

/// Adds the objects that the path to one subnet needs.
fn add_peer(key: GreKey, end: &End, subnet: IpNet, path: &Path, out: &mut Draft) {
    match (path.tunnel.map(|tunnel| tunnel.reach), path.outer) {
        (Some(Reach::Neighbour), IpAddr::V4(outer)) => {
            let gateway = subnet.addr();
            let neighbour = NeighbourKey { device: path.device, address: gateway };
            out.neighbours.push((neighbour, LinkAddress::V4(outer)));
            out.route(subnet, NextHop { gateway, device: path.device, onlink: true }, path.nexthop_object);
        }
        (Some(Reach::Route), remote) => {
            let via = RouteVia::Encap(Encap { device: path.device, source: end.local, remote, key });
            out.routes.push((RouteKey::to_peer(subnet), Route { via, source: None }));
        }
        // `path` gives no others.
        _ => {}
    }
}

/// Returns `flatgre<key in hexadecimal>`, which has at most 15 characters.
fn device_name(key: GreKey) -> String {
    format!("flatgre{:x}", key.get())
}

#[cfg(test)]
mod tests;
