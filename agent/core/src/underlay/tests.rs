use super::*;
use crate::facts::RouteTo;
use crate::fixture::{device, interface};

/// Returns the machine that goes wrong most often: the default route leads to a NAT interface that is the same on every
/// host.
fn vagrant() -> HostFacts {
    HostFacts {
        interfaces: vec![
            interface("lo", &["127.0.0.1/8", "::1/128"]),
            interface("eth0", &["10.0.2.15/24"]),
            interface("eth1", &["192.168.33.11/24", "2001:db8:33::11/64"]),
        ],
        default_route: vec![(IpFamily::V4, device("eth0"))],
        ..HostFacts::default()
    }
}

fn route(facts: &mut HostFacts, to: &str, via: &str, source: &str, mtu: Option<u32>) {
    let mtu = mtu.map(|mtu| Mtu::new(mtu).unwrap());
    let route = RouteTo { device: device(via), source: source.parse().ok(), mtu };
    facts.routes.push((to.parse().unwrap(), Some(route)));
}

fn towards(store: &str) -> Selection {
    Selection { store: vec![store.parse().unwrap()], ..Selection::default() }
}

#[test]
fn by_default_it_is_the_interface_towards_the_store() {
    let mut facts = vagrant();
    route(&mut facts, "192.168.33.10", "eth1", "192.168.33.11", None);
    let underlay = select(&facts, &towards("192.168.33.10"), &[]).unwrap();
    assert_eq!((underlay.device, underlay.v4), (device("eth1"), Some([192, 168, 33, 11].into())));
    assert_eq!(underlay.public_v4, underlay.v4);
    assert_eq!(underlay.v6, Some("2001:db8:33::11".parse().unwrap()));
    assert_eq!(underlay.mtu.get(), 1500);
}

#[test]
fn with_the_store_on_this_host_it_is_the_interface_the_endpoint_names_else_the_default_routes() {
    let mut facts = vagrant();
    route(&mut facts, "127.0.0.1", "lo", "127.0.0.1", None);
    route(&mut facts, "192.168.33.11", "lo", "192.168.33.11", None);
    assert_eq!(select(&facts, &towards("127.0.0.1"), &[]).unwrap().device, device("eth0"));
    assert_eq!(select(&facts, &towards("192.168.33.11"), &[]).unwrap().device, device("eth1"));
}

#[test]
fn without_any_route_it_is_the_only_interface_there_is_or_an_error_that_lists_them() {
    let mut facts = vagrant();
    facts.default_route.clear();
    let error = select(&facts, &Selection::default(), &[]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("--iface") && text.contains("eth0 (10.0.2.15/24)") && text.contains("eth1"), "{text}");
    assert!(!text.contains("lo ("), "{text}");
    facts.interfaces.retain(|interface| interface.name != device("eth0"));
    assert_eq!(select(&facts, &Selection::default(), &[]).unwrap().device, device("eth1"));
}

#[test]
fn our_own_devices_are_never_chosen() {
    let mut facts = vagrant();
    facts.default_route.clear();
    for interface in &mut facts.interfaces {
        interface.ours = interface.name == device("eth0");
    }
    assert_eq!(select(&facts, &Selection::default(), &[]).unwrap().device, device("eth1"));
}

#[test]
fn the_options_are_tried_in_flannels_order() {
    let mut facts = vagrant();
    route(&mut facts, "203.0.113.1", "eth0", "10.0.2.15", None);
    let ifaces = |ifaces: &[&str]| Selection {
        ifaces: ifaces.iter().map(|text| (*text).to_owned()).collect(),
        iface_regexes: vec!["eth0".to_owned()],
        ..Selection::default()
    };
    assert_eq!(select(&facts, &ifaces(&["eth9", "eth1"]), &[]).unwrap().device, device("eth1"));
    assert_eq!(select(&facts, &ifaces(&["192.168.33.11"]), &[]).unwrap().device, device("eth1"));
    assert_eq!(select(&facts, &ifaces(&["eth9"]), &[]).unwrap().device, device("eth0"), "then the expressions");
    let regex = |pattern: &str| Selection { iface_regexes: vec![pattern.to_owned()], ..Selection::default() };
    assert_eq!(select(&facts, &regex(r"^192\.168\."), &[]).unwrap().device, device("eth1"), "addresses");
    assert_eq!(select(&facts, &regex("^eth[1-9]$"), &[]).unwrap().device, device("eth1"), "then names");
    let reach = Selection { can_reach: Some("203.0.113.1".parse().unwrap()), ..Selection::default() };
    assert_eq!(select(&facts, &reach, &[]).unwrap().device, device("eth0"));
    assert!(matches!(select(&facts, &regex("("), &[]), Err(UnderlayError::Regex { .. })));
    assert!(matches!(select(&facts, &regex("^wlan"), &[]), Err(UnderlayError::NoMatch { .. })));
}

#[test]
fn an_interface_named_by_one_of_its_addresses_uses_that_one() {
    let mut facts = vagrant();
    facts.interfaces.push(interface("bond0", &["198.51.100.1/24", "198.51.100.2/24"]));
    let selection = Selection { ifaces: vec!["198.51.100.2".to_owned()], ..Selection::default() };
    assert_eq!(select(&facts, &selection, &[]).unwrap().v4, Some([198, 51, 100, 2].into()));
}

#[test]
fn the_mtu_of_the_route_is_respected_when_it_is_smaller() {
    let mut facts = vagrant();
    route(&mut facts, "192.168.33.10", "eth1", "192.168.33.11", Some(1400));
    route(&mut facts, "203.0.113.1", "eth0", "10.0.2.15", Some(576));
    assert_eq!(select(&facts, &towards("192.168.33.10"), &[]).unwrap().mtu.get(), 1400);
    facts.interfaces[2].mtu = None;
    assert!(matches!(select(&facts, &towards("192.168.33.10"), &[]), Err(UnderlayError::NoMtu { .. })));
}

#[test]
fn a_missing_family_is_left_out_and_lacking_all_needed_ones_is_an_error() {
    let facts = vagrant();
    let eth0 = Selection { ifaces: vec!["eth0".to_owned()], ..Selection::default() };
    let both = select(&facts, &eth0, &IpFamily::BOTH).unwrap();
    assert_eq!((both.v6, both.public_v6), (None, None));
    let error = select(&facts, &eth0, &[IpFamily::V6]).unwrap_err();
    assert!(matches!(&error, UnderlayError::NoAddress { device, .. } if *device == self::device("eth0")), "{error}");
    let default = select(&facts, &Selection::default(), &[IpFamily::V6]).unwrap();
    assert_eq!(default.device, device("eth1"), "only it has what is needed");
}

#[test]
fn a_public_address_is_published_in_place_of_the_interfaces() {
    let selection = Selection {
        ifaces: vec!["eth0".to_owned()],
        public_ip: Some([203, 0, 113, 9].into()),
        public_ipv6: Some("2001:db8:9::9".parse().unwrap()),
        ..Selection::default()
    };
    let underlay = select(&vagrant(), &selection, &[]).unwrap();
    assert_eq!(underlay.v4, Some([10, 0, 2, 15].into()));
    assert_eq!(underlay.public_v4, Some([203, 0, 113, 9].into()));
    assert_eq!(underlay.public_v6, None, "no IPv6 to receive it with");
}

/// Returns a host that its routers reach at an address of the loopback; the uplinks have none.
fn routed() -> HostFacts {
    let mut lo = interface("lo", &["127.0.0.1/8", "10.255.0.1/32", "2001:db8:ff::1/128"]);
    lo.mtu = Some(Mtu::new(Mtu::MAX).unwrap());
    let mut facts = HostFacts {
        interfaces: vec![lo, interface("eth0", &[]), interface("eth1", &[])],
        default_route: vec![(IpFamily::V4, device("eth0")), (IpFamily::V6, device("eth0"))],
        ..HostFacts::default()
    };
    facts.interfaces[1].mtu = Some(Mtu::new(9000).unwrap());
    route(&mut facts, "192.168.50.254", "eth0", "10.255.0.1", None);
    facts
}

#[test]
fn an_address_of_the_loopback_is_this_hosts_where_its_routers_reach_it_there() {
    let facts = routed();
    let iface = |text: &str| Selection { ifaces: vec![text.to_owned()], ..towards("192.168.50.254") };
    let published = Selection { public_ip: Some([10, 255, 0, 1].into()), ..iface("eth0") };
    let only_published = Selection { store: vec![], ..published.clone() };
    for selection in
        [towards("192.168.50.254"), iface("lo"), iface("10.255.0.1"), iface("eth0"), published, only_published]
    {
        let underlay = select(&facts, &selection, &[IpFamily::V4]).unwrap();
        assert_eq!((underlay.device, underlay.mtu.get()), (device("eth0"), 9000), "{selection:?}");
        assert_eq!(underlay.v4, Some([10, 255, 0, 1].into()), "{selection:?}");
        assert_eq!(underlay.public_v4, underlay.v4, "{selection:?}");
    }
    let v6 = select(&facts, &iface("2001:db8:ff::1"), &[IpFamily::V6]).unwrap();
    assert_eq!((v6.device, v6.v6), (device("eth0"), Some("2001:db8:ff::1".parse().unwrap())));
    // The store is on this host, at that address.
    let mut own = facts.clone();
    own.routes.clear();
    route(&mut own, "10.255.0.1", "lo", "10.255.0.1", None);
    let underlay = select(&own, &towards("10.255.0.1"), &[IpFamily::V4]).unwrap();
    assert_eq!((underlay.device, underlay.v4), (device("eth0"), Some([10, 255, 0, 1].into())));
    // Numbered uplinks change nothing: the route says which address the routers know.
    let mut numbered = facts;
    numbered.interfaces[1].addresses.push("10.0.0.1/31".parse().unwrap());
    let underlay = select(&numbered, &towards("192.168.50.254"), &[IpFamily::V4]).unwrap();
    assert_eq!(underlay.v4, Some([10, 255, 0, 1].into()));
    let eth0 = select(&numbered, &iface("eth0"), &[IpFamily::V4]).unwrap();
    assert_eq!(eth0.v4, Some([10, 0, 0, 1].into()), "asked for by name it is the interface's own");
}

#[test]
fn a_device_that_stands_in_for_the_loopback_does_not_say_what_fits_on_the_way_out() {
    let mut facts = routed();
    facts.interfaces.push(interface("lo1", &["10.255.0.9/32"]));
    route(&mut facts, "203.0.113.5", "eth0", "10.255.0.9", Some(1400));
    for wanted in ["lo1", "10.255.0.9"] {
        let selection = Selection { ifaces: vec![wanted.to_owned()], ..Selection::default() };
        let underlay = select(&facts, &selection, &[IpFamily::V4]).unwrap();
        assert_eq!((underlay.device, underlay.mtu.get()), (device("eth0"), 1400), "{wanted}");
        assert_eq!(underlay.v4, Some([10, 255, 0, 9].into()), "{wanted}");
    }
}

#[test]
fn an_address_at_which_a_service_is_reached_is_not_this_hosts() {
    // In the order of the facts: an address that is alone in its prefix comes last.
    let mut facts = vagrant();
    facts.interfaces[2].addresses =
        ["192.168.33.11/24", "2001:db8:33::11/64", "192.168.33.200/32", "2001:db8:33::200/128"]
            .map(|text| text.parse().unwrap())
            .into();
    for (family, floating) in [(IpFamily::V4, "192.168.33.200"), (IpFamily::V6, "2001:db8:33::200")] {
        let mut here = facts.clone();
        route(&mut here, floating, "lo", floating, None);
        // Over IPv6, it may also be the address that the kernel takes towards others.
        let mut taken = facts.clone();
        route(&mut taken, floating, "eth1", floating, None);
        for facts in [here, taken].iter().take(if family == IpFamily::V4 { 1 } else { 2 }) {
            let underlay = select(facts, &towards(floating), &[family]).unwrap();
            assert_eq!(underlay.device, device("eth1"));
            assert_eq!(underlay.v4, Some([192, 168, 33, 11].into()));
            assert_eq!(underlay.v6, Some("2001:db8:33::11".parse().unwrap()));
        }
        // If the user asks for it, it is taken.
        let selection = Selection { ifaces: vec![floating.to_owned()], ..Selection::default() };
        let underlay = select(&facts, &selection, &[family]).unwrap();
        assert_eq!(underlay.address(family), Some(floating.parse().unwrap()));
    }
    let selection = Selection { public_ip: Some([192, 168, 33, 200].into()), ..towards("192.168.33.11") };
    route(&mut facts, "192.168.33.11", "lo", "192.168.33.11", None);
    assert_eq!(select(&facts, &selection, &[]).unwrap().public_v4, Some([192, 168, 33, 200].into()));
    // A host that has no other address has this one.
    facts.interfaces[2].addresses = vec!["192.168.33.200/32".parse().unwrap()];
    route(&mut facts, "192.168.33.10", "eth1", "192.168.33.200", None);
    assert_eq!(select(&facts, &towards("192.168.33.10"), &[]).unwrap().v4, Some([192, 168, 33, 200].into()));
}

#[test]
fn a_temporary_address_is_told_to_nobody() {
    let mut facts = vagrant();
    let (stays, passes) = ("2001:db8:33::11/64", "2001:db8:33::feed/64");
    facts.interfaces[2].addresses = [stays, passes].map(|text| text.parse().unwrap()).into();
    facts.passing.insert("2001:db8:33::feed".parse().unwrap());
    route(&mut facts, "2001:db8:33::10", "eth1", "2001:db8:33::feed", None);
    let underlay = select(&facts, &towards("2001:db8:33::10"), &[IpFamily::V6]).unwrap();
    assert_eq!(underlay.v6, Some("2001:db8:33::11".parse().unwrap()));
    facts.interfaces[2].addresses.remove(0);
    let underlay = select(&facts, &towards("2001:db8:33::10"), &[IpFamily::V6]).unwrap();
    assert_eq!(underlay.v6, Some("2001:db8:33::feed".parse().unwrap()), "better than none");
}
