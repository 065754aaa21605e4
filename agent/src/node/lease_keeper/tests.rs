//! Tests of one keeper over a store in memory that it follows as the agent does, in paused time.

use std::path::PathBuf;

use flatnet_core::outcome::Judgement;
use flatnet_core::problem::ProblemCode;
use flatnet_core::underlay::Underlay;
use flatnet_model::{IfName, InstanceNonce, Lease, Mtu, NetworkName, NodeId, Revision};
use flatnet_plane::flannel::decode_lease;
use flatnet_plane::random::SeededRandom;
use flatnet_plane::store::memory::{Fault, Link, MemoryStore};
use flatnet_plane::watch::follow_with;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::*;

const CONFIG: &str = r#"{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan"}}"#;
/// The configuration of a network with three subnets.
const SMALL: &str = r#"{"Network":"10.100.0.0/22","Backend":{"Type":"vxlan"}}"#;
const TTL: Duration = Duration::from_secs(3_600);
/// The time that a transaction in memory and the news of it take, many times over.
const AT_ONCE: Duration = Duration::from_millis(20);
/// The longest time before the store is asked again after it came back, with its jitter.
const RECONNECTED: Duration = Duration::from_secs(1);

fn keys() -> NetworkKeys {
    NetworkKeys::new(&NetworkName::default_network(), "/coreos.com/network")
}

fn underlay(host: u8) -> Underlay {
    let v4 = Some([192, 0, 2, host].into());
    let (device, mtu) = (IfName::new("eth0").unwrap(), Mtu::new(1500).unwrap());
    Underlay { device, mtu, v4, v6: None, public_v4: v4, public_v6: None }
}

/// A host with a keeper. Its files go when it is dropped.
struct Host {
    /// The operator's way to the store.
    store: MemoryStore,
    /// The keeper's way to the store.
    client: MemoryStore,
    dir: PathBuf,
    /// The subnets of `--subnet`.
    wanted: Vec<IpNet>,
    /// The ranges of `--init`.
    init: Vec<IpNet>,
    outcome: watch::Sender<Outcome>,
    holding: watch::Receiver<Holding>,
    asks: mpsc::Sender<LeaseAsk>,
    tasks: Vec<JoinHandle<()>>,
    presence: watch::Sender<Presence>,
    channels: Channels,
    fatal: mpsc::Receiver<Failure>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Host {
    /// Starts a keeper in a store with `config`. `name` keeps the files of tests apart.
    async fn start(name: &str, config: &str) -> Self {
        let mut host = Self::new(name, config);
        host.run().await;
        host
    }

    /// Makes the host like [`Self::start`], but leaves its keeper to be started.
    fn new(name: &str, config: &str) -> Self {
        let store = MemoryStore::new();
        store.put(keys().config(), config, None);
        let dir = std::env::temp_dir().join(format!("flatnet-lease-keeper-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        Self {
            client: store.client(),
            store,
            dir,
            wanted: Vec::new(),
            init: Vec::new(),
            outcome: watch::Sender::new(Outcome { underlay: Some(underlay(10)), ..Outcome::default() }),
            holding: watch::channel(Holding::default()).1,
            asks: mpsc::channel(1).0,
            tasks: Vec::new(),
            presence: watch::Sender::new(Presence::Confirmed),
            channels: Channels::default(),
            fatal: mpsc::channel(1).1,
        }
    }

    /// Starts the keeper, or starts it anew as a restarted agent does.
    async fn run(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
            let _cancelled = task.await;
        }
        let (state, run) = (self.dir.join("state"), self.dir.join("run"));
        let dir = Arc::new(StateDir::open(&state, &run).unwrap());
        let subnets = dir.read_subnet(keys().network()).unwrap();
        let config = dir.read_config(keys().network()).unwrap();
        let config = config.map(|json| flatnet_plane::flannel::decode_config(&json).unwrap().0);
        let held = subnets.zip(config).map(|(subnets, config)| Held {
            subnets,
            config,
            change: Default::default(),
            expires: None,
        });
        let (view_sender, view) = watch::channel(NetworkView::default());
        let (holding_sender, holding) = watch::channel(Holding { held, problems: Vec::new() });
        let (asks, receiver) = mpsc::channel(1);
        let (fatal_sender, fatal) = mpsc::channel(1);
        (self.holding, self.asks, self.fatal) = (holding, asks, fatal);
        let keeper = LeaseKeeper {
            plane: Arc::new(self.client.clone()),
            keys: keys(),
            owner: Owner { node: NodeId::new(1), name: "host1".to_owned(), nonce: InstanceNonce::new(1) },
            ttl: TTL,
            wanted: self.wanted.clone(),
            init: self.init.clone(),
            flannel_prefix: "/coreos.com/network".to_owned(),
            dir,
            view: view.clone(),
            outcome: self.outcome.subscribe(),
            presence: self.presence.subscribe(),
            channels: self.channels.clone(),
            holding: holding_sender,
            fatal: fatal_sender,
            random: NodeRandom::seeded(5),
        };
        let follow = follow_with(Arc::new(self.client.clone()), keys(), TTL, view_sender, SeededRandom::new(3));
        let judge = judge(view, self.outcome.clone());
        self.tasks = vec![tokio::spawn(keeper.run(receiver)), tokio::spawn(follow), tokio::spawn(judge)];
    }

    async fn held(&self) -> SubnetKey {
        sleep(AT_ONCE).await;
        self.holding.borrow().held.as_ref().expect("a subnet is held").subnets
    }

    fn codes(&self) -> Vec<ProblemCode> {
        self.holding.borrow().problems.iter().map(|problem| problem.code).collect()
    }

    /// Returns the leases in the store.
    fn leases(&self) -> Vec<Lease> {
        let prefix = keys().subnets();
        let leases = self.store.dump().into_values().filter_map(|kv| {
            let name = std::str::from_utf8(&kv.key).unwrap().strip_prefix(&prefix)?;
            decode_lease(name.parse().unwrap(), &kv).ok()
        });
        leases.collect()
    }

    fn own(&self) -> Option<Lease> {
        self.leases().into_iter().find(|lease| lease.is_owned_by(NodeId::new(1)))
    }

    /// Puts another host's lease into the store, for ever.
    fn flanneld(&self, subnets: SubnetKey) -> Revision {
        let value = r#"{"PublicIP":"192.0.2.99","PublicIPv6":null,"BackendType":"host-gw"}"#;
        self.store.put(keys().lease(&subnets), value, None)
    }

    async fn release(&self) -> Result<(), LeaseError> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(LeaseAsk::Release(reply)).await.unwrap();
        answer.await.unwrap()
    }

    async fn renumber(&self) -> Result<(), LeaseError> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(LeaseAsk::Renumber(reply)).await.unwrap();
        answer.await.unwrap()
    }
}

/// Does the reconciler's part for a keeper without a lease: judges each configuration.
async fn judge(mut view: watch::Receiver<NetworkView>, outcome: watch::Sender<Outcome>) {
    loop {
        let config = view.borrow_and_update().state.valid_config().cloned();
        outcome.send_if_modified(|outcome| {
            let judged = config.map(|config| (NetworkName::default_network(), Judgement { config, refused: None }));
            let judgements = judged.into_iter().collect();
            let changed = outcome.judgements != judgements;
            outcome.judgements = judgements;
            changed
        });
        if view.changed().await.is_err() {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_subnet_is_claimed_held_and_remembered() {
    let host = Host::start("claim", CONFIG).await;
    let subnets = host.held().await;
    assert_eq!(host.own().unwrap().subnets, subnets);
    let written = std::fs::read_to_string(host.dir.join("state/default.subnet")).unwrap();
    assert_eq!(written.trim(), subnets.to_string());
    assert!(host.codes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_own_lease_that_somebody_deletes_is_claimed_again_at_once_and_held_all_along() {
    let mut host = Host::start("deleted", CONFIG).await;
    let subnets = host.held().await;
    host.holding.mark_unchanged();
    for _ in 0..3 {
        let deleted = host.store.delete(keys().lease(&subnets));
        assert_eq!(host.held().await, subnets);
        assert!(host.own().is_some_and(|lease| lease.subnets == subnets && lease.create_revision > deleted));
    }
    assert!(host.codes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_subnet_that_another_took_is_kept_and_said_and_claimed_again_when_it_is_free() {
    let host = Host::start("taken", CONFIG).await;
    let subnets = host.held().await;
    host.flanneld(subnets);
    assert_eq!(host.held().await, subnets);
    assert_eq!(host.codes(), [ProblemCode::SubnetLost]);
    assert!(host.holding.borrow().problems[0].message.contains("the host at 192.0.2.99"));
    let revision = host.store.revision();
    sleep(TTL).await;
    assert_eq!((host.held().await, host.own()), (subnets, None));
    assert_eq!(host.store.revision(), revision, "nothing is written over another's lease");
    host.store.delete(keys().lease(&subnets));
    assert_eq!(host.held().await, subnets);
    assert_eq!(host.own().unwrap().subnets, subnets);
    assert!(host.codes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_unreadable_in_our_place_is_said_only_while_it_is_there() {
    let mut host = Host::start("unreadable", CONFIG).await;
    let subnets = host.held().await;
    host.store.put(keys().lease(&subnets), "{", None);
    host.run().await;
    sleep(RECONNECTED).await;
    assert_eq!((host.held().await, host.codes()), (subnets, vec![ProblemCode::SubnetLost]));
    host.store.delete(keys().config());
    // For this long the loss of the configuration is taken for a wipe.
    sleep(TTL + RECONNECTED).await;
    host.store.delete(keys().lease(&subnets));
    sleep(TTL).await;
    assert_eq!((host.held().await, host.codes()), (subnets, vec![]));
    assert!(host.own().is_none(), "without a configuration nothing is claimed");
    host.store.put(keys().config(), CONFIG, None);
    assert_eq!(host.held().await, subnets);
    assert_eq!(host.own().unwrap().subnets, subnets);
}

#[tokio::test(start_paused = true)]
async fn only_a_lost_subnet_is_given_up_for_another() {
    let host = Host::start("renumber", CONFIG).await;
    let subnets = host.held().await;
    host.renumber().await.unwrap();
    assert_eq!(host.held().await, subnets, "it was not lost");
    host.flanneld(subnets);
    host.held().await;
    host.renumber().await.unwrap();
    let other = host.held().await;
    assert_ne!(other, subnets);
    assert_eq!(host.own().unwrap().subnets, other);
    assert!(host.codes().is_empty());
    let written = std::fs::read_to_string(host.dir.join("state/default.subnet")).unwrap();
    assert_eq!(written.trim(), other.to_string());
}

#[tokio::test(start_paused = true)]
async fn a_lease_given_back_is_not_claimed_again_however_long_the_keeper_is_left_running() {
    let host = Host::start("release", CONFIG).await;
    host.held().await;
    host.release().await.unwrap();
    let revision = host.store.revision();
    // These wake a keeper: time, another underlay, and news of the network.
    sleep(RECONNECTED).await;
    host.outcome.send_modify(|outcome| outcome.underlay = Some(underlay(20)));
    host.store.put(keys().config(), SMALL, None);
    sleep(TTL).await;
    assert_eq!(host.own(), None);
    assert_eq!(host.store.revision(), revision + 1, "only the configuration was written");
    assert!(!host.dir.join("state/default.subnet").exists());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_could_not_be_given_back_is_left_to_expire() {
    let host = Host::start("release-fails", CONFIG).await;
    let subnets = host.held().await;
    host.client.set_link(Link::Down);
    host.release().await.unwrap_err();
    host.client.set_link(Link::Up);
    let revision = host.store.revision();
    sleep(TTL - RECONNECTED).await;
    assert_eq!(host.own().map(|lease| lease.subnets), Some(subnets));
    assert_eq!(host.store.revision(), revision);
    sleep(RECONNECTED * 2).await;
    assert_eq!(host.own(), None);
}

/// Tests every call whose answer may be lost, when the call that would undo it fails: both when the store is there to
/// look in and when it is not.
#[tokio::test(start_paused = true)]
async fn a_host_that_leaves_after_a_claim_that_was_not_answered_leaves_no_lease_or_says_so() {
    /// The calls until the first lease is held, and one more.
    const CALLS: usize = 9;
    let (mut stays, mut looked_up) = (0, 0);
    for lost in 0..CALLS {
        for link in [Link::Up, Link::Down] {
            let mut host = Host::new(&format!("unanswered-{lost}-{link:?}"), CONFIG);
            let answered = std::iter::repeat_n(Fault::None, lost);
            host.client.fault_next(answered.chain([Fault::LoseReply, Fault::Fail]));
            host.run().await;
            sleep(AT_ONCE).await;
            let unknown = host.own().is_some() && host.holding.borrow().held.is_none();
            host.client.set_link(link);
            sleep(AT_ONCE).await;
            let released = host.release().await;
            match &released {
                Ok(()) => assert_eq!(host.own(), None, "{lost} {link:?}"),
                Err(said) => assert!(said.to_string().contains("stays until it expires"), "{said}"),
            }
            looked_up += u32::from(unknown && released.is_ok());
            stays += u32::from(unknown && released.is_err());
        }
    }
    assert!(stays > 0 && looked_up > 0, "{stays} said that it may stay, {looked_up} were found in the store");
}

#[tokio::test(start_paused = true)]
async fn a_subnet_that_the_network_has_no_more_is_kept_until_it_is_given_up_and_is_free_then() {
    let host = Host::start("changed", CONFIG).await;
    let subnets = host.held().await;
    host.store.put(keys().config(), CONFIG.replace("10.100.", "10.200."), None);
    assert_eq!((host.held().await, host.codes()), (subnets, vec![ProblemCode::NetworkChanged]));
    // A subnet that cannot be given back is kept.
    host.client.set_link(Link::Down);
    assert!(matches!(host.renumber().await, Err(LeaseError::Kept { .. })));
    host.client.set_link(Link::Up);
    sleep(RECONNECTED).await;
    assert_eq!((host.held().await, host.codes()), (subnets, vec![ProblemCode::NetworkChanged]));
    host.renumber().await.unwrap();
    let now = host.held().await;
    assert!(now.to_string().starts_with("10.200."), "{now}");
    assert_eq!(host.leases().iter().map(|lease| lease.subnets).collect::<Vec<_>>(), [now]);
    assert!(host.codes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_network_to_be_made_is_made_whichever_call_the_store_does_not_answer() {
    for answered in 0..6 {
        let mut host = Host::new(&format!("init-{answered}"), CONFIG);
        host.store.delete(keys().config());
        host.init = vec!["10.100.0.0/16".parse().unwrap()];
        host.client.fault_next((0..answered).map(|_| Fault::None).chain([Fault::Fail]));
        host.run().await;
        sleep(5 * RECONNECTED).await;
        assert!(host.held().await.to_string().starts_with("10.100."), "after {answered} answered calls");
    }
}

#[tokio::test(start_paused = true)]
async fn a_subnet_asked_for_that_is_not_the_one_held_is_said_and_changes_nothing() {
    let mut host = Host::start("differs", CONFIG).await;
    let subnets = host.held().await;
    host.wanted = subnets.iter().collect();
    host.run().await;
    assert_eq!((host.held().await, host.codes()), (subnets, vec![]));
    host.wanted = vec!["10.100.255.0/24".parse().unwrap()];
    host.run().await;
    sleep(RECONNECTED).await;
    assert_eq!((host.held().await, host.codes()), (subnets, vec![ProblemCode::SubnetDiffers]));
    assert_eq!(host.own().unwrap().subnets, subnets);
}

#[tokio::test(start_paused = true)]
async fn another_underlay_address_is_published_in_place() {
    let host = Host::start("publish", CONFIG).await;
    let subnets = host.held().await;
    let before = host.own().unwrap();
    host.outcome.send_modify(|outcome| outcome.underlay = Some(underlay(20)));
    assert_eq!(host.held().await, subnets);
    let after = host.own().unwrap();
    assert_eq!(after.public_ip, Some([192, 0, 2, 20].into()));
    assert_eq!((after.create_revision, after.etcd_lease), (before.create_revision, before.etcd_lease));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_a_backup_brought_back_is_brought_up_to_date() {
    let host = Host::start("backup", CONFIG).await;
    host.held().await;
    let backup = host.store.backup();
    host.outcome.send_modify(|outcome| outcome.underlay = Some(underlay(20)));
    host.held().await;
    host.store.restore(&backup);
    sleep(RECONNECTED).await;
    assert_eq!(host.own().unwrap().public_ip, Some([192, 0, 2, 20].into()));
}

#[tokio::test(start_paused = true)]
async fn what_waited_for_the_store_is_done_as_soon_as_it_is_back() {
    let host = Host::start("back", CONFIG).await;
    let subnets = host.held().await;
    host.client.set_link(Link::Stalled);
    host.outcome.send_modify(|outcome| outcome.underlay = Some(underlay(20)));
    // By now the waits between tries are at their longest.
    sleep(Duration::from_secs(600)).await;
    assert_eq!(host.own().unwrap().public_ip, Some([192, 0, 2, 10].into()));
    host.client.set_link(Link::Up);
    // The keeper waits for the call under way when the store came back, then everything goes at once.
    sleep(flatnet_plane::store::CALL_TIMEOUT + RECONNECTED).await;
    assert_eq!(host.held().await, subnets);
    assert_eq!(host.own().unwrap().public_ip, Some([192, 0, 2, 20].into()));
}

#[tokio::test(start_paused = true)]
async fn a_lease_outlives_any_time_its_agent_runs_and_expires_after_it_ends() {
    let mut host = Host::start("alive", CONFIG).await;
    let subnets = host.held().await;
    let first = host.own().unwrap();
    sleep(TTL * 10).await;
    assert_eq!(host.own(), Some(first));
    host.run().await;
    sleep(RECONNECTED).await;
    // The agent is restarted while the operator has taken the configuration away: nothing is written, and nothing
    // expires.
    host.store.delete(keys().config());
    host.run().await;
    sleep(TTL * 2).await;
    assert_eq!(host.own().unwrap().subnets, subnets);
    host.tasks.iter().for_each(JoinHandle::abort);
    sleep(TTL + Duration::from_secs(1)).await;
    assert_eq!(host.own(), None);
}

#[tokio::test(start_paused = true)]
async fn a_full_network_is_asked_seldom_and_a_subnet_that_becomes_free_is_taken() {
    /// The reads of one attempt: its own record and the claims from what is known of the leases, then both and the
    /// leases.
    const CALLS: u64 = 5;
    // This comes before anything else runs.
    let mut host = Host::start("full", SMALL).await;
    let free: SubnetKey = "10.100.2.0-24".parse().unwrap();
    for subnet in ["10.100.1.0-24", "10.100.2.0-24", "10.100.3.0-24"] {
        host.flanneld(subnet.parse().unwrap());
    }
    sleep(Duration::from_secs(900)).await;
    assert_eq!(host.codes(), [ProblemCode::SubnetsExhausted]);
    assert!(host.holding.borrow().held.is_none());
    // The problem is reported once, not with every attempt. Between two attempts are at least 15 s and at most 30 s.
    host.holding.mark_unchanged();
    let before = host.client.calls();
    sleep(Duration::from_secs(300)).await;
    assert!(!host.holding.has_changed().unwrap());
    let calls = host.client.calls() - before;
    assert!((10 * CALLS..=20 * CALLS).contains(&calls), "{calls} calls in 300 s");
    host.store.delete(keys().lease(&free));
    sleep(Duration::from_secs(31)).await;
    assert_eq!(host.held().await, free);
    assert!(host.codes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_subnet_that_cannot_be_written_down_is_said_and_tried_again() {
    let host = Host::start("disk", CONFIG).await;
    // This comes before anything else runs. A file cannot replace a directory: root, too, is refused.
    let file = host.dir.join("state/default.subnet");
    std::fs::create_dir_all(file.join("in-the-way")).unwrap();
    let subnets = host.held().await;
    assert_eq!(host.codes(), [ProblemCode::SubnetUnwritable]);
    assert_eq!(host.own().unwrap().subnets, subnets, "it is held all the same");
    std::fs::remove_dir_all(&file).unwrap();
    sleep(Duration::from_secs(6)).await;
    assert!(host.codes().is_empty());
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), subnets.to_string());
}

/// A network was moved, a server refused this node's old subnet, and then the store lost the configuration. Nobody
/// claims anything any more, so nothing is refused any more.
#[test]
fn what_an_attempt_met_is_not_said_when_nothing_can_be_attempted() {
    use super::decide::is_over;
    let (in_force, stored) = (true, true);
    for met in [ProblemCode::SubnetOutside, ProblemCode::SubnetsExhausted] {
        assert!(!is_over(met, false, in_force, stored));
        assert!(is_over(met, false, in_force, false) && is_over(met, false, false, false), "{met}");
    }
    // What is still so is still said.
    assert!(!is_over(ProblemCode::SubnetUnwritable, false, in_force, false));
    assert!(!is_over(ProblemCode::SubnetLost, true, in_force, false));
    assert!(is_over(ProblemCode::SubnetLost, false, in_force, stored));
}
