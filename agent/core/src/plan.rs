//! The order of changes: traffic that flows goes on flowing, and no object is made before what it stands on.
//!
//! ```text
//! guard ▶ devices in the way ▶ links ▶ settings ▶ addresses ▶ neighbours ▶ FDB, WireGuard peers ▶ nexthops
//!   ▶ routes ▶ iptables heads
//! then deletions, backwards: iptables heads ▶ routes ▶ nexthops ▶ FDB, WireGuard peers ▶ neighbours ▶ addresses
//!   ▶ links ▶ guard
//! ```
//!
//! Make before break: new objects stand before old ones go. An object that only moves (a peer's address, a MAC, a route
//! from tunnel to direct) is changed under its key, so there is no moment without an entry. The guard is there before
//! the first device and gone after the last. The one thing that goes first is a device of ours under a wrong name: it
//! holds the VNI that the right one needs.

use crate::diff::{Conflict, Diff, InUse, Prune, diff, lost};
use crate::object::{Dump, KernelState, Link, Sysctl};
use crate::op::{Action, Object, Op};

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
    changes.sort_by_key(|op| step(op, &early));
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

/// Returns the step at which an operation is carried out; lower steps come first.
fn step(op: &Op, early: &[flatnet_model::IfName]) -> u8 {
    match (op.action, &op.object) {
        (Action::Delete, object) => match object {
            Object::Link(name, _) if early.contains(name) => 1,
            Object::Iptables(..) => 20,
            Object::Route(..) => 21,
            Object::Nexthop(..) => 22,
            Object::Fdb(..) | Object::WireguardPeer(..) => 23,
            Object::Neighbour(..) => 24,
            Object::Address(_) => 25,
            Object::Sysctl(..) => 26,
            Object::Link(..) => 27,
            Object::PeerSource(_) => 28,
            Object::Ruleset { .. } => 29,
        },
        (Action::Create | Action::Change | Action::Replace, object) => match object {
            Object::Ruleset { .. } | Object::PeerSource(_) => 0,
            // A link that is made anew may free the VNI that another needs.
            Object::Link(..) => 2 + u8::from(op.action != Action::Replace),
            Object::Sysctl(sysctl, _) => 4 + u8::from(turns_on_forwarding(sysctl)),
            Object::Address(_) => 6,
            Object::Neighbour(..) => 7,
            Object::Fdb(..) | Object::WireguardPeer(..) => 8,
            Object::Nexthop(..) => 9,
            Object::Route(..) => 10,
            Object::Iptables(..) => 11,
        },
    }
}

/// Returns true if the setting turns on forwarding, which comes after all other settings. Turning it on, even for a
/// single device, drops the default routes of router advertisements on every interface whose `accept_ra` is not 2 by
/// then (net/ipv6/addrconf.c: `addrconf_fixup_forwarding`, `rt6_purge_dflt_routers`).
fn turns_on_forwarding(sysctl: &Sysctl) -> bool {
    sysctl.path().ends_with("/forwarding") || sysctl.path() == "net/ipv4/ip_forward"
}

#[cfg(test)]
mod proptests;
