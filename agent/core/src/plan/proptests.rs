//! Properties of plans between any two states, in small domains so that collisions happen. The plan leads from one
//! state to the other, and every operation finds what it stands on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flatnet_model::{GreKey, IfName, IpFamily, Mac, Mtu, Vni, WireguardKey};
use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::object::{
    AddressKey, Altered, Datapath, Encap, FdbKey, Foreign, GreLink, IptablesChain, IptablesKey, IptablesRule,
    IptablesVariant, Link, LinkKind, NeighbourKey, NextHop, Nexthop, NexthopId, PeerSource, Route, RouteKey, RouteVia,
    Ruleset, SetName, TunnelId, VxlanLink, WireguardLink, WireguardPeer, WireguardPeerKey,
};
use crate::op::ObjectKey;

const DEVICES: [&str; 8] = ["flat.1", "flat.2", "flat6.1", "renamed", "br0", "flatwg.51820", "flatgre0", "flat6gre"];

fn name(index: usize) -> IfName {
    IfName::new(DEVICES.get(index).copied().unwrap_or("eth0")).unwrap()
}

fn mac(index: u8) -> Mac {
    Mac::local([0, 0, 0, 0, 0, index])
}

fn address(index: u8) -> IpAddr {
    [10, 0, index, 0].into()
}

fn subnet(index: u8) -> IpNet {
    ["10.0.0.0/24", "10.0.0.0/25", "10.0.1.0/24", "10.0.2.0/24", "fd00:1::/64", "10.0.0.0/16"][usize::from(index)]
        .parse()
        .unwrap()
}

/// Returns a link. A `wanted` one is as this program names it; a found one may be anything somebody made of it.
fn link(index: usize, (vni, port, mtu, mac_index, flip): (u8, bool, bool, u8, bool), wanted: bool) -> Link {
    let mtu = Mtu::new(if mtu { 1450 } else { 1400 }).unwrap();
    if index == 4 {
        return Link { kind: LinkKind::Bridge, mtu, mac: (!wanted).then(|| mac(mac_index)), up: wanted || flip };
    }
    if index == 5 {
        // A found link may have been moved to another port or key, or be left by a process that ended.
        let datapath = if mac_index == 0 { Datapath::Userspace } else { Datapath::Kernel };
        let public_key = (wanted || !flip).then(|| key(vni));
        let kind = LinkKind::Wireguard(WireguardLink { port: if port { 51820 } else { 51822 }, public_key, datapath });
        return Link { kind, mtu, mac: None, up: wanted || flip };
    }
    let datapath = if port { Datapath::Kernel } else { Datapath::Userspace };
    if index == 6 {
        let gre = GreLink { key: GreKey::NONE, local: [192, 0, 2, 1 + u8::from(flip)].into(), datapath };
        return Link { kind: LinkKind::Gre(gre), mtu, mac: None, up: wanted || flip };
    }
    if index == 7 {
        return Link { kind: LinkKind::Gre6(datapath), mtu, mac: None, up: wanted || flip };
    }
    let own_vni = if index == 1 { 2 } else { 1 };
    let vni = Vni::new(if wanted || index != 3 { own_vni } else { u32::from(vni) + 1 }).unwrap();
    let local: IpAddr =
        if index == 2 { "2001:db8::1".parse().unwrap() } else { [192, 0, 2, 1 + u8::from(flip)].into() };
    let kind = LinkKind::Vxlan(VxlanLink { vni, port: if port { 8472 } else { 4789 }, local });
    Link { kind, mtu, mac: Some(mac(mac_index)), up: wanted || flip }
}

fn key(index: u8) -> WireguardKey {
    WireguardKey::new([index + 1; 32]).unwrap()
}

fn via(kind: u8, device: usize, gateway: u8) -> RouteVia {
    match kind {
        0 => RouteVia::Unreachable,
        1 => RouteVia::Hop(NextHop { gateway: address(gateway), device: name(device), onlink: true }),
        2 => RouteVia::Encap(Encap {
            device: name(device),
            source: address(0),
            remote: address(gateway),
            key: GreKey::NONE,
        }),
        _ => RouteVia::Object(NexthopId(u32::from(gateway) + 1)),
    }
}

type LinkBits = (u8, bool, bool, u8, bool);

fn state(wanted: bool) -> impl Strategy<Value = KernelState> {
    let device = || 0_usize..9;
    let links = prop::collection::btree_map(0_usize..8, any::<LinkBits>(), 0..6);
    let bits = (
        prop::collection::vec((device(), 0_u8..4), 0..5),
        prop::collection::vec((device(), 0_u8..4, 0_u8..3), 0..8),
        prop::collection::vec((device(), 0_u8..3, 0_u8..4), 0..8),
        prop::collection::vec((0_u8..4, device(), 0_u8..4), 0..6),
        prop::collection::vec((0_u8..6, 0_u8..4, device(), 0_u8..4), 0..8),
    );
    let firewall = (prop::option::of(any::<bool>()), prop::collection::vec((1_u8..3, 0_u8..2, 0_u8..4), 0..6));
    let wireguard = prop::collection::vec((0_u8..3, 0_u8..6, any::<bool>()), 0..5);
    let heads = (
        prop::collection::vec((0_u8..3, any::<bool>()), 0..3),
        prop::collection::vec((device(), any::<bool>()), 0..3),
        wireguard,
    );
    (links, bits, firewall, heads).prop_map(
        move |(links, (addresses, neighbours, fdb, nexthops, routes), firewall, heads)| {
            let mut state = KernelState {
                links: links
                    .into_iter()
                    // This program gives no device that name.
                    .filter(|(index, _)| !wanted || *index != 3)
                    .map(|(index, bits)| {
                        (name(index), link(index, (bits.0 % 2, bits.1, bits.2, bits.3 % 3, bits.4), wanted))
                    })
                    .collect(),
                addresses: addresses
                    .into_iter()
                    .map(|(d, a)| AddressKey { device: name(d), address: IpNet::from(address(a)) })
                    .collect(),
                neighbours: neighbours
                    .into_iter()
                    .map(|(d, a, m)| (NeighbourKey { device: name(d), address: address(a) }, mac(m).into()))
                    .collect(),
                fdb: fdb.into_iter().map(|(d, m, a)| (FdbKey { device: name(d), mac: mac(m) }, address(a))).collect(),
                nexthops: nexthops
                    .into_iter()
                    .map(|(id, d, g)| {
                        (
                            NexthopId(u32::from(id) + 1),
                            Nexthop { via: NextHop { gateway: address(g), device: name(d), onlink: true } },
                        )
                    })
                    .collect(),
                routes: routes
                    .into_iter()
                    .map(|(s, k, d, g)| (RouteKey::to_peer(subnet(s)), Route { via: via(k, d, g), source: None }))
                    .collect(),
                ..KernelState::default()
            };
            for (index, net, keepalive) in heads.2 {
                let at = WireguardPeerKey { device: name(5), public_key: key(index) };
                let mut peer = WireguardPeer {
                    endpoint: Some(([192, 0, 2, index + 1], 51820).into()),
                    keepalive_secs: if keepalive { 25 } else { 0 },
                    psk: None,
                    allowed: vec![subnet(net)],
                };
                // The same peer twice: it has both.
                peer.allowed.extend(state.wireguard_peers.get(&at).into_iter().flat_map(|peer| peer.allowed.clone()));
                peer.allowed.sort();
                peer.allowed.dedup();
                state.set_wireguard_peer(at, &peer);
            }
            let rule = |flip: bool| IptablesRule {
                matches: vec![if flip { "-s" } else { "-d" }.to_owned(), "10.0.0.0/8".to_owned()],
            };
            state.iptables = heads
                .0
                .into_iter()
                .map(|(n, flip)| {
                    (
                        IptablesKey {
                            variant: IptablesVariant::Nft,
                            family: IpFamily::V4,
                            chain: IptablesChain::Forward,
                            comment: format!("flatnet:{n}"),
                        },
                        rule(flip),
                    )
                })
                .collect();
            state.sysctls = heads
                .1
                .into_iter()
                .map(|(d, on)| (Sysctl::new(format!("net/ipv6/conf/{}/accept_ra", name(d))), u8::from(on).to_string()))
                .collect();
            if let (Some(both), sources) = firewall {
                state.ruleset = Some(Ruleset {
                    body: if both { "set peers4_1_24 { }\nset peers4_2_24 { }" } else { "set peers4_1_24 { }" }
                        .to_owned(),
                });
                for (vni, outer, inner) in sources {
                    let tunnel = TunnelId::Vxlan(Vni::new(u32::from(vni)).unwrap());
                    let set = SetName { tunnel, family: IpFamily::V4, prefix_len: 24 };
                    let source = PeerSource { set, outer: address(outer), inner: subnet(inner) };
                    if both || vni == 1 {
                        state.peer_sources.insert(source);
                    }
                }
            }
            consistent(state)
        },
    )
}

fn tunnel(link: &Link) -> Option<(Vni, u16, bool)> {
    match link.kind {
        LinkKind::Vxlan(vxlan) => Some((vxlan.vni, vxlan.port, vxlan.local.is_ipv4())),
        LinkKind::Bridge | LinkKind::Wireguard(_) | LinkKind::Gre(_) | LinkKind::Gre6(_) => None,
    }
}

/// Reduces a state to what a kernel could hold: nothing stands on what is not there, and a VNI and port are on one
/// device.
fn consistent(mut state: KernelState) -> KernelState {
    let mut tunnels = BTreeSet::new();
    state.links.retain(|_, link| tunnel(link).is_none_or(|tunnel| tunnels.insert(tunnel)));
    let devices: BTreeSet<IfName> = state.links.keys().copied().chain([name(9)]).collect();
    state.addresses.retain(|key| devices.contains(&key.device) && key.device != name(9));
    state.neighbours.retain(|key, _| devices.contains(&key.device) && key.device != name(9));
    state.fdb.retain(|key, _| devices.contains(&key.device) && key.device != name(9));
    state.wireguard_peers.retain(|key, _| devices.contains(&key.device) && key.device != name(9));
    state.nexthops.retain(|_, nexthop| devices.contains(&nexthop.via.device));
    state.sysctls.retain(|sysctl, _| sysctl.device().is_some_and(|device| devices.contains(&device)));
    let nexthops: BTreeSet<NexthopId> = state.nexthops.keys().copied().collect();
    state.routes.retain(|_, route| match route.via {
        RouteVia::Unreachable => true,
        RouteVia::Hop(hop) => devices.contains(&hop.device),
        RouteVia::Encap(encap) => devices.contains(&encap.device),
        RouteVia::Object(id) => nexthops.contains(&id),
    });
    state
}

fn foreign() -> impl Strategy<Value = Foreign> {
    let links = prop::collection::btree_set(0_usize..7, 0..2);
    (links, prop::collection::btree_set(0_u32..4, 0..2), prop::collection::btree_set(0_u8..6, 0..2)).prop_map(
        |(links, nexthops, routes)| Foreign {
            links: links.into_iter().map(|index| (name(index), "dummy".to_owned())).collect(),
            nexthops: nexthops.into_iter().map(|id| NexthopId(id + 1)).collect(),
            routes: routes.into_iter().map(|index| RouteKey::to_peer(subnet(index))).collect(),
        },
    )
}

/// Returns a dump in which each key has one object, ours or not, as in a kernel.
fn dump(state: KernelState, mut foreign: Foreign) -> Dump {
    foreign.links.retain(|name, _| !state.links.contains_key(name));
    foreign.nexthops.retain(|id| !state.nexthops.contains_key(id));
    foreign.routes.retain(|key| !state.routes.contains_key(key));
    Dump { state, foreign, ports: BTreeMap::new() }
}

/// Returns every object by its key. Settings are left out (they are never deleted), and addresses nobody asked for are
/// masked.
fn objects(state: &KernelState, like: &KernelState) -> BTreeMap<ObjectKey, String> {
    let mut all = Vec::new();
    all.extend(state.links.iter().map(|(name, link)| {
        let mut link = link.clone();
        if like.links.get(name).is_some_and(|like| like.mac.is_none()) {
            link.mac = None;
        }
        Object::Link(*name, link)
    }));
    all.extend(state.peer_sources.iter().map(|source| Object::PeerSource(*source)));
    all.extend(state.addresses.iter().map(|key| Object::Address(*key)));
    all.extend(state.neighbours.iter().map(|(key, mac)| Object::Neighbour(*key, *mac)));
    all.extend(state.fdb.iter().map(|(key, dst)| Object::Fdb(*key, *dst)));
    all.extend(state.wireguard_peers.iter().map(|(key, peer)| Object::WireguardPeer(*key, peer.clone())));
    all.extend(state.nexthops.iter().map(|(id, nexthop)| Object::Nexthop(*id, *nexthop)));
    all.extend(state.routes.iter().map(|(key, route)| Object::Route(*key, *route)));
    all.extend(state.iptables.iter().map(|(key, rule)| Object::Iptables(key.clone(), rule.clone())));
    all.extend(state.ruleset.iter().map(|ruleset| Object::Ruleset { ruleset: ruleset.clone(), elements: Vec::new() }));
    all.into_iter().map(|object| (object.key(), format!("{object:?}"))).collect()
}

fn has(state: &KernelState, object: &Object) -> bool {
    match object {
        Object::Sysctl(sysctl, _) => state.sysctls.contains_key(sysctl),
        _ => objects(state, state).contains_key(&object.key()) || state.is_altered(&object.key()),
    }
}

/// Checks that the kernel could carry out `op` in `state`.
fn possible(state: &KernelState, op: &Op) -> Result<(), String> {
    let device = |device: IfName| device == name(9) || state.links.contains_key(&device);
    let stands = match &op.object {
        Object::Ruleset { ruleset, elements } => {
            op.action == Action::Delete || elements.iter().all(|element| ruleset.sets().any(|set| set == element.set))
        }
        Object::PeerSource(_) => state.has(&ObjectKey::Ruleset),
        Object::Iptables(..) | Object::Rule(_) => true,
        Object::Link(name, link) => {
            op.action == Action::Delete
                || tunnel(link).is_none()
                || !state.links.iter().any(|(other, found)| other != name && tunnel(found) == tunnel(link))
        }
        Object::Sysctl(sysctl, _) => sysctl.device().is_none_or(device),
        Object::Address(key) => device(key.device),
        Object::Neighbour(key, _) => device(key.device),
        Object::Fdb(key, _) => device(key.device),
        Object::WireguardPeer(key, _) => device(key.device),
        Object::Nexthop(_, nexthop) => device(nexthop.via.device),
        Object::Route(_, route) => match route.via {
            RouteVia::Unreachable => true,
            RouteVia::Hop(hop) => device(hop.device),
            RouteVia::Encap(encap) => device(encap.device),
            RouteVia::Object(id) => state.nexthops.contains_key(&id),
        },
    };
    let expected = match (op.action, &op.object) {
        (_, Object::Sysctl(..)) => true,
        (Action::Create, object) => !has(state, object),
        (Action::Change | Action::Replace | Action::Delete, object) => has(state, object),
        (Action::Adopt, _) => false,
    };
    if stands && expected { Ok(()) } else { Err(format!("{op:?} (stands: {stands}, key as expected: {expected})")) }
}

fn fold(dump: &Dump, ops: &[Op]) -> Result<KernelState, TestCaseError> {
    let mut state = dump.state.clone();
    for op in ops {
        possible(&state, op).map_err(TestCaseError::fail)?;
        state.apply(op);
    }
    Ok(state)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn nothing_changes_when_the_kernel_is_as_desired(want in state(true)) {
        for prune in [Prune::Yes, Prune::Settled, Prune::No] {
            let plan = plan(&want, &dump(want.clone(), Foreign::default()), prune);
            prop_assert_eq!(&plan, &Plan::default());
        }
    }

    #[test]
    fn the_plan_leads_to_the_desired_state(want in state(true), have in state(false)) {
        let dump = dump(have, Foreign::default());
        let plan = plan(&want, &dump, Prune::Yes);
        prop_assert!(plan.conflicts.is_empty());
        let state = fold(&dump, &plan.ops)?;
        prop_assert_eq!(objects(&state, &want), objects(&want, &want));
        for (sysctl, value) in &want.sysctls {
            prop_assert_eq!(state.sysctls.get(sysctl), Some(value));
        }
        let again = super::plan(&want, &Dump { state, ..dump }, Prune::Yes);
        prop_assert_eq!(again, Plan::default());
    }

    #[test]
    fn the_plan_puts_right_whatever_is_altered(
        want in state(true), have in state(false),
        attacks in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 1..4),
    ) {
        let mut have = have;
        for (index, anew) in attacks {
            // An element is there or not, and has nothing that could be altered.
            let keys = objects(&have, &have).into_keys().filter(|key| !matches!(key, ObjectKey::PeerSource(_)));
            let keys: Vec<ObjectKey> = keys.collect();
            if !keys.is_empty() {
                have.alter(index.get(&keys).clone(), if anew { Altered::Anew } else { Altered::InPlace });
            }
        }
        let dump = dump(have, Foreign::default());
        let state = fold(&dump, &plan(&want, &dump, Prune::Yes).ops)?;
        prop_assert_eq!(&state.altered, &BTreeMap::new());
        prop_assert_eq!(objects(&state, &want), objects(&want, &want));
    }

    #[test]
    fn what_is_foreign_keeps_its_key_and_stands_in_nobody_elses_way(
        want in state(true), have in state(false), foreign in foreign(),
        prune in prop_oneof![Just(Prune::Yes), Just(Prune::Settled), Just(Prune::No)],
    ) {
        let dump = dump(have, foreign);
        let plan = plan(&want, &dump, prune);
        for op in &plan.ops {
            let touched = match &op.object {
                Object::Link(name, _) => dump.foreign.links.contains_key(name),
                Object::Nexthop(id, _) => dump.foreign.nexthops.contains(id),
                Object::Route(key, _) => dump.foreign.routes.contains(key),
                Object::Address(key) => dump.foreign.links.contains_key(&key.device),
                Object::Neighbour(key, _) => dump.foreign.links.contains_key(&key.device),
                Object::WireguardPeer(key, _) => dump.foreign.links.contains_key(&key.device),
                Object::Fdb(key, _) => dump.foreign.links.contains_key(&key.device),
                _ => false,
            };
            prop_assert!(!touched, "{:?}", op);
        }
        let state = fold(&dump, &plan.ops)?;
        // Pruning leaves nothing that is not desired, and a second look finds nothing more to do.
        if prune == Prune::Yes {
            let wanted = objects(&want, &want);
            prop_assert!(objects(&state, &want).keys().all(|key| wanted.contains_key(key)));
        }
        let again = super::plan(&want, &Dump { state, ..dump.clone() }, prune);
        prop_assert_eq!(again.ops, vec![]);
        prop_assert_eq!(again.conflicts, plan.conflicts);
    }

    #[test]
    fn beside_what_is_not_settled_only_what_stands_on_wanted_devices_is_deleted(
        want in state(true), have in state(false),
    ) {
        let dump = dump(have, Foreign::default());
        let plan = plan(&want, &dump, Prune::Settled);
        for op in plan.ops.iter().filter(|op| op.action == Action::Delete) {
            let whole = matches!(op.object, Object::Link(..) | Object::Ruleset { .. } | Object::Iptables(..));
            prop_assert!(!whole, "{:?}", op);
        }
        let state = fold(&dump, &plan.ops)?;
        let left = |device: &IfName| want.links.get(device).is_some_and(|link| !matches!(link.kind, LinkKind::Gre6(_)));
        if lost::in_the_way(&want, &dump.state).next().is_none() {
            prop_assert!(state.fdb.keys().filter(|key| left(&key.device)).all(|key| want.fdb.contains_key(key)));
            prop_assert!(state.peer_sources.is_subset(&want.peer_sources) || want.ruleset.is_none());
        }
    }

    #[test]
    fn without_pruning_nothing_is_deleted_and_all_that_can_be_made_is(want in state(true), have in state(false)) {
        let dump = dump(have, Foreign::default());
        let plan = plan(&want, &dump, Prune::No);
        prop_assert!(plan.ops.iter().all(|op| op.action != Action::Delete));
        let state = fold(&dump, &plan.ops)?;
        let links_stay = dump.state.links.iter().all(|(name, link)| want.links.get(name).is_none_or(|want| link.can_become(want) && !lost::readdresses(link, want)));
        let after = objects(&state, &want);
        if links_stay {
            for key in objects(&dump.state, &want).keys().filter(|key| !matches!(key, ObjectKey::PeerSource(_))) {
                prop_assert!(after.contains_key(key), "{:?}", key);
            }
        }
        if lost::in_the_way(&want, &dump.state).next().is_none() {
            for (key, object) in objects(&want, &want) {
                prop_assert_eq!(after.get(&key), Some(&object));
            }
        }
    }

    #[test]
    fn what_is_wanted_and_there_is_never_missing_in_between(want in state(true), have in state(false)) {
        // Devices are as they are: one that must be made anew would take what stands on it.
        let dump = dump(consistent(KernelState { links: want.links.clone(), ..have }), Foreign::default());
        let wanted = objects(&want, &want);
        let both: Vec<ObjectKey> = objects(&dump.state, &want).into_keys().filter(|key| wanted.contains_key(key)).collect();
        let mut state = dump.state.clone();
        for op in plan(&want, &dump, Prune::Yes).ops {
            state.apply(&op);
            let now = objects(&state, &want);
            for key in &both {
                prop_assert!(now.contains_key(key), "{:?} is missing after {:?}", key, op);
            }
        }
    }

    #[test]
    fn the_guard_comes_first_and_goes_last(want in state(true), have in state(false)) {
        let ops = plan(&want, &dump(have, Foreign::default()), Prune::Yes).ops;
        let guard = |op: &Op| matches!(op.object, Object::Ruleset { .. } | Object::PeerSource(_));
        let first = ops.iter().position(|op| !guard(op)).unwrap_or(ops.len());
        let last = ops.iter().rposition(|op| !guard(op)).map_or(0, |index| index + 1);
        for (index, op) in ops.iter().enumerate().filter(|(_, op)| guard(op)) {
            prop_assert!(if op.action == Action::Delete { index >= last } else { index < first }, "{:?}", op);
        }
    }
}
