//! A network that is refused, for whatever reason, loses nothing it had.

use std::collections::BTreeMap;

use flatnet_model::{GreConfig, GreKey, NetworkConfig, WireguardConfig};

use super::*;
use crate::facts::HostFacts;
use crate::fixture::{key, wireguard};
use crate::op::Action;
use crate::underlay::Underlay;

/// A reason for which a network may be refused after it ran.
struct Refusal {
    code: &'static str,
    backend: BackendConfig,
    host: fn(&mut HostFacts, &mut Underlay),
    /// The backend that the network joined before it has by now.
    other: Option<BackendConfig>,
    other_range: &'static str,
    own: &'static str,
    keyless: bool,
}

impl Refusal {
    fn new(code: &'static str, backend: BackendConfig) -> Self {
        let nothing = |_: &mut HostFacts, _: &mut Underlay| {};
        Self { code, backend, host: nothing, other: None, other_range: "10.101.0.0/16", own: OWN, keyless: false }
    }
}

const OWN: &str = "10.100.1.0-24&fd00:100:0:1::-64";

fn vni(vni: u32) -> BackendConfig {
    BackendConfig::Vxlan(VxlanConfig { vni: Vni::new(vni).unwrap(), ..VxlanConfig::default() })
}

fn gre() -> BackendConfig {
    BackendConfig::Gre(GreConfig { key: GreKey::new(7), ..GreConfig::default() })
}

fn refusals() -> Vec<Refusal> {
    let no_v6: fn(&mut HostFacts, &mut Underlay) = |_, underlay| (underlay.v6, underlay.public_v6) = (None, None);
    let small: fn(&mut HostFacts, &mut Underlay) = |_, underlay| underlay.mtu = Mtu::new(1300).unwrap();
    let other = |code, backend, other| Refusal { other: Some(other), ..Refusal::new(code, backend) };
    vec![
        Refusal { host: no_v6, ..Refusal::new("underlay-family", vni(2)) },
        Refusal { host: small, ..Refusal::new("underlay-mtu", vni(2)) },
        Refusal { host: small, ..Refusal::new("underlay-mtu", gre()) },
        Refusal { host: small, ..Refusal::new("underlay-mtu", wireguard()) },
        Refusal {
            host: |facts, _| facts.features.wireguard = None,
            ..Refusal::new("wireguard-unsupported", wireguard())
        },
        Refusal { keyless: true, ..Refusal::new("wireguard-key-file", wireguard()) },
        Refusal { host: |facts, _| facts.features.gre.v4 = None, ..Refusal::new("module-missing", gre()) },
        Refusal {
            host: |_, underlay| underlay.public_v4 = Some([203, 0, 113, 1].into()),
            ..Refusal::new("public-ip-host-gw", BackendConfig::HostGw)
        },
        Refusal { own: "10.99.1.0-24&fd00:99:0:1::-64", ..Refusal::new("own-subnet-outside", vni(2)) },
        Refusal { other_range: "10.100.128.0/17", ..other("network-overlap", vni(2), vni(9)) },
        other("vni-conflict", vni(2), vni(2)),
        other("gre-key-conflict", gre(), gre()),
        other("port-conflict", wireguard(), vxlan_on(WireguardConfig::DEFAULT_PORT)),
        other("port-conflict", vxlan_on(51820), wireguard()),
    ]
}

fn vxlan_on(port: u16) -> BackendConfig {
    BackendConfig::Vxlan(VxlanConfig { port, vni: Vni::new(5).unwrap(), ..VxlanConfig::default() })
}

struct World {
    facts: HostFacts,
    underlay: Underlay,
    first: NetworkConfig,
    second: NetworkConfig,
    own: &'static str,
    keyless: bool,
}

impl World {
    /// Returns the host before anything was wrong: a first network, and one with a peer.
    fn fine(refusal: &Refusal) -> Self {
        Self {
            facts: facts(),
            underlay: underlay(),
            first: config(Some("10.101.0.0/16"), None, vni(99)),
            second: dual(refusal.backend.clone()),
            own: OWN,
            keyless: false,
        }
    }

    fn spoilt(refusal: &Refusal) -> Self {
        let mut world = Self::fine(refusal);
        (refusal.host)(&mut world.facts, &mut world.underlay);
        if let Some(other) = &refusal.other {
            world.first = config(Some(refusal.other_range), Some("fd00:101::/48"), other.clone());
        }
        (world.own, world.keyless) = (refusal.own, refusal.keyless);
        world
    }

    fn desired(&self, guards: &[FirewallNetwork]) -> Desired {
        let names: [NetworkName; 2] = ["first".parse().unwrap(), "second".parse().unwrap()];
        let peer = peer("10.100.2.0-24&fd00:100:0:2::-64", 12, &self.second.backend);
        let of = |name: &NetworkName| guards.iter().find(|guard| guard.name == *name);
        let peers = [&peer];
        let nth = |pool: Option<flatnet_model::Pool>| pool.and_then(|pool| pool.nth(0));
        let v4 = nth(self.first.v4).and_then(|net| if let IpNet::V4(net) = net { Some(net) } else { None });
        let v6 = nth(self.first.v6).and_then(|net| if let IpNet::V6(net) = net { Some(net) } else { None });
        let first_own = SubnetKey::new(v4, v6).unwrap();
        let network = |name, config, own, peers, guard| NetworkInput {
            name,
            config,
            own,
            stage: Stage::default(),
            peers,
            bridge: None,
            masquerade: true,
            guard,
        };
        let networks = [
            network(&names[0], &self.first, first_own, &[][..], of(&names[0])),
            network(&names[1], &self.second, self.own.parse().unwrap(), &peers[..], of(&names[1])),
        ];
        let none = Problem::new(ProblemCode::WireguardKeyFile, "the key cannot be read", "", "");
        desired(&HostInput {
            node: NODE,
            key: if self.keyless { Err(&none) } else { Ok(key(0xa)) },
            underlay: &self.underlay,
            facts: &self.facts,
            store: &[],
            exposure: &crate::exposure::Exposure::default(),
            networks: &networks,
        })
    }
}

#[test]
fn whatever_a_network_is_refused_for_nothing_of_it_is_deleted_and_its_guard_stays() {
    for refusal in refusals() {
        let code = refusal.code;
        let before = World::fine(&refusal).desired(&[]);
        assert_eq!((codes(&before).len(), before.unsettled), (0, false), "{code}");
        let after = World::spoilt(&refusal).desired(&before.guards);
        assert_eq!(codes(&after), [code]);
        assert!(after.unsettled && !after.guard_unknown, "{code}");
        for range in ["10.100.0.0/16", "fd00:100::/48"] {
            let refuses = RouteKey::unreachable(range.parse().unwrap());
            assert!(after.state.routes.contains_key(&refuses), "{code}: {range} may leave by the default route");
        }
        let second = |desired: &Desired| {
            let is_there = |line: &&str| line.contains("second");
            desired.state.ruleset.iter().flat_map(|set| set.body.lines().filter(is_there)).map(str::to_owned).collect()
        };
        let (had, has): (Vec<String>, Vec<String>) = (second(&before), second(&after));
        // A tunnel that the other network has by now is guarded as that network's.
        if refusal.other.is_none() {
            assert_eq!(had, has, "{code}");
            assert_eq!(before.state.peer_sources, after.state.peer_sources, "{code}");
        }
        assert!(!has.is_empty(), "{code}: the guard is gone");
        let found = Dump { state: before.state.clone(), ..Dump::default() };
        let plan = plan(&after.state, &found, Prune::Settled);
        // If a network left something on a device that is another's by now, that other network tidies it up.
        let gone = plan.ops.iter().find(|op| op.action == Action::Delete && refusal.other.is_none());
        assert_eq!(gone, None, "{code}");
    }
}

/// A host removed from the store must not go on sending because another network waits, and least of all to that one.
#[test]
fn beside_a_refused_network_whoever_was_removed_is_out_and_nothing_else() {
    for backend in [vni(2), gre(), wireguard(), BackendConfig::HostGw] {
        let first = |backend: &BackendConfig| {
            let leases = [peer("10.101.2.0-24", 12, backend), peer("10.101.3.0-24", 13, backend)];
            (config(Some("10.101.0.0/16"), None, backend.clone()), leases)
        };
        let own_backend = match &backend {
            BackendConfig::Gre(_) => BackendConfig::Gre(GreConfig { key: GreKey::new(8), ..GreConfig::default() }),
            BackendConfig::Wireguard(_) => {
                BackendConfig::Wireguard(WireguardConfig { port: 51999, port_v6: 51998, ..WireguardConfig::default() })
            }
            _ => vni(99),
        };
        let (first_config, first_peers) = first(&own_backend);
        let second_config = dual(backend.clone());
        let of_second = "10.100.2.0-24&fd00:100:0:2::-64";
        let second_peers = [peer(of_second, 12, &backend), peer("10.100.3.0-24&fd00:100:0:3::-64", 13, &backend)];
        let names: [NetworkName; 2] = ["first".parse().unwrap(), "second".parse().unwrap()];
        let run = |own: &str, peers: usize, guards: &[FirewallNetwork]| {
            let of = |name: &NetworkName| guards.iter().find(|guard| guard.name == *name);
            let first_peers: Vec<_> = first_peers.iter().take(peers).collect();
            let second_peers: Vec<_> = second_peers.iter().take(peers).collect();
            let network = |name, config, own: &str, peers, guard| NetworkInput {
                name,
                config,
                own: own.parse().unwrap(),
                stage: Stage::default(),
                peers,
                bridge: None,
                masquerade: true,
                guard,
            };
            desired(&HostInput {
                node: NODE,
                key: Ok(key(0xa)),
                underlay: &underlay(),
                facts: &facts(),
                store: &[],
                exposure: &crate::exposure::Exposure::default(),
                networks: &[
                    network(&names[0], &first_config, "10.101.1.0-24", &first_peers[..], of(&names[0])),
                    network(&names[1], &second_config, own, &second_peers[..], of(&names[1])),
                ],
            })
        };
        let before = run(OWN, 2, &[]);
        assert_eq!(codes(&before), [""; 0], "{backend:?}");
        // The second one is refused, and the other host is removed from both.
        let mut after = run("10.99.1.0-24&fd00:99:0:1::-64", 1, &before.guards);
        assert_eq!(codes(&after), ["own-subnet-outside"], "{backend:?}");
        after.keep_waiting(&before.state);
        let mut state = before.state.clone();
        for op in plan(&after.state, &Dump { state: before.state.clone(), ..Dump::default() }, Prune::Settled).ops {
            state.apply(&op);
        }
        let is_third = |net: &IpNet| {
            ["10.101.3.0/24", "10.100.3.0/24", "fd00:100:0:3::/64", "192.0.2.13/32"].contains(&net.to_string().as_str())
        };
        let left: Vec<_> = state.peer_sources.iter().filter(|source| is_third(&source.inner)).collect();
        assert!(left.is_empty(), "{backend:?}: {left:?}");
        let routes = |state: &KernelState| state.routes.keys().map(|key| key.destination).collect::<Vec<_>>();
        let gone: Vec<IpNet> = routes(&before.state).into_iter().filter(|net| !routes(&state).contains(net)).collect();
        let of_third = |net: &str| net.parse::<IpNet>().unwrap();
        let expected = match &backend {
            // Direct routes are on no device of the network's own, and routes of GRE over IPv6 are on one that networks
            // share.
            BackendConfig::HostGw => vec![of_third("10.101.3.0/24")],
            BackendConfig::Gre(_) => ["10.100.3.0/24", "10.101.3.0/24"].map(of_third).into(),
            _ => ["10.100.3.0/24", "10.101.3.0/24", "fd00:100:0:3::/64"].map(of_third).into(),
        };
        assert_eq!(gone, expected, "{backend:?}");
        // One half of each device's entries for peers goes.
        let on_devices = |state: &KernelState| {
            let devices = state.fdb.keys().map(|key| key.device).chain(state.neighbours.keys().map(|key| key.device));
            let devices = devices.chain(state.wireguard_peers.keys().map(|key| key.device));
            let nexthops = state.nexthops.values().map(|nexthop| nexthop.via.device);
            let mut counts = BTreeMap::<IfName, usize>::new();
            let tunnels = devices.chain(nexthops).filter(|device| state.links.contains_key(device));
            tunnels.for_each(|device| *counts.entry(device).or_default() += 1);
            counts
        };
        let (had, has) = (on_devices(&before.state), on_devices(&state));
        assert!(had.iter().all(|(device, count)| has.get(device).copied() == Some(count / 2)), "{had:?} {has:?}");
        assert_eq!(state.links, before.state.links, "{backend:?}");
    }
}

#[test]
fn a_network_refused_from_the_start_of_a_run_is_shut_and_refuses_what_it_does_not_know() {
    for refusal in refusals().into_iter().filter(|refusal| refusal.other.is_none()) {
        let code = refusal.code;
        let desired = World::spoilt(&refusal).desired(&[]);
        assert!(desired.unsettled && desired.guard_unknown, "{code}");
        let body = desired.state.ruleset.as_ref().map(|set| set.body.clone()).unwrap_or_default();
        let closed = match refusal.backend {
            BackendConfig::Vxlan(_) => "tunnel_8472_2",
            BackendConfig::Gre(_) => "second",
            BackendConfig::Wireguard(_) => "second: encrypted or dropped",
            BackendConfig::HostGw | BackendConfig::Unsupported(_) => "",
        };
        assert!(body.contains(closed), "{code}: {body}");
        let inside = |source: &&crate::object::PeerSource| source.inner.to_string().starts_with("10.100.");
        assert_eq!(desired.state.peer_sources.iter().find(inside), None, "{code}: nobody may send to it");
    }
}

#[test]
fn an_address_that_turns_up_in_the_range_of_a_network_is_said_and_takes_nothing_down() {
    for backend in [vxlan(), wireguard(), gre(), BackendConfig::HostGw] {
        let config = dual(backend.clone());
        let peers = [peer("10.100.2.0-24&fd00:100:0:2::-64", 12, &backend)];
        let before = one(&config, OWN, &peers);
        let strays: [(&str, &str); 6] = [
            ("lo", "10.100.250.6/32"),
            ("wg0", "10.100.250.6/16"),
            ("eth1", "10.100.7.33/24"),
            ("lo", "fd00:100:0:9::1/128"),
            ("eth1", "10.100.2.77/24"),
            ("lo", "10.100.3.3/24"),
        ];
        for (device, address) in strays {
            let mut facts = facts();
            facts.interfaces.push(interface(device, &[address]));
            let after = with(&facts, &underlay(), &config, OWN, &peers);
            assert_eq!(codes(&after), ["network-covers-host"], "{address}");
            assert_eq!((&after.state, after.unsettled), (&before.state, false), "{address}");
        }
    }
}
