mod refused;

use std::collections::BTreeSet;

use flatnet_model::{BackendConfig, BackendData, BackendKind, IpFamily, Lease, Mtu, Vni, VxlanConfig};
use proptest::prelude::*;

use super::*;
use crate::backend::{self, vtep_mac};
use crate::diff::Prune;
use crate::fixture::{NODE, codes, config, device, facts, interface, is_shut, one, peer, underlay, vxlan, with};
use crate::object::{Dump, LinkKind, PeerSource, RouteKey, RouteVia, Sysctl};
use crate::plan::plan;
use crate::problem::ProblemCode;

/// Returns the plan from an empty kernel, one operation per line.
fn listing(desired: &Desired) -> String {
    let ops = plan(&desired.state, &Dump::default(), Prune::Yes).ops;
    ops.iter().map(|op| format!("{} {}\n", op.action.as_str(), op.object)).collect()
}

fn decision(desired: &Desired, index: usize) -> &PeerDecision {
    &desired.networks[0].peers[index].decision
}

fn is_failed(desired: &Desired, index: usize) -> bool {
    matches!(decision(desired, index), PeerDecision::Failed { .. })
}

fn is_programmed(desired: &Desired, index: usize) -> bool {
    matches!(decision(desired, index), PeerDecision::Programmed(_))
}

fn dual(backend: BackendConfig) -> flatnet_model::NetworkConfig {
    config(Some("10.100.0.0/16"), Some("fd00:100::/48"), backend)
}

#[test]
fn a_dual_stack_network_with_one_peer_reads_like_this() {
    let peer = peer("10.100.2.0-24&fd00:100:0:2::-64", 12, &vxlan());
    let desired = one(&dual(vxlan()), "10.100.1.0-24&fd00:100:0:1::-64", &[peer]);
    assert_eq!(desired.problems, vec![]);
    let [m4, m6] = IpFamily::BOTH.map(|family| vtep_mac(NodeId::new(12), Vni::FLANNEL_DEFAULT, family));
    let expected = format!(
        "create table inet flatnet (2 elements)\n\
         create link flat.1\n\
         create link flat6.1\n\
         change sysctl net.ipv4.conf.flat/1.accept_redirects=0\n\
         change sysctl net.ipv6.conf.flat/1.accept_ra=0\n\
         change sysctl net.ipv6.conf.flat/1.accept_redirects=0\n\
         change sysctl net.ipv6.conf.flat/1.disable_ipv6=1\n\
         change sysctl net.ipv6.conf.flat6/1.accept_ra=0\n\
         change sysctl net.ipv6.conf.flat6/1.accept_redirects=0\n\
         change sysctl net.ipv6.conf.flat6/1.disable_ipv6=0\n\
         change sysctl net.ipv4.conf.flat/1.forwarding=1\n\
         change sysctl net.ipv4.ip_forward=1\n\
         change sysctl net.ipv6.conf.all.forwarding=1\n\
         change sysctl net.ipv6.conf.flat6/1.forwarding=1\n\
         create address 10.100.1.0/32 dev flat.1\n\
         create address fd00:100:0:1::/128 dev flat6.1\n\
         create neighbour 10.100.2.0 lladdr {m4} dev flat.1\n\
         create neighbour fd00:100:0:2:: lladdr {m6} dev flat6.1\n\
         create fdb {m4} dst 192.0.2.12 dev flat.1\n\
         create fdb {m6} dst 2001:db8::12 dev flat6.1\n\
         create nexthop id 174326272 via 10.100.2.0 dev flat.1\n\
         create route 10.100.0.0/16\n\
         create route 10.100.2.0/24\n\
         create route fd00:100::/48\n\
         create route fd00:100:0:2::/64\n"
    );
    assert_eq!(listing(&desired), expected);
    let network = &desired.networks[0];
    assert_eq!(network.mtu, Some(Mtu::new(1430).unwrap()), "1500 less 70: the smaller of the two families'");
    assert_eq!(network.devices, [device("flat.1"), device("flat6.1")]);
    assert_eq!(desired.state.links[&device("flat.1")].mtu.get(), 1450);
    assert_eq!(desired.state.links[&device("flat6.1")].mtu.get(), 1430);
    for key in network.peers[0].keys() {
        let found = plan(&desired.state, &Dump::default(), Prune::Yes).ops.into_iter().any(|op| match op.object {
            crate::op::Object::Ruleset { elements, .. } => {
                elements.into_iter().any(|source| crate::op::ObjectKey::PeerSource(source) == key)
            }
            object => object.key() == key,
        });
        assert!(found, "{key:?} is said to be wanted and is not");
    }
    assert_eq!(network.peers[0].keys().count(), 9);
}

#[test]
fn without_nexthop_objects_ipv4_routes_take_the_hop_itself() {
    let facts = HostFacts { features: Default::default(), ..facts() };
    let config = config(Some("10.100.0.0/16"), None, vxlan());
    let desired = with(&facts, &underlay(), &config, "10.100.1.0-24", &[peer("10.100.2.0-24", 12, &vxlan())]);
    assert!(desired.state.nexthops.is_empty());
    let route = desired.state.routes[&RouteKey::to_peer("10.100.2.0/24".parse().unwrap())];
    assert!(matches!(route.via, RouteVia::Hop(hop) if hop.onlink && hop.device == device("flat.1")));
    assert!(
        desired.state.sysctls.keys().all(|sysctl| !sysctl.path().starts_with("net/ipv6")),
        "no IPv6, no settings of it"
    );
}

#[test]
fn direct_routing_and_back_changes_only_what_the_hop_is() {
    let direct = BackendConfig::Vxlan(VxlanConfig { direct_routing: true, ..VxlanConfig::default() });
    let peers = [peer("10.100.2.0-24&fd00:100:0:2::-64", 12, &vxlan())];
    let own = "10.100.1.0-24&fd00:100:0:1::-64";
    let tunnelled = one(&dual(vxlan()), own, &peers).state;
    let routed = one(&dual(direct), own, &peers);
    assert!(routed.state.neighbours.is_empty() && routed.state.fdb.is_empty());
    let direct = ["10.100.2.0/24", "fd00:100:0:2::/64", "192.0.2.12/32", "2001:db8::12/128"]
        .map(|subnet| PeerSource::direct(subnet.parse().unwrap()));
    assert!(direct.iter().all(|source| routed.state.peer_sources.contains(source)), "{:?}", routed.state.peer_sources);
    assert_eq!(routed.state.peer_sources.len(), 6, "the other side may see the link differently");
    assert!(!direct.iter().any(|source| tunnelled.peer_sources.contains(source)), "nothing comes without the tunnel");
    for (from, to) in [(&tunnelled, &routed.state), (&routed.state, &tunnelled)] {
        let ops = plan(to, &Dump { state: from.clone(), ..Dump::default() }, Prune::Yes).ops;
        let on_the_way: Vec<String> = ops
            .iter()
            .filter(|op| matches!(op.object.kind().as_str(), "nexthop" | "route"))
            .map(|op| op.action.as_str().to_owned())
            .collect();
        assert_eq!(on_the_way, ["change", "change"]);
    }
    let mut far = peers[0].clone();
    far.public_ip = Some([198, 51, 100, 1].into());
    far.public_ipv6 = Some("2001:db8:1::1".parse().unwrap());
    assert_eq!(one(&dual(direct_config()), own, &[far]).state.fdb.len(), 2, "not on our link: through the tunnel");
}

fn direct_config() -> BackendConfig {
    BackendConfig::Vxlan(VxlanConfig { direct_routing: true, ..VxlanConfig::default() })
}

#[test]
fn host_gw_routes_to_the_link_and_says_which_peer_is_beyond_it() {
    let mut far = peer("10.100.3.0-24", 13, &BackendConfig::HostGw);
    far.public_ip = Some([198, 51, 100, 13].into());
    let peers = [peer("10.100.2.0-24&fd00:100:0:2::-64", 12, &BackendConfig::HostGw), far];
    let desired = one(&dual(BackendConfig::HostGw), "10.100.1.0-24&fd00:100:0:1::-64", &peers);
    assert!(desired.state.links.is_empty() && desired.state.neighbours.is_empty());
    assert_eq!(desired.networks[0].mtu, Some(Mtu::new(1500).unwrap()));
    assert!(is_programmed(&desired, 0));
    assert!(matches!(decision(&desired, 1), PeerDecision::Unreachable { reason } if reason.contains("198.51.100.13")));
    assert_eq!(codes(&desired), ["peer-off-link"]);
    // No other source is believed of packets that come in by the underlay.
    let believed = ["10.100.2.0/24", "fd00:100:0:2::/64", "192.0.2.12/32", "2001:db8::12/128"]
        .map(|subnet| PeerSource::direct(subnet.parse().unwrap()));
    assert_eq!(desired.state.peer_sources, believed.into());
    let route = desired.state.routes[&RouteKey::to_peer("fd00:100:0:2::/64".parse().unwrap())];
    assert!(matches!(route.via, RouteVia::Hop(hop) if !hop.onlink && hop.device == device("eth0")));
}

/// An edit that makes a lease bad.
type Edit<'a> = &'a dyn Fn(&mut Lease);

#[test]
fn a_bad_peer_is_named_and_harms_no_other() {
    let good = peer("10.100.2.0-24", 12, &vxlan());
    let change = |edit: Edit<'_>| {
        let mut bad = peer("10.100.3.0-24", 13, &vxlan());
        edit(&mut bad);
        one(&config(Some("10.100.0.0/16"), None, vxlan()), "10.100.1.0-24", &[good.clone(), bad])
    };
    let own_mac = vtep_mac(NODE, Vni::FLANNEL_DEFAULT, IpFamily::V4);
    let BackendData::Vxlan { mac: good_mac, .. } = good.data else { panic!("a vxlan peer") };
    let with_mac = |mac| BackendData::Vxlan { vni: None, mac };
    let cases: [(&str, Edit<'_>); 9] = [
        ("peer-no-address", &|lease| lease.public_ip = None),
        ("peer-bad-address", &|lease| lease.public_ip = Some([224, 0, 0, 1].into())),
        ("peer-bad-address", &|lease| lease.public_ip = Some([127, 0, 0, 1].into())),
        ("duplicate-public-ip", &|lease| lease.public_ip = Some([192, 0, 2, 10].into())),
        ("peer-inside-overlay", &|lease| lease.public_ip = Some([10, 100, 9, 9].into())),
        ("peer-no-vtep", &|lease| lease.data = BackendData::None),
        ("peer-bad-mac", &|lease| lease.data = with_mac("01:00:5e:00:00:01".parse().unwrap())),
        ("duplicate-mac", &|lease| lease.data = with_mac(own_mac)),
        ("duplicate-mac", &|lease| lease.data = with_mac(good_mac)),
    ];
    for (code, edit) in cases {
        let desired = change(edit);
        assert_eq!(codes(&desired), [code]);
        assert!(is_programmed(&desired, 0), "{code}");
        assert!(is_failed(&desired, 1), "{code}");
        assert_eq!(
            (desired.state.fdb.len(), desired.state.nexthops.len(), desired.state.peer_sources.len()),
            (1, 1, 1)
        );
    }
    let other_backend = change(&|lease| lease.backend = BackendKind::HostGw);
    assert!(matches!(decision(&other_backend, 1), PeerDecision::Ignored { .. }));
    assert_eq!(codes(&other_backend), Vec::<&str>::new());
    let other_vni = change(&|lease| {
        lease.data = BackendData::Vxlan { vni: Some(Vni::new(7).unwrap()), mac: good_mac };
    });
    assert!(matches!(decision(&other_vni, 1), PeerDecision::Ignored { reason } if reason.contains('7')));
}

#[test]
fn two_leases_of_one_node_share_its_address_and_both_work() {
    let old = peer("10.100.2.0-24", 12, &vxlan());
    let new = Lease { subnets: "10.100.3.0-24".parse().unwrap(), create_revision: 99, ..old.clone() };
    let desired = one(&config(Some("10.100.0.0/16"), None, vxlan()), "10.100.1.0-24", &[old, new]);
    assert_eq!(desired.problems, vec![]);
    assert_eq!((desired.state.fdb.len(), desired.state.neighbours.len()), (1, 2));
}

#[test]
fn an_unsupported_backend_programs_nothing_and_says_what_is_supported() {
    let kind = BackendConfig::Unsupported(BackendKind::from_name("ipsec"));
    let desired = one(&config(Some("10.100.0.0/16"), None, kind), "10.100.1.0-24", &[]);
    let refuses = RouteKey::unreachable("10.100.0.0/16".parse().unwrap());
    assert!(desired.state.links.is_empty() && desired.state.routes.keys().eq([&refuses]));
    assert_eq!(codes(&desired), ["backend-unsupported"]);
    assert!(desired.problems[0].hint.contains("vxlan, wireguard, gre and host-gw"));
}

#[test]
fn a_family_the_underlay_lacks_is_refused_and_not_published() {
    let underlay = Underlay { v6: None, public_v6: None, ..underlay() };
    let name = NetworkName::default_network();
    let desired = with(&facts(), &underlay, &dual(vxlan()), "10.100.1.0-24&fd00:100:0:1::-64", &[]);
    assert!(is_shut(&desired));
    assert_eq!(codes(&desired), ["underlay-family"]);
    assert!(backend::publication(NODE, None, &name, &dual(vxlan()), &underlay).is_err());
    let v4 = config(Some("10.100.0.0/16"), None, vxlan());
    let publication = backend::publication(NODE, None, &name, &v4, &underlay).unwrap();
    assert_eq!(publication.public_ip, underlay.public_v4);
    assert_eq!(publication.data_v6, BackendData::None);
}

#[test]
fn host_gw_refuses_a_public_address_that_is_not_the_interfaces() {
    let underlay = Underlay { public_v4: Some([203, 0, 113, 1].into()), ..underlay() };
    let config = config(Some("10.100.0.0/16"), None, BackendConfig::HostGw);
    assert_eq!(codes(&with(&facts(), &underlay, &config, "10.100.1.0-24", &[])), ["public-ip-host-gw"]);
}

#[test]
fn the_mtu_is_what_was_configured_as_far_as_it_fits() {
    let with_mtu = |mtu, v6: Option<&str>| {
        let backend = BackendConfig::Vxlan(VxlanConfig { mtu: Some(Mtu::new(mtu).unwrap()), ..VxlanConfig::default() });
        let own = if v6.is_some() { "10.100.1.0-24&fd00:100:0:1::-64" } else { "10.100.1.0-24" };
        one(&config(Some("10.100.0.0/16"), v6, backend), own, &[])
    };
    assert_eq!(with_mtu(1400, None).networks[0].mtu.map(Mtu::get), Some(1400));
    let large = with_mtu(9000, None);
    assert_eq!(large.networks[0].mtu.map(Mtu::get), Some(1450));
    assert_eq!(codes(&large), ["mtu-too-large"]);
    let small = with_mtu(1200, Some("fd00:100::/48"));
    assert_eq!(codes(&small), ["mtu-too-small"]);
    assert!(is_shut(&small));
    let underlay = Underlay { mtu: Mtu::new(1300).unwrap(), ..underlay() };
    let tight = with(&facts(), &underlay, &dual(vxlan()), "10.100.1.0-24&fd00:100:0:1::-64", &[]);
    assert_eq!(codes(&tight), ["underlay-mtu"]);
}

#[test]
fn containers_bridges_are_what_a_subnet_is_for_and_stale_ones_are_named() {
    let beside = |extra: crate::facts::Interface| {
        let mut facts = facts();
        facts.interfaces.push(extra);
        with(&facts, &underlay(), &config(Some("10.100.0.0/16"), None, vxlan()), "10.100.1.0-24", &[])
    };
    assert_eq!(codes(&beside(interface("docker0", &["10.100.1.1/24"]))), Vec::<&str>::new());
    let told = beside(interface("docker0", &["10.100.5.1/24"]));
    assert_eq!(codes(&told), ["stale-bridge"]);
    assert!(!told.state.links.is_empty());
}

#[test]
fn of_two_networks_that_contradict_each_other_the_first_is_kept() {
    let both = |second: flatnet_model::NetworkConfig, own: &str| {
        let names: [NetworkName; 2] = ["default".parse().unwrap(), "blue".parse().unwrap()];
        let first = config(Some("10.100.0.0/16"), None, vxlan());
        let input = |name, config, own: &str| NetworkInput {
            name,
            config,
            stage: Stage::default(),
            own: own.parse().unwrap(),
            peers: &[],
            bridge: None,
            masquerade: true,
            guard: None,
        };
        let networks = [input(&names[0], &first, "10.100.1.0-24"), input(&names[1], &second, own)];
        let (underlay, facts) = (underlay(), facts());
        desired(&HostInput {
            store: &[],
            node: NODE,
            key: Ok(crate::fixture::key(0xa)),
            underlay: &underlay,
            facts: &facts,
            exposure: &crate::exposure::Exposure::default(),
            networks: &networks,
        })
    };
    let vni2 = BackendConfig::Vxlan(VxlanConfig { vni: Vni::new(2).unwrap(), ..VxlanConfig::default() });
    let fine = both(config(Some("10.101.0.0/16"), None, vni2.clone()), "10.101.1.0-24");
    assert_eq!((codes(&fine).len(), fine.state.links.len()), (0, 2));
    for (second, own, code) in [
        (config(Some("10.100.128.0/17"), None, vni2.clone()), "10.100.129.0-24", "network-overlap"),
        (config(Some("10.101.0.0/16"), None, vxlan()), "10.101.1.0-24", "vni-conflict"),
        (config(Some("10.101.0.0/16"), None, vni2), "10.99.1.0-24", "own-subnet-outside"),
    ] {
        let desired = both(second, own);
        assert_eq!(codes(&desired), [code]);
        assert_eq!(desired.state.links.keys().copied().collect::<Vec<_>>(), [device("flat.1")], "{code}");
        assert_eq!((desired.networks[0].mtu.is_some(), desired.networks[1].mtu), (true, None));
    }
}

#[test]
fn router_advertisements_are_heard_on_before_forwarding_is_turned_on() {
    let sysctl = Sysctl::accept_ra(device("wan0"));
    let facts = HostFacts { accept_ra: vec![sysctl], ..facts() };
    let desired = with(&facts, &underlay(), &dual(vxlan()), "10.100.1.0-24&fd00:100:0:1::-64", &[]);
    let listing = listing(&desired);
    let at = |text: &str| listing.find(text).unwrap_or_else(|| panic!("{text} is not in\n{listing}"));
    let heard = at("net.ipv6.conf.wan0.accept_ra=2");
    assert!(heard < at("net.ipv6.conf.all.forwarding=1") && heard < at("net.ipv6.conf.flat6/1.forwarding=1"));
}

#[test]
fn what_a_guard_sees_to_anyway_can_be_done_without_and_nothing_else() {
    let mut state = one(&dual(vxlan()), "10.100.1.0-24&fd00:100:0:1::-64", &[]).state;
    let bridge = crate::object::Link { kind: LinkKind::Bridge, ..state.links[&device("flat.1")].clone() };
    state.links.insert(device("flbr0"), bridge);
    state.sysctls.insert(Sysctl::accept_ra(device("flbr0")), "0".to_owned());
    let needless: Vec<&str> =
        state.sysctls.keys().filter(|setting| state.does_without(setting)).map(Sysctl::path).collect();
    assert_eq!(
        needless,
        [
            "net/ipv4/conf/flat.1/accept_redirects",
            "net/ipv6/conf/flat.1/accept_ra",
            "net/ipv6/conf/flat.1/accept_redirects",
            "net/ipv6/conf/flat.1/disable_ipv6",
            "net/ipv6/conf/flat6.1/accept_ra",
            "net/ipv6/conf/flat6.1/accept_redirects",
        ]
    );
}

#[test]
fn a_bridge_has_the_first_address_of_each_subnet() {
    let name = NetworkName::default_network();
    let (config, underlay, facts) = (dual(vxlan()), underlay(), facts());
    let network = NetworkInput {
        name: &name,
        config: &config,
        stage: Stage::default(),
        own: "10.100.1.0-24&fd00:100:0:1::-64".parse().unwrap(),
        peers: &[],
        bridge: Some(device("flbr0")),
        masquerade: true,
        guard: None,
    };
    let state = desired(&HostInput {
        store: &[],
        node: NODE,
        key: Ok(crate::fixture::key(0xa)),
        underlay: &underlay,
        facts: &facts,
        exposure: &crate::exposure::Exposure::default(),
        networks: &[network],
    })
    .state;
    let bridge = &state.links[&device("flbr0")];
    assert_eq!((&bridge.kind, bridge.mtu.get()), (&LinkKind::Bridge, 1430));
    let on_bridge: Vec<String> =
        state.addresses.iter().filter(|key| key.device == device("flbr0")).map(|key| key.address.to_string()).collect();
    assert_eq!(on_bridge, ["10.100.1.1/24", "fd00:100:0:1::1/64"]);
}

#[test]
fn a_flood_of_bad_peers_is_summed_up() {
    let peers: Vec<Lease> = (2..=200)
        .map(|index| Lease { public_ip: None, ..peer(&format!("10.100.{index}.0-24"), index, &vxlan()) })
        .collect();
    let desired = one(&config(Some("10.100.0.0/16"), None, vxlan()), "10.100.1.0-24", &peers);
    assert_eq!(desired.problems.len(), 51);
    assert!(
        desired
            .problems
            .iter()
            .any(|problem| problem.code == ProblemCode::PeersRefused && problem.message.contains("149"))
    );
}

proptest! {
    #[test]
    fn the_order_of_peers_does_not_matter(
        peers in prop::collection::vec((2_u8..40, 2_u8..8, any::<bool>()), 0..12).prop_map(|peers| {
            let mut seen = BTreeSet::new();
            peers.into_iter().filter(|(subnet, ..)| seen.insert(*subnet)).collect::<Vec<_>>()
        }),
        rotation in 0_usize..12,
    ) {
        let leases: Vec<Lease> = peers.iter().map(|(subnet, node, odd)| {
            let mut lease = peer(&format!("10.100.{subnet}.0-24"), *node, &vxlan());
            lease.create_revision = i64::from(*subnet);
            if *odd { lease.public_ip = Some([192, 0, 2, 99].into()); }
            lease
        }).collect();
        let mut turned = leases.clone();
        turned.rotate_left(if leases.is_empty() { 0 } else { rotation % leases.len() });
        turned.reverse();
        let config = config(Some("10.100.0.0/16"), None, vxlan());
        prop_assert_eq!(one(&config, "10.100.1.0-24", &leases), one(&config, "10.100.1.0-24", &turned));
    }
}

/// Prints how long deciding about 8,000 peers takes: `cargo test --release -p flatnet-core -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, to be run in release"]
fn eight_thousand_peers_are_decided_in_milliseconds() {
    let config = config(Some("10.0.0.0/8"), None, vxlan());
    let peers: Vec<Lease> = (0..8000_u32)
        .map(|index| {
            let (a, b) = (u8::try_from(index / 250 + 1).unwrap(), u8::try_from(index % 250).unwrap());
            let mut lease = peer(&format!("10.{a}.{b}.0-24"), 1, &vxlan());
            lease.public_ip = Some([172, 16, a, b].into());
            let mac = vtep_mac(NodeId::new(u128::from(index) + 100), Vni::FLANNEL_DEFAULT, IpFamily::V4);
            lease.data = BackendData::Vxlan { vni: None, mac };
            lease
        })
        .collect();
    for _ in 0..5 {
        let start = std::time::Instant::now();
        let desired = one(&config, "10.200.1.0-24", &peers);
        let decided = start.elapsed();
        let from_nothing = plan(&desired.state, &Dump::default(), Prune::Yes).ops.len();
        let planned = start.elapsed() - decided;
        let there = Dump { state: desired.state.clone(), ..Dump::default() };
        let start = std::time::Instant::now();
        assert_eq!(plan(&desired.state, &there, Prune::Yes).ops, vec![]);
        println!("desired {decided:?}, plan of {from_nothing} ops {planned:?}, empty plan {:?}", start.elapsed());
        assert_eq!(desired.state.fdb.len(), 8000);
    }
}
