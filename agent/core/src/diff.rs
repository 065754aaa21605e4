//! The changes that turn the kernel's state into the desired one.
//!
//! Every kind is compared over the union of its keys, desired and found, each time anew: a deleted route, a renamed
//! device, a missed event and a restart are all the same case here. Objects that are not ours are never touched. If we
//! want the key of one, that is a [`Conflict`], and whatever would have to stand on it is left alone too.

pub(crate) mod lost;

use std::collections::BTreeSet;
use std::fmt;

use flatnet_model::IfName;

use crate::object::{
    Dump, Foreign, KernelState, Kind, LinkKind, Object, ObjectKey, ObjectKind, PeerSource, Ruleset, Visitor, each,
};
use crate::op::{Action, Op};

use lost::{Fate, Lost};

/// The objects of ours that may be deleted if they are no longer desired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prune {
    /// Everything, because the desired state was made from a full snapshot of the store.
    Yes,
    /// Only elements of the guard, and objects on a device that is wanted. A network is not programmed, and what it
    /// left must stay, but hosts that were removed from another network must not.
    Settled,
    /// Nothing, because the desired state may lack what the store still has.
    No,
}

/// A foreign object at a key where we want one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The object that we want.
    pub object: Object,
    /// A description of the object that is there.
    pub found: String,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} is there and is not ours", self.object, self.found)
    }
}

/// A bridge of ours that nobody wants any more, but that stays. Whatever is plugged into it would be cut off for good,
/// since whoever plugged it in does so only once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    /// The bridge.
    pub bridge: IfName,
    /// The devices that are plugged into it.
    pub ports: BTreeSet<IfName>,
}

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Names that are listed; there may be hundreds.
        const SAID: usize = 8;
        let names: Vec<String> = self.ports.iter().take(SAID).map(ToString::to_string).collect();
        let more = self.ports.len().saturating_sub(names.len());
        write!(f, "the bridge {} stays: plugged into it: {}", self.bridge, names.join(", "))?;
        if more > 0 { write!(f, " and {more} more") } else { Ok(()) }
    }
}

/// The changes between two states, kind by kind and in no particular order across kinds: [`crate::plan`] orders them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// The changes.
    pub changes: Vec<Op>,
    /// Objects that could not be planned because something foreign is at their key.
    pub conflicts: Vec<Conflict>,
    /// Bridges that would be deleted if nothing were plugged into them.
    pub in_use: Vec<InUse>,
}

/// Compares what is desired with what was found.
#[must_use]
pub fn diff(desired: &KernelState, dump: &Dump, prune: Prune) -> Diff {
    let mut out = Diff::default();
    let blocked = Blocked::of(desired, dump, prune, &mut out.conflicts);
    if prune == Prune::Yes {
        let unwanted = |bridge: &IfName| dump.state.links.contains_key(bridge) && !desired.links.contains_key(bridge);
        let in_use = dump.ports.iter().filter(|(bridge, ports)| unwanted(bridge) && !ports.is_empty());
        out.in_use = in_use.map(|(bridge, ports)| InUse { bridge: *bridge, ports: ports.clone() }).collect();
    }
    let kept: BTreeSet<IfName> = out.in_use.iter().map(|kept| kept.bridge).collect();
    let lost = Lost::of(desired, &dump.state, prune, &blocked, &kept);
    firewall(desired, &dump.state, prune, &mut out.changes);
    let (want, have, out_changes) = (desired, &dump.state, &mut out.changes);
    each(&mut Merge { prune, want, have, blocked: &blocked, lost: &lost, kept: &kept, out: out_changes });
    out
}

/// The objects left alone because something foreign is in the way, at their own key or at that of what they stand on.
#[derive(Debug, Default)]
pub(crate) struct Blocked(BTreeSet<ObjectKey>);

impl Blocked {
    fn of(desired: &KernelState, dump: &Dump, prune: Prune, conflicts: &mut Vec<Conflict>) -> Self {
        let Foreign { links, nexthops, routes } = &dump.foreign;
        let have = &dump.state;
        let mut blocked = BTreeSet::new();
        let mut conflict = |object: Object, found: String| {
            if !have.has(&object.key()) {
                blocked.insert(object.key());
                conflicts.push(Conflict { object, found });
            }
        };
        for (name, found) in links {
            if let Some(link) = desired.links.get(name) {
                conflict(Object::Link(*name, link.clone()), found.clone());
            }
        }
        for id in nexthops {
            if let Some(nexthop) = desired.nexthops.get(id) {
                conflict(Object::Nexthop(*id, *nexthop), format!("a nexthop object with id {}", id.0));
            }
        }
        for key in routes {
            if let Some(route) = desired.routes.get(key) {
                let found = format!("a route to {} with metric {}", key.destination, key.metric);
                conflict(Object::Route(*key, *route), found);
            }
        }
        if prune != Prune::Yes {
            // A device of ours under another name is in the way of the one we want. It works, so it stays until pruning
            // is allowed, and nothing is built on a device that cannot be made yet.
            blocked.extend(lost::in_the_way(desired, have).map(|(wanted, _)| ObjectKey::Link(wanted)));
        }
        let mut all = Children { desired, blocked: Self(blocked) };
        if !all.blocked.0.is_empty() {
            each(&mut all);
        }
        all.blocked
    }

    /// Returns true if an object is to be left alone.
    fn has<K: Kind>(&self, key: &K::Key, spec: &K::Spec) -> bool {
        // Nearly always there is nothing in the way, and there are tens of thousands of objects.
        !self.0.is_empty() && self.0.contains(&K::object(key, spec).key())
    }

    fn link(&self, name: IfName) -> bool {
        self.0.contains(&ObjectKey::Link(name))
    }
}

/// Adds what goes with something blocked.
struct Children<'a> {
    desired: &'a KernelState,
    blocked: Blocked,
}

impl Visitor for Children<'_> {
    fn visit<K: Kind>(&mut self) {
        for (key, spec) in K::pairs(self.desired) {
            if K::bonds(key, spec).parent().is_some_and(|parent| self.blocked.0.contains(parent)) {
                self.blocked.0.insert(K::object(key, spec).key());
            }
        }
    }
}

/// Compares the guard. The table is swapped whole if its rules differ; otherwise its elements are changed one by one.
fn firewall(want: &KernelState, have: &KernelState, prune: Prune, out: &mut Vec<Op>) {
    let Some(ruleset) = &want.ruleset else {
        if have.has(&ObjectKey::Ruleset) && prune == Prune::Yes {
            let elements = have.peer_sources.iter().copied().collect();
            // Of an altered table nothing is known but that it goes.
            let object = Object::Ruleset { ruleset: have.ruleset.clone().unwrap_or_default(), elements };
            out.push(Op { action: Action::Delete, object });
        }
        return;
    };
    let stale: Vec<PeerSource> = have.peer_sources.difference(&want.peer_sources).copied().collect();
    let fresh: Vec<PeerSource> = want.peer_sources.difference(&have.peer_sources).copied().collect();
    if have.ruleset.as_ref() == Some(ruleset) && !have.is_altered(&ObjectKey::Ruleset) {
        out.extend(fresh.into_iter().map(|source| Op { action: Action::Create, object: Object::PeerSource(source) }));
        if prune != Prune::No {
            out.extend(stale.into_iter().map(|s| Op { action: Action::Delete, object: Object::PeerSource(s) }));
        }
        return;
    }
    let action = if have.has(&ObjectKey::Ruleset) { Action::Change } else { Action::Create };
    let mut elements: BTreeSet<PeerSource> = want.peer_sources.clone();
    if prune == Prune::No {
        elements.extend(stale.iter().filter(|source| has_set(ruleset, source)));
    }
    let object = Object::Ruleset { ruleset: ruleset.clone(), elements: elements.into_iter().collect() };
    out.push(Op { action, object });
}

/// Returns true if the table still has the set of `source`. An element of a set that is gone would make the swap fail.
fn has_set(ruleset: &Ruleset, source: &PeerSource) -> bool {
    ruleset.sets().any(|set| set == source.set)
}

/// Merges the two sides of each kind over the union of their keys.
struct Merge<'a> {
    prune: Prune,
    want: &'a KernelState,
    have: &'a KernelState,
    blocked: &'a Blocked,
    lost: &'a Lost,
    /// Links that stay although they are not wanted, with what stands on them.
    kept: &'a BTreeSet<IfName>,
    out: &'a mut Vec<Op>,
}

impl Visitor for Merge<'_> {
    fn visit<K: Kind>(&mut self) {
        match K::KIND {
            // Elements are compared with their table.
            ObjectKind::Ruleset | ObjectKind::PeerSource => {}
            ObjectKind::Link => self.links(),
            ObjectKind::Sysctl => self.sysctls(),
            _ => self.kind::<K>(),
        }
    }
}

impl Merge<'_> {
    fn push(&mut self, action: Action, object: Object) {
        self.out.push(Op { action, object });
    }

    fn links(&mut self) {
        let (want, have) = (self.want, self.have);
        for (name, link) in want.links.iter().filter(|(name, _)| !self.blocked.link(**name)) {
            let action = match have.links.get(name) {
                None => Action::Create,
                Some(found) if lost::same_link(found, link) && !have.is_altered(&ObjectKey::Link(*name)) => continue,
                Some(found) if have.link_can_become(*name, found, link) => Action::Change,
                Some(_) => Action::Replace,
            };
            self.out.push(Op { action, object: Object::Link(*name, link.clone()) });
        }
        if self.prune == Prune::Yes {
            let goes = |name: &IfName| !want.links.contains_key(name) && !self.kept.contains(name);
            for (name, link) in have.links.iter().filter(|(name, _)| goes(name)) {
                self.out.push(Op { action: Action::Delete, object: Object::Link(*name, link.clone()) });
            }
        }
    }

    fn is_altered<K: Kind>(&self, key: &K::Key, spec: &K::Spec) -> bool {
        !self.have.altered.is_empty() && self.have.is_altered(&K::object(key, spec).key())
    }

    /// Settings are only ever changed: what they were before is not known here.
    fn sysctls(&mut self) {
        for (sysctl, value) in &self.want.sysctls {
            let device = sysctl.device();
            let is = self.have.sysctls.get(sysctl).filter(|_| !device.is_some_and(|name| self.lost.settings(name)));
            if is != Some(value) && !device.is_some_and(|device| self.blocked.link(device)) {
                self.push(Action::Change, Object::Sysctl(sysctl.clone(), value.clone()));
            }
        }
    }

    /// One kind, both sides in the order of their keys.
    fn kind<K: Kind>(&mut self) {
        let (want, have) = (self.want, self.have);
        let mut have = K::pairs(have).peekable();
        for (key, spec) in K::pairs(want) {
            while let Some((old, old_spec)) = have.next_if(|(old, _)| *old < key) {
                self.delete::<K>(old, old_spec);
            }
            let found = have.next_if(|(old, _)| *old == key);
            let found = found.filter(|(old, spec)| self.lost.fate::<K>(old, spec) != Fate::GoneFirst);
            if self.blocked.has::<K>(key, spec) {
                continue;
            }
            match found {
                None => self.push(Action::Create, K::object(key, spec)),
                Some((_, found)) if found == spec && !self.is_altered::<K>(key, spec) => {}
                Some(_) => self.push(Action::Change, K::object(key, spec)),
            }
        }
        for (old, old_spec) in have {
            self.delete::<K>(old, old_spec);
        }
    }

    fn delete<K: Kind>(&mut self, key: &K::Key, spec: &K::Spec) {
        if self.lost.fate::<K>(key, spec) != Fate::Stays {
            return;
        }
        let goes = match self.prune {
            Prune::Yes => self.device::<K>(key, spec).is_none_or(|device| !self.kept.contains(&device)),
            Prune::Settled => self.device::<K>(key, spec).is_some_and(|device| self.is_of_one_network(device)),
            Prune::No => false,
        };
        if goes {
            self.push(Action::Delete, K::object(key, spec));
        }
    }

    /// Returns true if a device is wanted and belongs to one network alone, which then is a programmed one. Networks of
    /// GRE over IPv6 share one device.
    fn is_of_one_network(&self, device: IfName) -> bool {
        self.want.links.get(&device).is_some_and(|link| !matches!(link.kind, LinkKind::Gre6(_)))
    }

    /// The device that an object which was found stands on, be it by way of a nexthop object.
    fn device<K: Kind>(&self, key: &K::Key, spec: &K::Spec) -> Option<IfName> {
        match K::bonds(key, spec).parent()? {
            ObjectKey::Link(device) => Some(*device),
            ObjectKey::Nexthop(id) => {
                let nexthop = self.want.nexthops.get(id).or_else(|| self.have.nexthops.get(id));
                nexthop.map(|nexthop| nexthop.via.device)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
