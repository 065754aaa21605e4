//! Tests of the loop over a kernel in memory, in paused time.

use std::path::PathBuf;
use std::time::Duration;

use flatnet_core::facts::{Features, Interface};
use flatnet_core::object::{Altered, KernelState, RouteKey, Sysctl};
use flatnet_core::op::{Action, ObjectKind};
use flatnet_core::problem::ProblemCode;
use flatnet_core::underlay::Selection;
use flatnet_kernel::fake::{FakeKernel, Strike};
use flatnet_model::keys::{FLANNEL_PREFIX, NetworkKeys};
use flatnet_model::state::ConfigState;
use flatnet_model::{IfName, InstanceNonce, IpFamily, Mtu, NodeId, Owner};
use flatnet_plane::flannel::{decode_change, decode_config};
use flatnet_plane::random::NodeRandom;
use flatnet_plane::store::{KeyValue, WatchEvent};
use flatnet_plane::watch::{NetworkView, Source};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::*;
use crate::files::network_record::NetworkRecord;
use crate::files::state_dir::StateDir;
use crate::wiring::channels::Channels;
use crate::wiring::context::NodeSetup;
use crate::wiring::networks::{Held, Holding, Presence};

const CONFIG: &[u8] = br#"{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#;
const OWN: &str = "10.100.40.0-24";
/// Linux's numbers (asm-generic/errno-base.h).
const EBUSY: i32 = 16;
const EROFS: i32 = 30;
const EINVAL: i32 = 22;
/// A time longer than the wait from a quick pass to its check.
const SETTLED: Duration = Duration::from_secs(1);
/// The longest wait between two tries.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

fn facts() -> HostFacts {
    let eth0 = IfName::new("eth0").unwrap();
    let interface = Interface {
        name: eth0,
        up: true,
        loopback: false,
        mtu: Some(Mtu::new(1500).unwrap()),
        addresses: vec!["192.0.2.10/24".parse().unwrap()],
        ours: false,
    };
    HostFacts {
        interfaces: vec![interface],
        default_route: vec![(IpFamily::V4, eth0)],
        features: Features { nexthop_objects: true, ipv6: true, ..Features::default() },
        ..HostFacts::default()
    }
}

/// A loop and the channels that feed it. Its files go when it is dropped.
struct Host {
    kernel: FakeKernel,
    view: watch::Sender<NetworkView>,
    holding: watch::Sender<Holding>,
    outcome: watch::Receiver<Outcome>,
    metrics: Arc<Metrics>,
    plans: mpsc::Sender<PlanRequest>,
    dir: PathBuf,
    task: JoinHandle<()>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Host {
    /// Starts a loop over `kernel` on a host with a lease and `peers` peers, known from `source`. `name` keeps the
    /// files of tests apart.
    fn start(name: &str, kernel: FakeKernel, source: Source, peers: u8) -> Self {
        let dir = std::env::temp_dir().join(format!("flatnet-reconciler-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        Self::start_on(dir, kernel, source, peers)
    }

    /// Ends the loop; its files and its kernel stay.
    async fn end(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Starts a loop on the files of an earlier one.
    fn start_on(dir: PathBuf, kernel: FakeKernel, source: Source, peers: u8) -> Self {
        let files = Arc::new(StateDir::open(&dir.join("state"), &dir.join("run")).unwrap());
        let config = decode_config(CONFIG).unwrap().0;
        let held =
            Held { subnets: OWN.parse().unwrap(), config: config.clone(), change: Default::default(), expires: None };
        let mut first = NetworkView { source, ..NetworkView::default() };
        first.state.config = ConfigState::Valid(config);
        let (view, views) = watch::channel(first);
        let (holding, holdings) = watch::channel(Holding { held: Some(held), problems: Vec::new() });
        let (outcomes, outcome) = watch::channel(Outcome::default());
        let metrics = Arc::new(Metrics::new());
        let port = NetworkPort {
            name: flatnet_model::NetworkName::default_network(),
            view: views,
            holding: holdings,
            bridge: None,
            env_file: PathBuf::new(),
        };
        let host = HostOptions {
            node: NodeId::new(1),
            selection: Selection::default(),
            bridge: None,
            masquerade: true,
            take_over: false,
            exposure: Default::default(),
            endpoints: watch::channel(Vec::new()).1,
            userspace: true,
            other_endpoints: Vec::new(),
        };
        let setup = NodeSetup {
            plane: Arc::new(()),
            kernel: Arc::new(kernel.clone()),
            dir: Arc::clone(&files),
            sysctls: SysctlRecord::open(Arc::clone(&files)).unwrap(),
            underlay: UnderlayRecord::open(Arc::clone(&files)),
            wireguard: WireguardIdentity::new(Arc::clone(&files), Default::default()),
            ranges: Default::default(),
            store_at: watch::channel(Vec::new()).1,
            owner: Owner { node: NodeId::new(1), name: "host1".to_owned(), nonce: InstanceNonce::new(1) },
            host,
            networks: Vec::new(),
            record: NetworkRecord::open(files),
            lease_ttl: Duration::from_secs(60),
            flannel_prefix: FLANNEL_PREFIX.to_owned(),
            random: NodeRandom::seeded(1),
        };
        let context = Context {
            setup: Arc::new(setup),
            networks: watch::channel(vec![port]).1,
            outcome: outcome.clone(),
            presence: watch::channel(Presence::Confirmed).1,
            channels: Channels::default(),
            metrics: Arc::clone(&metrics),
            fatal: mpsc::channel(1).0,
        };
        let reconciler = Reconciler::new(&context, outcomes);
        let (plans, requests) = mpsc::channel(1);
        let task = tokio::spawn(reconciler.run(requests));
        let host = Self { kernel, view, holding, outcome, metrics, plans, dir, task };
        for number in 1..=peers {
            host.peer(number);
        }
        host
    }

    /// Adds peer number `number`, which has 10.100.`number`.0/24 and 192.0.2.(100 + `number`).
    fn peer(&self, number: u8) {
        let keys = NetworkKeys::new(&flatnet_model::NetworkName::default_network(), FLANNEL_PREFIX);
        let value = format!(
            r#"{{"PublicIP":"192.0.2.{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":7,"VtepMAC":"02:00:00:00:00:{number:02x}"}}}}"#,
            100 + number
        );
        let put = WatchEvent::Put(KeyValue {
            key: format!("{}10.100.{number}.0-24", keys.subnets()).into_bytes(),
            value: value.into_bytes(),
            create_revision: i64::from(number),
            mod_revision: i64::from(number),
            lease: None,
        });
        let change = decode_change(&keys, &put).unwrap();
        self.view.send_modify(|view| view.state.apply(change));
    }

    fn problems(&self) -> Vec<ProblemCode> {
        self.outcome.borrow().problems.iter().map(|problem| problem.code).collect()
    }

    /// Returns the number of operations of `kind` tried so far.
    fn tried(&self, kind: ObjectKind) -> u64 {
        self.kernel.counts().iter().filter(|((of, _), _)| *of == kind).map(|(_, count)| count).sum()
    }

    /// Returns the number of repairs of `kind` counted so far.
    fn drift(&self, kind: &str) -> u64 {
        let page = self
            .metrics
            .render(&flatnet_proto::agent::v1::Status::default(), &crate::wiring::metrics::Gauges::default());
        let series = format!("flatnet_drift_repairs_total{{kind=\"{kind}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or_default()
    }

    async fn plan(&self) -> Vec<Op> {
        let (request, answer) = oneshot::channel();
        self.plans.send(request).await.unwrap();
        answer.await.unwrap().unwrap()
    }
}

fn route(number: u8) -> RouteKey {
    RouteKey::to_peer(format!("10.100.{number}.0/24").parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn the_kernel_becomes_what_is_wanted_and_is_then_left_alone() {
    let host = Host::start("converge", FakeKernel::new(facts()), Source::Store, 3);
    sleep(SETTLED).await;
    assert!(host.outcome.borrow().complete);
    assert_eq!(host.kernel.state().fdb.len(), 3);
    assert!((1..=3).all(|number| host.kernel.state().routes.contains_key(&route(number))));
    assert!(host.plan().await.is_empty());
    let tried = host.kernel.tried();
    sleep(Duration::from_secs(600)).await;
    assert_eq!(host.kernel.tried(), tried);
    assert_eq!(host.drift("route"), 0, "what it did itself is not somebody else's doing");
}

#[tokio::test(start_paused = true)]
async fn a_refused_operation_is_said_and_tried_again_with_growing_waits_until_it_passes() {
    let kernel = FakeKernel::new(facts());
    kernel.fail(Strike::KindAndAction(ObjectKind::Fdb, Action::Create), EBUSY);
    let host = Host::start("refused", kernel, Source::Store, 1);
    sleep(Duration::from_secs(300)).await;
    // The waits double from 100 ms to 30 s: nine of them make 51 s, then there is one every 30 s. The pass that checks
    // the first one adds a try.
    let tried = host.tried(ObjectKind::Fdb);
    assert!((15..=22).contains(&tried), "{tried} tries in 300 s");
    assert_eq!(host.problems(), [ProblemCode::KernelRefused]);
    assert!(!host.outcome.borrow().complete);
    host.kernel.heal();
    sleep(LONGEST_RETRY).await;
    assert!(host.outcome.borrow().complete);
    assert!(host.problems().is_empty());
    assert_eq!(host.kernel.state().fdb.len(), 1);
    assert_eq!(host.drift("fdb"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_device_in_whose_place_is_a_foreign_one_counts_as_not_there_until_that_goes() {
    let kernel = FakeKernel::new(facts());
    let device = IfName::new("flat.7").unwrap();
    kernel.edit_foreign(|foreign| drop(foreign.links.insert(device, "dummy".to_owned())));
    let host = Host::start("foreign-device", kernel, Source::Store, 1);
    sleep(SETTLED).await;
    assert_eq!(host.problems(), [ProblemCode::ForeignObject]);
    assert!(host.outcome.borrow().failed.contains(&ObjectKey::Link(device)));
    assert_eq!(host.tried(ObjectKind::Link), 0, "what is not ours is left alone");
    host.kernel.edit_foreign(|foreign| foreign.links.clear());
    sleep(Duration::from_secs(65)).await;
    assert!(host.outcome.borrow().failed.is_empty());
    assert!(host.outcome.borrow().complete);
}

#[tokio::test(start_paused = true)]
async fn what_depends_on_a_refused_device_is_not_tried_and_what_does_not_is_done() {
    let kernel = FakeKernel::new(facts());
    kernel.fail(Strike::Kind(ObjectKind::Link), EBUSY);
    let host = Host::start("skipped", kernel, Source::Store, 1);
    sleep(SETTLED).await;
    for kind in [ObjectKind::Address, ObjectKind::Neighbour, ObjectKind::Fdb, ObjectKind::Nexthop] {
        assert_eq!(host.tried(kind), 0, "{kind:?}");
    }
    assert!(!host.kernel.state().routes.contains_key(&route(1)));
    assert!(host.outcome.borrow().failed.contains(&ObjectKey::Route(route(1))));
    let catch_all = RouteKey::unreachable("10.100.0.0/16".parse().unwrap());
    assert!(
        host.kernel.state().routes.contains_key(&catch_all),
        "unknown addresses still do not leave by the default route"
    );
    assert!(host.kernel.state().ruleset.is_some(), "the guard does not wait for the device");
    host.kernel.heal();
    sleep(LONGEST_RETRY).await;
    assert!(host.outcome.borrow().complete);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_changes_is_repaired_at_once_and_counted_by_kind() {
    let host = Host::start("drift", FakeKernel::new(facts()), Source::Store, 3);
    sleep(SETTLED).await;
    let exact = host.kernel.state();
    host.kernel.edit(|state| {
        state.routes.remove(&route(1));
        state.routes.remove(&route(2));
        state.fdb.clear();
    });
    sleep(Duration::from_millis(200)).await;
    assert_eq!(host.kernel.state(), exact);
    assert_eq!((host.drift("route"), host.drift("fdb"), host.drift("link")), (2, 3, 0));
    let device = *exact.links.keys().next().unwrap();
    host.kernel.delete_link(device);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(host.kernel.state(), exact);
    assert_eq!(host.drift("link"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_changes_while_a_repair_fails_is_counted_and_the_failure_is_not() {
    let host = Host::start("drift-failing", FakeKernel::new(facts()), Source::Store, 3);
    sleep(SETTLED).await;
    let exact = host.kernel.state();
    host.kernel.fail(Strike::Kind(ObjectKind::Route), EBUSY);
    host.kernel.edit(|state| {
        state.routes.remove(&route(1));
    });
    sleep(Duration::from_millis(30)).await;
    assert!(host.tried(ObjectKind::Route) > 4, "the repair has been tried");
    host.kernel.edit(|state| state.fdb.clear());
    host.kernel.heal();
    sleep(LONGEST_RETRY).await;
    assert_eq!(host.kernel.state(), exact);
    assert_eq!((host.drift("route"), host.drift("fdb")), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn a_change_that_nobody_told_of_is_found_within_a_minute() {
    let host = Host::start("silent", FakeKernel::new(facts()), Source::Store, 1);
    sleep(SETTLED).await;
    let exact = host.kernel.state();
    host.kernel.edit_silently(|state| state.routes.clear());
    sleep(Duration::from_secs(61)).await;
    assert_eq!(host.kernel.state(), exact);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_deleted_before_the_first_whole_snapshot_nor_without_a_hold() {
    let before = Host::start("before", FakeKernel::new(facts()), Source::Store, 3);
    sleep(SETTLED).await;
    let left: KernelState = before.kernel.state();
    drop(before);
    // This is another run, which knows one peer from disk.
    let kernel = FakeKernel::new(facts());
    kernel.edit(|state| *state = left.clone());
    let host = Host::start("prune", kernel, Source::Disk, 1);
    sleep(Duration::from_secs(120)).await;
    assert_eq!(host.kernel.state(), left);
    // The view is the store's snapshot now, but nothing is held yet.
    let held = host.holding.send_replace(Holding::default());
    host.view.send_modify(|view| view.source = Source::Store);
    sleep(Duration::from_secs(120)).await;
    assert_eq!(host.kernel.state(), left);
    host.holding.send_replace(held);
    sleep(SETTLED).await;
    let now = host.kernel.state();
    assert!(now.routes.contains_key(&route(1)));
    assert!(!now.routes.contains_key(&route(2)) && !now.routes.contains_key(&route(3)));
    assert_eq!((now.fdb.len(), now.peer_sources.len()), (1, 1));
    assert!(host.plan().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_underlay_that_is_gone_is_said_and_the_last_one_stays_in_force() {
    let host = Host::start("underlay", FakeKernel::new(facts()), Source::Store, 2);
    sleep(SETTLED).await;
    let exact = host.kernel.state();
    host.kernel.edit_facts(|facts| {
        facts.interfaces.clear();
        facts.default_route.clear();
    });
    sleep(SETTLED).await;
    assert_eq!(host.problems(), [ProblemCode::UnderlayMissing]);
    assert_eq!(host.kernel.state(), exact);
    host.kernel.edit_facts(|now| *now = facts());
    sleep(SETTLED).await;
    assert!(host.problems().is_empty() && host.outcome.borrow().complete);
}

#[tokio::test(start_paused = true)]
async fn a_family_that_the_underlay_loses_for_a_moment_takes_nothing_down() {
    let whole = facts_with(&["192.0.2.10/24", "2001:db8::10/64"]);
    let host = Host::start("family", FakeKernel::new(whole.clone()), Source::Store, 0);
    host.dual_stack();
    sleep(SETTLED).await;
    let exact = host.kernel.state();
    assert_eq!((exact.links.len(), host.problems()), (2, vec![]));
    let tried = host.kernel.tried();
    host.kernel.edit_facts(|facts| *facts = facts_with(&["192.0.2.10/24"]));
    sleep(SETTLED).await;
    assert_eq!((host.kernel.state() == exact, host.kernel.tried()), (true, tried));
    assert_eq!(host.problems(), [ProblemCode::UnderlayMissing]);
    host.kernel.edit_facts(|facts| *facts = whole.clone());
    sleep(SETTLED).await;
    assert_eq!((host.problems(), host.kernel.tried()), (vec![], tried));
}

/// Returns the facts of a host whose interface has `addresses`.
fn facts_with(addresses: &[&str]) -> HostFacts {
    let mut facts = facts();
    facts.interfaces[0].addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
    facts
}

impl Host {
    /// Makes the network a dual-stack one.
    fn dual_stack(&self) {
        let json = br#"{"Network":"10.100.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:100::/56","Backend":{"Type":"vxlan","VNI":7}}"#;
        let config = decode_config(json).unwrap().0;
        self.view.send_modify(|view| view.state.config = ConfigState::Valid(config.clone()));
        let subnets = "10.100.40.0-24&fd00:100:0:40::-64".parse().unwrap();
        let held = Some(Held { subnets, config, change: Default::default(), expires: None });
        self.holding.send_replace(Holding { held, problems: Vec::new() });
    }
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_starts_while_the_underlay_lacks_a_family_takes_nothing_down_either() {
    let both = facts_with(&["192.0.2.10/24", "2001:db8::10/64"]);
    let mut first = Host::start("family-start", FakeKernel::new(both.clone()), Source::Store, 0);
    first.dual_stack();
    sleep(SETTLED).await;
    let exact = first.kernel.state();
    assert_eq!((exact.links.len(), first.problems()), (2, vec![]));
    first.end().await;
    first.kernel.edit_facts(|facts| *facts = facts_with(&["192.0.2.10/24"]));
    let second = Host::start_on(first.dir.clone(), first.kernel.clone(), Source::Store, 0);
    second.dual_stack();
    sleep(SETTLED).await;
    assert_eq!(second.kernel.state(), exact);
    assert_eq!(second.problems(), [ProblemCode::UnderlayMissing]);
    second.kernel.edit_facts(|facts| *facts = both.clone());
    sleep(SETTLED).await;
    assert_eq!((second.kernel.state() == exact, second.problems()), (true, vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_network_that_cannot_be_programmed_for_now_loses_nothing_and_is_kept_guarded() {
    let host = Host::start("unsettled", FakeKernel::new(facts()), Source::Store, 2);
    sleep(SETTLED).await;
    let exact = host.kernel.state();
    host.kernel.edit_facts(|facts| facts.interfaces[0].mtu = Some(Mtu::new(80).unwrap()));
    sleep(SETTLED).await;
    assert_eq!(host.problems(), [ProblemCode::UnderlayMtu]);
    assert_eq!(host.kernel.state(), exact);
    assert!(host.plan().await.is_empty());
}

/// Gives the host an address inside its network.
fn stray(facts: &mut HostFacts) {
    let mut lan = facts.interfaces[0].clone();
    lan.name = IfName::new("eth1").unwrap();
    lan.addresses = vec!["10.100.99.7/24".parse().unwrap()];
    facts.interfaces.push(lan);
}

#[tokio::test(start_paused = true)]
async fn an_address_inside_the_network_takes_nothing_down_and_peers_and_repairs_go_on() {
    let mut host = Host::start("stray", FakeKernel::new(facts()), Source::Store, 2);
    sleep(SETTLED).await;
    let exact = host.kernel.state();
    host.kernel.edit_facts(stray);
    sleep(SETTLED).await;
    assert_eq!(host.problems(), [ProblemCode::NetworkCoversHost]);
    assert_eq!(host.kernel.state(), exact);
    host.kernel.delete_link(*exact.links.keys().next().unwrap());
    host.peer(3);
    sleep(SETTLED).await;
    assert!(host.kernel.state().routes.contains_key(&route(3)), "peers still come");
    assert_eq!(host.kernel.state().links, exact.links, "a deleted device is still repaired");
    // The next agent finds the kernel like this.
    host.end().await;
    let left = host.kernel.state();
    let next = Host::start_on(host.dir.clone(), host.kernel.clone(), Source::Store, 3);
    sleep(SETTLED).await;
    assert_eq!((next.kernel.state() == left, next.problems()), (true, vec![ProblemCode::NetworkCoversHost]));
    next.kernel.edit_facts(|now| *now = facts());
    sleep(SETTLED).await;
    assert_eq!((next.kernel.state() == left, next.problems()), (true, vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_is_changed_or_flushed_while_a_network_waits_is_put_back_as_it_was() {
    let host = Host::start("guard", FakeKernel::new(facts()), Source::Store, 2);
    sleep(SETTLED).await;
    let exact = host.kernel.state();
    host.kernel.edit_facts(|facts| facts.interfaces[0].mtu = Some(Mtu::new(80).unwrap()));
    sleep(SETTLED).await;
    assert_eq!(host.problems(), [ProblemCode::UnderlayMtu]);
    // A dump shows a table of ours that somebody changed like this.
    host.kernel.edit(|state| state.alter(ObjectKey::Ruleset, Altered::InPlace));
    sleep(SETTLED).await;
    assert_eq!((host.kernel.state() == exact, host.drift("ruleset")), (true, 1));
    // This is `nft flush ruleset`.
    host.kernel.edit(|state| {
        state.ruleset = None;
        state.peer_sources.clear();
    });
    sleep(SETTLED).await;
    assert_eq!((host.kernel.state() == exact, host.drift("ruleset")), (true, 2));
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_nobody_remembers_is_kept_as_it_is_loaded_and_shut_once_somebody_changed_it() {
    let mut first = Host::start("forgotten", FakeKernel::new(facts()), Source::Store, 2);
    sleep(SETTLED).await;
    let exact = first.kernel.state();
    first.end().await;
    first.kernel.edit_facts(|facts| facts.interfaces[0].mtu = Some(Mtu::new(80).unwrap()));
    let second = Host::start_on(first.dir.clone(), first.kernel.clone(), Source::Store, 2);
    sleep(SETTLED).await;
    assert_eq!((second.kernel.state() == exact, second.problems()), (true, vec![ProblemCode::UnderlayMtu]));
    second.kernel.edit(|state| {
        state.alter(ObjectKey::Ruleset, Altered::InPlace);
        state.peer_sources.clear();
    });
    sleep(SETTLED).await;
    let shut = second.kernel.state();
    let body = shut.ruleset.unwrap().body;
    assert!(body.contains("tunnel_8472_7") && shut.peer_sources.is_empty(), "nobody may send: {body}");
    second.kernel.edit_facts(|now| *now = facts());
    sleep(LONGEST_RETRY).await;
    assert_eq!(second.kernel.state(), exact);
}

#[tokio::test(start_paused = true)]
async fn a_configuration_of_the_store_that_is_not_in_force_is_judged_and_changes_nothing_by_itself() {
    let host = Host::start("judged", FakeKernel::new(facts_with(&["10.9.0.7/24"])), Source::Store, 1);
    sleep(SETTLED).await;
    let exact = host.kernel.state();
    let said = |config: &str| {
        let config = decode_config(config.as_bytes()).unwrap().0;
        host.view.send_modify(|view| view.state.config = ConfigState::Valid(config));
    };
    let judged = |host: &Host| {
        let outcome = host.outcome.borrow();
        let judgement = outcome.judgements.values().next().cloned();
        judgement.map(|judgement| judgement.refused.map(|problem| problem.code))
    };
    assert_eq!(judged(&host), None);
    said(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","VNI":7}}"#);
    sleep(SETTLED).await;
    assert_eq!(judged(&host), Some(Some(ProblemCode::NetworkCoversHost)));
    assert_eq!((host.kernel.state() == exact, host.outcome.borrow().complete), (true, true));
    said(r#"{"Network":"10.96.0.0/11","Backend":{"Type":"vxlan","VNI":7}}"#);
    sleep(SETTLED).await;
    assert_eq!((judged(&host), host.kernel.state() == exact), (Some(None), true));
}

#[tokio::test(start_paused = true)]
async fn where_nothing_guards_and_nothing_can_the_tunnels_are_closed_and_open_again() {
    let host = Host::start("unguarded", FakeKernel::new(facts()), Source::Store, 2);
    sleep(SETTLED).await;
    let exact = host.kernel.state();
    assert!(exact.links.values().any(|link| link.up));
    host.kernel.fail(Strike::Kind(ObjectKind::Ruleset), EINVAL);
    host.kernel.edit(|state| state.ruleset = None);
    for _ in 0..2 {
        sleep(LONGEST_RETRY).await;
        assert!(host.problems().contains(&ProblemCode::Unguarded), "{:?}", host.problems());
        assert!(host.kernel.state().links.values().all(|link| !link.up || !link.kind.is_tunnel()));
    }
    host.kernel.heal();
    sleep(LONGEST_RETRY).await;
    assert_eq!((host.kernel.state() == exact, host.problems()), (true, vec![]));
    // A guard that is there and cannot be changed goes on guarding what is there.
    host.kernel.fail(Strike::Kind(ObjectKind::Ruleset), EINVAL);
    host.kernel.edit(|state| state.ruleset.as_mut().unwrap().body.push_str("# changed"));
    sleep(LONGEST_RETRY).await;
    assert_eq!(host.problems(), [ProblemCode::KernelRefused]);
    assert_eq!(host.kernel.state().links, exact.links);
}

/// Moves the network to VNI 8, in the store and in the lease.
fn move_to_vni_8(host: &Host) {
    let config = decode_config(br#"{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan","VNI":8}}"#).unwrap().0;
    host.view.send_modify(|view| view.state.config = ConfigState::Valid(config.clone()));
    host.holding.send_modify(|holding| holding.held.as_mut().unwrap().config = config);
}

#[tokio::test(start_paused = true)]
async fn a_new_device_costs_one_look_and_no_full_dump_before_it_is_there() {
    let host = Host::start("one-look", FakeKernel::new(facts()), Source::Store, 2);
    sleep(SETTLED).await;
    let before = host.kernel.full_dumps();
    move_to_vni_8(&host);
    sleep(Duration::from_millis(50)).await;
    assert!(host.kernel.state().links.contains_key(&IfName::new("flat.8").unwrap()));
    assert_eq!((host.kernel.full_dumps(), host.problems()), (before, vec![]));
    sleep(SETTLED).await;
    assert!(host.kernel.full_dumps() > before, "a full pass checks it");
}

#[tokio::test(start_paused = true)]
async fn one_look_finds_what_is_in_the_way_of_a_new_device() {
    let kernel = FakeKernel::new(facts());
    let device = IfName::new("flat.8").unwrap();
    kernel.edit_foreign(|foreign| foreign.links.insert(device, "bridge".to_owned()));
    let host = Host::start("one-look-foreign", kernel, Source::Store, 2);
    sleep(SETTLED).await;
    let (before, tried) = (host.kernel.full_dumps(), host.kernel.counts());
    assert_eq!(host.problems(), []);
    move_to_vni_8(&host);
    sleep(Duration::from_millis(50)).await;
    assert_eq!((host.kernel.full_dumps(), host.problems()), (before, vec![ProblemCode::ForeignObject]));
    let made = |counts: &flatnet_kernel::fake::Counts| counts.get(&(ObjectKind::Link, Action::Create)).copied();
    assert_eq!(made(&host.kernel.counts()), made(&tried), "what is not ours is left alone");
}

#[tokio::test(start_paused = true)]
async fn a_setting_changed_without_a_word_is_repaired_within_a_second() {
    let host = Host::start("settings", FakeKernel::new(facts()), Source::Store, 1);
    sleep(SETTLED).await;
    let exact = host.kernel.state();
    let accept_ra = Sysctl::accept_ra(*exact.links.keys().next().unwrap());
    assert_eq!(exact.sysctls.get(&accept_ra).map(String::as_str), Some("0"));
    host.kernel.edit_silently(|state| state.sysctls.insert(accept_ra, "1".to_owned()));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(host.kernel.state(), exact);
    assert_eq!(host.drift("sysctl"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_setting_that_may_not_be_written_is_a_problem_only_where_something_depends_on_it() {
    let kernel = FakeKernel::new(facts());
    kernel.fail(Strike::KindAndAction(ObjectKind::Sysctl, Action::Change), EROFS);
    let host = Host::start("readonly", kernel, Source::Store, 1);
    sleep(SETTLED).await;
    let problems: Vec<_> = host.outcome.borrow().problems.iter().map(|p| (p.object.clone(), p.hint.clone())).collect();
    let objects: Vec<&str> = problems.iter().map(|(object, _)| object.as_str()).collect();
    assert_eq!(objects, ["sysctl net.ipv4.conf.flat/7.forwarding=1", "sysctl net.ipv4.ip_forward=1"]);
    assert!(
        problems.iter().all(|(_, hint)| hint.contains("privileged") && hint.contains("sysctl -w net.")),
        "{problems:?}"
    );
    // A setting that was right already needs no writing.
    for setting in ["net/ipv4/conf/flat.7/forwarding", "net/ipv4/ip_forward"] {
        host.kernel.edit(|state| state.sysctls.insert(Sysctl::new(setting), "1".to_owned()));
    }
    sleep(LONGEST_RETRY).await;
    assert_eq!(host.problems(), []);
    assert!(host.outcome.borrow().complete);
    assert!(host.plan().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_cannot_be_read_is_said_and_nothing_is_written_blindly() {
    let host = Host::start("unreadable", FakeKernel::new(facts()), Source::Store, 1);
    sleep(SETTLED).await;
    let tried = host.kernel.tried();
    host.kernel.fail_reads(EBUSY);
    host.kernel.edit(|state| state.routes.clear());
    sleep(LONGEST_RETRY).await;
    assert_eq!(host.problems(), [ProblemCode::KernelUnreadable]);
    assert_eq!(host.kernel.tried(), tried);
    host.kernel.heal();
    sleep(LONGEST_RETRY).await;
    assert!(host.kernel.state().routes.contains_key(&route(1)));
    assert!(host.problems().is_empty());
}
