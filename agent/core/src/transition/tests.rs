use flatnet_model::{GreConfig, GreKey, InstanceNonce, IpFamily, Owner, SubnetKey, Vni, VxlanConfig};
use proptest::prelude::*;

use super::*;
use crate::desired::{Desired, HostInput, NetworkInput, desired};
use crate::facts::{HostFacts, Interface};
use crate::fixture::{config, facts, gre, interface, key, underlay, wireguard};
use crate::object::{Datapath, PeerSource, SetName};
use crate::outcome::PeerDecision;

const HOSTS: u8 = 3;

fn vxlan(vni: u32) -> BackendConfig {
    BackendConfig::Vxlan(VxlanConfig { vni: Vni::new(vni).unwrap(), ..VxlanConfig::default() })
}

fn gre_with(key: u32) -> BackendConfig {
    BackendConfig::Gre(GreConfig { key: GreKey::new(key), mtu: None })
}

fn network(backend: BackendConfig) -> NetworkConfig {
    config(Some("10.100.0.0/16"), None, backend)
}

/// Returns subnets far enough apart that no two are merged in a rule.
fn subnets(host: u8) -> SubnetKey {
    format!("10.100.{}.0-24", host * 16).parse().unwrap()
}

/// One agent: what it knows, and what it made of that.
#[derive(Clone, Debug)]
struct Host {
    number: u8,
    facts: HostFacts,
    config: NetworkConfig,
    change: Change,
    /// The store as it was when this host last looked.
    view: Vec<Lease>,
    made: Desired,
}

impl Host {
    fn new(number: u8, datapath: Datapath, config: &NetworkConfig) -> Self {
        let mut facts = facts();
        facts.features.gre = gre(datapath);
        let made = Desired::default();
        Self { number, facts, config: config.clone(), change: Change::default(), view: Vec::new(), made }
    }

    fn node(&self) -> NodeId {
        NodeId::new(u128::from(self.number))
    }

    fn underlay(&self) -> Underlay {
        let address = Some([192, 0, 2, 10 + self.number].into());
        Underlay { v4: address, public_v4: address, v6: None, public_v6: None, ..underlay() }
    }

    fn configured(&mut self, config: &NetworkConfig) {
        if self.config != *config {
            self.change = self.change.clone().turned(&self.config.backend, &config.backend);
            self.config = config.clone();
        }
    }

    fn pass(&mut self) {
        let name = NetworkName::default_network();
        let own = subnets(self.number);
        let peers: Vec<&Lease> = self.view.iter().filter(|lease| lease.subnets != own).collect();
        let (config, stage) = (&self.config, self.change.stage(self.read()));
        let (peers, bridge) = (&peers, None);
        let input = NetworkInput { name: &name, config, own, stage, peers, bridge, masquerade: true, guard: None };
        let host = HostInput {
            store: &[],
            node: self.node(),
            key: Ok(key(self.number)),
            underlay: &self.underlay(),
            facts: &self.facts,
            exposure: &crate::exposure::Exposure::default(),
            networks: &[input],
        };
        self.made = desired(&host);
        let is_there = |name: &flatnet_model::IfName| self.facts.interface(*name).is_some();
        let new: Vec<flatnet_model::IfName> =
            self.made.state.links.keys().copied().filter(|name| !is_there(name)).collect();
        self.facts
            .interfaces
            .retain(|interface| !interface.ours || self.made.state.links.contains_key(&interface.name));
        self.facts
            .interfaces
            .extend(new.into_iter().map(|name| Interface { ours: true, ..interface(name.as_str(), &[]) }));
    }

    fn ways(&self) -> &[WayOutcome] {
        self.made.networks.first().map(|network| network.ways.as_slice()).unwrap_or_default()
    }

    fn publish(&mut self, store: &mut Vec<Lease>) {
        let needed = self.needed();
        let ready = ready(&self.config, &self.change, &needed, self.ways(), |_| true);
        let name = NetworkName::default_network();
        let published =
            publication(self.node(), Some(key(self.number)), &name, &self.config, &self.underlay(), &ready).unwrap();
        self.change.unread.push(published.clone());
        let nonce = InstanceNonce::new(1);
        let lease = Lease {
            subnets: subnets(self.number),
            public_ip: published.public_ip,
            public_ipv6: published.public_ipv6,
            backend: published.backend,
            data: published.data,
            data_v6: published.data_v6,
            besides: published.besides,
            owner: Some(Owner { node: self.node(), name: format!("host{}", self.number), nonce }),
            etcd_lease: None,
            create_revision: i64::from(self.number),
            mod_revision: i64::from(self.number),
        };
        store.retain(|other| other.subnets != lease.subnets);
        store.push(lease);
    }

    fn read(&self) -> Option<&Lease> {
        self.view.iter().find(|lease| lease.subnets == subnets(self.number))
    }

    fn needed(&self) -> Vec<BackendConfig> {
        let peers: Vec<&Lease> = self.view.iter().filter(|lease| lease.subnets != subnets(self.number)).collect();
        needed(self.change.earlier(), &self.config, self.read(), &peers, self.ways())
    }

    fn forget(&mut self) {
        self.change = self.change.clone().without_done(&self.needed(), self.read());
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The next configuration is written.
    Configure,
    /// A host reads it.
    Configured(usize),
    See(usize),
    Pass(usize),
    Publish(usize),
    Forget(usize),
}

struct World {
    hosts: Vec<Host>,
    store: Vec<Lease>,
    configs: Vec<NetworkConfig>,
}

impl World {
    fn new(datapaths: &[Datapath], backends: &[BackendConfig]) -> Self {
        let configs: Vec<NetworkConfig> = backends.iter().rev().cloned().map(network).collect();
        let hosts =
            (1..=HOSTS).zip(datapaths).map(|(number, datapath)| Host::new(number, *datapath, configs.last().unwrap()));
        let mut world = Self { hosts: hosts.collect(), store: Vec::new(), configs };
        world.settle();
        world
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Configure => {
                if self.configs.len() > 1 {
                    self.configs.pop();
                }
            }
            Step::Configured(host) => self.hosts[host].configured(self.configs.last().unwrap()),
            Step::See(host) => {
                self.hosts[host].view.clone_from(&self.store);
                self.hosts[host].change.nothing_unread();
            }
            Step::Pass(host) => self.hosts[host].pass(),
            Step::Publish(host) => self.hosts[host].publish(&mut self.store),
            Step::Forget(host) => self.hosts[host].forget(),
        }
    }

    /// Lets everybody do everything until nothing changes any more.
    fn settle(&mut self) {
        for _ in 0..6 {
            for host in 0..self.hosts.len() {
                for step in [Step::Configured(host), Step::See(host), Step::Pass(host), Step::Publish(host)] {
                    self.step(step);
                }
                self.step(Step::See(host));
                self.step(Step::Forget(host));
            }
        }
    }

    /// Checks that packets every host sends to every other are received there.
    fn check(&self) -> Result<(), TestCaseError> {
        for from in &self.hosts {
            for to in self.hosts.iter().filter(|to| to.number != from.number) {
                self.check_pair(from, to)?;
            }
        }
        Ok(())
    }

    fn check_pair(&self, from: &Host, to: &Host) -> Result<(), TestCaseError> {
        let peer = from.made.networks[0].peers.iter().find(|peer| peer.subnets == subnets(to.number)).unwrap();
        let PeerDecision::Programmed(paths) = &peer.decision else {
            return Err(TestCaseError::fail(format!(
                "{} has no way to {}: {:?}",
                from.number, to.number, peer.decision
            )));
        };
        let path = paths.v4.unwrap();
        let inner = subnets(from.number).of(IpFamily::V4).unwrap();
        let outer = [192, 0, 2, 10 + from.number].into();
        let state = &to.made.state;
        if let Some(tunnel) = path.tunnel {
            let set = SetName { tunnel: tunnel.id, family: IpFamily::V4, prefix_len: 24 };
            let source = PeerSource { set, outer, inner };
            prop_assert!(
                state.links.contains_key(&path.device),
                "{} sends by {}, {} has none",
                from.number,
                path.device,
                to.number
            );
            prop_assert!(
                state.peer_sources.contains(&source),
                "{} sends by {}, {} drops it",
                from.number,
                path.device,
                to.number
            );
            let in_user_space = to.facts.features.gre.v4 == Some(Datapath::Userspace);
            if path.device.as_str().starts_with("flatgre") && in_user_space {
                let is_received = state
                    .routes
                    .iter()
                    .any(|(key, route)| key.destination == inner && route.via.device() == Some(path.device));
                prop_assert!(is_received, "{} does not know {}'s tunnel", to.number, from.number);
            }
        }
        if path.key.is_some() {
            prop_assert!(state.links.contains_key(&path.device));
        } else if path.tunnel.is_none() {
            let direct = PeerSource::direct(inner);
            prop_assert!(
                state.peer_sources.contains(&direct),
                "{} sends directly, {} drops it",
                from.number,
                to.number
            );
        }
        Ok(())
    }
}

fn backends() -> impl Strategy<Value = Vec<BackendConfig>> {
    let all = [vxlan(1), vxlan(7), gre_with(0), gre_with(5), wireguard(), BackendConfig::HostGw];
    let different = prop::sample::subsequence(all.to_vec(), 2..=3).prop_shuffle();
    // Back again, before or after everybody has followed. But not from WireGuard, where packets in clear are dropped
    // until it is known why they are.
    let back = |mut backends: Vec<BackendConfig>| {
        backends.truncate(2);
        backends.sort_by_key(|backend| !matches!(backend, BackendConfig::Wireguard(_)));
        backends.extend(backends.first().cloned());
        backends
    };
    prop_oneof![different.clone(), different.prop_map(back)]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let host = || 0..usize::from(HOSTS);
    let step = prop_oneof![
        1 => Just(Step::Configure),
        3 => host().prop_map(Step::Configured),
        4 => host().prop_map(Step::See),
        4 => host().prop_map(Step::Pass),
        4 => host().prop_map(Step::Publish),
        3 => host().prop_map(Step::Forget),
    ];
    prop::collection::vec(step, 0..120)
}

fn datapaths() -> impl Strategy<Value = Vec<Datapath>> {
    prop::collection::vec(prop::sample::select(vec![Datapath::Kernel, Datapath::Userspace]), usize::from(HOSTS))
}

proptest! {
    #[test]
    fn no_host_sends_what_its_peer_does_not_receive_in_whatever_order_hosts_follow(
        backends in backends(),
        datapaths in datapaths(),
        steps in steps(),
    ) {
        let mut world = World::new(&datapaths, &backends);
        world.check()?;
        for step in steps {
            world.step(step);
            world.check()?;
        }
        while world.configs.len() > 1 {
            world.step(Step::Configure);
        }
        world.settle();
        world.check()?;
        let last = &backends[backends.len() - 1];
        for host in &world.hosts {
            prop_assert!(host.change.earlier().is_empty(), "{:?}", host.change);
            let ways: Vec<&BackendConfig> = host.ways().iter().map(|way| &way.backend).collect();
            prop_assert_eq!(ways, vec![last]);
        }
        for lease in &world.store {
            prop_assert!(lease.besides.is_empty() && lease.backend == last.kind(), "{:?}", lease);
        }
    }
}

/// A network that turns back before all have followed: what a host has given up since its last pass it does not say it
/// receives by, although its device is still there.
#[test]
fn a_host_that_turned_back_says_nothing_of_what_is_about_to_go() {
    use Step::{Configure, Configured, Forget, Pass, Publish, See};
    let backends = [gre_with(0), gre_with(5), gre_with(0)];
    let mut world = World::new(&[Datapath::Kernel; 3], &backends);
    let first = [Configure, Configured(0), Configured(1), Configure, Pass(1), See(0), Configured(0), Pass(0)];
    let then = [Forget(0), Publish(0), Publish(1), See(1), Pass(0), Pass(1)];
    for step in first.into_iter().chain(then) {
        world.step(step);
        world.check().unwrap();
    }
}

#[test]
fn a_host_that_does_not_follow_is_waited_for_and_served() {
    let mut world = World::new(&[Datapath::Kernel; 3], &[vxlan(1), wireguard()]);
    world.step(Step::Configure);
    // The third is cut off from the store.
    for _ in 0..4 {
        for host in [0, 1] {
            for step in
                [Step::Configured(host), Step::See(host), Step::Pass(host), Step::Publish(host), Step::Forget(host)]
            {
                world.step(step);
                world.check().unwrap();
            }
        }
    }
    let backends = |host: usize| world.hosts[host].ways().iter().map(|way| way.backend.kind()).collect::<Vec<_>>();
    assert_eq!(backends(0), [wireguard().kind(), vxlan(1).kind()]);
    assert_eq!(backends(2), [vxlan(1).kind()]);
    let way = |to: u8| {
        let peer = world.hosts[0].made.networks[0].peers.iter().find(|peer| peer.subnets == subnets(to)).unwrap();
        let PeerDecision::Programmed(paths) = peer.decision else { panic!("{peer:?}") };
        paths.v4.unwrap().device.to_string()
    };
    assert_eq!((way(2), way(3)), ("flatwg.51820".to_owned(), "flat.1".to_owned()));
    // Only the host that lags is an exception to "encrypted or dropped".
    let body = &world.hosts[0].made.state.ruleset.as_ref().unwrap().body;
    let out = body.lines().find(|line| line.contains("encrypted or dropped")).unwrap();
    assert!(out.contains("ip daddr != { 10.100.16.0/24, 10.100.48.0/24 }"), "{out}");
}

#[test]
fn a_host_that_joins_meanwhile_and_one_that_does_not_follow_reach_each_other() {
    let mut world = World::new(&[Datapath::Kernel; 3], &[vxlan(1), wireguard()]);
    world.step(Step::Configure);
    world.configs[0].before = vec![gre_with(0), vxlan(1), vxlan(7)];
    let follow = |world: &mut World, hosts: &[usize]| {
        for host in hosts.iter().copied().cycle().take(4 * hosts.len()) {
            let steps = [Step::Configured, Step::See, Step::Pass, Step::Publish, Step::See, Step::Forget];
            steps.into_iter().for_each(|step| world.step(step(host)));
        }
    };
    follow(&mut world, &[0, 1]);
    let config = world.configs.last().unwrap();
    let change = Change::joining(config, &world.store.iter().collect::<Vec<_>>());
    assert_eq!(change.earlier(), [vxlan(1)]);
    let joined = Host { change, ..Host::new(4, Datapath::Kernel, config) };
    world.hosts.push(joined);
    // The third still looks at the store. Only the change of the configuration does not reach it, or cannot be made
    // there.
    for _ in 0..2 {
        follow(&mut world, &[0, 1, 3]);
        [Step::See(2), Step::Pass(2)].into_iter().for_each(|step| world.step(step));
    }
    world.check().unwrap();
    world.settle();
    world.check().unwrap();
    assert!(world.hosts.iter().all(|host| host.change.earlier().is_empty()));
    // A host that comes later has nothing to do with it.
    assert!(joining(&world.configs[0], &world.store.iter().collect::<Vec<_>>()).is_empty());
}

#[test]
fn a_foreign_peer_keeps_the_backend_its_lease_names() {
    let mut world = World::new(&[Datapath::Kernel; 3], &[vxlan(1), gre_with(0)]);
    let mut foreign = world.store.iter().find(|lease| lease.subnets == subnets(1)).unwrap().clone();
    foreign.subnets = "10.100.200.0-24".parse().unwrap();
    foreign.public_ip = Some([192, 0, 2, 99].into());
    (foreign.owner, foreign.create_revision) = (None, 99);
    if let flatnet_model::BackendData::Vxlan { mac, .. } = &mut foreign.data {
        *mac = "02:00:00:00:00:99".parse().unwrap();
    }
    world.store.push(foreign.clone());
    world.step(Step::Configure);
    world.settle();
    world.check().unwrap();
    for host in &world.hosts {
        assert_eq!(host.change.earlier(), [vxlan(1)]);
        let peers = &host.made.networks[0].peers;
        let foreign = peers.iter().find(|peer| peer.subnets == foreign.subnets).unwrap();
        assert!(matches!(foreign.decision, PeerDecision::Programmed(_)), "{foreign:?}");
    }
    world.store.retain(|lease| lease.owner.is_some());
    world.settle();
    assert!(world.hosts.iter().all(|host| host.change.earlier().is_empty()));
}

#[test]
fn a_backend_that_this_host_cannot_have_is_not_published_and_the_earlier_one_goes_on() {
    let mut world = World::new(&[Datapath::Kernel; 3], &[vxlan(1), gre_with(0)]);
    world.hosts[0].facts.features.gre = crate::facts::GreSupport::default();
    world.step(Step::Configure);
    world.settle();
    world.check().unwrap();
    let host = &world.hosts[0];
    assert_eq!(host.ways().iter().map(|way| way.backend.clone()).collect::<Vec<_>>(), [vxlan(1)]);
    assert!(host.made.problems.iter().any(|problem| problem.code.as_str() == "module-missing"));
    let lease = world.store.iter().find(|lease| lease.subnets == subnets(1)).unwrap();
    assert_eq!((lease.backend.clone(), lease.besides.len()), (vxlan(1).kind(), 0));
}

#[test]
fn what_takes_the_others_place_is_no_earlier_backend() {
    let port = BackendConfig::Vxlan(VxlanConfig { port: 4789, ..VxlanConfig::default() });
    assert!(earlier_backends(&[], &vxlan(1), &port).is_empty());
    assert_eq!(earlier_backends(&[], &vxlan(1), &vxlan(7)), [vxlan(1)]);
    assert_eq!(earlier_backends(&[vxlan(1)], &vxlan(7), &vxlan(1)), [vxlan(7)]);
    assert_eq!(earlier_backends(&[vxlan(1)], &vxlan(7), &wireguard()), [vxlan(7), vxlan(1)]);
    assert!(earlier_backends(&[], &wireguard(), &wireguard()).is_empty());
}

#[test]
fn what_was_written_is_remembered_until_it_is_read_where_there_is_more_than_one_way() {
    let written = Publication::of(vxlan(1).kind());
    assert!(!Change::default().writing(&written), "with one way there is nothing to be careful about");
    let mut change = Change::among(vec![vxlan(1)]);
    assert!(change.writing(&written) && change.writing(&written));
    assert_eq!(change.unread, [written]);
    assert!(change.nothing_unread() && !change.nothing_unread());
    assert_eq!(change.turned(&wireguard(), &vxlan(7)).earlier(), [wireguard(), vxlan(1)]);
}
