use flatnet_model::{BackendConfig, BackendKind, NetworkName};

use super::*;
use crate::desired::{HostInput, NetworkInput, desired};
use crate::facts::{GreSupport, HostFacts};
use crate::fixture::{NODE, codes, config, device, facts, gre, key, one, peer, underlay, with};
use crate::object::{FdbKey, LinkAddress, NeighbourKey, NexthopId, PeerSource, SetName, TunnelId};
use crate::outcome::PeerDecision;
use crate::transition::Stage;

fn backend(key: u32) -> BackendConfig {
    BackendConfig::Gre(GreConfig { key: GreKey::new(key), mtu: None })
}

fn v4(key: u32) -> NetworkConfig {
    config(Some("10.100.0.0/16"), None, backend(key))
}

fn v6(range: &str, key: u32) -> NetworkConfig {
    config(None, Some(range), backend(key))
}

fn in_user_space() -> HostFacts {
    let mut facts = facts();
    facts.features.gre = gre(Datapath::Userspace);
    facts
}

#[test]
fn over_ipv4_a_peer_is_a_neighbour_a_nexthop_and_a_route_on_one_device() {
    for (key, name, mtu) in [(0, "flatgre0", 1476), (0xfeed, "flatgrefeed", 1472), (u32::MAX, "flatgreffffffff", 1472)]
    {
        let desired = one(&v4(key), "10.100.1.0-24", &[peer("10.100.2.0-24", 12, &backend(key))]);
        let (state, name) = (&desired.state, device(name));
        let local = [192, 0, 2, 10].into();
        let kind = LinkKind::Gre(GreLink { key: GreKey::new(key), local, datapath: Datapath::Kernel });
        assert_eq!(state.links[&name], Link { kind, mtu: Mtu::new(mtu).unwrap(), mac: None, up: true });
        let neighbour = NeighbourKey { device: name, address: [10, 100, 2, 0].into() };
        assert_eq!(state.neighbours[&neighbour], LinkAddress::V4([192, 0, 2, 12].into()));
        let id = NexthopId::of_subnet([10, 100, 2, 0].into());
        assert_eq!(state.nexthops[&id].via, NextHop { gateway: [10, 100, 2, 0].into(), device: name, onlink: true });
        assert_eq!(state.routes[&RouteKey::to_peer("10.100.2.0/24".parse().unwrap())].via, RouteVia::Object(id));
        assert!(state.addresses.contains(&AddressKey { device: name, address: "10.100.1.0/32".parse().unwrap() }));
        assert_eq!(state.fdb.keys().collect::<Vec<&FdbKey>>(), [] as [&FdbKey; 0]);
        let set = SetName { tunnel: TunnelId::Gre(GreKey::new(key)), family: IpFamily::V4, prefix_len: 24 };
        let inner = "10.100.2.0/24".parse().unwrap();
        assert!(state.peer_sources.contains(&PeerSource { set, outer: [192, 0, 2, 12].into(), inner }));
        assert_eq!(state.ruleset.as_ref().unwrap().sets().collect::<Vec<_>>(), [set]);
        assert_eq!(codes(&desired), [""; 0]);
    }
}

#[test]
fn what_a_peer_takes_is_known_by_key_so_that_a_failure_is_the_peers() {
    for facts in [facts(), in_user_space()] {
        let config = config(Some("10.100.0.0/16"), Some("fd00:100::/56"), backend(7));
        let (own, theirs) = ("10.100.1.0-24&fd00:100:0:1::-64", "10.100.2.0-24&fd00:100:0:2::-64");
        let desired = with(&facts, &underlay(), &config, own, &[peer(theirs, 12, &backend(7))]);
        let alone = with(&facts, &underlay(), &config, own, &[]);
        let keys: Vec<_> = desired.networks[0].peers[0].keys().collect();
        let count = |desired: &crate::desired::Desired| {
            let state = &desired.state;
            state.peer_sources.len() + state.neighbours.len() + state.nexthops.len() + state.routes.len()
        };
        assert_eq!(keys.len(), count(&desired) - count(&alone), "{keys:?}");
    }
}

#[test]
fn over_ipv6_networks_share_one_device_and_each_route_names_its_key() {
    let (red, blue) = (v6("fd00:1::/56", 0), v6("fd00:2::/56", 9));
    let names: [NetworkName; 2] = ["red".parse().unwrap(), "blue".parse().unwrap()];
    let (to_red, to_blue) =
        (peer("0.0.0.0-0&fd00:1:0:2::-64", 12, &backend(0)), peer("0.0.0.0-0&fd00:2:0:2::-64", 12, &backend(9)));
    let network = |name, config, own: &str, peers| NetworkInput {
        name,
        config,
        stage: Stage::default(),
        own: own.parse().unwrap(),
        peers,
        bridge: None,
        masquerade: true,
        guard: None,
    };
    let (red_peers, blue_peers) = ([&to_red], [&to_blue]);
    let networks = [
        network(&names[0], &red, "0.0.0.0-0&fd00:1:0:1::-64", &red_peers),
        network(&names[1], &blue, "0.0.0.0-0&fd00:2:0:1::-64", &blue_peers),
    ];
    let (underlay, facts) = (underlay(), facts());
    let desired = desired(&HostInput {
        store: &[],
        node: NODE,
        key: Ok(key(0xa)),
        underlay: &underlay,
        facts: &facts,
        exposure: &crate::exposure::Exposure::default(),
        networks: &networks,
    });
    let shared = device("flat6gre");
    // The MTU that fits behind the larger headers, those with a key.
    let link = Link { kind: LinkKind::Gre6(Datapath::Kernel), mtu: Mtu::new(1452).unwrap(), mac: None, up: true };
    assert_eq!(desired.state.links.iter().collect::<Vec<_>>(), [(&shared, &link)]);
    assert_eq!(desired.networks.iter().map(|network| network.mtu.unwrap().get()).collect::<Vec<_>>(), [1452, 1452]);
    for (range, key) in [("fd00:1:0:2::/64", 0), ("fd00:2:0:2::/64", 9)] {
        let encap = Encap {
            device: shared,
            source: "2001:db8::10".parse().unwrap(),
            remote: "2001:db8::12".parse().unwrap(),
            key: GreKey::new(key),
        };
        assert_eq!(desired.state.routes[&RouteKey::to_peer(range.parse().unwrap())].via, RouteVia::Encap(encap));
    }
    let body = &desired.state.ruleset.unwrap().body;
    for chain in ["from_tunnel6_", "local_tunnel6_"] {
        assert_eq!(body.matches(&format!("iifname \"flat6gre\" goto {chain}")).count(), 1, "{body}");
    }
}

#[test]
fn in_user_space_over_ipv4_too_the_route_names_the_tunnels_ends() {
    let desired =
        with(&in_user_space(), &underlay(), &v4(5), "10.100.1.0-24", &[peer("10.100.2.0-24", 12, &backend(5))]);
    let encap = Encap {
        device: device("flatgre5"),
        source: [192, 0, 2, 10].into(),
        remote: [192, 0, 2, 12].into(),
        key: GreKey::new(5),
    };
    let route = &desired.state.routes[&RouteKey::to_peer("10.100.2.0/24".parse().unwrap())];
    assert_eq!(route.via, RouteVia::Encap(encap));
    assert!(desired.state.neighbours.is_empty() && desired.state.nexthops.is_empty());
    assert_eq!(desired.state.links[&device("flatgre5")].kind.datapath(), Datapath::Userspace);
}

#[test]
fn without_any_way_to_make_it_no_lease_is_taken_and_nothing_is_programmed() {
    let mut facts = facts();
    facts.features.gre = GreSupport { v4: None, v6: Some(Datapath::Kernel) };
    let desired = with(&facts, &underlay(), &v4(0), "10.100.1.0-24", &[peer("10.100.2.0-24", 12, &backend(0))]);
    assert_eq!(codes(&desired), ["module-missing"]);
    assert!(crate::fixture::is_shut(&desired), "{:?}", desired.state);
    let underlay = underlay();
    let host = HostInput {
        store: &[],
        node: NODE,
        key: Ok(key(0xa)),
        underlay: &underlay,
        facts: &facts,
        exposure: &crate::exposure::Exposure::default(),
        networks: &[],
    };
    let name = NetworkName::default_network();
    assert_eq!(crate::desired::admit(&host, &name, &v4(0)).unwrap_err().code, ProblemCode::ModuleMissing);
    assert_eq!(crate::desired::admit(&host, &name, &v6("fd00::/56", 0)), Ok(()));
}

#[test]
fn a_host_set_up_by_hand_publishes_no_key_and_one_with_another_key_is_another_networks() {
    let mut by_hand = peer("10.100.2.0-24", 12, &backend(5));
    by_hand.data = BackendData::None;
    let mut other = peer("10.100.3.0-24", 13, &backend(5));
    other.data = BackendData::Gre { key: GreKey::NONE };
    let desired = one(&v4(5), "10.100.1.0-24", &[by_hand, other]);
    let decisions: Vec<&PeerDecision> = desired.networks[0].peers.iter().map(|peer| &peer.decision).collect();
    assert!(matches!(decisions[0], PeerDecision::Programmed(_)), "{decisions:?}");
    assert!(matches!(decisions[1], PeerDecision::Ignored { .. }), "{decisions:?}");
    assert_eq!(desired.state.neighbours.len(), 1);
}

#[test]
fn two_networks_of_one_key_are_not_both_programmed() {
    let (a, b) = (v4(3), config(Some("10.200.0.0/16"), None, backend(3)));
    let names: [NetworkName; 2] = ["a".parse().unwrap(), "b".parse().unwrap()];
    let network = |name, config, own: &str| NetworkInput {
        name,
        config,
        stage: Stage::default(),
        own: own.parse().unwrap(),
        peers: &[],
        bridge: None,
        masquerade: true,
        guard: None,
    };
    let networks = [network(&names[0], &a, "10.100.1.0-24"), network(&names[1], &b, "10.200.1.0-24")];
    let (underlay, facts) = (underlay(), facts());
    let desired = desired(&HostInput {
        store: &[],
        node: NODE,
        key: Ok(key(0xa)),
        underlay: &underlay,
        facts: &facts,
        exposure: &crate::exposure::Exposure::default(),
        networks: &networks,
    });
    assert_eq!(codes(&desired), ["gre-key-conflict"]);
    assert_eq!(desired.state.links.len(), 1);
}

#[test]
fn what_is_published_names_the_key_for_each_family() {
    let config = config(Some("10.100.0.0/16"), Some("fd00:100::/56"), backend(5));
    let name = NetworkName::default_network();
    let publication = crate::backend::publication(NODE, None, &name, &config, &underlay()).unwrap();
    let data = BackendData::Gre { key: GreKey::new(5) };
    assert_eq!((publication.backend, &publication.data, &publication.data_v6), (BackendKind::Gre, &data, &data));
}
