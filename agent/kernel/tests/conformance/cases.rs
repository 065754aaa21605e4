//! Operations that succeed.

use std::collections::{BTreeMap, BTreeSet};

use flatnet_core::object::{
    Altered, KernelState, Link, LinkKind, NexthopId, ObjectKey, Route, RouteKey, RouteVia, Sysctl, VxlanLink,
};
use flatnet_core::op::{Action, Object};
use flatnet_kernel::Scope;
use flatnet_kernel::fake::FakeKernel;
use flatnet_model::{Mac, Mtu};

use crate::world::{
    Subject, address, bridge, create, fdb, hop, key, link, mac, made, name, neighbour, nexthop, on_device, op, peer,
    peers, route, sysctl, vxlan,
};

pub async fn a_vxlan_device_is_as_asked_for_each_underlay(world: &Subject) {
    for (device, vni, local) in [("flat.1", 1, "192.0.2.1"), ("flat6.2", 2, "2001:db8::1")] {
        world.done(&[create(link(device, vxlan(vni, local)))]).await;
        assert_eq!(world.state().await.links.get(&name(device)), Some(&vxlan(vni, local)));
        if let Some(shown) = world.oracle(&format!("ip -j -d link show {device}")) {
            let (shown, data) = (&shown[0], &shown[0]["linkinfo"]["info_data"]);
            assert_eq!(shown["linkinfo"]["info_kind"], "vxlan");
            assert_eq!((&data["id"], &data["port"], &data["learning"]), (&vni.into(), &8472.into(), &false.into()));
            let key = if local.contains(':') { "local6" } else { "local" };
            assert_eq!(data[key], local, "{shown}");
            assert_eq!((&shown["mtu"], &shown["address"]), (&1450.into(), &"02:00:00:00:00:01".into()));
            assert_eq!((&shown["ifalias"], &shown["inet6_addr_gen_mode"]), (&"flatnet".into(), &"none".into()));
            assert!(shown["flags"].as_array().unwrap().contains(&"UP".into()), "{shown}");
        }
        if let Some(shown) = world.oracle(&format!("ip -j address show {device}")) {
            assert_eq!(shown[0]["addr_info"], serde_json::json!([]), "the kernel gave it an address");
        }
    }
}

pub async fn a_bridge_is_as_asked(world: &Subject) {
    let ops = [
        create(link("flbr", bridge())),
        create(on_device("flbr", "10.1.2.1/24")),
        create(on_device("flbr", "fd00::1/64")),
    ];
    world.done(&ops).await;
    assert_eq!(world.state().await, made(&ops));
    if let Some(shown) = world.oracle("ip -j -d addr show flbr") {
        assert_eq!(shown[0]["linkinfo"]["info_kind"], "bridge");
        let addresses = shown[0]["addr_info"].as_array().unwrap();
        assert_eq!((&addresses[0]["local"], &addresses[0]["prefixlen"]), (&"10.1.2.1".into(), &24.into()));
        assert_eq!((&addresses[1]["local"], &addresses[1]["prefixlen"]), (&"fd00::1".into(), &64.into()));
        assert_eq!(addresses.len(), 2);
    }
}

pub async fn a_bridge_keeps_its_mtu_whatever_is_plugged_into_it(world: &Subject) {
    // One of the cases is the kernel's own default, which nobody would have to set.
    for (device, port, mtu) in [("flbr", "c1", 1450), ("flbr2", "c2", 1500)] {
        let wanted = Link { mtu: Mtu::new(mtu).unwrap(), ..bridge() };
        world.done(&[create(link(device, wanted.clone()))]).await;
        let plug =
            format!("ip link add {port} mtu 1400 type veth peer name {port}p && ip link set {port} master {device}");
        world.behind(|kernel| kernel.plug(name(device), name(port)), &plug);
        assert_eq!(world.state().await.links[&name(device)].mtu, wanted.mtu);
    }
}

pub async fn a_bridge_that_is_made_anew_gets_back_what_was_plugged_into_it(world: &Subject) {
    let make = [create(link("flbr", bridge())), create(link("flbr2", bridge()))];
    world.done(&make).await;
    assert_eq!(world.look(&Scope::default()).await.ports, BTreeMap::new());
    let plug = |kernel: &FakeKernel| ["c1", "c2"].map(|port| kernel.plug(name("flbr"), name(port)));
    world.behind(
        plug,
        "for c in c1 c2 c3 c4; do ip link add $c type veth peer name p$c && ip link set $c master flbr; done",
    );
    // A port that is gone, or is plugged in elsewhere by then, is not plugged back in.
    let before = world.look(&Scope::default()).await.ports;
    world.behind(
        |kernel| kernel.delete_link(name("flbr")),
        "ip link del flbr; ip link del c3; ip link set c4 master flbr2",
    );
    assert!(!world.look(&Scope::default()).await.ports.contains_key(&name("flbr")));
    world.done(&make[..1]).await;
    let ports = world.look(&Scope::default()).await.ports;
    let expected: BTreeSet<_> = ["c1", "c2"].map(name).into();
    assert_eq!(ports.get(&name("flbr")), Some(&expected), "{before:?}");
    // The same holds for a bridge that we make anew ourselves.
    world.done(&[op(Action::Replace, link("flbr", bridge()))]).await;
    assert_eq!(world.look(&Scope::default()).await.ports, ports);
}

pub async fn peers_are_reached_by_nexthop_objects_over_ipv4(world: &Subject) {
    let mut ops = vec![create(link("flat.1", vxlan(1, "192.0.2.1"))), create(on_device("flat.1", "10.0.0.0/32"))];
    ops.extend(peers("flat.1", 3));
    world.done(&ops).await;
    assert_eq!(world.state().await, made(&ops));
    if let Some(shown) = world.oracle("ip -j -d route show 10.0.2.0/24") {
        let id = NexthopId::of_subnet("10.0.2.0".parse().unwrap()).0;
        assert_eq!((&shown[0]["nhid"], &shown[0]["protocol"]), (&id.into(), &"91".into()), "{shown}");
        assert_eq!((&shown[0]["gateway"], &shown[0]["dev"]), (&"10.0.2.0".into(), &"flat.1".into()));
    }
    if let Some(shown) = world.oracle("ip -j -d neigh show 10.0.2.0 dev flat.1") {
        assert_eq!((&shown[0]["lladdr"], &shown[0]["state"][0]), (&mac(2).to_string().into(), &"PERMANENT".into()));
        assert_eq!(shown[0]["protocol"], "91");
    }
    if let Some(shown) = world.oracle("bridge -j fdb show dev flat.1") {
        let found = shown.as_array().unwrap().iter().find(|entry| entry["mac"] == mac(2).to_string()).unwrap();
        assert_eq!((&found["dst"], &found["state"]), (&"172.16.0.2".into(), &"permanent".into()));
        assert_eq!(shown.as_array().unwrap().len(), 3);
    }
}

pub async fn peers_are_reached_onlink_over_ipv6(world: &Subject) {
    let ops = [
        create(link("flat6.1", vxlan(1, "2001:db8::1"))),
        create(on_device("flat6.1", "fd00:0:0:1::/128")),
        create(neighbour("flat6.1", "fd00:0:0:2::", mac(2))),
        create(fdb("flat6.1", mac(2), "2001:db8::2")),
        create(route("fd00:0:0:2::/64", RouteVia::Hop(hop("flat6.1", "fd00:0:0:2::")))),
    ];
    world.done(&ops).await;
    assert_eq!(world.state().await, made(&ops));
    if let Some(shown) = world.oracle("ip -j -6 route show fd00:0:0:2::/64") {
        assert_eq!((&shown[0]["gateway"], &shown[0]["metric"]), (&"fd00:0:0:2::".into(), &1024.into()));
        assert_eq!(shown[0]["flags"], serde_json::json!(["onlink"]));
    }
    if let Some(shown) = world.oracle("bridge -j fdb show dev flat6.1") {
        assert_eq!((&shown[0]["dst"], &shown[0]["mac"]), (&"2001:db8::2".into(), &mac(2).to_string().into()));
    }
}

pub async fn a_route_moves_from_one_device_to_another(world: &Subject) {
    let ops = [
        create(link("flat.1", vxlan(1, "192.0.2.1"))),
        create(link("flat.2", vxlan(2, "192.0.2.1"))),
        create(link("flat6.1", vxlan(1, "2001:db8::1"))),
        create(link("flat6.2", vxlan(2, "2001:db8::1"))),
        create(route("10.0.2.0/24", RouteVia::Hop(hop("flat.1", "10.0.2.0")))),
        create(route("fd00:0:0:2::/64", RouteVia::Hop(hop("flat6.1", "fd00:0:0:2::")))),
    ];
    world.done(&ops).await;
    let moved = [
        op(Action::Change, route("10.0.2.0/24", RouteVia::Hop(hop("flat.2", "10.0.2.0")))),
        op(Action::Change, route("fd00:0:0:2::/64", RouteVia::Hop(hop("flat6.2", "fd00:0:0:2::")))),
    ];
    world.done(&moved).await;
    for (command, to, device) in
        [("ip -j -4 route", "10.0.2.0/24", "flat.2"), ("ip -j -6 route", "fd00:0:0:2::/64", "flat6.2")]
    {
        if let Some(shown) = world.oracle(&format!("{command} show {to}")) {
            assert_eq!((shown.as_array().unwrap().len(), &shown[0]["dev"]), (1, &device.into()), "{shown}");
        }
    }
}

pub async fn unknown_addresses_are_unreachable(world: &Subject) {
    let refuse = |net: &str| {
        let key = RouteKey::unreachable(net.parse().unwrap());
        create(Object::Route(key, Route { via: RouteVia::Unreachable, source: None }))
    };
    let ops = [refuse("10.0.0.0/8"), refuse("fd00::/16")];
    world.done(&ops).await;
    assert_eq!(world.state().await, made(&ops));
    for (command, to) in [("ip -j -4 route", "10.0.0.0/8"), ("ip -j -6 route", "fd00::/16")] {
        if let Some(shown) = world.oracle(&format!("{command} show {to}")) {
            assert_eq!((&shown[0]["type"], &shown[0]["metric"]), (&"unreachable".into(), &91_000.into()), "{shown}");
        }
    }
    // A peer's route of the same destination goes beside it, and away again without it.
    let device = create(link("flat.1", vxlan(1, "192.0.2.1")));
    let beside = route("10.0.0.0/8", RouteVia::Hop(hop("flat.1", "10.0.0.1")));
    world.done(&[device, create(beside.clone()), op(Action::Delete, beside)]).await;
    assert_eq!(world.state().await.routes, made(&ops).routes);
}

fn index_of(world: &Subject, device: &str) -> Option<i64> {
    world.oracle(&format!("ip -j link show {device}")).map(|shown| shown[0]["ifindex"].as_i64().unwrap())
}

pub async fn mtu_mac_and_local_change_in_place(world: &Subject) {
    for (device, vni, from, to) in
        [("flat.1", 1, "192.0.2.1", "192.0.2.9"), ("flat6.2", 2, "2001:db8::1", "2001:db8::9")]
    {
        let mut ops = vec![create(link(device, vxlan(vni, from)))];
        ops.extend((vni == 1).then(|| peers(device, 2)).into_iter().flatten());
        world.done(&ops).await;
        let before = (index_of(world, device), world.state().await);
        let mut wanted = vxlan(vni, to);
        wanted.mtu = Mtu::new(1400).unwrap();
        world.done(&[op(Action::Change, link(device, wanted.clone()))]).await;
        let after = world.state().await;
        assert_eq!(after.links.get(&name(device)), Some(&wanted));
        assert_eq!((after.routes, after.fdb, after.neighbours), (before.1.routes, before.1.fdb, before.1.neighbours));
        // A device that learns is altered, though its specification is what it was: the same change puts it right.
        let learns = ObjectKey::Link(name(device));
        world.behind(
            |fake| fake.edit(|state| state.alter(learns.clone(), Altered::InPlace)),
            &format!("ip link set {device} type vxlan id {vni} learning"),
        );
        if let Some(shown) = world.oracle(&format!("ip -j -d link show {device}")) {
            assert_eq!(shown[0]["linkinfo"]["info_data"]["learning"], true);
        }
        let tampered = world.state().await;
        assert_eq!(tampered.altered.into_iter().collect::<Vec<_>>(), [(learns, Altered::InPlace)]);
        assert_eq!(tampered.links.get(&name(device)), Some(&wanted));
        world.done(&[op(Action::Change, link(device, wanted.clone()))]).await;
        let mended = world.state().await;
        assert_eq!((mended.links.get(&name(device)), mended.altered.len()), (Some(&wanted), 0));
        wanted.mac = Some(Mac::new([2, 9, 9, 9, 9, 9]));
        world.done(&[op(Action::Change, link(device, wanted.clone()))]).await;
        let after = world.state().await;
        assert_eq!(after.links.get(&name(device)), Some(&wanted));
        assert!(after.neighbours.is_empty(), "a new Ethernet address drops the device's neighbours");
        assert_eq!(index_of(world, device), before.0, "the device was made anew");
    }
}

pub async fn a_new_vni_makes_the_device_anew(world: &Subject) {
    world.done(&[create(link("flat.1", vxlan(1, "192.0.2.1")))]).await;
    let before = index_of(world, "flat.1");
    let mut wanted = vxlan(7, "192.0.2.1");
    wanted.kind = LinkKind::Vxlan(VxlanLink { port: 4789, ..vxlan_of(&wanted.kind) });
    world.done(&[op(Action::Replace, link("flat.1", wanted.clone()))]).await;
    assert_eq!(world.state().await.links.get(&name("flat.1")), Some(&wanted));
    if let Some(shown) = world.oracle("ip -j -d link show flat.1") {
        assert_eq!(shown[0]["linkinfo"]["info_data"]["id"], 7);
        assert_eq!(shown[0]["linkinfo"]["info_data"]["port"], 4789);
        assert_ne!(shown[0]["ifindex"].as_i64(), before);
    }
}

fn vxlan_of(kind: &LinkKind) -> VxlanLink {
    match kind {
        LinkKind::Vxlan(vxlan) => *vxlan,
        other => panic!("{other:?}"),
    }
}

pub async fn a_route_changes_between_object_hop_and_unreachable(world: &Subject) {
    let mut ops = vec![create(link("flat.1", vxlan(1, "192.0.2.1"))), create(on_device("flat.1", "10.0.0.1/32"))];
    ops.push(create(on_device("flat.1", "fd00::1/128")));
    ops.extend(peers("flat.1", 2));
    world.done(&ops).await;
    let object = RouteVia::Object(NexthopId::of_subnet("10.0.2.0".parse().unwrap()));
    let four = [RouteVia::Hop(hop("flat.1", "10.0.2.0")), object, RouteVia::Unreachable, object];
    for via in four.into_iter().chain([RouteVia::Unreachable, RouteVia::Hop(hop("flat.1", "10.0.2.9"))]) {
        let wanted = Route { via, source: (via != RouteVia::Unreachable).then(|| address("10.0.0.1")) };
        world.done(&[op(Action::Change, Object::Route(key("10.0.1.0/24"), wanted))]).await;
        assert_eq!(world.state().await.routes.get(&key("10.0.1.0/24")), Some(&wanted));
        assert_eq!(world.state().await.routes.len(), 2);
    }
    world.done(&[create(route("fd00:5::/64", RouteVia::Unreachable))]).await;
    for via in
        [RouteVia::Hop(hop("flat.1", "fd00:5::")), RouteVia::Hop(hop("flat.1", "fd00:6::")), RouteVia::Unreachable]
    {
        let wanted = Route { via, source: (via != RouteVia::Unreachable).then(|| address("fd00::1")) };
        world.done(&[op(Action::Change, Object::Route(key("fd00:5::/64"), wanted))]).await;
        assert_eq!(world.state().await.routes.get(&key("fd00:5::/64")), Some(&wanted));
        assert_eq!(world.state().await.routes.len(), 3);
    }
}

pub async fn a_peer_that_moves_is_changed_in_place(world: &Subject) {
    let mut ops = vec![create(link("flat.1", vxlan(1, "192.0.2.1")))];
    ops.extend(peers("flat.1", 1));
    world.done(&ops).await;
    let id = NexthopId::of_subnet("10.0.1.0".parse().unwrap());
    let changes = [
        op(Action::Change, neighbour("flat.1", "10.0.1.0", mac(9))),
        op(Action::Change, fdb("flat.1", mac(1), "172.16.0.99")),
        op(Action::Change, nexthop(id.0, "flat.1", "10.0.1.7")),
    ];
    world.done(&changes).await;
    let (mut wanted, changed) = (made(&ops), made(&changes));
    wanted.neighbours.extend(changed.neighbours);
    wanted.fdb.extend(changed.fdb);
    wanted.nexthops.extend(changed.nexthops);
    assert_eq!(world.state().await, wanted);
    if let Some(shown) = world.oracle("ip -j route show 10.0.1.0/24") {
        assert_eq!(shown[0]["gateway"], "10.0.1.7");
    }
}

pub async fn what_is_deleted_is_absent_and_deleting_it_again_succeeds(world: &Subject) {
    let mut ops = vec![create(link("flat.1", vxlan(1, "192.0.2.1"))), create(on_device("flat.1", "10.0.0.0/32"))];
    ops.extend(peers("flat.1", 2));
    ops.push(create(route("fd00:5::/64", RouteVia::Unreachable)));
    world.done(&ops).await;
    let undo: Vec<_> = ops.iter().rev().map(|made| op(Action::Delete, made.object.clone())).collect();
    let (device, rest) = undo.split_last().unwrap();
    world.done(rest).await;
    let left = world.state().await;
    assert_eq!(left, KernelState { links: left.links.clone(), ..KernelState::default() });
    world.done(rest).await;
    world.done(std::slice::from_ref(device)).await;
    world.done(&undo).await;
    assert_eq!(world.state().await, KernelState::default());
    for command in ["ip -j route show proto 91", "ip -j -6 route show proto 91", "ip -j nexthop", "ip -j neigh"] {
        assert_eq!(world.oracle(command).unwrap_or_else(|| serde_json::json!([])), serde_json::json!([]), "{command}");
    }
    if let Some(shown) = world.oracle("ip -j link") {
        assert_eq!(shown.as_array().unwrap().len(), 1, "{shown}");
    }
}

pub async fn a_nexthop_takes_its_routes_along(world: &Subject) {
    let mut ops = vec![create(link("flat.1", vxlan(1, "192.0.2.1")))];
    ops.extend(peers("flat.1", 2));
    world.done(&ops).await;
    let [_, _, nexthop, _] = peer("flat.1", 1);
    world.done(&[op(Action::Delete, nexthop)]).await;
    assert_eq!(world.state().await.routes.keys().copied().collect::<Vec<_>>(), [key("10.0.2.0/24")]);
}

fn populated() -> Vec<flatnet_core::op::Op> {
    let mut ops = vec![create(link("flat.1", vxlan(1, "192.0.2.1")))];
    ops.push(create(on_device("flat.1", "10.0.0.0/32")));
    ops.push(create(on_device("flat.1", "fd00::/128")));
    ops.extend(peers("flat.1", 2));
    ops.push(create(neighbour("flat.1", "fd00:5::", mac(5))));
    ops.push(create(route("fd00:5::/64", RouteVia::Hop(hop("flat.1", "fd00:5::")))));
    ops.push(create(route("fd00:6::/64", RouteVia::Unreachable)));
    ops
}

pub async fn a_device_that_goes_takes_everything_along(world: &Subject) {
    world.done(&populated()).await;
    world.behind(|fake| fake.delete_link(name("flat.1")), "ip link del flat.1");
    let left = world.state().await;
    assert_eq!(left.routes.keys().copied().collect::<Vec<_>>(), [key("fd00:6::/64")]);
    assert_eq!(left, KernelState { routes: left.routes.clone(), ..KernelState::default() });
}

pub async fn a_device_set_down_loses_routes_nexthops_and_neighbours(world: &Subject) {
    let ops = populated();
    world.done(&ops).await;
    world.behind(|fake| fake.flap_link(name("flat.1")), "ip link set flat.1 down; ip link set flat.1 up");
    let (left, full) = (world.state().await, made(&ops));
    assert_eq!((&left.links, &left.fdb), (&full.links, &full.fdb));
    assert_eq!(left.routes.keys().copied().collect::<Vec<_>>(), [key("fd00:6::/64")]);
    assert_eq!((left.nexthops.len(), left.neighbours.len()), (0, 0));
    let [v4] = left.addresses.iter().collect::<Vec<_>>()[..] else { panic!("{:?}", left.addresses) };
    assert!(v4.address.addr().is_ipv4());
}

pub async fn a_setting_is_written_and_read(world: &Subject) {
    let settings = ["net/ipv4/ip_forward", "net/no/such"].map(|path| ObjectKey::Sysctl(Sysctl::new(path)));
    let scope = Scope::only(settings);
    for value in ["1", "0"] {
        world.done(&[op(Action::Change, sysctl("net/ipv4/ip_forward", value))]).await;
        let found = world.look(&scope).await.state.sysctls;
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [(Sysctl::new("net/ipv4/ip_forward"), value.to_owned())]);
    }
}

pub async fn a_devices_settings_come_and_go_with_it(world: &Subject) {
    let forwarding = |device: &str| op(Action::Change, sysctl(&format!("net/ipv4/conf/{device}/forwarding"), "1"));
    world.refused(forwarding("flat.1"), libc::ENOENT).await;
    let made = [create(link("flat.1", vxlan(1, "192.0.2.1"))), create(link("flbr", bridge())), forwarding("flat.1")];
    world.done(&made).await;
    for device in ["flat.1", "flbr"] {
        for setting in ["ipv6/conf/D/accept_ra", "ipv6/conf/D/accept_redirects", "ipv4/conf/D/accept_redirects"] {
            if let Some(value) = world.oracle(&format!("cat /proc/sys/net/{}", setting.replace('D', device))) {
                assert_eq!(value, 0, "{setting} of {device}: nobody asked for it to be anything");
            }
        }
    }
    world.done(&[op(Action::Delete, link("flat.1", vxlan(1, "192.0.2.1")))]).await;
    world.refused(forwarding("flat.1"), libc::ENOENT).await;
    let narrow = Link { mtu: Mtu::new(1279).unwrap(), ..vxlan(1, "192.0.2.1") };
    world.done(&[create(link("flat.1", narrow)), forwarding("flat.1")]).await;
    world.refused(op(Action::Change, sysctl("net/ipv6/conf/flat.1/accept_ra", "0")), libc::ENOENT).await;
}

pub async fn two_thousand_peers_go_in_one_apply(world: &Subject) {
    let mut ops = vec![create(link("flat.1", vxlan(1, "192.0.2.1")))];
    ops.extend(peers("flat.1", 2_000));
    world.done(&ops).await;
    assert_eq!(world.state().await, made(&ops));
    if let Some(shown) = world.oracle("ip -j route show proto 91") {
        assert_eq!(shown.as_array().unwrap().len(), 2_000);
    }
    let undo: Vec<_> = ops.iter().rev().map(|made| op(Action::Delete, made.object.clone())).collect();
    world.done(&undo).await;
    assert_eq!(world.state().await, KernelState::default());
}
