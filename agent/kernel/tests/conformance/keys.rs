//! A look at some keys shows what a full look shows of them.

use std::collections::BTreeSet;

use flatnet_core::object::{Altered, Dump, NexthopId, Object, ObjectKey, ObjectKind, RouteVia, Rule, Ruleset, Sysctl};
use flatnet_core::op::{Action, Op};
use flatnet_kernel::Scope;
use flatnet_model::IpFamily;

use crate::world::{Subject, bridge, create, key, link, name, nexthop, on_device, op, peers, route, sysctl, vxlan};

/// Returns a table with a peer in each family, two devices with peers and an address, and a rule.
fn populated() -> Vec<Op> {
    let (ruleset, elements) = crate::firewall::wanted();
    let mut ops = vec![
        create(Object::Ruleset { ruleset, elements }),
        create(link("flat.1", vxlan(1, "192.0.2.1"))),
        create(link("flat6.2", vxlan(2, "2001:db8::1"))),
        create(link("flbr", bridge())),
        op(Action::Change, sysctl("net/ipv4/conf/flat.1/forwarding", "1")),
        create(on_device("flat.1", "10.0.0.1/32")),
        create(on_device("flbr", "10.0.9.1/24")),
    ];
    ops.extend(peers("flat.1", 3));
    ops.push(create(route("10.0.0.0/8", RouteVia::Unreachable)));
    let rule = Rule { priority: 91, family: IpFamily::V4, mark: None, from: None, to: None, iif: None, table: 9_100 };
    ops.push(create(Object::Rule(rule)));
    ops
}

/// Returns the part of `whole` that is at `keys` and in `sets`.
fn part(whole: &Dump, scope: &Scope) -> Dump {
    let mut part = whole.clone();
    part.state.retain(|key| match key {
        ObjectKey::PeerSource(source) => scope.sets.contains(&source.set) || scope.keys.contains(key),
        key => scope.keys.contains(key),
    });
    part.foreign.links.retain(|name, _| scope.keys.contains(&ObjectKey::Link(*name)));
    part.foreign.nexthops.retain(|id| scope.keys.contains(&ObjectKey::Nexthop(*id)));
    part.foreign.routes.retain(|key| scope.keys.contains(&ObjectKey::Route(*key)));
    part.ports.retain(|bridge, _| scope.keys.contains(&ObjectKey::Link(*bridge)));
    part
}

async fn agrees(world: &Subject, whole: &Dump, scope: &Scope) {
    assert_eq!(world.look_whole(scope).await, part(whole, scope), "{scope:?}");
}

pub async fn a_look_at_some_keys_shows_what_a_full_look_shows_of_them(world: &Subject) {
    let ops = populated();
    world.done(&ops).await;
    world.behind(
        |fake| {
            fake.plug(name("flbr"), name("port"));
            fake.edit_foreign(|foreign| {
                foreign.links.insert(name("flannel.1"), "vxlan VNI 9 port 8472".to_owned());
                foreign.nexthops.insert(NexthopId(7));
                foreign.routes.insert(key("10.7.0.0/16"));
            });
        },
        "ip link add port type veth peer name troper; ip link set port master flbr;
         ip link add flannel.1 type vxlan id 9 dstport 8472 local 192.0.2.1;
         ip nexthop add id 7 via 10.0.1.0 dev flat.1 onlink; ip route add unreachable 10.7.0.0/16",
    );
    let sets: BTreeSet<_> = crate::firewall::wanted().0.sets().collect();
    // What is there, ours and foreign, and what is not.
    let mut keys: BTreeSet<ObjectKey> = ops.iter().map(|op| op.object.key()).collect();
    keys.extend(crate::firewall::wanted().1.into_iter().map(ObjectKey::PeerSource));
    keys.extend([
        ObjectKey::Link(name("flannel.1")),
        ObjectKey::Link(name("absent")),
        nexthop(7, "flat.1", "10.0.1.0").key(),
        nexthop(8, "flat.1", "10.0.1.0").key(),
        ObjectKey::Route(key("10.7.0.0/16")),
        ObjectKey::Route(key("10.8.0.0/16")),
        ObjectKey::Sysctl(Sysctl::new("net/ipv4/ip_forward")),
        ObjectKey::Sysctl(Sysctl::new("net/no/such")),
        on_device("absent", "10.0.0.1/32").key(),
    ]);
    let whole = world.look_whole(&Scope::also(keys.clone()).with_sets(sets.clone())).await;
    assert!(whole.foreign.links.len() == 1 && whole.ports.len() == 1 && whole.state.peer_sources.len() == 2);
    for kind in ObjectKind::ALL {
        assert!(whole.state.count(*kind) > 0 || [ObjectKind::WireguardPeer, ObjectKind::Iptables].contains(kind));
        agrees(world, &whole, &Scope::only(keys.iter().filter(|key| key.kind() == *kind).cloned())).await;
    }
    for key in &keys {
        agrees(world, &whole, &Scope::only([key.clone()])).await;
    }
    for set in sets {
        agrees(world, &whole, &Scope::only([]).with_sets([set])).await;
    }
    agrees(world, &whole, &Scope::only(keys)).await;
    agrees(world, &whole, &Scope::only([])).await;
    assert_eq!(world.look_whole(&Scope::also([])).await.state.routes, whole.state.routes, "and changes nothing");
}

pub async fn a_look_at_some_keys_shows_a_tunnel_as_a_full_look_does_and_leaves_it_carried(world: &Subject) {
    let ops = crate::tunnels::every_tunnel(world).await;
    world.done(&ops).await;
    let keys: BTreeSet<ObjectKey> = ops.iter().map(|op| op.object.key()).collect();
    let whole = world.look_whole(&Scope::also(keys.clone())).await;
    assert_eq!(whole.state.links.len(), ops.iter().filter(|op| op.object.kind() == ObjectKind::Link).count());
    for key in &keys {
        agrees(world, &whole, &Scope::only([key.clone()])).await;
    }
    agrees(world, &whole, &Scope::only(keys)).await;
    // What a look at one device saw is not taken for all that there is.
    assert_eq!(world.look_whole(&Scope::default()).await, whole);
    let again: Vec<Op> = ops.iter().map(|made| op(Action::Change, made.object.clone())).collect();
    world.done(&again).await;
    let undo: Vec<Op> = ops.into_iter().rev().map(|made| op(Action::Delete, made.object)).collect();
    world.done(&undo).await;
    assert_eq!(world.look_whole(&Scope::default()).await, Dump::default());
}

pub async fn a_look_at_some_keys_shows_what_was_changed_there(world: &Subject) {
    world.done(&populated()).await;
    let device = ObjectKey::Link(name("flat.1"));
    let table = ObjectKey::Ruleset;
    world.behind(
        |fake| {
            fake.edit(|state| {
                state.alter(ObjectKey::Link(name("flat.1")), Altered::InPlace);
                state.alter(ObjectKey::Ruleset, Altered::InPlace);
            });
        },
        "ip link set flat.1 type vxlan id 1 learning; nft add rule inet flatnet forward accept",
    );
    let found = world.look_whole(&Scope::only([device.clone(), table.clone()])).await.state;
    assert!(found.is_altered(&device) && found.is_altered(&table), "{:?}", found.altered);
    assert_eq!((found.links.len(), found.ruleset), (1, None));
    world.behind(
        |fake| {
            fake.edit(|state| state.forget(&ObjectKey::Ruleset));
            fake.delete_link(name("flat.1"));
        },
        &format!("ip link del flat.1; nft delete table inet {}", Ruleset::TABLE),
    );
    assert_eq!(world.look_whole(&Scope::only([device])).await, Dump::default());
}
