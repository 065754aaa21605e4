use flatnet_model::{BackendConfig, Mtu, NetworkConfig, NetworkName, Pool, Vni, VxlanConfig};

use super::{admit, admit_changes};
use crate::desired::{HostInput, NetworkInput};
use crate::facts::HostFacts;
use crate::fixture::{NODE, config, facts, interface, key, underlay, vxlan, wireguard};
use crate::problem::Problem;
use crate::transition::Stage;

fn vni(vni: u32) -> BackendConfig {
    BackendConfig::Vxlan(VxlanConfig { vni: Vni::new(vni).unwrap(), ..VxlanConfig::default() })
}

fn v4(range: &str, backend: BackendConfig) -> NetworkConfig {
    config(Some(range), None, backend)
}

/// Returns 10.0.0.0/8 in /20 subnets, of which only some are handed out.
fn bounded(min: &str, max: &str) -> NetworkConfig {
    let bound = |text: &str| Some(text.parse().unwrap());
    let pool = Pool::new("10.0.0.0/8".parse().unwrap(), Some(20), bound(min), bound(max)).unwrap();
    NetworkConfig { v4: Some(pool), ..config(None, None, vxlan()) }
}

/// Returns the verdicts over networks in force, each with its lease and the configuration that the store has by now.
fn judged(facts: &HostFacts, networks: &[(&NetworkConfig, &str, Option<&NetworkConfig>)]) -> Vec<&'static str> {
    let names: Vec<NetworkName> = (0..networks.len()).map(|index| format!("n{index}").parse().unwrap()).collect();
    let inputs: Vec<NetworkInput<'_>> = std::iter::zip(&names, networks)
        .map(|(name, (config, own, _))| NetworkInput {
            name,
            config,
            own: own.parse().unwrap(),
            stage: Stage::default(),
            peers: &[],
            bridge: None,
            masquerade: true,
            guard: None,
        })
        .collect();
    let underlay = underlay();
    let host = HostInput {
        node: NODE,
        key: Ok(key(0xa)),
        underlay: &underlay,
        facts,
        store: &[],
        exposure: &crate::exposure::Exposure::default(),
        networks: &inputs,
    };
    let changed: Vec<Option<&NetworkConfig>> = networks.iter().map(|(_, _, new)| *new).collect();
    let said = |verdict: Option<Result<(), Problem>>| match verdict {
        None => "unchanged",
        Some(Ok(())) => "admitted",
        Some(Err(problem)) => problem.code.as_str(),
    };
    admit_changes(&host, &changed).into_iter().map(said).collect()
}

fn joining(facts: &HostFacts, config: &NetworkConfig) -> &'static str {
    let underlay = underlay();
    let host = HostInput {
        node: NODE,
        key: Ok(key(0xa)),
        underlay: &underlay,
        facts,
        store: &[],
        exposure: &crate::exposure::Exposure::default(),
        networks: &[],
    };
    match admit(&host, &NetworkName::default_network(), config) {
        Ok(()) => "admitted",
        Err(problem) => problem.code.as_str(),
    }
}

#[test]
fn a_change_that_takes_what_another_network_has_is_refused_whichever_was_joined_first() {
    let (red, blue) = (v4("10.1.0.0/16", vni(1)), v4("10.2.0.0/16", vni(2)));
    let taken = [(v4("10.1.0.0/16", vni(2)), "vni-conflict"), (v4("10.0.0.0/12", vni(1)), "network-overlap")];
    for (new, code) in &taken {
        assert_eq!(
            judged(&facts(), &[(&red, "10.1.1.0-24", Some(new)), (&blue, "10.2.1.0-24", None)]),
            [*code, "unchanged"]
        );
        assert_eq!(
            judged(&facts(), &[(&blue, "10.2.1.0-24", None), (&red, "10.1.1.0-24", Some(new))]),
            ["unchanged", *code]
        );
    }
    let encrypted = v4("10.2.0.0/16", wireguard());
    let on_its_port = v4("10.1.0.0/16", BackendConfig::Vxlan(VxlanConfig { port: 51820, ..VxlanConfig::default() }));
    let port = [(&red, "10.1.1.0-24", Some(&on_its_port)), (&encrypted, "10.2.1.0-24", None)];
    assert_eq!(judged(&facts(), &port), ["port-conflict", "unchanged"]);
}

#[test]
fn networks_that_change_together_may_swap_and_of_two_that_want_the_same_the_first_gets_it() {
    let (red, blue) = (v4("10.1.0.0/16", vni(1)), v4("10.2.0.0/16", vni(2)));
    let (red2, blue1) = (v4("10.1.0.0/16", vni(2)), v4("10.2.0.0/16", vni(1)));
    let swap = [(&red, "10.1.1.0-24", Some(&red2)), (&blue, "10.2.1.0-24", Some(&blue1))];
    assert_eq!(judged(&facts(), &swap), ["admitted", "admitted"]);
    let (red3, blue3) = (v4("10.1.0.0/16", vni(3)), v4("10.2.0.0/16", vni(3)));
    let same = [(&red, "10.1.1.0-24", Some(&red3)), (&blue, "10.2.1.0-24", Some(&blue3))];
    assert_eq!(judged(&facts(), &same), ["admitted", "vni-conflict"]);
    // The change that the first one counted on does not come: the second may not have it, as it takes an address of
    // this host.
    let mut covered = facts();
    covered.interfaces.push(interface("eth1", &["172.16.0.9/12"]));
    let wide = v4("172.16.0.0/12", vni(1));
    let chain = [(&red, "10.1.1.0-24", Some(&red2)), (&blue, "10.2.1.0-24", Some(&wide))];
    assert_eq!(judged(&covered, &chain), ["vni-conflict", "network-covers-host"]);
}

#[test]
fn a_change_must_not_take_an_address_of_this_host_that_the_network_has_not_got_already() {
    let now = v4("10.100.0.0/16", vxlan());
    let mut lan = facts();
    lan.interfaces.push(interface("eth1", &["10.7.0.9/24"]));
    for (range, verdict) in
        [("10.0.0.0/8", "network-covers-host"), ("10.96.0.0/12", "admitted"), ("192.0.0.0/8", "network-covers-host")]
    {
        let new = v4(range, vxlan());
        assert_eq!(judged(&lan, &[(&now, "10.100.1.0-24", Some(&new))]), [verdict], "{range}");
    }
    let mut stray = facts();
    stray.interfaces.push(interface("lo", &["10.100.250.6/32"]));
    let new = v4("10.96.0.0/12", vxlan());
    assert_eq!(judged(&stray, &[(&now, "10.100.1.0-24", Some(&new))]), ["admitted"], "it is there already");
}

#[test]
fn only_what_a_network_hands_out_can_take_an_address_of_a_host() {
    let mut lan = facts();
    lan.interfaces.push(interface("eth1", &["10.240.0.9/16"]));
    let documented = bounded("10.10.0.0", "10.99.0.0");
    assert_eq!(joining(&lan, &documented), "admitted");
    assert_eq!(joining(&lan, &bounded("10.10.0.0", "10.240.0.0")), "network-covers-host");
    let whole = v4("10.0.0.0/8", vxlan());
    for (now, new, verdict) in [
        (&documented, &bounded("10.10.0.0", "10.239.240.0"), "admitted"),
        (&documented, &bounded("10.10.0.0", "10.250.0.0"), "network-covers-host"),
        (&documented, &whole, "network-covers-host"),
        (&v4("10.0.0.0/9", vxlan()), &documented, "admitted"),
        (&whole, &documented, "admitted"),
        (&whole, &bounded("10.10.0.0", "10.250.0.0"), "admitted"),
    ] {
        assert_eq!(judged(&lan, &[(now, "10.10.0.0-20", Some(new))]), [verdict], "{:?}", new.v4);
    }
}

#[test]
fn a_change_that_would_leave_nothing_to_build_is_refused() {
    let with_mtu = |mtu| {
        let backend = BackendConfig::Vxlan(VxlanConfig { mtu: Mtu::new(mtu).ok(), ..VxlanConfig::default() });
        config(Some("10.100.0.0/16"), Some("fd00:100::/48"), backend)
    };
    let own = "10.100.1.0-24&fd00:100:0:1::-64";
    let change = |mtu| judged(&facts(), &[(&with_mtu(1400), own, Some(&with_mtu(mtu)))]);
    assert_eq!((change(1300), change(900)), (vec!["admitted"], vec!["mtu-too-small"]));
}

#[test]
fn before_a_lease_is_taken_everything_is_looked_at_that_would_keep_it_from_being_programmed() {
    let fine = v4("10.100.0.0/16", vxlan());
    assert_eq!(joining(&facts(), &fine), "admitted");
    for (device, address, verdict) in [
        ("docker0", "10.100.7.1/24", "admitted"),
        ("br-compose", "10.100.7.129/25", "admitted"),
        ("flannel.1", "10.100.7.0/32", "admitted"),
        ("lo", "10.100.7.0/32", "network-covers-host"),
        ("lo", "10.100.3.3/24", "network-covers-host"),
        ("lo", "10.100.3.1/24", "network-covers-host"),
        ("wg0", "10.100.3.3/24", "network-covers-host"),
        ("wg0", "10.100.3.1/32", "network-covers-host"),
        ("eth1", "10.100.3.1/16", "network-covers-host"),
    ] {
        let mut facts = facts();
        facts.interfaces.retain(|interface| interface.name.as_str() != device);
        facts.interfaces.push(interface(device, &[address]));
        assert_eq!(joining(&facts, &fine), verdict, "{address} on {device}");
    }
    let mut taken = facts();
    taken.interfaces.push(interface("flat.1", &[]));
    assert_eq!(joining(&taken, &fine), "foreign-object");
    let too_small = BackendConfig::Vxlan(VxlanConfig { mtu: Mtu::new(900).ok(), ..VxlanConfig::default() });
    assert_eq!(joining(&facts(), &config(None, Some("fd00:100::/48"), too_small)), "mtu-too-small");
}

/// Returns a host whose store, gateway and resolver are not on its link.
fn remote() -> HostFacts {
    let address = |text: &str| text.parse().unwrap();
    HostFacts { gateways: vec![address("10.7.0.1")], resolvers: vec![address("10.8.0.53")], ..facts() }
}

#[test]
fn a_range_that_holds_the_store_the_gateway_or_a_resolver_is_refused_before_and_after_a_lease() {
    let store = ["10.9.9.9".parse().unwrap()];
    let (underlay, facts) = (underlay(), remote());
    let name = NetworkName::default_network();
    let now = v4("10.100.0.0/16", vxlan());
    let cases = [
        (bounded("10.10.0.0", "10.199.0.0"), true),
        (bounded("10.9.0.0", "10.199.0.0"), false),
        (v4("10.0.0.0/8", vxlan()), false),
        (v4("10.9.0.0/16", vxlan()), false),
        (v4("10.7.0.0/16", vxlan()), false),
        (v4("10.8.0.0/16", vxlan()), false),
        (v4("10.96.0.0/12", vxlan()), true),
    ];
    for (config, fine) in cases {
        let network = NetworkInput {
            name: &name,
            config: &now,
            own: "10.100.1.0-24".parse().unwrap(),
            stage: Stage::default(),
            peers: &[],
            bridge: None,
            masquerade: true,
            guard: None,
        };
        let networks = [network];
        let host = HostInput {
            node: NODE,
            key: Ok(key(0xa)),
            underlay: &underlay,
            facts: &facts,
            store: &store,
            exposure: &crate::exposure::Exposure::default(),
            networks: &networks,
        };
        let code = |refused: Problem| refused.code.as_str();
        let (changes, joins) =
            (admit_changes(&host, &[Some(&config)]), admit(&HostInput { networks: &[], ..host }, &name, &config));
        let changes = changes.into_iter().next().unwrap().unwrap().map_err(code);
        let expected = if fine { Ok(()) } else { Err("network-covers-host") };
        assert_eq!((changes, joins.map_err(code)), (expected, expected), "{:?}", config.v4);
    }
}

#[test]
fn what_this_host_needs_of_a_range_that_is_in_force_is_left_out_of_it() {
    let config = v4("10.0.0.0/8", wireguard());
    let (underlay, facts, name) = (underlay(), remote(), NetworkName::default_network());
    let resolver = crate::fixture::peer("10.8.0.0-24", 12, &wireguard());
    let store = ["10.9.9.9".parse().unwrap()];
    let peers = [&resolver];
    let network = NetworkInput {
        name: &name,
        config: &config,
        own: "10.100.1.0-24".parse().unwrap(),
        stage: Stage::default(),
        peers: &peers,
        bridge: None,
        masquerade: true,
        guard: None,
    };
    let host = HostInput {
        node: NODE,
        key: Ok(key(0xa)),
        underlay: &underlay,
        facts: &facts,
        store: &store,
        exposure: &crate::exposure::Exposure::default(),
        networks: &[network],
    };
    let desired = crate::desired::desired(&host);
    let refuses = |address: &str| {
        let address: std::net::IpAddr = address.parse().unwrap();
        let routes = desired.state.routes.iter();
        let mut refused = routes.filter(|(_, route)| route.via == crate::object::RouteVia::Unreachable);
        refused.any(|(key, _)| key.destination.contains(&address))
    };
    assert!(!refuses("10.9.9.9") && !refuses("10.7.0.1"), "the store and the way out stay reachable");
    for inside in ["10.9.9.8", "10.9.9.10", "10.7.0.0", "10.7.0.2", "10.8.0.53", "10.255.255.255", "10.0.0.0"] {
        assert!(refuses(inside), "{inside} would leave by the default route");
    }
    let problems: Vec<&str> = desired.problems.iter().map(|problem| problem.code.as_str()).collect();
    assert_eq!(
        problems,
        ["network-covers-host", "network-covers-host"],
        "what is in somebody's lease is reached by it"
    );
}
