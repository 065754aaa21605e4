use std::net::IpAddr;

use flatnet_model::{BackendConfig, Lease, NetworkConfig, NetworkName, Pool};
use ipnet::IpNet;

use crate::desired::{Desired, HostInput, NetworkInput, PeerDecision, desired};
use crate::diff::Prune;
use crate::env_file::EnvFile;
use crate::facts::HostFacts;
use crate::firewall::FirewallNetwork;
use crate::fixture::{NODE, codes, config, facts, interface, key, peer, underlay, vxlan, wireguard};
use crate::object::{Dump, RouteVia};
use crate::op::{Action, Object, Op};
use crate::plan::plan;
use crate::transition::Stage;
use crate::underlay::Underlay;

/// Returns flannel's example, and an IPv6 range that is bounded on one side.
fn bounded(backend: BackendConfig) -> NetworkConfig {
    let address = |text: &str| Some(text.parse().unwrap());
    let v4 = Pool::new("10.0.0.0/8".parse().unwrap(), Some(20), address("10.10.0.0"), address("10.99.0.0"));
    let v6 = Pool::new("fd00:100::/48".parse().unwrap(), Some(64), None, address("fd00:100:0:ff::"));
    NetworkConfig { v4: Some(v4.unwrap()), v6: Some(v6.unwrap()), ..config(None, None, backend) }
}

const V4: [&str; 8] = [
    "10.10.0.0/15",
    "10.12.0.0/14",
    "10.16.0.0/12",
    "10.32.0.0/11",
    "10.64.0.0/11",
    "10.96.0.0/15",
    "10.98.0.0/16",
    "10.99.0.0/20",
];
const V6: &str = "fd00:100::/56";
const OWN: &str = "10.10.0.0-20&fd00:100:0:1::-64";

/// Returns a host that lives in the range, as its peers, its resolver and its store do.
fn host() -> (HostFacts, Underlay, Vec<IpAddr>) {
    let mut facts = facts();
    facts.interfaces[1] = interface("eth0", &["10.240.0.1/24", "fd00:100:0:f000::1/64"]);
    facts.resolvers = vec!["10.250.0.53".parse().unwrap()];
    facts.gateways = vec!["10.240.0.254".parse().unwrap()];
    let (v4, v6) = ("10.240.0.1".parse().ok(), "fd00:100:0:f000::1".parse().ok());
    (facts, Underlay { v4, v6, public_v4: v4, public_v6: v6, ..underlay() }, vec!["10.240.0.9".parse().unwrap()])
}

/// Returns a peer that lives in the range.
fn beside(subnets: &str, node: u8, backend: &BackendConfig) -> Lease {
    Lease {
        public_ip: Some([10, 240, 0, node].into()),
        public_ipv6: Some(format!("fd00:100:0:f000::{node}").parse().unwrap()),
        ..peer(subnets, node, backend)
    }
}

fn with(config: &NetworkConfig, own: &str, peers: &[Lease], guard: Option<&FirewallNetwork>) -> Desired {
    let (facts, underlay, store) = host();
    let name = NetworkName::default_network();
    let peers: Vec<&Lease> = peers.iter().collect();
    let network = NetworkInput {
        name: &name,
        config,
        stage: Stage::default(),
        own: own.parse().unwrap(),
        peers: &peers,
        bridge: None,
        masquerade: true,
        guard,
    };
    desired(&HostInput {
        store: &store,
        node: NODE,
        key: Ok(key(0xa)),
        underlay: &underlay,
        facts: &facts,
        exposure: &crate::exposure::Exposure::default(),
        networks: &[network],
    })
}

fn texts(nets: impl IntoIterator<Item = IpNet>) -> Vec<String> {
    nets.into_iter().map(|net| net.to_string()).collect()
}

/// Returns the ranges that are refused if no other route leads there.
fn refused(desired: &Desired) -> Vec<String> {
    let routes = desired.state.routes.iter().filter(|(_, route)| route.via == RouteVia::Unreachable);
    texts(routes.map(|(key, _)| key.destination))
}

fn is_programmed(desired: &Desired, index: usize) -> bool {
    matches!(desired.networks[0].peers[index].decision, PeerDecision::Programmed(_))
}

#[test]
fn hosts_may_live_in_what_a_network_does_not_hand_out_whatever_the_backend() {
    let gre = BackendConfig::Gre(flatnet_model::GreConfig::default());
    for backend in [vxlan(), wireguard(), gre, BackendConfig::HostGw] {
        let config = bounded(backend.clone());
        let own: flatnet_model::SubnetKey = OWN.parse().unwrap();
        let desired = with(&config, OWN, &[beside("10.11.0.0-20&fd00:100:0:2::-64", 12, &backend)], None);
        assert_eq!(codes(&desired), Vec::<&str>::new(), "{backend:?}");
        assert!(is_programmed(&desired, 0), "{backend:?}: {:?}", desired.networks);
        assert_eq!(refused(&desired), [&V4[..], &[V6]].concat(), "{backend:?}");
        assert_eq!(texts(desired.guards[0].cidrs.clone()), [&V4[..], &[V6]].concat(), "{backend:?}");
        let rules = &desired.state.ruleset.as_ref().unwrap().body;
        assert!(!rules.contains("10.0.0.0/8") && !rules.contains("fd00:100::/48"), "{backend:?}: {rules}");
        assert!(rules.contains("10.10.0.0-10.99.15.255"), "{backend:?}: {rules}");
        let env = EnvFile::new(&config, own, flatnet_model::Mtu::new(1450).unwrap(), true);
        assert_eq!(
            env.v4.unwrap().network.to_string(),
            "10.0.0.0/8",
            "the file says the whole range, as flannel's does"
        );
    }
}

#[test]
fn without_bounds_the_whole_range_is_the_networks() {
    let backend = vxlan();
    let whole = config(Some("10.100.0.0/16"), Some("fd00:100::/48"), backend.clone());
    let outside = peer("10.100.3.0-24&fd00:100:0:3::-64", 12, &backend);
    let desired = crate::fixture::one(&whole, "10.100.1.0-24&fd00:100:0:1::-64", &[outside]);
    assert_eq!(refused(&desired), ["10.100.0.0/16", "fd00:100::/48"]);
    assert_eq!(texts(desired.guards[0].cidrs.clone()), ["10.100.0.0/16", "fd00:100::/48"]);
}

#[test]
fn leases_beside_what_is_handed_out_are_the_networks_for_as_long_as_they_are_there() {
    let backend = wireguard();
    let config = bounded(backend.clone());
    // The bounds were narrowed after these were taken, this host's own lease too.
    let (own, stale) = ("10.200.16.0-20&fd00:100:0:1::-64", "10.200.0.0-20&fd00:100:0:200::-64");
    let peers = [beside("10.11.0.0-20&fd00:100:0:2::-64", 12, &backend), beside(stale, 13, &backend)];
    let more = ["10.200.0.0/20", "10.200.16.0/20", V6, "fd00:100:0:200::/64"];
    let before = with(&config, own, &peers, None);
    assert_eq!(codes(&before), Vec::<&str>::new());
    assert!(is_programmed(&before, 0) && is_programmed(&before, 1), "{:?}", before.networks);
    assert_eq!(refused(&before), [&V4[..], &more[..]].concat());
    let rules = &before.state.ruleset.as_ref().unwrap().body;
    // In "encrypted or dropped", two neighbouring subnets are merged into one.
    let all = format!("{{ {}, 10.200.0.0/19 }}", V4.join(", "));
    assert!(rules.contains(&format!("ip daddr {all} ip daddr != 10.200.16.0/20 counter drop")), "{rules}");
    assert!(rules.contains(&format!("{{ {V6}, fd00:100:0:200::/64 }}")), "{rules}");

    let after = with(&config, own, &peers[..1], None);
    assert_eq!(refused(&after), [&V4[..], &["10.200.16.0/20", V6]].concat(), "what nobody holds is nobody's");
    let found = Dump { state: before.state, ..Dump::default() };
    let plan = plan(&after.state, &found, Prune::Yes);
    let deleted = plan.ops.iter().filter(|op| op.action == Action::Delete);
    let routes: Vec<_> =
        deleted.filter(|op| matches!(op.object, Object::Route(..))).map(|op| op.object.to_string()).collect();
    for gone in ["route 10.200.0.0/20", "route fd00:100:0:200::/64"] {
        assert_eq!(routes.iter().filter(|route| *route == gone).count(), 2, "the peer's and the catch-all: {routes:?}");
    }
}

#[test]
fn a_lease_beside_what_is_handed_out_takes_nothing_from_hosts() {
    let backend = vxlan();
    let config = bounded(backend.clone());
    let near = beside("10.11.0.0-20", 12, &backend);
    for (lease, found) in [
        ("10.240.0.0-20", "10.240.0.0/24"),
        ("10.240.0.0-28", "10.240.0.0/24"),
        ("10.250.0.0-20", "10.250.0.53/32"),
        // The place where a peer lives, behind a router: the peer's own, and another one's.
        ("10.241.0.0-20", "10.241.0.77/32"),
        ("0.0.0.0-0&fd00:100:0:f000::-64", "fd00:100:0:f000::/64"),
    ] {
        let mut far = beside("10.12.0.0-20", 14, &backend);
        far.public_ip = Some([10, 241, 0, 77].into());
        let desired = with(&config, OWN, &[near.clone(), far, beside(lease, 13, &backend)], None);
        let fate = |subnets: &str| {
            let peers = &desired.networks[0].peers;
            peers.iter().find(|peer| peer.subnets == subnets.parse().unwrap()).unwrap().decision.clone()
        };
        assert!(matches!(&fate(lease), PeerDecision::Failed { reason } if reason.contains(found)), "{:?}", fate(lease));
        assert!(matches!(fate("10.11.0.0-20"), PeerDecision::Programmed(_)), "{lease}");
        assert!(matches!(fate("10.12.0.0-20"), PeerDecision::Programmed(_)), "{lease}: {:?}", desired.problems);
        assert!(desired.networks[0].peers.is_sorted_by_key(|peer| peer.subnets));
        let lease: flatnet_model::SubnetKey = lease.parse().unwrap();
        let is_untouched = |net: &IpNet| !lease.iter().any(|lease| lease.contains(net) || net.contains(&lease));
        assert!(desired.state.routes.keys().all(|key| is_untouched(&key.destination)), "{lease}");
        assert!(desired.guards[0].cidrs.iter().all(is_untouched), "{lease}");
        assert_eq!(codes(&desired), ["network-covers-host"]);
    }
    // An address that turns up in such a lease is this host's own, and takes nothing down.
    let (mut facts, underlay, _) = host();
    facts.interfaces[0].addresses.push("10.200.0.6/32".parse().unwrap());
    let kept = crate::fixture::with(&facts, &underlay, &config, OWN, &[beside("10.200.0.0-20", 13, &backend)]);
    assert!(is_programmed(&kept, 0), "{:?}", kept.problems);
    let many: Vec<Lease> = (0..64).map(|number| beside(&format!("10.240.0.{}-30", number * 4), 13, &backend)).collect();
    let desired = with(&config, OWN, &many, None);
    assert_eq!(codes(&desired), ["network-covers-host"], "said once");
    assert!(desired.problems[0].message.contains("and 63 more"), "{:?}", desired.problems);
}

#[test]
fn a_refused_network_keeps_no_hosts_from_each_other_either() {
    let config = bounded(BackendConfig::Unsupported(flatnet_model::BackendKind::from_name("ipsec")));
    let desired = with(&config, OWN, &[], None);
    assert_eq!(codes(&desired), ["backend-unsupported"]);
    assert_eq!(refused(&desired), [&V4[..], &[V6]].concat());
}

#[test]
fn the_catch_all_of_the_whole_range_goes_after_those_of_its_parts_have_come_and_the_other_way_round() {
    let backend = vxlan();
    let peers = [beside("10.11.0.0-20&fd00:100:0:2::-64", 12, &backend)];
    let narrow = with(&bounded(backend.clone()), OWN, &peers, None);
    let whole = |range: &str, len| Some(Pool::new(range.parse().unwrap(), Some(len), None, None).unwrap());
    let config = NetworkConfig { v4: whole("10.0.0.0/8", 20), v6: whole("fd00:100::/48", 64), ..bounded(backend) };
    let wide = with(&config, OWN, &peers, None);
    for (from, to) in [(&wide, &narrow), (&narrow, &wide)] {
        let found = Dump { state: from.state.clone(), ..Dump::default() };
        for prune in [Prune::Yes, Prune::Settled] {
            let plan = plan(&to.state, &found, prune);
            let catch_all = |action| -> Vec<usize> {
                let is_refusing =
                    |op: &Op| matches!(&op.object, Object::Route(_, route) if route.via == RouteVia::Unreachable);
                let ops = plan.ops.iter().enumerate().filter(|(_, op)| op.action == action && is_refusing(op));
                ops.map(|(index, _)| index).collect()
            };
            let (created, deleted) = (catch_all(Action::Create), catch_all(Action::Delete));
            assert!(!created.is_empty() && (!deleted.is_empty() || prune != Prune::Yes), "{:?}", plan.ops);
            assert!(created.iter().all(|create| deleted.iter().all(|delete| create < delete)), "{:?}", plan.ops);
        }
    }
}
