//! The kernel's state after operations that succeeded: the reconciler's idea of the actual state between two dumps.

use std::collections::BTreeSet;

use flatnet_model::IfName;

use crate::diff::lost::{device_of, readdresses};
use crate::object::{Dump, KernelState, Link, NexthopId, RouteVia, WireguardPeer, WireguardPeerKey};
use crate::op::{Action, Object, Op};

impl Dump {
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
        if op.action == Action::Delete { self.remove(&op.object) } else { self.set(op.action, &op.object) }
    }

    fn set(&mut self, action: Action, object: &Object) {
        match object {
            Object::Ruleset { ruleset, elements } => {
                self.ruleset = Some(ruleset.clone());
                self.peer_sources = elements.iter().copied().collect();
            }
            Object::PeerSource(source) => {
                self.peer_sources.insert(*source);
            }
            Object::Link(name, link) => self.set_link(action, *name, link),
            Object::Sysctl(sysctl, value) => {
                self.sysctls.insert(sysctl.clone(), value.clone());
            }
            Object::Address(key) => {
                self.addresses.insert(*key);
            }
            Object::Neighbour(key, mac) => {
                self.neighbours.insert(*key, *mac);
            }
            Object::Fdb(key, dst) => {
                self.fdb.insert(*key, *dst);
            }
            Object::WireguardPeer(key, peer) => self.set_wireguard_peer(*key, peer),
            Object::Nexthop(id, nexthop) => {
                self.nexthops.insert(*id, *nexthop);
            }
            Object::Route(key, route) => {
                self.routes.insert(*key, *route);
            }
            Object::Iptables(key, rule) => {
                self.iptables.insert(key.clone(), rule.clone());
            }
        }
    }

    fn set_link(&mut self, action: Action, name: IfName, link: &Link) {
        if action == Action::Replace {
            self.forget_link(name);
        }
        let before = self.links.get(&name);
        if before.is_some_and(|before| readdresses(before, link)) {
            self.neighbours.retain(|key, _| key.device != name);
        }
        let mut link = link.clone();
        // If no Ethernet address is asked for, the link keeps the one it has.
        link.mac = link.mac.or(before.and_then(|before| before.mac));
        self.links.insert(name, link);
    }

    /// Sets a peer. The addresses that it is allowed are taken from all other peers of the device.
    pub fn set_wireguard_peer(&mut self, key: WireguardPeerKey, peer: &WireguardPeer) {
        for (other, held) in &mut self.wireguard_peers {
            if other.device == key.device && *other != key {
                held.allowed.retain(|net| !peer.allowed.contains(net));
            }
        }
        self.wireguard_peers.insert(key, peer.clone());
    }

    fn remove(&mut self, object: &Object) {
        match object {
            Object::Ruleset { .. } => {
                self.ruleset = None;
                self.peer_sources.clear();
            }
            Object::PeerSource(source) => {
                self.peer_sources.remove(source);
            }
            Object::Link(name, _) => self.forget_link(*name),
            Object::Sysctl(sysctl, _) => {
                self.sysctls.remove(sysctl);
            }
            Object::Address(key) => {
                self.addresses.remove(key);
            }
            Object::Neighbour(key, _) => {
                self.neighbours.remove(key);
            }
            Object::Fdb(key, _) => {
                self.fdb.remove(key);
            }
            Object::WireguardPeer(key, _) => {
                self.wireguard_peers.remove(key);
            }
            Object::Nexthop(id, _) => {
                self.nexthops.remove(id);
                self.routes.retain(|_, route| route.via != RouteVia::Object(*id));
            }
            Object::Route(key, _) => {
                self.routes.remove(key);
            }
            Object::Iptables(key, _) => {
                self.iptables.remove(key);
            }
        }
    }

    fn forget_link(&mut self, name: IfName) {
        self.links.remove(&name);
        self.sysctls.retain(|sysctl, _| device_of(sysctl) != Some(name));
        self.addresses.retain(|key| key.device != name);
        self.neighbours.retain(|key, _| key.device != name);
        self.fdb.retain(|key, _| key.device != name);
        self.wireguard_peers.retain(|key, _| key.device != name);
        let on_it = self.nexthops.iter().filter(|(_, nexthop)| nexthop.via.device == name);
        let gone: BTreeSet<NexthopId> = on_it.map(|(id, _)| *id).collect();
        self.nexthops.retain(|id, _| !gone.contains(id));
        self.routes.retain(|_, route| match route.via {
            RouteVia::Object(id) => !gone.contains(&id),
            RouteVia::Hop(hop) => hop.device != name,
            RouteVia::Encap(encap) => encap.device != name,
            RouteVia::Unreachable => true,
        });
    }
}
