//! Attacks: somebody alters or deletes what is ours in a kernel. Every kind of object has its attacks here. The
//! compiler asks for those of a new kind, and the end of the run for those that never met an object.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use flatnet_core::object::{AddressKey, Altered, IptablesRule, KernelState, ObjectKey, RouteVia, Rule};
use flatnet_core::op::ObjectKind;
use flatnet_kernel::fake::FakeKernel;
use flatnet_model::{Mac, Mtu};
use ipnet::IpNet;

/// The way in which an object is attacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attack {
    /// The object is deleted, with what the kernel takes along.
    Delete,
    /// The object is made another one, or another one is put beside it.
    Alter,
}

impl Attack {
    /// Both attacks.
    pub const ALL: [Self; 2] = [Self::Delete, Self::Alter];
}

/// The attacks that met an object, of all seeds of this process.
static DONE: Mutex<BTreeSet<(ObjectKind, Attack)>> = Mutex::new(BTreeSet::new());

/// Returns the attacks of all kinds that have met no object yet.
pub fn missing() -> Vec<(ObjectKind, Attack)> {
    let done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    let all = ObjectKind::ALL.iter().flat_map(|kind| Attack::ALL.map(|attack| (*kind, attack)));
    all.filter(|attack| !done.contains(attack)).collect()
}

/// Carries the attack out on one object of `kind`, if there is any; `number` says which one.
pub fn carry_out(kernel: &FakeKernel, kind: ObjectKind, attack: Attack, number: usize) {
    let before = kernel.state();
    match (kind, nth(before.links.keys(), number)) {
        (ObjectKind::Link, Some(link)) if attack == Attack::Delete => kernel.delete_link(link),
        (ObjectKind::Link, Some(link)) if number.is_multiple_of(2) => kernel.flap_link(link),
        _ => kernel.edit(|state| edit(state, kind, attack, number)),
    }
    if kernel.state() != before {
        DONE.lock().unwrap_or_else(PoisonError::into_inner).insert((kind, attack));
    }
}

fn edit(state: &mut KernelState, kind: ObjectKind, attack: Attack, number: usize) {
    let strange = |family: IpAddr| -> IpAddr {
        if family.is_ipv4() { [203, 0, 113, 9].into() } else { "2001:db8:bad::9".parse().unwrap() }
    };
    let deleted = attack == Attack::Delete;
    match kind {
        ObjectKind::Ruleset if deleted => {
            state.ruleset = None;
            state.peer_sources.clear();
        }
        ObjectKind::Ruleset => {
            if state.has(&ObjectKey::Ruleset) {
                state.alter(ObjectKey::Ruleset, Altered::InPlace);
            }
        }
        ObjectKind::PeerSource => {
            let Some(mut source) = nth(state.peer_sources.iter(), number) else { return };
            if deleted {
                state.peer_sources.remove(&source);
            } else {
                source.outer = strange(source.outer);
                state.peer_sources.insert(source);
            }
        }
        // The deletion of a device is in `carry_out`.
        ObjectKind::Link => {
            let Some(name) = nth(state.links.keys(), number) else { return };
            // In what its specification tells, or in what it does not.
            match number % 3 {
                0 => state.alter(ObjectKey::Link(name), Altered::InPlace),
                1 => state.alter(ObjectKey::Link(name), Altered::Anew),
                _ => {}
            }
            state.links.entry(name).and_modify(|link| link.mtu = Mtu::new(1300).unwrap());
        }
        // The kernel cannot delete a setting: all are reset, or one of them is changed.
        ObjectKind::Sysctl if deleted => state.sysctls.values_mut().for_each(|value| *value = "0".to_owned()),
        ObjectKind::Sysctl => {
            let len = state.sysctls.len().max(1);
            state.sysctls.values_mut().skip(number % len).take(1).for_each(|value| *value = "7".to_owned());
        }
        ObjectKind::Address => {
            let Some(key) = nth(state.addresses.iter(), number) else { return };
            if deleted {
                state.addresses.remove(&key);
            } else {
                state.addresses.insert(AddressKey { address: IpNet::from(strange(key.address.addr())), ..key });
            }
        }
        ObjectKind::Neighbour => {
            let Some(key) = nth(state.neighbours.keys(), number) else { return };
            if deleted {
                state.neighbours.remove(&key);
            } else {
                state.neighbours.insert(key, Mac::local([2, 9, 9, 9, 9, 9]).into());
            }
        }
        ObjectKind::Fdb => {
            let Some(key) = nth(state.fdb.keys(), number) else { return };
            if deleted {
                state.fdb.remove(&key);
            } else {
                state.fdb.entry(key).and_modify(|to| *to = strange(*to));
            }
        }
        ObjectKind::WireguardPeer => {
            let Some(key) = nth(state.wireguard_peers.keys(), number) else { return };
            if deleted {
                state.wireguard_peers.remove(&key);
            } else {
                // This is `wg set … allowed-ips 0.0.0.0/0`.
                let peer = state.wireguard_peers.entry(key);
                peer.and_modify(|peer| peer.allowed = vec!["0.0.0.0/0".parse().unwrap()]);
            }
        }
        ObjectKind::Nexthop => {
            let Some(id) = nth(state.nexthops.keys(), number) else { return };
            if deleted {
                state.nexthops.remove(&id);
                state.routes.retain(|_, route| route.via != RouteVia::Object(id));
            } else {
                state.nexthops.entry(id).and_modify(|nexthop| nexthop.via.gateway = strange(nexthop.via.gateway));
            }
        }
        ObjectKind::Route => {
            let Some(key) = nth(state.routes.keys(), number) else { return };
            if deleted {
                state.routes.remove(&key);
            } else {
                let source = Some(strange(key.destination.addr()));
                state.routes.entry(key).and_modify(|route| route.source = source);
            }
        }
        // No network wants a rule so far: one in our name is put there, by which packets would get lost.
        ObjectKind::Rule => {
            let (priority, table) = (u32::try_from(number % 1_000).unwrap(), if deleted { 9_100 } else { 9_101 });
            let family = flatnet_model::IpFamily::V4;
            state.rules.insert(Rule { priority, family, mark: None, from: None, to: None, iif: None, table });
        }
        ObjectKind::Iptables if deleted => state.iptables.clear(),
        ObjectKind::Iptables => {
            let matches = vec!["-s".to_owned(), "203.0.113.9".to_owned()];
            state.iptables.values_mut().take(1).for_each(|rule| *rule = IptablesRule { matches: matches.clone() });
        }
    }
}

fn nth<'a, K: Copy + 'a>(mut keys: impl ExactSizeIterator<Item = &'a K>, number: usize) -> Option<K> {
    let len = keys.len().max(1);
    keys.nth(number % len).copied()
}
