//! The order of changes: traffic that flows goes on flowing, and no object is made before what it stands on.
//!
//! ```text
//! guard ▶ devices in the way ▶ links ▶ settings ▶ addresses ▶ neighbours ▶ FDB ▶ WireGuard peers
//!   ▶ nexthops ▶ routes ▶ iptables heads
//! then deletions, backwards: iptables heads ▶ routes ▶ nexthops ▶ WireGuard peers ▶ FDB ▶ neighbours
//!   ▶ addresses ▶ links ▶ guard
//! ```
//!
//! Make before break: new objects stand before old ones go. An object that only moves (a peer's address, a MAC, a route
//! from tunnel to direct) is changed under its key, so there is no moment without an entry. The guard is there before
//! the first device and gone after the last. The one thing that goes first is a device of ours under a wrong name: it
//! holds the VNI that the right one needs.

use std::cmp::Reverse;

use crate::diff::{Conflict, Diff, InUse, Prune, diff, lost};
use crate::object::{Dump, KernelState, Link, Sysctl};
use crate::op::{Action, Object, ObjectKind, Op};

/// The operations to carry out, and what cannot be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The operations, in the order in which they are to be carried out.
    pub ops: Vec<Op>,
    /// Foreign objects in our way. Nothing is planned for the keys they hold.
    pub conflicts: Vec<Conflict>,
    /// Bridges that would be deleted if nothing were plugged into them.
    pub in_use: Vec<InUse>,
}

/// Plans how to get from what was found to what is desired. The same input gives the same plan.
#[must_use]
pub fn plan(desired: &KernelState, dump: &Dump, prune: Prune) -> Plan {
    let Diff { mut changes, conflicts, in_use } = diff(desired, dump, prune);
    let early = early_deletions(desired, &dump.state);
    // Stable, so that objects of one kind stay in the order of their keys.
    changes.sort_by_key(|op| turn(op, &early));
    Plan { ops: changes, conflicts, in_use }
}

/// Returns the operations that close the open tunnels of `found`, for a host without a guard: no guard, no tunnel. The
/// devices are not deleted, so that they open again with everything that stands on them once they are guarded.
#[must_use]
pub fn close_tunnels(found: &KernelState) -> Vec<Op> {
    let open = found.links.iter().filter(|(_, link)| link.up && link.kind.is_tunnel());
    open.map(|(name, link)| Op {
        action: Action::Change,
        object: Object::Link(*name, Link { up: false, ..link.clone() }),
    })
    .collect()
}

fn early_deletions(desired: &KernelState, found: &KernelState) -> Vec<flatnet_model::IfName> {
    lost::in_the_way(desired, found).map(|(_, orphan)| orphan).collect()
}

/// Returns the turn of an operation: the lower the earlier. Objects are built in the order of their kinds; after that
/// others go, in the opposite order.
fn turn(op: &Op, early: &[flatnet_model::IfName]) -> (bool, Reversible, u8) {
    let kind = op.object.kind();
    match (op.action, &op.object) {
        (Action::Delete, Object::Link(name, _)) if early.contains(name) => (false, Reversible::Up(kind), 0),
        (Action::Delete, _) => (true, Reversible::Down(Reverse(kind)), 0),
        // One that is made anew may free the VNI that another needs.
        (action, Object::Link(..)) => (false, Reversible::Up(kind), 1 + u8::from(action != Action::Replace)),
        (_, Object::Sysctl(sysctl, _)) => (false, Reversible::Up(kind), u8::from(turns_on_forwarding(sysctl))),
        _ => (false, Reversible::Up(kind), 0),
    }
}

/// The order of the kinds, one way or the other.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Reversible {
    Up(ObjectKind),
    Down(Reverse<ObjectKind>),
}

/// Forwarding comes after all other settings: turning it on, be it for a single device, drops the default routes of
/// router advertisements on every interface whose `accept_ra` is not 2 by then (net/ipv6/addrconf.c:
/// `addrconf_fixup_forwarding`, `rt6_purge_dflt_routers`).
fn turns_on_forwarding(sysctl: &Sysctl) -> bool {
    sysctl.path().ends_with("/forwarding") || sysctl.path() == "net/ipv4/ip_forward"
}

#[cfg(test)]
mod proptests;
