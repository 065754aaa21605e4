//! The changes that turn the kernel's state into the desired one.
//!
//! Every kind is compared over the union of its keys, desired and found, each time anew: a deleted route, a renamed
//! device, a missed event and a restart are all the same case here. Objects that are not ours are never touched. If we
//! want the key of one, that is a [`Conflict`], and whatever would have to stand on it is left alone too.

pub(crate) mod lost;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use flatnet_model::IfName;

use crate::object::{Dump, Foreign, KernelState, LinkKind, PeerSource, RouteVia, Ruleset};
use crate::op::{Action, Object, Op};

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
    let (want, have) = (desired, &dump.state);
    let mut kinds = Merge { prune, want, have, kept: &kept, out: &mut out.changes };
    kinds.links(want, have, &blocked);
    kinds.rest(want, have, &blocked, &lost);
    out
}

/// The objects that must be left alone because something foreign is in the way.
#[derive(Debug, Default)]
pub(crate) struct Blocked {
    links: BTreeSet<IfName>,
    nexthops: BTreeSet<crate::object::NexthopId>,
    routes: BTreeSet<crate::object::RouteKey>,
}

impl Blocked {
    fn of(desired: &KernelState, dump: &Dump, prune: Prune, conflicts: &mut Vec<Conflict>) -> Self {
        let Foreign { links, nexthops, routes } = &dump.foreign;
        let have = &dump.state;
        let mut blocked = Self::default();
        for (name, found) in links {
            if let Some(link) = desired.links.get(name).filter(|_| !have.links.contains_key(name)) {
                blocked.links.insert(*name);
                conflicts.push(Conflict { object: Object::Link(*name, link.clone()), found: found.clone() });
            }
        }
        if prune != Prune::Yes {
            // A device of ours under another name is in the way of the one we want. It works, so it stays until pruning
            // is allowed, and nothing is built on a device that cannot be made yet.
            blocked.links.extend(lost::in_the_way(desired, have).map(|(wanted, _)| wanted));
        }
        for id in nexthops {
            if let Some(nexthop) = desired.nexthops.get(id).filter(|_| !have.nexthops.contains_key(id)) {
                blocked.nexthops.insert(*id);
                let found = format!("a nexthop object with id {}", id.0);
                conflicts.push(Conflict { object: Object::Nexthop(*id, *nexthop), found });
            }
        }
        for key in routes {
            if let Some(route) = desired.routes.get(key).filter(|_| !have.routes.contains_key(key)) {
                blocked.routes.insert(*key);
                let found = format!("a route to {} with metric {}", key.destination, key.metric);
                conflicts.push(Conflict { object: Object::Route(*key, *route), found });
            }
        }
        let on_blocked = desired.nexthops.iter().filter(|(_, nexthop)| blocked.links.contains(&nexthop.via.device));
        let on_blocked: Vec<_> = on_blocked.map(|(id, _)| *id).collect();
        blocked.nexthops.extend(on_blocked);
        if !(blocked.links.is_empty() && blocked.nexthops.is_empty()) {
            let on_blocked = desired.routes.iter().filter(|(_, route)| match route.via {
                RouteVia::Object(id) => blocked.nexthops.contains(&id),
                RouteVia::Hop(hop) => blocked.links.contains(&hop.device),
                RouteVia::Encap(encap) => blocked.links.contains(&encap.device),
                RouteVia::Unreachable => false,
            });
            let on_blocked: Vec<_> = on_blocked.map(|(key, _)| *key).collect();
            blocked.routes.extend(on_blocked);
        }
        blocked
    }
}

/// Compares the guard. The table is swapped whole if its rules differ; otherwise its elements are changed one by one.
fn firewall(want: &KernelState, have: &KernelState, prune: Prune, out: &mut Vec<Op>) {
    let Some(ruleset) = &want.ruleset else {
        if let (Some(found), Prune::Yes) = (&have.ruleset, prune) {
            let elements = have.peer_sources.iter().copied().collect();
            let object = Object::Ruleset { ruleset: found.clone(), elements };
            out.push(Op { action: Action::Delete, object });
        }
        return;
    };
    let stale: Vec<PeerSource> = have.peer_sources.difference(&want.peer_sources).copied().collect();
    let fresh: Vec<PeerSource> = want.peer_sources.difference(&have.peer_sources).copied().collect();
    if have.ruleset.as_ref() == Some(ruleset) {
        out.extend(fresh.into_iter().map(|source| Op { action: Action::Create, object: Object::PeerSource(source) }));
        if prune != Prune::No {
            out.extend(stale.into_iter().map(|s| Op { action: Action::Delete, object: Object::PeerSource(s) }));
        }
        return;
    }
    let action = if have.ruleset.is_some() { Action::Change } else { Action::Create };
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
    /// Links that stay, with what stands on them, although they are not wanted.
    kept: &'a BTreeSet<IfName>,
    out: &'a mut Vec<Op>,
}

impl Merge<'_> {
    fn push(&mut self, action: Action, object: Object) {
        self.out.push(Op { action, object });
    }

    fn links(&mut self, want: &KernelState, have: &KernelState, blocked: &Blocked) {
        for (name, link) in want.links.iter().filter(|(name, _)| !blocked.links.contains(name)) {
            let action = match have.links.get(name) {
                None => Action::Create,
                Some(found) if lost::same_link(found, link) => continue,
                Some(found) if found.can_become(link) => Action::Change,
                Some(_) => Action::Replace,
            };
            self.push(action, Object::Link(*name, link.clone()));
        }
        if self.prune == Prune::Yes {
            let goes = |name: &IfName| !want.links.contains_key(name) && !self.kept.contains(name);
            let gone: Vec<_> = have.links.iter().filter(|(name, _)| goes(name)).collect();
            for (name, link) in gone {
                self.push(Action::Delete, Object::Link(*name, link.clone()));
            }
        }
    }

    fn rest(&mut self, want: &KernelState, have: &KernelState, blocked: &Blocked, lost: &Lost) {
        self.sysctls(want, have, blocked, lost);
        let on_blocked = |device| blocked.links.contains(&device);
        let addresses = |state: &KernelState| state.addresses.iter().map(|key| (*key, ())).collect::<Vec<_>>();
        self.kind(
            &addresses(want),
            &addresses(have),
            |key, ()| on_blocked(key.device),
            |key, ()| lost.link(key.device),
            |key, ()| Object::Address(key),
        );
        self.kind(
            &list(&want.neighbours),
            &list(&have.neighbours),
            |key, _| on_blocked(key.device),
            |key, _| lost.neighbour(key),
            Object::Neighbour,
        );
        self.kind(
            &list(&want.fdb),
            &list(&have.fdb),
            |key, _| on_blocked(key.device),
            |key, _| lost.link(key.device),
            Object::Fdb,
        );
        self.kind(
            &want.wireguard_peers.iter().collect::<Vec<_>>(),
            &have.wireguard_peers.iter().collect::<Vec<_>>(),
            |key, _| on_blocked(key.device),
            |key, _| lost.link(key.device),
            |key, peer| Object::WireguardPeer(*key, peer.clone()),
        );
        self.kind(
            &list(&want.nexthops),
            &list(&have.nexthops),
            |id, _| blocked.nexthops.contains(&id),
            |_, nexthop| lost.link(nexthop.via.device),
            Object::Nexthop,
        );
        self.kind(
            &list(&want.routes),
            &list(&have.routes),
            |key, _| blocked.routes.contains(&key),
            |_, route| lost.route(route),
            Object::Route,
        );
        self.kind(
            &want.iptables.iter().collect::<Vec<_>>(),
            &have.iptables.iter().collect::<Vec<_>>(),
            |_, _| false,
            |_, _| Fate::Stays,
            |key, rule| Object::Iptables(key.clone(), rule.clone()),
        );
    }

    /// Compares settings. They are only ever changed, since their former values are not known here.
    fn sysctls(&mut self, want: &KernelState, have: &KernelState, blocked: &Blocked, lost: &Lost) {
        for (sysctl, value) in &want.sysctls {
            let device = lost::device_of(sysctl);
            let is = have.sysctls.get(sysctl).filter(|_| !device.is_some_and(|device| lost.settings(device)));
            if is != Some(value) && !device.is_some_and(|device| blocked.links.contains(&device)) {
                self.push(Action::Change, Object::Sysctl(sysctl.clone(), value.clone()));
            }
        }
    }

    /// Compares one kind. Both sides are in the order of their keys. `blocked` says what to leave alone, and `lost`
    /// says what becomes of a found object when links go.
    fn kind<K: Ord + Copy, V: PartialEq + Copy>(
        &mut self,
        want: &[(K, V)],
        have: &[(K, V)],
        blocked: impl Fn(K, V) -> bool,
        lost: impl Fn(K, V) -> Fate,
        object: impl Fn(K, V) -> Object,
    ) {
        let mut have = have.iter().peekable();
        for (key, value) in want {
            while let Some((old, old_value)) = have.next_if(|(old, _)| old < key) {
                self.delete(*old, *old_value, &lost, &object);
            }
            let found =
                have.next_if(|(old, _)| old == key).filter(|(old, value)| lost(*old, *value) != Fate::GoneFirst);
            if blocked(*key, *value) {
                continue;
            }
            match found {
                None => self.push(Action::Create, object(*key, *value)),
                Some((_, found)) if found == value => {}
                Some(_) => self.push(Action::Change, object(*key, *value)),
            }
        }
        for (old, old_value) in have {
            self.delete(*old, *old_value, &lost, &object);
        }
    }

    fn delete<K: Copy, V: Copy>(
        &mut self,
        key: K,
        value: V,
        lost: impl Fn(K, V) -> Fate,
        object: impl Fn(K, V) -> Object,
    ) {
        if lost(key, value) != Fate::Stays {
            return;
        }
        let object = object(key, value);
        let goes = match self.prune {
            Prune::Yes => self.device(&object).is_none_or(|device| !self.kept.contains(&device)),
            Prune::Settled => self.device(&object).is_some_and(|device| self.is_of_one_network(device)),
            Prune::No => false,
        };
        if goes {
            self.push(Action::Delete, object);
        }
    }

    /// Returns true if a device is wanted and belongs to one network alone, which then is a programmed one. Networks of
    /// GRE over IPv6 share one device.
    fn is_of_one_network(&self, device: IfName) -> bool {
        self.want.links.get(&device).is_some_and(|link| !matches!(link.kind, LinkKind::Gre6(_)))
    }

    /// Returns the device that an object which was found stands on.
    fn device(&self, object: &Object) -> Option<IfName> {
        match object {
            Object::Address(key) => Some(key.device),
            Object::Neighbour(key, _) => Some(key.device),
            Object::Fdb(key, _) => Some(key.device),
            Object::WireguardPeer(key, _) => Some(key.device),
            Object::Nexthop(_, nexthop) => Some(nexthop.via.device),
            Object::Route(_, route) => match route.via {
                RouteVia::Object(id) => {
                    let nexthop = self.want.nexthops.get(&id).or_else(|| self.have.nexthops.get(&id));
                    nexthop.map(|nexthop| nexthop.via.device)
                }
                RouteVia::Hop(hop) => Some(hop.device),
                RouteVia::Encap(encap) => Some(encap.device),
                RouteVia::Unreachable => None,
            },
            Object::Ruleset { .. }
            | Object::PeerSource(_)
            | Object::Link(..)
            | Object::Sysctl(..)
            | Object::Iptables(..) => None,
        }
    }
}

fn list<K: Copy, V: Copy>(map: &BTreeMap<K, V>) -> Vec<(K, V)> {
    map.iter().map(|(key, value)| (*key, *value)).collect()
}

#[cfg(test)]
mod tests;
