//! What must not be tried because what it stands on could not be made.

use std::collections::HashSet;
use std::net::IpAddr;

use flatnet_core::object::{Link, LinkKind, NextHop, NexthopId, RouteVia};
use flatnet_core::op::{Action, Object, ObjectKind, Op};
use flatnet_model::IfName;

/// The failed operations of one `apply`, by what others depend on. A failed *change* of a device still leaves a device to
/// stand on; a failed change of a nexthop or neighbour leaves one that leads elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    guard: bool,
    links: HashSet<IfName>,
    neighbours: HashSet<(IfName, IpAddr)>,
    nexthops: HashSet<NexthopId>,
}

impl Failures {
    /// Remembers that `op` failed or was skipped.
    pub(crate) fn add(&mut self, op: &Op) {
        match (&op.object, op.action) {
            (_, Action::Delete) | (Object::Link(..), Action::Change) => {}
            (Object::Ruleset { .. }, _) => self.guard = true,
            (Object::Link(name, _), _) => {
                self.links.insert(*name);
            }
            (Object::Neighbour(key, _), _) => {
                self.neighbours.insert((key.device, key.address));
            }
            (Object::Nexthop(id, _), _) => {
                self.nexthops.insert(*id);
            }
            _ => {}
        }
    }

    /// Whether `op` stands on something that failed. A deletion stands on nothing.
    pub(crate) fn block(&self, op: &Op) -> bool {
        if op.action == Action::Delete {
            return false;
        }
        match &op.object {
            // A tunnel without its guard would decapsulate anybody's packets.
            Object::Link(
                _,
                Link {
                    kind: LinkKind::Vxlan(_) | LinkKind::Wireguard(_) | LinkKind::Gre(_) | LinkKind::Gre6(_), ..
                },
            ) => self.guard && op.action != Action::Change,
            Object::Sysctl(sysctl, _) => sysctl.device().is_some_and(|device| self.links.contains(&device)),
            Object::Address(key) => self.links.contains(&key.device),
            Object::Neighbour(key, _) => self.links.contains(&key.device),
            Object::Fdb(key, _) => self.links.contains(&key.device),
            Object::WireguardPeer(key, _) => self.links.contains(&key.device),
            Object::Nexthop(_, nexthop) => self.block_hop(&nexthop.via),
            Object::Route(_, route) => match &route.via {
                RouteVia::Object(id) => self.nexthops.contains(id),
                RouteVia::Hop(hop) => self.block_hop(hop),
                RouteVia::Encap(encap) => self.links.contains(&encap.device),
                RouteVia::Unreachable => false,
            },
            Object::Ruleset { .. } | Object::PeerSource(_) | Object::Link(..) | Object::Iptables(..) => false,
        }
    }

    fn block_hop(&self, hop: &NextHop) -> bool {
        self.links.contains(&hop.device) || self.neighbours.contains(&(hop.device, hop.gateway))
    }
}

/// Operations that may share one batch: none of them stands on another. `None`: stands alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Addresses, neighbours and forwarding entries of a device.
    OfDevice,
    /// Peers of WireGuard devices.
    WireguardPeer,
    /// Nexthop objects.
    Nexthop,
    /// Routes.
    Route,
}

impl Stage {
    /// That of a run, whose operations are all of one.
    pub(crate) fn of_run(run: &[Op]) -> Option<Self> {
        run.first().and_then(Self::of)
    }

    /// The stage of `op`.
    pub(crate) fn of(op: &Op) -> Option<Self> {
        match op.object.kind() {
            ObjectKind::Address | ObjectKind::Neighbour | ObjectKind::Fdb => Some(Self::OfDevice),
            ObjectKind::WireguardPeer => Some(Self::WireguardPeer),
            ObjectKind::Nexthop => Some(Self::Nexthop),
            ObjectKind::Route => Some(Self::Route),
            ObjectKind::Ruleset
            | ObjectKind::PeerSource
            | ObjectKind::Link
            | ObjectKind::Sysctl
            | ObjectKind::Iptables => None,
        }
    }
}
