use super::*;
use crate::fixture::{self, NODE, config, facts, interface, key, peer, vxlan, wireguard};
use crate::object::{Altered, ObjectKey};
use flatnet_model::state::ConfigState;
use flatnet_model::{BackendConfig, GreConfig, Owner};

const OWN: &str = "10.0.40.0-24";

/// A host with one network, of which tests change what they are about.
struct Host {
    facts: HostFacts,
    selection: Selection,
    underlay: Option<Underlay>,
    recorded: Option<Underlay>,
    exposure: Exposure,
    key: Option<Result<WireguardKey, Problem>>,
    take_over: bool,
    guards: Vec<FirewallNetwork>,
    networks: Vec<Network>,
}

struct Network {
    name: NetworkName,
    state: NetworkState,
    is_whole: bool,
    held: Option<(SubnetKey, NetworkConfig)>,
    bridge: Option<IfName>,
}

impl Network {
    fn new(name: &str, config: &NetworkConfig, held: Option<&str>) -> Self {
        Self {
            name: name.parse().unwrap(),
            state: NetworkState { config: ConfigState::Valid(config.clone()), ..NetworkState::default() },
            is_whole: true,
            held: held.map(|own| (own.parse().unwrap(), config.clone())),
            bridge: None,
        }
    }

    fn with_leases(mut self, leases: Vec<Lease>) -> Self {
        self.state.leases = leases.into_iter().map(|lease| (lease.subnets, lease)).collect();
        self
    }
}

impl Host {
    fn with(networks: Vec<Network>) -> Self {
        Self {
            facts: facts(),
            selection: Selection { ifaces: vec!["eth0".to_owned()], ..Selection::default() },
            underlay: None,
            recorded: None,
            exposure: Exposure::default(),
            key: None,
            take_over: false,
            guards: Vec::new(),
            networks,
        }
    }

    /// Takes what the next pass needs of this one, as the loop does.
    fn pass(&mut self) -> Wanted {
        let mut wanted = self.want();
        wanted.remember(&mut self.guards);
        self.underlay.clone_from(&wanted.underlay);
        wanted
    }

    fn want(&self) -> Wanted {
        let none = Change::default();
        let joined: Vec<Joined<'_>> = self
            .networks
            .iter()
            .map(|network| Joined {
                name: &network.name,
                state: &network.state,
                is_whole: network.is_whole,
                held: network.held.as_ref().map(|(subnets, config)| Hold { subnets: *subnets, config, change: &none }),
                bridge: network.bridge,
            })
            .collect();
        want(&Inputs {
            node: NODE,
            facts: &self.facts,
            selection: &self.selection,
            underlay: self.underlay.as_ref(),
            recorded: self.recorded.as_ref(),
            store: &[],
            exposure: &self.exposure,
            key: self.key.as_ref(),
            masquerade: true,
            take_over: self.take_over,
            guards: &self.guards,
            networks: &joined,
        })
    }

    fn lose_ipv6(&mut self) {
        for interface in &mut self.facts.interfaces {
            interface.addresses.retain(|address| IpFamily::of(address.addr()) == IpFamily::V4);
        }
    }
}

fn v4() -> NetworkConfig {
    config(Some("10.0.0.0/16"), None, vxlan())
}

fn dual() -> NetworkConfig {
    config(Some("10.0.0.0/16"), Some("fd00::/48"), vxlan())
}

fn one() -> Host {
    Host::with(vec![Network::new("default", &v4(), Some(OWN)).with_leases(vec![peer("10.0.1.0-24", 1, &vxlan())])])
}

fn codes(problems: &[Problem]) -> Vec<ProblemCode> {
    problems.iter().map(|problem| problem.code).collect()
}

#[test]
fn without_an_underlay_nothing_is_wanted_nothing_may_go_and_nothing_is_forgotten() {
    let mut host = one();
    host.pass();
    let guards = host.guards.clone();
    assert_eq!(guards.len(), 1);
    host.underlay = None;
    host.selection.ifaces = vec!["eth9".to_owned()];
    let wanted = host.pass();
    assert_eq!((wanted.desired, wanted.prune, wanted.underlay), (Desired::default(), Prune::No, None));
    assert_eq!(codes(&wanted.problems), [ProblemCode::UnderlayMissing]);
    assert_eq!(host.guards, guards);
}

#[test]
fn an_underlay_that_is_gone_stays_in_force_and_is_said() {
    let mut host = one();
    let before = host.pass();
    host.selection.ifaces = vec!["eth9".to_owned()];
    let wanted = host.pass();
    assert_eq!((&wanted.underlay, wanted.prune), (&before.underlay, Prune::Yes));
    assert_eq!(wanted.desired.state, before.desired.state);
    assert_eq!(codes(&wanted.problems), [ProblemCode::UnderlayMissing]);
}

#[test]
fn a_family_that_is_lost_is_kept_from_the_last_pass_or_else_from_the_last_run() {
    let held = || Network::new("default", &dual(), Some("10.0.40.0-24&fd00:0:0:28::-64"));
    for in_this_run in [true, false] {
        let mut host = Host::with(vec![held()]);
        let before = host.want();
        assert!(before.problems.is_empty(), "{:?}", before.problems);
        match in_this_run {
            true => host.underlay.clone_from(&before.underlay),
            false => host.recorded.clone_from(&before.underlay),
        }
        host.lose_ipv6();
        let wanted = host.want();
        assert_eq!((&wanted.underlay, codes(&wanted.problems)), (&before.underlay, vec![ProblemCode::UnderlayMissing]));
        assert!(!wanted.desired.unsettled);
    }
}

#[test]
fn what_is_not_wanted_may_go_only_where_everything_that_may_be_wanted_is_known() {
    let mut host = one();
    assert_eq!(host.want().prune, Prune::Yes);
    host.networks[0].is_whole = false;
    assert_eq!(host.want().prune, Prune::No, "the last run's snapshot may be old");
    host.networks[0].is_whole = true;
    host.networks.push(Network::new("two", &config(Some("10.1.0.0/16"), None, fixture::wireguard()), None));
    assert_eq!(host.want().prune, Prune::No, "its lease may be found yet");
    host.networks[1].state.config = ConfigState::Missing;
    assert_eq!(host.want().prune, Prune::Yes, "nobody can hold a lease there");
    host.networks[1] = Network::new("two", &v4(), Some("10.0.41.0-24"));
    assert_eq!(host.want().prune, Prune::Settled, "it contradicts the first one and waits");
}

#[test]
fn peers_are_all_leases_that_hold_but_those_of_this_host() {
    let mut host = one();
    let mut left_over = peer("10.0.2.0-24", 2, &vxlan());
    left_over.owner = Some(Owner { node: NODE, name: String::new(), nonce: flatnet_model::InstanceNonce::new(1) });
    let outside = peer("10.9.0.0-24", 3, &vxlan());
    let others = [peer("10.0.1.0-24", 1, &vxlan()), left_over, outside, peer(OWN, 4, &vxlan())];
    host.networks[0].state.leases = others.into_iter().map(|lease| (lease.subnets, lease)).collect();
    host.networks[0].state.revision = 7;
    let wanted = host.want();
    let peers: Vec<String> = wanted.desired.networks[0].peers.iter().map(|peer| peer.subnets.to_string()).collect();
    assert_eq!(peers, ["10.0.1.0-24"]);
    assert_eq!((codes(&wanted.problems), wanted.revision), (vec![ProblemCode::LeaseRefused], 7));
}

#[test]
fn the_bridge_is_in_its_own_network_only_while_that_is_held() {
    let beside = config(Some("10.1.0.0/16"), None, BackendConfig::HostGw);
    let mut host = one();
    host.networks.push(Network::new("two", &beside, Some("10.1.41.0-24")));
    host.networks[1].bridge = Some(fixture::device("br0"));
    let bridges = |host: &Host| {
        let state = host.want().desired.state;
        let of_bridge = state.addresses.iter().filter(|key| key.device == fixture::device("br0"));
        of_bridge.map(|key| key.address.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(bridges(&host), ["10.1.41.1/24"]);
    host.networks[1].held = None;
    assert_eq!(bridges(&host), [""; 0]);
}

#[test]
fn a_network_that_is_not_held_is_judged_and_so_is_a_configuration_that_is_not_in_force() {
    let mut host = one();
    host.networks.push(Network::new("overlapping", &v4(), None));
    host.networks.push(Network::new("right", &config(Some("10.2.0.0/16"), None, BackendConfig::HostGw), None));
    assert_eq!(host.want().judgements.len(), 2, "what is in force is not judged");
    let wider = config(Some("10.0.0.0/8"), None, vxlan());
    host.networks[0].state.config = ConfigState::Valid(wider.clone());
    let judgements = host.want().judgements;
    let of = |name: &str| &judgements[&name.parse::<NetworkName>().unwrap()];
    assert_eq!(of("overlapping").refused.as_ref().map(|problem| problem.code), Some(ProblemCode::NetworkOverlap));
    assert_eq!(of("right").refused, None);
    assert_eq!((&of("default").config, &of("default").refused), (&wider, &None));
}

#[test]
fn a_device_of_flanneld_keeps_a_lease_from_being_taken_unless_it_is_taken_over() {
    let mut host = Host::with(vec![Network::new("default", &v4(), None)]);
    host.facts.interfaces.push(interface("flannel.1", &[]));
    let refused = |host: &Host| {
        let judgement = &host.want().judgements[&NetworkName::default_network()];
        judgement.refused.as_ref().map(|problem| problem.code)
    };
    assert_eq!(refused(&host), Some(ProblemCode::FlannelDevice));
    host.take_over = true;
    assert_eq!(refused(&host), None);
    host.take_over = false;
    // It has no part in what has no VNI.
    host.networks = vec![Network::new("default", &config(Some("10.0.0.0/16"), None, BackendConfig::HostGw), None)];
    assert_eq!(refused(&host), None);
}

#[test]
fn a_network_that_is_refused_keeps_its_part_of_the_guard_for_as_long_as_it_is_held() {
    let mut host = one();
    let before = host.pass().desired.state;
    assert!(!before.peer_sources.is_empty());
    // The host loses what the network needs: its configuration names a family that is not there.
    host.networks[0].held = Some((OWN.parse().unwrap(), config(Some("10.9.0.0/16"), None, vxlan())));
    let wanted = host.pass();
    assert!(wanted.desired.unsettled && !wanted.desired.guard_unknown);
    assert_eq!(host.guards.len(), 1, "it is remembered over passes that refuse it");
    host.networks[0].held = None;
    host.pass();
    assert_eq!(host.guards.len(), 0);
}

#[test]
fn a_guard_of_an_earlier_run_is_kept_while_its_network_waits_unless_somebody_changed_it() {
    let loaded = one().want().desired.state;
    let mut host = one();
    host.networks[0].held = Some((OWN.parse().unwrap(), config(Some("10.9.0.0/16"), None, vxlan())));
    for is_changed in [false, true] {
        let mut found = loaded.clone();
        if is_changed {
            found.alter(ObjectKey::Ruleset, Altered::InPlace);
        }
        let mut wanted = host.want();
        assert!(wanted.desired.guard_unknown);
        wanted.keep(&found);
        assert_eq!(wanted.desired.state.ruleset == loaded.ruleset, !is_changed);
        assert!(wanted.desired.state.ruleset.is_some());
        assert_eq!(
            wanted.desired.state.peer_sources, loaded.peer_sources,
            "the table that is wanted has the same sets"
        );
    }
}

#[test]
fn the_key_is_told_only_where_there_is_one_and_its_lack_is_the_networks_problem() {
    let encrypted = config(Some("10.0.0.0/16"), None, wireguard());
    let mut host = Host::with(vec![Network::new("default", &encrypted, Some(OWN))]);
    host.key = Some(Ok(key(0xa)));
    let wanted = host.want();
    assert_eq!((wanted.key, wanted.desired.unsettled), (Some(key(0xa)), false));
    let unreadable = Problem::new(ProblemCode::WireguardNoKey, "it cannot be read", "chmod", "wireguard.key");
    host.key = Some(Err(unreadable.clone()));
    let wanted = host.want();
    assert_eq!((wanted.key, &wanted.desired.problems), (None, &vec![unreadable]));
    assert_eq!(one().want().key, None);
}

#[test]
fn a_network_needs_a_key_or_a_look_at_carriers_by_its_backend_alone() {
    let needs = |backends: &[BackendConfig]| {
        let needs = backend::Needs::of(backends);
        (needs.key, needs.carriers)
    };
    let gre = BackendConfig::Gre(GreConfig::default());
    assert_eq!(needs(&[]), (false, false));
    assert_eq!(needs(&[vxlan(), BackendConfig::HostGw]), (false, false));
    assert_eq!(needs(&[vxlan(), wireguard()]), (true, false));
    assert_eq!(needs(std::slice::from_ref(&gre)), (false, true));
    assert_eq!(needs(&[wireguard(), gre]), (true, true));
}
