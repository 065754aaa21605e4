//! The kernel's state after operations that succeeded: the reconciler's idea of the actual state between two dumps.

use std::collections::BTreeSet;

use flatnet_model::IfName;

use crate::diff::lost::readdresses;
use crate::object::{Dump, KernelState, Link, Object, ObjectKey, SetName, WireguardPeer, WireguardPeerKey};
use crate::op::{Action, Op};

impl Dump {
    /// Takes in what another look `found` at `keys` and in `sets`, in the place of what was known of them.
    pub fn renew(&mut self, keys: &BTreeSet<ObjectKey>, sets: &BTreeSet<SetName>, found: Self) {
        for key in keys {
            // What was not known takes nothing along, and looking for that would be a walk over everything.
            if self.state.has(key) && !found.state.has(key) {
                self.state.forget(key);
            }
            self.state.altered.remove(key);
            match key {
                ObjectKey::Link(name) => {
                    self.foreign.links.remove(name);
                    self.ports.remove(name);
                }
                ObjectKey::Nexthop(id) => drop(self.foreign.nexthops.remove(id)),
                ObjectKey::Route(key) => drop(self.foreign.routes.remove(key)),
                _ => {}
            }
        }
        if !sets.is_empty() {
            self.state.peer_sources.retain(|source| !sets.contains(&source.set));
        }
        self.state.extend(found.state);
        self.foreign.links.extend(found.foreign.links);
        self.foreign.nexthops.extend(found.foreign.nexthops);
        self.foreign.routes.extend(found.foreign.routes);
        self.ports.extend(found.ports);
    }

    /// Folds one successful operation in. Foreign objects never change.
    pub fn apply(&mut self, op: &Op) {
        self.state.apply(op);
        if let (Action::Delete, Object::Link(name, _)) = (op.action, &op.object) {
            self.ports.remove(name);
        }
    }
}

impl KernelState {
    /// Folds one successful operation in, with everything the kernel does by itself on that occasion: a link takes all
    /// that stands on it with it, a nexthop object its routes, and a table its elements.
    pub fn apply(&mut self, op: &Op) {
        match (op.action, &op.object) {
            (Action::Delete, object) => self.forget(&object.key()),
            // What it is now, only a look tells.
            (Action::Adopt, _) => {}
            (action, Object::Link(name, link)) => self.set_link(action, *name, link),
            (_, Object::WireguardPeer(key, peer)) => self.set_wireguard_peer(*key, peer),
            (_, object) => self.put(object),
        }
    }

    fn set_link(&mut self, action: Action, name: IfName, link: &Link) {
        if action == Action::Replace {
            self.forget(&ObjectKey::Link(name));
        }
        let before = self.links.get(&name);
        if before.is_some_and(|before| readdresses(before, link)) {
            self.neighbours.retain(|key, _| key.device != name);
            self.altered.retain(|key, _| !matches!(key, ObjectKey::Neighbour(key) if key.device == name));
        }
        let mut link = link.clone();
        // If no Ethernet address is asked for, the link keeps the one it has.
        link.mac = link.mac.or(before.and_then(|before| before.mac));
        self.links.insert(name, link);
        self.altered.remove(&ObjectKey::Link(name));
    }

    /// Sets a peer. The addresses that it is allowed are taken from all other peers of the device.
    pub fn set_wireguard_peer(&mut self, key: WireguardPeerKey, peer: &WireguardPeer) {
        for (other, held) in &mut self.wireguard_peers {
            if other.device == key.device && *other != key {
                held.allowed.retain(|net| !peer.allowed.contains(net));
            }
        }
        self.wireguard_peers.insert(key, peer.clone());
        self.altered.remove(&ObjectKey::WireguardPeer(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{config, device, one, peer, vxlan};
    use crate::object::Altered;

    /// What a look at `keys` finds in `whole`.
    fn look(whole: &Dump, keys: &BTreeSet<ObjectKey>) -> Dump {
        let mut found = whole.clone();
        found.state.retain(|key| keys.contains(key));
        found.foreign.links.retain(|name, _| keys.contains(&ObjectKey::Link(*name)));
        found
    }

    #[test]
    fn what_a_look_at_some_keys_finds_takes_the_place_of_what_was_known_of_them() {
        let peers = [peer("10.100.2.0-24", 12, &vxlan()), peer("10.100.3.0-24", 13, &vxlan())];
        let state = one(&config(Some("10.100.0.0/16"), None, vxlan()), "10.100.1.0-24", &peers).state;
        let before = Dump { state, ..Dump::default() };
        let (route, other) = (*before.state.routes.keys().next().unwrap(), *before.state.routes.keys().last().unwrap());
        let mut now = before.clone();
        now.state.forget(&ObjectKey::Route(route));
        now.state.forget(&ObjectKey::Route(other));
        now.state.alter(ObjectKey::Link(device("flat.1")), Altered::InPlace);
        now.foreign.links.insert(device("flannel.1"), "vxlan VNI 1".to_owned());
        let keys: BTreeSet<ObjectKey> =
            [ObjectKey::Route(route), ObjectKey::Link(device("flat.1")), ObjectKey::Link(device("flannel.1"))].into();
        let mut known = before.clone();
        known.renew(&keys, &BTreeSet::new(), look(&now, &keys));
        assert!(known.state.routes.contains_key(&other), "nobody looked there");
        known.state.forget(&ObjectKey::Route(other));
        assert_eq!(known, now);
        // A device that is gone is gone with all that stood on it.
        now.state.forget(&ObjectKey::Link(device("flat.1")));
        known.renew(&keys, &BTreeSet::new(), look(&now, &keys));
        assert_eq!(known, now);
        // All elements of a set are exchanged.
        let sets: BTreeSet<SetName> = now.state.peer_sources.iter().map(|source| source.set).collect();
        now.state.peer_sources.pop_first();
        let mut found = Dump::default();
        found.state.peer_sources.clone_from(&now.state.peer_sources);
        known.renew(&BTreeSet::new(), &sets, found);
        assert_eq!(known, now);
    }
}
