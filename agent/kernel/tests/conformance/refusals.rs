//! Operations that are refused, with their error numbers.

use flatnet_core::object::{NexthopId, ObjectKey, RouteVia};
use flatnet_core::op::{Action, OpOutcome};
use flatnet_kernel::Scope;

use crate::world::{
    Subject, address, create, fdb, hop, key, link, mac, name, neighbour, nexthop, on_device, op, peers, route, shell,
    vxlan,
};

pub async fn a_foreign_device_on_our_name_is_told_and_left_alone(world: &Subject) {
    world.behind(
        |fake| fake.edit_foreign(|foreign| foreign.links.insert(name("flat.1"), "vxlan VNI 7 port 8472".to_owned())),
        "ip link add flat.1 type vxlan id 7 dstport 8472 local 192.0.2.1",
    );
    let scope = Scope::also([ObjectKey::Link(name("flat.1"))]);
    let dump = world.look(&scope).await;
    assert_eq!(dump.foreign.links.get(&name("flat.1")).map(String::as_str), Some("vxlan VNI 7 port 8472"));
    assert!(dump.state.links.is_empty());
    let before = world.oracle("ip -j -d link show flat.1");
    for action in [Action::Create, Action::Change, Action::Replace, Action::Delete] {
        world.refused(op(action, link("flat.1", vxlan(1, "192.0.2.1"))), libc::EEXIST).await;
    }
    assert_eq!(world.oracle("ip -j -d link show flat.1"), before);
    assert_eq!(world.look(&scope).await, dump);
}

/// A device that flanneld left, which an operator said is to go.
pub async fn a_foreign_device_that_is_adopted_is_ours_to_change_and_to_delete(world: &Subject) {
    let (left, needs) = (name("flannel.1"), vxlan(1, "192.0.2.1"));
    world.behind(
        |fake| fake.plant_link(left, vxlan(1, "192.0.2.1")),
        "ip link add flannel.1 type vxlan id 1 dstport 8472 local 192.0.2.1 nolearning",
    );
    let scope = Scope::only([ObjectKey::Link(left)]);
    assert!(world.look(&scope).await.foreign.links.contains_key(&left));
    world.done(&[op(Action::Adopt, link("flannel.1", needs.clone()))]).await;
    let found = world.look(&scope).await;
    assert_eq!((found.foreign.links.len(), found.state.altered.len()), (0, 0));
    assert_eq!(found.state.links.get(&left).map(|link| &link.kind), Some(&needs.kind));
    assert_eq!(world.state().await.links.keys().collect::<Vec<_>>(), [&left], "a full look sees it as well");
    // It makes room for ours.
    world.done(&[op(Action::Delete, link("flannel.1", needs.clone())), create(link("flat.1", needs.clone()))]).await;
    assert_eq!(world.state().await.links.keys().collect::<Vec<_>>(), [&name("flat.1")]);
    world.done(&[op(Action::Adopt, link("absent", needs))]).await;
}

pub async fn a_foreign_route_on_our_key_is_told_and_left_alone(world: &Subject) {
    world.done(&[create(link("flat.1", vxlan(1, "192.0.2.1")))]).await;
    let nets = ["10.0.1.0/24", "fd00:5::/64"];
    world.behind(
        |fake| fake.edit_foreign(|foreign| foreign.routes.extend(nets.map(key))),
        "ip route add unreachable 10.0.1.0/24; ip -6 route add unreachable fd00:5::/64",
    );
    for net in nets {
        let dump = world.look(&Scope::default()).await;
        assert!(dump.foreign.routes.contains(&key(net)) && dump.state.routes.is_empty());
        let ours = route(net, RouteVia::Unreachable);
        world.refused(create(ours.clone()), libc::EEXIST).await;
        world.done(&[op(Action::Delete, ours)]).await;
        assert_eq!(world.look(&Scope::default()).await, dump, "deleting ours left theirs");
    }
}

pub async fn a_foreign_nexthop_on_our_id_is_told_and_left_alone(world: &Subject) {
    world.done(&[create(link("flat.1", vxlan(1, "192.0.2.1")))]).await;
    world.behind(
        |fake| fake.edit_foreign(|foreign| foreign.nexthops.insert(NexthopId(7))),
        "ip nexthop add id 7 via 10.0.1.0 dev flat.1 onlink",
    );
    let dump = world.look(&Scope::default()).await;
    assert!(dump.foreign.nexthops.contains(&NexthopId(7)) && dump.state.nexthops.is_empty());
    world.refused(create(nexthop(7, "flat.1", "10.0.2.0")), libc::EEXIST).await;
    assert_eq!(world.look(&Scope::default()).await, dump);
}

pub async fn what_exists_is_not_made_twice(world: &Subject) {
    let mut ops = vec![create(link("flat.1", vxlan(1, "192.0.2.1"))), create(on_device("flat.1", "10.0.0.1/32"))];
    ops.extend(peers("flat.1", 1));
    ops.push(create(route("fd00:5::/64", RouteVia::Unreachable)));
    world.done(&ops).await;
    let before = world.state().await;
    for op in ops {
        use flatnet_core::op::ObjectKind::{Fdb, Neighbour};
        // The kernel makes neighbours by itself, so ours are set over those that are there; and so are forwarding
        // entries.
        if matches!(op.object.kind(), Neighbour | Fdb) {
            world.done(&[op]).await;
        } else {
            world.refused(op, libc::EEXIST).await;
        }
    }
    assert_eq!(world.state().await, before);
}

pub async fn what_is_absent_is_not_changed(world: &Subject) {
    world.done(&[create(link("flat.1", vxlan(1, "192.0.2.1")))]).await;
    let change = |object| op(Action::Change, object);
    world.refused(change(route("10.0.1.0/24", RouteVia::Unreachable)), libc::ENOENT).await;
    world.refused(change(route("fd00:5::/64", RouteVia::Unreachable)), libc::ENOENT).await;
    world.refused(change(nexthop(7, "flat.1", "10.0.1.0")), libc::ENOENT).await;
    world.refused(change(link("flat.2", vxlan(2, "192.0.2.1"))), libc::ENODEV).await;
}

pub async fn nothing_stands_on_an_absent_device(world: &Subject) {
    for object in [
        on_device("flat.1", "10.0.0.1/32"),
        neighbour("flat.1", "10.0.1.0", mac(1)),
        fdb("flat.1", mac(1), "172.16.0.1"),
        nexthop(7, "flat.1", "10.0.1.0"),
        route("10.0.1.0/24", RouteVia::Hop(hop("flat.1", "10.0.1.0"))),
    ] {
        world.refused(create(object.clone()), libc::ENODEV).await;
        world.done(&[op(Action::Delete, object)]).await;
    }
}

pub async fn a_route_needs_its_nexthop(world: &Subject) {
    world.refused(create(route("10.0.1.0/24", RouteVia::Object(NexthopId(7)))), libc::EINVAL).await;
}

pub async fn a_nexthop_needs_its_device_up(world: &Subject) {
    let mut down = vxlan(1, "192.0.2.1");
    down.up = false;
    world.done(&[create(link("flat.1", down.clone()))]).await;
    assert_eq!(world.state().await.links.get(&name("flat.1")), Some(&down));
    world.refused(create(nexthop(7, "flat.1", "10.0.1.0")), libc::ENETDOWN).await;
    let direct = create(route("10.0.1.0/24", RouteVia::Hop(hop("flat.1", "10.0.1.0"))));
    world.refused(direct.clone(), libc::ENETDOWN).await;
    world.done(&[op(Action::Change, link("flat.1", vxlan(1, "192.0.2.1"))), direct]).await;
    world.done(&[op(Action::Change, link("flat.1", down.clone()))]).await;
    assert!(world.state().await.routes.is_empty());
}

pub async fn two_devices_cannot_share_a_vni(world: &Subject) {
    world.done(&[create(link("flat.1", vxlan(1, "192.0.2.1")))]).await;
    let before = world.state().await;
    world.refused(create(link("flat.x", vxlan(1, "192.0.2.1"))), libc::EEXIST).await;
    assert_eq!(world.state().await, before);
    // The other underlay family is another tunnel.
    world.done(&[create(link("flat6.1", vxlan(1, "2001:db8::1")))]).await;
}

pub async fn what_depends_on_a_failure_is_skipped_and_the_rest_goes_on(world: &Subject) {
    world.done(&[create(link("flat.1", vxlan(1, "192.0.2.1")))]).await;
    let mut ops = vec![create(link("flat.x", vxlan(1, "192.0.2.1")))];
    ops.push(create(on_device("flat.x", "10.0.0.1/32")));
    ops.extend(peers("flat.x", 2));
    let skipped = ops.len() - 1;
    ops.push(create(route("fd00:5::/64", RouteVia::Hop(hop("flat.x", "fd00:5::")))));
    ops.push(create(route("fd00:6::/64", RouteVia::Unreachable)));
    ops.push(create(neighbour("flat.1", "10.9.9.9", mac(9))));
    ops.push(op(Action::Delete, neighbour("flat.x", "10.9.9.9", mac(9))));
    let outcomes = world.apply(&ops).await;
    assert!(matches!(&outcomes[0], OpOutcome::Failed(error) if error.errno == Some(libc::EEXIST)), "{outcomes:?}");
    assert!(outcomes[1..=skipped + 1].iter().all(|outcome| *outcome == OpOutcome::Skipped), "{outcomes:?}");
    assert!(outcomes[skipped + 2..].iter().all(|outcome| *outcome == OpOutcome::Done), "{outcomes:?}");
    let state = world.state().await;
    assert!(state.routes.contains_key(&key("fd00:6::/64")) && state.neighbours.len() == 1);
    // A nexthop that fails skips its route.
    let stuck =
        [create(nexthop(7, "flat.z", "10.0.1.0")), create(route("10.0.1.0/24", RouteVia::Object(NexthopId(7))))];
    let outcomes = world.apply(&stuck).await;
    assert!(matches!(outcomes[..], [OpOutcome::Failed(_), OpOutcome::Skipped]), "{outcomes:?}");
    if let Subject::Linux(_) = world {
        assert!(!shell("ip -o link").contains("flat.x"), "a part of the failed device stays");
        assert_eq!(address("10.9.9.9"), *state.neighbours.keys().map(|key| &key.address).next().unwrap());
    }
}
