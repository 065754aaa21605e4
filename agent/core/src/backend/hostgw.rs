//! host-gw: plain routes to peers on the same link; nothing is encapsulated.

use flatnet_model::{BackendData, IpFamily, Lease, NetworkConfig, NetworkName, NodeId};

use super::mtu::fitting_mtu;
use super::peer::{self, Refusal};
use super::{Backend, Built, NetworkCtx, Overhead, PublicKey, has_address};
use crate::object::{Datapath, Draft, NextHop};
use crate::outcome::{Path, Paths};
use crate::problem::{Problem, ProblemCode};
use crate::underlay::Underlay;

/// The backend; it has no options.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostGw;

impl Backend for HostGw {
    fn has_direct_routes(&self) -> bool {
        true
    }

    fn check(&self, name: &NetworkName, network: &NetworkConfig, underlay: &Underlay) -> Result<(), Problem> {
        for family in self.underlays(network, underlay) {
            has_address(name, underlay, family)?;
            if underlay.address(family) != underlay.public_address(family) {
                return Err(Problem::new(
                    ProblemCode::PublicIpHostGw,
                    format!(
                        "network {name}: host-gw cannot publish an address that is not the one of {}",
                        underlay.device
                    ),
                    "leave out --public-ip and --public-ipv6, or use the backend vxlan",
                    name,
                ));
            }
        }
        Ok(())
    }

    fn overhead(&self, _underlay: IpFamily) -> Overhead {
        Overhead(0)
    }

    fn data(&self, _node: NodeId, _key: Option<PublicKey>, _family: IpFamily) -> Option<BackendData> {
        Some(BackendData::None)
    }

    fn desired(&self, ctx: &NetworkCtx<'_>, out: &mut Draft) -> Result<Built, Problem> {
        let mut problems = Vec::new();
        let mut mtu = ctx.underlay.mtu;
        for (family, _) in ctx.families() {
            mtu = mtu.min(fitting_mtu(ctx, family, self.overhead(family), None, &mut problems)?);
        }
        let peers = peer::decide_all(ctx, &mut problems, |peer| {
            let paths = paths(ctx, peer)?;
            for (family, path) in [(IpFamily::V4, paths.v4), (IpFamily::V6, paths.v6)] {
                if let (Some(subnet), Some(path)) = (peer.subnets.of(family), path) {
                    // On-link already by the device's own prefix, which the kernel checks for us.
                    let hop = NextHop { gateway: path.outer, device: path.device, onlink: false };
                    out.route(subnet, hop, path.nexthop_object);
                }
            }
            Ok(paths)
        });
        Ok(Built { mtu, devices: Vec::new(), peers, problems, datapath: Datapath::Kernel })
    }
}

fn paths(ctx: &NetworkCtx<'_>, peer: &Lease) -> Result<Paths, Refusal> {
    let mut paths = Paths::default();
    for (family, _) in ctx.families() {
        if peer.subnets.of(family).is_none() {
            continue;
        }
        let outer = peer::admit(ctx, peer, family)?;
        if !peer::on_link(ctx, outer) {
            return Err(Refusal::unreachable(
                ProblemCode::PeerOffLink,
                format!("{outer} is not on the link of {}: host-gw cannot route to it", ctx.underlay.device),
                "host-gw needs all hosts on one link; use the backend vxlan (with DirectRouting, peers on this link keep \
                 plain routes)",
            ));
        }
        let nexthop_object = family == IpFamily::V4 && ctx.facts.features.nexthop_objects;
        paths.set(family, Path { device: ctx.underlay.device, outer, tunnel: None, key: None, nexthop_object });
    }
    Ok(paths)
}
