use flatnet_model::{BackendConfig, IfName, Mac, Mtu, Vni, VxlanConfig};

use super::*;
use crate::fixture::{config, device, one, peer, vxlan};
use crate::object::{Altered, Link, LinkKind, RouteVia};

fn state() -> KernelState {
    let peers = [peer("10.100.2.0-24", 12, &vxlan()), peer("10.100.3.0-24", 13, &vxlan())];
    one(&config(Some("10.100.0.0/16"), None, vxlan()), "10.100.1.0-24", &peers).state
}

fn dump(state: KernelState) -> Dump {
    Dump { state, ..Dump::default() }
}

fn texts(diff: &Diff) -> Vec<String> {
    diff.changes.iter().map(|op| format!("{} {}", op.action.as_str(), op.object)).collect()
}

fn flat() -> IfName {
    device("flat.1")
}

#[test]
fn what_one_object_lost_is_put_back_alone() {
    let want = state();
    let mut have = want.clone();
    let (key, _) = have.routes.pop_first().unwrap();
    assert_eq!(texts(&diff(&want, &dump(have), Prune::Yes)), [format!("create route {}", key.destination)]);
}

#[test]
fn a_link_that_is_down_is_changed_and_what_went_with_it_made_again() {
    let want = state();
    let mut have = want.clone();
    have.links.get_mut(&flat()).unwrap().up = false;
    have.nexthops.clear();
    have.routes.retain(|_, route| route.via == RouteVia::Unreachable);
    let changes = texts(&diff(&want, &dump(have), Prune::Yes));
    assert_eq!(changes.len(), 5, "{changes:?}");
    assert_eq!(changes[0], "change link flat.1");
    assert!(changes[1..].iter().all(|text| text.starts_with("create nexthop") || text.starts_with("create route")));
}

#[test]
fn another_port_makes_the_device_anew_with_all_that_stood_on_it() {
    let have = state();
    let mut want = have.clone();
    let LinkKind::Vxlan(vxlan) = &mut want.links.get_mut(&flat()).unwrap().kind else { panic!("a vxlan device") };
    vxlan.port = 4789;
    let changes = texts(&diff(&want, &dump(have.clone()), Prune::Yes));
    // The device, its address, five settings, two peers' neighbour, forwarding entry, nexthop and route.
    assert_eq!(changes.len(), 1 + 1 + 5 + 2 * 4, "{changes:?}");
    assert_eq!(changes[0], "replace link flat.1");
    assert!(!changes.iter().any(|text| text.starts_with("delete")), "the kernel has deleted it all");
}

#[test]
fn another_mac_takes_the_neighbours_only() {
    let have = state();
    let mut want = have.clone();
    want.links.get_mut(&flat()).unwrap().mac = Some(Mac::local([9; 6]));
    let changes = texts(&diff(&want, &dump(have), Prune::Yes));
    assert_eq!(changes.len(), 3, "{changes:?}");
    assert!(changes[1].starts_with("create neighbour") && changes[2].starts_with("create neighbour"));
}

#[test]
fn another_mtu_changes_nothing_but_the_link() {
    let have = state();
    let mut want = have.clone();
    want.links.get_mut(&flat()).unwrap().mtu = Mtu::new(1400).unwrap();
    assert_eq!(texts(&diff(&want, &dump(have), Prune::Yes)), ["change link flat.1"]);
}

#[test]
fn a_foreign_device_of_our_name_is_a_conflict_and_nothing_is_built_on_it() {
    let want = state();
    let mut found = Dump::default();
    found.foreign.links.insert(flat(), "vxlan VNI 1".to_owned());
    let diff = diff(&want, &found, Prune::Yes);
    assert_eq!(diff.conflicts.len(), 1);
    assert_eq!(diff.conflicts[0].to_string(), "link flat.1: vxlan VNI 1 is there and is not ours");
    let kinds: BTreeSet<&str> = diff.changes.iter().map(|op| op.object.kind().as_str()).collect();
    assert_eq!(kinds, BTreeSet::from(["ruleset", "sysctl", "route"]));
    assert_eq!(texts(&diff).iter().filter(|text| text.starts_with("create route")).count(), 1, "the catch-all only");
}

#[test]
fn a_renamed_device_goes_and_is_made_again_but_not_before_pruning_is_allowed() {
    let want = state();
    let mut have = want.clone();
    let link = have.links.remove(&flat()).unwrap();
    have.links.insert(device("mine"), link);
    have.nexthops.values_mut().for_each(|nexthop| nexthop.via.device = device("mine"));
    let not_yet = diff(&want, &dump(have.clone()), Prune::No);
    assert!(not_yet.changes.iter().all(|op| !matches!(op.object, Object::Link(..) | Object::Route(..))), "it works");
    let ops = crate::plan::plan(&want, &dump(have), Prune::Yes).ops;
    let links: Vec<String> = ops
        .iter()
        .filter(|op| matches!(op.object, Object::Link(..)))
        .map(|op| format!("{} {}", op.action.as_str(), op.object))
        .collect();
    assert_eq!(links, ["delete link mine", "create link flat.1"]);
}

#[test]
fn the_table_is_swapped_when_its_rules_differ_and_else_changed_by_element() {
    let want = state();
    let mut have = want.clone();
    let gone = have.peer_sources.pop_first().unwrap();
    let changes = diff(&want, &dump(have.clone()), Prune::Yes).changes;
    assert_eq!(changes, [Op { action: Action::Create, object: Object::PeerSource(gone) }]);
    have.ruleset.as_mut().unwrap().body.push(' ');
    let changes = diff(&want, &dump(have), Prune::Yes).changes;
    let [Op { action: Action::Change, object: Object::Ruleset { elements, .. } }] = changes.as_slice() else {
        panic!("one swap: {changes:?}")
    };
    assert_eq!(elements.len(), 2);
}

#[test]
fn before_pruning_a_swap_keeps_the_peers_that_are_there() {
    let mut want = state();
    let have = want.clone();
    want.peer_sources.pop_first();
    want.ruleset.as_mut().unwrap().body.push(' ');
    let swap = |prune| match diff(&want, &dump(have.clone()), prune).changes.as_slice() {
        [Op { object: Object::Ruleset { elements, .. }, .. }] => elements.len(),
        other => panic!("one swap: {other:?}"),
    };
    assert_eq!((swap(Prune::No), swap(Prune::Yes)), (2, 1));
}

#[test]
fn a_peer_that_moved_is_let_in_at_its_new_address_before_the_old_one_is_shut() {
    let want = state();
    let mut have = want.clone();
    let mut source = have.peer_sources.pop_first().unwrap();
    source.outer = "192.0.2.99".parse().unwrap();
    have.peer_sources.insert(source);
    let changes = diff(&want, &dump(have), Prune::Yes).changes;
    let actions: Vec<Action> = changes.iter().map(|op| op.action).collect();
    assert_eq!(actions, [Action::Create, Action::Delete]);
    assert_eq!(changes[1].object, Object::PeerSource(source));
}

#[test]
fn leaving_takes_everything_but_settings() {
    let ops = diff(&KernelState::default(), &dump(state()), Prune::Yes).changes;
    let kinds: Vec<String> =
        ops.iter().map(|op| format!("{} {}", op.action.as_str(), op.object.kind().as_str())).collect();
    assert_eq!(kinds, ["delete ruleset", "delete link", "delete route"], "the rest goes with the device");
    assert!(diff(&KernelState::default(), &dump(state()), Prune::No).changes.is_empty());
}

#[test]
fn moving_to_another_vni_moves_routes_before_the_old_device_goes() {
    let have = state();
    let backend = BackendConfig::Vxlan(VxlanConfig { vni: Vni::new(2).unwrap(), ..VxlanConfig::default() });
    let peers = [peer("10.100.2.0-24", 12, &backend), peer("10.100.3.0-24", 13, &backend)];
    let want = one(&config(Some("10.100.0.0/16"), None, backend), "10.100.1.0-24", &peers).state;
    let ops = crate::plan::plan(&want, &dump(have), Prune::Yes).ops;
    let texts: Vec<String> = ops.iter().map(|op| format!("{} {}", op.action.as_str(), op.object)).collect();
    let at =
        |wanted: &str| texts.iter().position(|text| text.starts_with(wanted)).unwrap_or_else(|| panic!("{texts:#?}"));
    assert!(at("create link flat.2") < at("change nexthop"));
    assert!(at("change nexthop") < at("delete link flat.1"));
    assert!(!texts.iter().any(|text| text.starts_with("delete route") || text.starts_with("delete nexthop")));
}

/// The cases are `leave --purge`, another `--bridge`, and no bridge any more.
#[test]
fn a_bridge_that_something_is_plugged_into_stays_with_its_addresses() {
    let (bridge, wanted) = (device("flbr0"), state());
    let mut have = wanted.clone();
    have.links.insert(bridge, Link { kind: LinkKind::Bridge, mtu: Mtu::new(1450).unwrap(), mac: None, up: true });
    have.addresses.insert(crate::object::AddressKey { device: bridge, address: "10.100.1.1/24".parse().unwrap() });
    let ports: BTreeSet<IfName> = (1..=10).map(|number| device(&format!("c{number}"))).collect();
    for want in [&wanted, &KernelState::default()] {
        let empty = diff(want, &dump(have.clone()), Prune::Yes);
        assert!(texts(&empty).contains(&"delete link flbr0".to_owned()) && empty.in_use.is_empty());
        let used = Dump { ports: [(bridge, ports.clone())].into(), ..dump(have.clone()) };
        let kept = diff(want, &used, Prune::Yes);
        let of_bridge: Vec<_> = texts(&kept).into_iter().filter(|text| text.contains("flbr0")).collect();
        assert_eq!(of_bridge, [""; 0]);
        assert_eq!(kept.in_use, [InUse { bridge, ports: ports.clone() }]);
        let said = "the bridge flbr0 stays: plugged into it: c1, c10, c2, c3, c4, c5, c6, c7 and 2 more";
        assert_eq!(kept.in_use[0].to_string(), said);
        for prune in [Prune::No, Prune::Settled] {
            assert_eq!(diff(want, &used, prune).in_use, [], "nothing goes anyway");
        }
        // A bridge that is wanted is not reported.
        assert_eq!(diff(&have, &used, Prune::Yes), Diff::default());
    }
}

#[test]
fn what_is_altered_is_put_right_though_its_specification_is_as_wanted() {
    let want = state();
    let mut have = want.clone();
    have.alter(ObjectKey::Link(flat()), Altered::InPlace);
    assert_eq!(texts(&diff(&want, &dump(have.clone()), Prune::Yes)), ["change link flat.1"]);
    have.alter(ObjectKey::Link(flat()), Altered::Anew);
    let changes = texts(&diff(&want, &dump(have), Prune::Yes));
    assert_eq!(changes[0], "replace link flat.1");
    assert!(changes[1..].iter().all(|text| text.starts_with("create") || text.starts_with("change sysctl")));
    let (key, _) = want.routes.first_key_value().unwrap();
    let mut have = want.clone();
    have.alter(ObjectKey::Route(*key), Altered::InPlace);
    assert_eq!(texts(&diff(&want, &dump(have), Prune::Yes)), [format!("change route {}", key.destination)]);
}

#[test]
fn an_altered_table_is_swapped_and_goes_when_it_is_not_wanted() {
    let want = state();
    let mut have = want.clone();
    have.alter(ObjectKey::Ruleset, Altered::InPlace);
    let changes = diff(&want, &dump(have.clone()), Prune::No).changes;
    assert!(
        matches!(changes.as_slice(), [Op { action: Action::Change, object: Object::Ruleset { .. } }]),
        "{changes:?}"
    );
    let mut after = have.clone();
    changes.iter().for_each(|op| after.apply(op));
    assert_eq!(after, want);
    let none = KernelState { ruleset: None, peer_sources: BTreeSet::new(), ..want.clone() };
    let changes = texts(&diff(&none, &dump(have.clone()), Prune::Yes));
    assert_eq!(changes, ["delete table inet flatnet (2 elements)"]);
    assert_eq!(diff(&none, &dump(have), Prune::No), Diff::default());
}
