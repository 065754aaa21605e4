use flatnet_core::object::{NextHop, Route, RouteKey};

use super::*;
use crate::doctor::Verdict;
use crate::doctor::fixture::Fixture;

#[test]
fn each_family_in_use_must_be_forwarded() {
    let mut fixture = Fixture::with(&[("/proc/sys/net/ipv4/ip_forward", "1\n")]);
    assert_eq!(forwarding(&fixture.host).verdict, Verdict::Ok);
    fixture.network().cidr6 = Some("fd00:100::/56".to_owned());
    let check = forwarding(&fixture.host);
    assert_eq!(
        (check.verdict, check.cause.as_str()),
        (Verdict::Failure, "net.ipv6.conf.all.forwarding is not readable")
    );
}

#[test]
fn a_device_that_does_not_forward_is_named_ours_or_an_engines_or_the_way_to_peers() {
    let path = |device: &str| format!("/proc/sys/net/ipv4/conf/{device}/forwarding");
    let with = |off: &str| {
        let paths = ["flat.1", "docker0", "eth1", "other0"].map(path);
        let files: Vec<(&str, &str)> =
            paths.iter().map(|p| (p.as_str(), if *p == path(off) { "0\n" } else { "1\n" })).collect();
        let mut fixture = Fixture::with(&files);
        let mut bridge = fixture.host.facts.interfaces[0].clone();
        (bridge.name, bridge.addresses) = (IfName::new("docker0").unwrap(), vec!["10.100.7.1/24".parse().unwrap()]);
        fixture.host.facts.interfaces.push(bridge);
        fixture
    };
    for (off, named) in [("flat.1", "net.ipv4.conf.flat/1.forwarding"), ("docker0", "net.ipv4.conf.docker0.forwarding")]
    {
        let check = of_devices(&with(off).host);
        assert!(check.verdict == Verdict::Failure && check.cause.contains(named), "{check:?}");
        assert!(check.hint.contains(&format!("{named}=1")), "{check:?}");
    }
    assert_eq!(of_devices(&with("other0").host).verdict, Verdict::Ok, "not concerned");
    let mut fixture = with("eth1");
    assert_eq!(of_devices(&fixture.host).verdict, Verdict::Ok, "only tunnelled packets come in there");
    let via = NextHop { gateway: "192.0.2.2".parse().unwrap(), device: IfName::new("eth1").unwrap(), onlink: false };
    let route = Route { via: RouteVia::Hop(via), source: None };
    fixture.host.ours.routes.insert(RouteKey::to_peer("10.100.8.0/24".parse().unwrap()), route);
    assert_eq!(of_devices(&fixture.host).verdict, Verdict::Failure, "peers' packets come in there as they are");
}

#[test]
fn read_only_settings_are_told() {
    let with = |mounts: &str| writable(&Fixture::with(&[("/proc/self/mounts", mounts)]).host).verdict;
    let proc = "proc /proc proc rw,nosuid 0 0\n";
    assert_eq!(with(proc), Verdict::Ok);
    assert_eq!(with(&format!("{proc}proc /proc/sys proc ro,relatime 0 0\n")), Verdict::Warning);
    assert_eq!(with(&format!("{proc}proc /proc/sys proc ro 0 0\nproc /proc/sys/net proc rw 0 0\n")), Verdict::Ok);
}

#[test]
fn an_engines_bridge_without_ipv6_is_named_where_the_network_has_it() {
    let mut fixture = Fixture::with(&[("/proc/sys/net/ipv6/conf/eth1/disable_ipv6", "1")]);
    fixture.host.facts.interfaces[0].addresses.push("10.100.7.1/24".parse().unwrap());
    assert_eq!(of_devices(&fixture.host).verdict, Verdict::Ok);
    fixture.network().cidr6 = Some("fd00:100::/56".to_owned());
    assert!(of_devices(&fixture.host).cause.contains("net.ipv6.conf.eth1.disable_ipv6"));
}

#[test]
fn a_host_that_turned_router_before_it_heard_its_own_is_told() {
    let mut fixture = Fixture::with(&[("/proc/sys/net/ipv6/conf/eth1/accept_ra", "1\n")]);
    fixture.network().cidr6 = Some("fd00:100::/56".to_owned());
    assert_eq!(advertisements(&fixture.host).verdict, Verdict::Ok, "it has no IPv6 to the outside");
    fixture.host.facts.interfaces[0].addresses.push("2001:db8::5/64".parse().unwrap());
    let check = advertisements(&fixture.host);
    assert!(check.verdict == Verdict::Warning && check.hint.contains("net.ipv6.conf.eth1.accept_ra=2"), "{check:?}");
    fixture.host.facts.default_route.push((IpFamily::V6, IfName::new("eth1").unwrap()));
    assert_eq!(advertisements(&fixture.host).verdict, Verdict::Ok);
}

#[test]
fn the_larger_of_all_and_the_devices_rp_filter_decides() {
    let with = |all: &str, device: &str| {
        let files =
            [("/proc/sys/net/ipv4/conf/all/rp_filter", all), ("/proc/sys/net/ipv4/conf/flat.1/rp_filter", device)];
        reverse_path(&Fixture::with(&files).host)
    };
    assert_eq!(with("1", "0").verdict, Verdict::Warning);
    assert!(with("0", "1").cause.contains("flat.1"));
    assert_eq!(with("2", "1").verdict, Verdict::Ok, "loose wins: the value is the larger one");
    assert_eq!(with("0", "0").verdict, Verdict::Ok);
}

#[test]
fn a_table_that_was_full_is_said_and_permanent_entries_count_on_old_kernels_only() {
    let statistics = "entries  allocs table_fulls\n00000002 0001a9e9 0000000a\n00000002 00011f1e 00000001\n";
    let full = neighbours(&Fixture::with(&[("/proc/net/stat/arp_cache", statistics)]).host);
    assert!(full.verdict == Verdict::Failure && full.cause.contains("was full 11 times"), "{full:?}");
    let with = |release: &str, backend: &str| {
        let files = [("/proc/sys/net/ipv4/neigh/default/gc_thresh3", "4"), ("/proc/sys/kernel/osrelease", release)];
        let mut fixture = Fixture::with(&files);
        fixture.network().peers = vec![Default::default(); 4];
        fixture.network().backend = backend.to_owned();
        neighbours(&fixture.host).verdict
    };
    assert_eq!(with("6.1.0-13-amd64", "vxlan"), Verdict::Ok);
    assert_eq!(with("4.19.0", "vxlan"), Verdict::Warning);
    assert_eq!(with("6.1.0", "host-gw"), Verdict::Warning);
}
