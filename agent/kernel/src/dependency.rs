//! Dependencies between operations: an operation must not be tried if what it stands on could not be made.

use std::collections::HashSet;
use std::net::IpAddr;

use flatnet_core::object::{NextHop, NexthopId, RouteVia};
use flatnet_core::op::{Action, Object, ObjectKind, Op, OpOutcome};
use flatnet_model::IfName;

/// The state of the guard after an operation on it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    /// There was no guard, and none could be loaded.
    Missing,
    /// The guard could not be changed. The one before is still there, but knows nothing of what is new.
    Stale,
}

/// The failed operations of one `apply`, keyed by what others depend on. After a failed *change* of a device, there
/// still is a device to stand on. After a failed change of a nexthop or neighbour, it leads elsewhere.
///
/// Every operation goes through [`Failures::tried`] and [`Failures::settle`], whoever carries it out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failures {
    guard: Option<Guard>,
    links: HashSet<IfName>,
    neighbours: HashSet<(IfName, IpAddr)>,
    nexthops: HashSet<NexthopId>,
}

impl Failures {
    /// Returns the operations of a run that stand on nothing that failed, in order.
    pub(crate) fn tried<'a>(&self, run: &'a [Op]) -> Vec<&'a Op> {
        run.iter().filter(|op| !self.block(op)).collect()
    }

    /// Returns one outcome for each operation of a run, and remembers what failed. `of_tried` are the outcomes of the
    /// operations that [`Self::tried`] returned.
    pub(crate) fn settle(&mut self, run: &[Op], of_tried: impl IntoIterator<Item = OpOutcome>) -> Vec<OpOutcome> {
        let mut of_tried = of_tried.into_iter();
        let outcomes: Vec<OpOutcome> = run
            .iter()
            .map(|op| match self.block(op) {
                true => OpOutcome::Skipped,
                // The code that carries operations out owes one outcome for each.
                false => of_tried.next().unwrap_or(OpOutcome::Skipped),
            })
            .collect();
        for (op, _) in run.iter().zip(&outcomes).filter(|(_, outcome)| **outcome != OpOutcome::Done) {
            self.add(op);
        }
        outcomes
    }

    /// Remembers that `op` failed or was skipped.
    fn add(&mut self, op: &Op) {
        match (&op.object, op.action) {
            (_, Action::Delete) => {}
            (Object::Ruleset { .. }, Action::Create) => self.guard = Some(Guard::Missing),
            (Object::Ruleset { .. }, _) => self.guard = Some(Guard::Stale),
            (Object::Link(_, link), Action::Change) if !(self.guard.is_some() && link.kind.is_tunnel()) => {}
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

    /// Returns true if `op` stands on something that failed. A deletion stands on nothing.
    fn block(&self, op: &Op) -> bool {
        if op.action == Action::Delete {
            return false;
        }
        match &op.object {
            // A tunnel without its guard would decapsulate anybody's packets. A tunnel that is there keeps the guard it
            // has.
            Object::Link(_, link) if link.kind.is_tunnel() => match self.guard {
                Some(Guard::Missing) => true,
                Some(Guard::Stale) => op.action != Action::Change,
                None => false,
            },
            // A host must not become a router either, or be opened in other people's chains, while nothing judges
            // packets.
            Object::Sysctl(sysctl, _) => match sysctl.device() {
                Some(device) => self.links.contains(&device),
                None => self.guard == Some(Guard::Missing),
            },
            Object::Iptables(_, rule) => {
                self.guard == Some(Guard::Missing) || rule.device().is_some_and(|device| self.links.contains(&device))
            }
            Object::PeerSource(_) => self.guard.is_some(),
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
            Object::Ruleset { .. } | Object::Link(..) => false,
        }
    }

    fn block_hop(&self, hop: &NextHop) -> bool {
        self.links.contains(&hop.device) || self.neighbours.contains(&(hop.device, hop.gateway))
    }
}

/// Cuts operations into runs whose members do not stand on each other, so that each run may share a batch.
pub(crate) fn runs(ops: &[Op]) -> impl Iterator<Item = &[Op]> {
    ops.chunk_by(|a, b| Stage::of(a).is_some() && Stage::of(a) == Stage::of(b))
}

/// Operations that may share one batch, because none of them stands on another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Elements of the sets of the table.
    PeerSource,
    /// Addresses, neighbours and forwarding entries of a device.
    OfDevice,
    /// Peers of WireGuard devices.
    WireguardPeer,
    /// Nexthop objects.
    Nexthop,
    /// Routes.
    Route,
    /// Rules at the head of iptables chains.
    Iptables,
}

impl Stage {
    /// Returns the stage of `op`; `None`: it stands alone.
    pub(crate) fn of(op: &Op) -> Option<Self> {
        match op.object.kind() {
            ObjectKind::PeerSource => Some(Self::PeerSource),
            ObjectKind::Address | ObjectKind::Neighbour | ObjectKind::Fdb => Some(Self::OfDevice),
            ObjectKind::WireguardPeer => Some(Self::WireguardPeer),
            ObjectKind::Nexthop => Some(Self::Nexthop),
            ObjectKind::Route => Some(Self::Route),
            ObjectKind::Iptables => Some(Self::Iptables),
            ObjectKind::Ruleset | ObjectKind::Link | ObjectKind::Sysctl => None,
        }
    }
}
