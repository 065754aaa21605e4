//! The devices of networks that were left: they go whatever other networks wait for.
//!
//! While a network of this host waits, what is not wanted stays in the kernel, for it may be that network's. What was a
//! left network's is known. Its tunnel must not stay open either: the guard's rules for it go with the network.

use std::collections::BTreeSet;

use flatnet_core::object::{KernelState, Object};
use flatnet_core::op::{Action, Op};
use flatnet_model::IfName;

/// Puts the deletion of the `departed` devices that nobody wants before `ops`. Devices that are gone, or wanted again,
/// are forgotten.
pub(super) fn add(departed: &mut BTreeSet<IfName>, desired: &KernelState, found: &KernelState, ops: &mut Vec<Op>) {
    departed.retain(|name| found.links.contains_key(name) && !desired.links.contains_key(name));
    let devices = departed.iter().filter_map(|name| Some((*name, found.links.get(name)?.clone())));
    let deletions = devices.map(|(name, link)| Op { action: Action::Delete, object: Object::Link(name, link) });
    let missing: Vec<Op> = deletions.filter(|op| !ops.contains(op)).collect();
    ops.splice(0..0, missing);
}
