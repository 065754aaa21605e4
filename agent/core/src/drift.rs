//! Drift: the operations that repair what somebody else changed. They are the ones at whose key the kernel no longer
//! holds what the last pass left.

use std::collections::BTreeMap;

use crate::object::KernelState;
use crate::op::{Object, Op};

/// Filters `ops` down to repairs: operations whose object was `left` in one state and `found` in another. Objects that
/// are newly wanted (a new peer, another MTU of the underlay) are at keys where both states are the same.
pub fn drift<'a>(
    left: &'a KernelState,
    found: &'a KernelState,
    ops: impl IntoIterator<Item = &'a Op>,
) -> impl Iterator<Item = &'a Op> {
    ops.into_iter().filter(|op| !same(left, found, &op.object))
}

fn same(left: &KernelState, found: &KernelState, object: &Object) -> bool {
    match object {
        Object::Ruleset { .. } => left.ruleset == found.ruleset,
        Object::PeerSource(source) => left.peer_sources.contains(source) == found.peer_sources.contains(source),
        Object::Link(name, _) => at(&left.links, &found.links, name),
        Object::Sysctl(sysctl, _) => at(&left.sysctls, &found.sysctls, sysctl),
        Object::Address(key) => left.addresses.contains(key) == found.addresses.contains(key),
        Object::Neighbour(key, _) => at(&left.neighbours, &found.neighbours, key),
        Object::Fdb(key, _) => at(&left.fdb, &found.fdb, key),
        Object::WireguardPeer(key, _) => at(&left.wireguard_peers, &found.wireguard_peers, key),
        Object::Nexthop(id, _) => at(&left.nexthops, &found.nexthops, id),
        Object::Route(key, _) => at(&left.routes, &found.routes, key),
        Object::Iptables(key, _) => at(&left.iptables, &found.iptables, key),
    }
}

fn at<K: Ord, V: PartialEq>(left: &BTreeMap<K, V>, found: &BTreeMap<K, V>, key: &K) -> bool {
    left.get(key) == found.get(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Sysctl;
    use crate::op::Action;

    #[test]
    fn only_what_changed_behind_our_back_is_drift() {
        let with = |values: &[(&str, &str)]| KernelState {
            sysctls: values.iter().map(|(path, value)| (Sysctl::new(*path), (*value).to_owned())).collect(),
            ..KernelState::default()
        };
        let ops: Vec<Op> = ["net/a", "net/b", "net/c"]
            .map(|path| Op { action: Action::Change, object: Object::Sysctl(Sysctl::new(path), "1".to_owned()) })
            .into();
        let left = with(&[("net/a", "1"), ("net/b", "0"), ("net/c", "1")]);
        let found = with(&[("net/a", "0"), ("net/b", "0")]);
        assert_eq!(drift(&left, &found, &ops).collect::<Vec<_>>(), [&ops[0], &ops[2]]);
    }
}
