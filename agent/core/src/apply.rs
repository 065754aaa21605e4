//! The kernel's state after operations that succeeded: the reconciler's idea of the actual state between two dumps.

use flatnet_model::IfName;

use crate::diff::lost::readdresses;
use crate::object::{Dump, KernelState, Link, Object, ObjectKey, WireguardPeer, WireguardPeerKey};
use crate::op::{Action, Op};

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
        match (op.action, &op.object) {
            (Action::Delete, object) => self.forget(&object.key()),
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
