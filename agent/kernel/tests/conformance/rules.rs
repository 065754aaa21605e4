//! Rules of routing, and routes in the tables that they lead to.

use flatnet_core::object::{Object, Route, RouteKey, RouteVia, Rule};
use flatnet_core::op::Action;
use flatnet_model::IpFamily;
use nix::libc::EEXIST;

use crate::world::{Subject, create, hop, link, made, name, op, vxlan, wakes_within};

/// Returns a rule that names all that a rule can name.
fn full(family: IpFamily, table: u32) -> Rule {
    let (from, to) = match family {
        IpFamily::V4 => ("10.0.0.0/8", "10.9.0.0/16"),
        IpFamily::V6 => ("fd00::/16", "fd00:9::/32"),
    };
    Rule {
        priority: 9_100,
        family,
        mark: Some((0x10_0000, 0xff_0000)),
        from: from.parse().ok(),
        to: to.parse().ok(),
        iif: Some(name("flat.1")),
        table,
    }
}

pub async fn rules_and_the_routes_of_their_tables_are_as_asked_and_others_are_left_alone(world: &Subject) {
    let (first, last) = (*RouteKey::TABLES.start(), *RouteKey::TABLES.end());
    world.behind(|_| (), "ip rule add priority 9100 lookup 9100; ip -6 rule add priority 77 lookup 77");
    let plain = |family| Rule { mark: None, from: None, to: None, iif: None, ..full(family, last) };
    let in_table = |to: &str, table| RouteKey::to_peer(to.parse().unwrap()).in_table(table);
    let via = |gateway| Route { via: RouteVia::Hop(hop("flat.1", gateway)), source: None };
    let mut ops = vec![create(link("flat.1", vxlan(1, "192.0.2.1")))];
    // The same destination in three tables: three routes.
    for table in [RouteKey::MAIN, first, last] {
        ops.push(create(Object::Route(in_table("10.0.1.0/24", table), via("10.0.1.0"))));
        ops.push(create(Object::Route(in_table("fd00:1::/64", table), via("fd00:1::"))));
    }
    for family in IpFamily::BOTH {
        ops.extend([full(family, first), plain(family)].map(|rule| create(Object::Rule(rule))));
    }
    world.done(&ops).await;
    assert_eq!(world.state().await, made(&ops));
    if let Some(shown) = world.oracle("ip -j rule show priority 9100") {
        let ours: Vec<_> = shown.as_array().unwrap().iter().filter(|rule| rule["fwmark"] == "0x100000").collect();
        assert_eq!(ours.len(), 1, "{shown}");
        let rule = ours[0];
        assert_eq!((&rule["src"], &rule["srclen"]), (&"10.0.0.0".into(), &8.into()), "{rule}");
        assert_eq!((&rule["dst"], &rule["dstlen"]), (&"10.9.0.0".into(), &16.into()), "{rule}");
        assert_eq!((&rule["iif"], &rule["table"]), (&"flat.1".into(), &"9100".into()), "{rule}");
    }
    if let Some(shown) = world.oracle("ip -j -6 route show table 9199") {
        assert_eq!(shown[0]["dst"], "fd00:1::/64", "{shown}");
    }
    world.refused(create(Object::Rule(full(IpFamily::V4, first))), EEXIST).await;

    // They go alone, each at its own key.
    let gone = [
        op(Action::Delete, Object::Rule(full(IpFamily::V6, first))),
        op(Action::Delete, Object::Route(in_table("10.0.1.0/24", first), via("10.0.1.0"))),
    ];
    world.done(&gone).await;
    world.done(&gone).await;
    let left = world.state().await;
    assert_eq!((left.rules.len(), left.routes.len()), (3, 5));
    assert!(left.routes.contains_key(&in_table("10.0.1.0/24", RouteKey::MAIN)));

    // A device takes its routes along in every table, and leaves the rules that name it.
    world.done(&[op(Action::Delete, link("flat.1", vxlan(1, "192.0.2.1")))]).await;
    let left = world.state().await;
    assert_eq!((left.rules.len(), left.routes.len()), (3, 0));
    for rule in left.rules {
        world.done(&[op(Action::Delete, Object::Rule(rule))]).await;
    }
    if let Some(shown) = world.oracle("ip -j rule show priority 9100") {
        assert_eq!(shown.as_array().unwrap().len(), 1, "somebody else's stays: {shown}");
    }
}

pub async fn a_rule_that_somebody_deletes_wakes(world: &Subject) {
    let rule = Rule { mark: None, from: None, to: None, iif: None, ..full(IpFamily::V4, *RouteKey::TABLES.start()) };
    world.done(&[create(Object::Rule(rule))]).await;
    let mut wakes = world.wakes();
    world.behind(|fake| fake.edit(|state| state.rules.remove(&rule)), "ip rule del priority 9100");
    assert!(wakes_within(&mut wakes, 2_000).await);
    assert_eq!(world.state().await.rules.len(), 0);
}
