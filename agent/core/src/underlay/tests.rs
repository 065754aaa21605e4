use super::*;
use crate::facts::RouteTo;
use crate::fixture::{device, interface};

/// The machine that goes wrong most often: the default route is a NAT interface that is the same on every host.
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
