//! Changes that wake the agent, and changes that do not.

use flatnet_core::object::RouteVia;
use flatnet_core::op::Action;

use crate::world::{Subject, create, key, link, mac, made, name, neighbour, op, peers, route, vxlan, wakes_within};

pub async fn a_change_from_outside_wakes(world: &Subject) {
    let mut ops = vec![create(link("flat.1", vxlan(1, "192.0.2.1")))];
    ops.extend(peers("flat.1", 3));
    ops.push(create(route("fd00:6::/64", RouteVia::Unreachable)));
    world.done(&ops).await;
    let mut wakes = world.wakes();
    assert!(!wakes_within(&mut wakes, 100).await, "nothing happened");
    let first = made(&ops).neighbours.keys().next().copied().unwrap();
    world.behind(|fake| fake.edit(|state| state.neighbours.remove(&first)), "ip neigh del 10.0.1.0 dev flat.1");
    assert!(wakes_within(&mut wakes, 2_000).await, "a neighbour of ours was deleted");
    world
        .behind(|fake| fake.edit(|state| state.fdb.pop_first()), &format!("bridge fdb del {} dev flat.1 self", mac(2)));
    assert!(wakes_within(&mut wakes, 2_000).await, "a forwarding entry was deleted");
    world.behind(|fake| fake.edit(|state| state.routes.remove(&key("10.0.2.0/24"))), "ip route del 10.0.2.0/24");
    assert!(wakes_within(&mut wakes, 2_000).await, "a route was deleted");
    world.behind(|fake| fake.edit(|state| state.routes.remove(&key("fd00:6::/64"))), "ip -6 route del fd00:6::/64");
    assert!(wakes_within(&mut wakes, 2_000).await, "an IPv6 route was deleted");
    world.behind(|fake| fake.edit(|state| state.nexthops.pop_last()), &format!("ip nexthop del id {}", 0x0a00_0300));
    assert!(wakes_within(&mut wakes, 2_000).await, "a nexthop was deleted");
    world.behind(|fake| fake.flap_link(name("flat.1")), "ip link set flat.1 down; ip link set flat.1 up");
    assert!(wakes_within(&mut wakes, 2_000).await, "the device was set down");
    // Our own changes do not wake us, or each pass would be the cause of the next.
    let refuse = route("fd00:7::/64", RouteVia::Unreachable);
    world.done(&[create(neighbour("flat.1", "10.9.9.9", mac(9))), create(refuse.clone())]).await;
    world.done(&[op(Action::Delete, refuse)]).await;
    assert!(!wakes_within(&mut wakes, 100).await, "our own changes");
}

/// More notices come than the socket's buffer holds. Some are lost, which is a reason to look, and later ones still
/// come.
pub async fn a_flood_from_outside_wakes_and_does_not_end_the_notices(world: &Subject) {
    world.done(&[create(link("flat.1", vxlan(1, "192.0.2.1")))]).await;
    let mut wakes = world.wakes();
    let flood =
        "for i in $(seq 0 19); do for j in $(seq 0 249); do echo route add unreachable 10.$i.$j.0/24; done; done";
    world.behind(|fake| fake.edit(|_| ()), &format!("({flood}) | ip -batch -"));
    assert!(wakes_within(&mut wakes, 2_000).await, "five thousand routes");
    while wakes_within(&mut wakes, 100).await {}
    world.behind(|fake| fake.flap_link(name("flat.1")), "ip link set flat.1 down");
    assert!(wakes_within(&mut wakes, 2_000).await, "one more change");
    let foreign = world.look(&flatnet_kernel::Scope::default()).await.foreign.routes.len();
    assert_eq!(foreign, if matches!(world, Subject::Linux(_)) { 5_000 } else { 0 });
}
