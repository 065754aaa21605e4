use flatnet_core::object::{Route, RouteKey, RouteVia};

use super::*;
use crate::doctor::Verdict;
use crate::doctor::fixture::Fixture;

const HEAD: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";

fn v4(target: [u8; 4], gateway: [u8; 4], mask: [u8; 4], device: &str) -> String {
    let number = |bytes| format!("{:08X}", u32::from_ne_bytes(bytes));
    format!("{device}\t{}\t{}\t0003\t0\t0\t0\t{}\t0\t0\t0\n", number(target), number(gateway), number(mask))
}

fn overlap_with(line: &str) -> Check {
    overlap(&Fixture::with(&[("/proc/net/route", &format!("{HEAD}{line}"))]).host)
}

#[test]
fn a_lan_inside_the_network_is_named_with_its_device() {
    let check = overlap_with(&v4([10, 100, 40, 0], [0; 4], [255, 255, 255, 0], "eth2"));
    assert_eq!(check.verdict, Verdict::Failure);
    assert_eq!(check.cause, "the network 10.100.0.0/16 overlaps the route 10.100.40.0/24 by eth2");
    let wider = overlap_with(&v4([10, 0, 0, 0], [192, 0, 2, 254], [255, 0, 0, 0], "eth1"));
    assert!(wider.cause.contains("10.0.0.0/8 by eth1"), "{wider:?}");
}

#[test]
fn a_gateway_inside_the_network_is_named() {
    let check = overlap_with(&v4([0; 4], [10, 100, 0, 1], [0; 4], "eth1"));
    assert!(check.cause.contains("covers the gateway 10.100.0.1"), "{check:?}");
}

#[test]
fn our_own_routes_a_container_bridge_and_other_lans_are_fine() {
    let lines = [
        v4([10, 100, 0, 0], [0; 4], [255, 255, 0, 0], "flat.1"),
        v4([10, 100, 7, 0], [0; 4], [255, 255, 255, 0], "docker0"),
        v4([192, 0, 2, 0], [0; 4], [255, 255, 255, 0], "eth1"),
        v4([0; 4], [192, 0, 2, 254], [0; 4], "eth1"),
        // These routes are of a VPN that takes everything.
        v4([0; 4], [192, 0, 2, 254], [128, 0, 0, 0], "tun0"),
        v4([128, 0, 0, 0], [192, 0, 2, 254], [128, 0, 0, 0], "tun0"),
        "nonsense \u{1F980} zz\n".to_owned(),
    ];
    assert_eq!(overlap_with(&lines.concat()).verdict, Verdict::Ok);
}

#[test]
fn ipv6_routes_count_and_link_local_ones_do_not() {
    let line = |target: &str, length: &str| {
        format!("{target} {length} {z} 00 {z} 00000100 00000001 00000000 00000001     eth1\n", z = "0".repeat(32))
    };
    let mut fixture = Fixture::with(&[(
        "/proc/net/ipv6_route",
        &(line("fe800000000000000000000000000000", "40") + &line("fd000100000000280000000000000000", "40")),
    )]);
    fixture.network().cidr6 = Some("fd00:100::/32".to_owned());
    assert!(overlap(&fixture.host).cause.contains("fd00:100:0:28::/64 by eth1"), "{:?}", overlap(&fixture.host));
}

#[test]
fn the_halves_of_a_default_route_lead_past_the_network_and_their_gateway_counts() {
    let line = |target: &str, length: &str| {
        format!(
            "{target}{} {length} {z} 00 {z} 00000100 00000001 00000000 00000001     tun0\n",
            "0".repeat(28),
            z = "0".repeat(32)
        )
    };
    let halves = line("0000", "01") + &line("8000", "01") + &line("2000", "03");
    let mut fixture = Fixture::with(&[("/proc/net/ipv6_route", &halves)]);
    fixture.network().cidr6 = Some("fd00:100::/32".to_owned());
    assert_eq!(overlap(&fixture.host).verdict, Verdict::Ok);
    let check = overlap_with(&v4([128, 0, 0, 0], [10, 100, 0, 1], [128, 0, 0, 0], "tun0"));
    assert!(check.cause.contains("covers the gateway 10.100.0.1"), "{check:?}");
}

#[test]
fn a_name_server_inside_the_network_is_named_unless_it_is_this_hosts_own() {
    let with = |text: &str| resolvers(&Fixture::with(&[("/etc/resolv.conf", text)]).host);
    let check = with("search example\nnameserver 10.100.3.53\n");
    assert_eq!(check.verdict, Verdict::Failure);
    assert!(check.cause.contains("10.100.3.53"), "{check:?}");
    assert_eq!(with("nameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver 10.100.7.1\n").verdict, Verdict::Ok);
}

#[test]
fn a_lan_a_gateway_and_a_resolver_beside_what_the_network_hands_out_are_fine() {
    let files = |lan, resolver: &str| {
        let routes = [v4(lan, [0; 4], [255, 255, 255, 0], "eth2"), v4([0; 4], [10, 100, 240, 1], [0; 4], "eth2")];
        let mut fixture = Fixture::with(&[
            ("/proc/net/route", &format!("{HEAD}{}", routes.concat())),
            ("/etc/resolv.conf", &format!("nameserver {resolver}\n")),
        ]);
        for net in ["10.100.0.0/17", "10.100.128.0/18"] {
            let refuses = Route { via: RouteVia::Unreachable, source: None };
            fixture.host.ours.routes.insert(RouteKey::unreachable(net.parse().unwrap()), refuses);
        }
        fixture
    };
    let beside = files([10, 100, 240, 0], "10.100.240.53");
    assert_eq!(overlap(&beside.host).verdict, Verdict::Ok, "{:?}", overlap(&beside.host));
    assert_eq!(resolvers(&beside.host).verdict, Verdict::Ok);
    let inside = files([10, 100, 140, 0], "10.100.140.53");
    assert!(overlap(&inside.host).cause.contains("10.100.140.0/24 by eth2"), "{:?}", overlap(&inside.host));
    assert!(resolvers(&inside.host).cause.contains("10.100.128.0/18"), "{:?}", resolvers(&inside.host));
}
