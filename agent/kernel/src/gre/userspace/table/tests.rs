use super::*;

#[test]
fn only_an_address_inside_a_peers_subnet_has_a_tunnel() {
    // A real device cannot be had without rights, and which one it is plays no part here.
    let Ok(tun) = Tun::placeholder() else { panic!("/dev/null cannot be opened") };
    let device = IfName::new("flatgre0").unwrap();
    let devices = BTreeMap::from([(device, Arc::new(tun))]);
    let encap = |last: u8, device| Encap {
        device,
        source: [192, 0, 2, 1].into(),
        remote: [192, 0, 2, last].into(),
        key: GreKey::NONE,
    };
    let elsewhere = IfName::new("flatgre1").unwrap();
    let routes = [
        ("10.100.2.0/24", encap(2, device)),
        ("10.100.4.0/23", encap(4, device)),
        ("10.100.9.0/24", encap(9, elsewhere)),
        ("fd00:2::/64", encap(2, device)),
    ];
    let routes =
        routes.into_iter().map(|(subnet, encap)| (RouteKey::to_peer(subnet.parse().unwrap()), encap)).collect();
    let table = Table::new(&routes, &devices);
    let remote = |inner: &str| table.of(inner.parse().unwrap()).next().map(|entry| entry.remote.to_string());
    for (inner, wanted) in [
        ("10.100.2.0", Some("192.0.2.2")),
        ("10.100.2.255", Some("192.0.2.2")),
        ("10.100.5.255", Some("192.0.2.4")),
        ("10.100.3.0", None),
        ("10.100.1.255", None),
        ("10.100.6.0", None),
        ("0.0.0.0", None),
        ("255.255.255.255", None),
        ("10.100.9.1", None),
        ("fd00:2::1", Some("192.0.2.2")),
        ("fd00:3::1", None),
    ] {
        assert_eq!(remote(inner).as_deref(), wanted, "{inner}");
    }
}

#[test]
fn a_peer_whose_network_changes_its_key_has_both_tunnels_and_is_sent_to_by_the_one_that_routes_choose() {
    let tun = Tun::placeholder().unwrap();
    let (old, new) = (IfName::new("flatgre1").unwrap(), IfName::new("flatgre2").unwrap());
    let tun = Arc::new(tun);
    let devices = BTreeMap::from([(old, Arc::clone(&tun)), (new, tun)]);
    let encap = |device, key| Encap {
        device,
        source: [192, 0, 2, 1].into(),
        remote: [192, 0, 2, 2].into(),
        key: GreKey::new(key),
    };
    let subnet: IpNet = "10.100.2.0/24".parse().unwrap();
    let routes = BTreeMap::from([
        (RouteKey::behind(subnet, 1), encap(old, 1)),
        (RouteKey::to_peer(subnet), encap(new, 2)),
        (RouteKey::to_peer("10.100.1.0/24".parse().unwrap()), encap(old, 3)),
        (RouteKey::to_peer("10.100.3.0/24".parse().unwrap()), encap(old, 4)),
    ]);
    let table = Table::new(&routes, &devices);
    let keys: Vec<GreKey> = table.of("10.100.2.7".parse().unwrap()).map(|entry| entry.key).collect();
    assert_eq!(keys, [GreKey::new(2), GreKey::new(1)]);
    assert_eq!(table.of("10.100.4.1".parse().unwrap()).count(), 0);
}
