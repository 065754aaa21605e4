//! One node: the tasks that make a store and a kernel into a member of its networks. It is generic over both, so that a
//! model test runs exactly what a host runs, on a store and a kernel in memory.
//!
//! Dropping a [`Node`] cuts every task off where it stands, as `kill -9` does: what is in the store and in the kernel
//! stays. What belongs to a process (sockets, signals, the service manager) is in [`crate::daemon`].

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flatnet_controlplane::flannel::decode_in_force;
use flatnet_controlplane::plane::ControlPlane;
use flatnet_controlplane::random::NodeRandom;
use flatnet_controlplane::snapshot;
use flatnet_controlplane::watch::{Connection, NetworkView, Source, follow_with};
use flatnet_core::op::Op;
use flatnet_core::problem::Problem;
use flatnet_kernel::Kernel;
use flatnet_model::keys::NetworkKeys;
use flatnet_model::{BackendConfig, EARLIER_BACKENDS, HostRanges, NetworkConfig, NetworkName, Owner};
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::channels::Channels;
use crate::env_files;
use crate::evidence::{self, Evidence};
use crate::lease_keeper::{self, LeaseAsk, LeaseKeeper};
use crate::metrics::Metrics;
use crate::networks::{Held, Holding, NetworkPort};
use crate::presence_keeper::{Presence, PresenceKeeper};
use crate::purge;
use crate::reconciler::{HostOptions, Outcome, PlanRequest, Reconciler, Records};
use crate::report::{Failure, chain};
use crate::rotation::Rotation;
use crate::snapshots;
use crate::state_dir::StateDir;
use crate::status::StatusSource;
use crate::sysctl_record::SysctlRecord;
use crate::underlay_record::UnderlayRecord;
use crate::wireguard_key::WireguardIdentity;

/// The longest that a silent store may hold up the datapath of a node that knows its peers from disk.
const STORE_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// The time that a store that answers has to confirm that this node is not a copy. Another copy's presence lasts 15 s.
const IDENTITY_TIMEOUT: Duration = Duration::from_secs(20);
/// The number of questions that may wait for a task. People and scripts ask, one at a time.
const ASKS: usize = 8;
/// The time that leaving waits for a store that does not answer.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(8);

/// Everything a node is made from.
pub struct NodeParts<P, K> {
    /// The control plane, which holds the leases.
    pub plane: Arc<P>,
    /// The kernel that is programmed.
    pub kernel: Arc<K>,
    /// The node's files.
    pub dir: Arc<StateDir>,
    /// The settings that earlier runs changed.
    pub sysctls: SysctlRecord,
    /// The node's WireGuard key.
    pub wireguard: WireguardIdentity,
    /// The record of the underlay that carried the tunnels last.
    pub underlay: UnderlayRecord,
    /// The ranges that this host uses itself, as found at the start.
    pub ranges: HostRanges,
    /// The addresses of the store's first endpoint, as far as they are known.
    pub store_at: watch::Receiver<Vec<IpAddr>>,
    /// The identity of this node in the store.
    pub owner: Owner,
    /// The options of the host that stay the same while the node runs.
    pub host: HostOptions,
    /// The networks to join.
    pub networks: Vec<NetworkSetup>,
    /// The time that leases outlive this node.
    pub lease_ttl: Duration,
    /// The key prefix under which the network `default` lives.
    pub flannel_prefix: String,
    /// The source of randomness that spreads waits and choices.
    pub random: NodeRandom,
}

/// One network that is to be joined.
#[derive(Clone, Debug)]
pub struct NetworkSetup {
    /// The network's name and keys.
    pub keys: NetworkKeys,
    /// The ranges to create the network with if it does not exist.
    pub init: Vec<IpNet>,
    /// The subnets asked for.
    pub wanted: Vec<IpNet>,
    /// The path of the network's env file.
    pub env_file: PathBuf,
}

/// A running node.
pub struct Node<P: ControlPlane, K: Kernel> {
    parts: NodeParts<P, K>,
    status: StatusSource,
    metrics: Arc<Metrics>,
    /// Failures that end the agent because only an operator can put them right.
    pub fatal: mpsc::Receiver<Failure>,
    /// True once every joined network has its env file.
    pub ready: watch::Receiver<bool>,
    plans: mpsc::Sender<PlanRequest>,
    leases: Vec<mpsc::Sender<LeaseAsk>>,
    presence: PresenceKeeper<P>,
    running: Running,
}

/// Tasks by the part they play. Dropping this cuts them off.
#[derive(Default)]
struct Running(Vec<(&'static str, JoinHandle<()>)>);

impl Running {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.push((name, tokio::spawn(task)));
    }

    async fn stop(&mut self, name: &'static str) {
        for (_, task) in self.0.extract_if(.., |(task, _)| *task == name) {
            task.abort();
            // An error here means "cancelled", as it should be.
            let _ = task.await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for (_, task) in &self.0 {
            task.abort();
        }
    }
}

impl<P: ControlPlane, K: Kernel> Node<P, K> {
    /// Starts every task.
    #[must_use]
    pub fn start(parts: NodeParts<P, K>) -> Self {
        let (fatal_sender, fatal) = mpsc::channel(ASKS);
        let (plans, plan_receiver) = mpsc::channel(ASKS);
        let (outcome_sender, outcome) = watch::channel(Outcome::default());
        let (ready_sender, ready) = watch::channel(false);
        let metrics = Arc::new(Metrics::new());
        let channels = Channels::default();
        let presence = PresenceKeeper::new(
            Arc::clone(&parts.plane),
            parts.owner.clone(),
            fatal_sender.clone(),
            parts.random.clone(),
            outcome.clone(),
            channels.clone(),
            parts.ranges.clone(),
        );
        let mut running = Running::default();
        let (mut ports, mut leases, mut problems, mut targets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for network in &parts.networks {
            let joined = join(&parts, network, &outcome, &presence, &channels, &fatal_sender, &mut running);
            targets.push(env_files::Target { port: joined.port.clone(), path: network.env_file.clone() });
            ports.push(joined.port);
            leases.push(joined.lease);
            problems.push(joined.snapshot_problem);
        }
        running.spawn("presence", presence.clone().run());
        let (env_problems, env_problem_receiver) = watch::channel(Vec::new());
        let masquerade = parts.host.masquerade;
        running.spawn("env", env_files::keep(targets, masquerade, outcome.clone(), env_problems, ready_sender));
        let reconciler = Reconciler::new(
            Arc::clone(&parts.kernel),
            parts.host.clone(),
            ports.clone(),
            outcome_sender,
            Arc::clone(&metrics),
            Records {
                sysctls: parts.sysctls.clone(),
                underlay: parts.underlay.clone(),
                wireguard: parts.wireguard.clone(),
            },
            parts.store_at.clone(),
        );
        let (waited_for, identity) = (ports.clone(), presence.subscribe());
        running.spawn("reconciler", async move {
            wait_for_identity(&waited_for, identity).await;
            reconciler.run(plan_receiver).await;
        });
        let (evidence_sender, evidence) = watch::channel(Evidence::default());
        let looking = (Arc::clone(&parts.kernel), parts.host.bridge, ports.clone(), outcome.clone());
        let (kernel, bridge, joined, done) = looking;
        running.spawn("evidence", evidence::keep(kernel, bridge, joined, done, evidence_sender));
        let status = StatusSource {
            node: parts.owner.node,
            name: parts.owner.name.clone(),
            ports,
            outcome,
            env_problems: env_problem_receiver,
            channels,
            evidence,
            snapshot_problems: problems,
        };
        Self { parts, status, metrics, fatal, ready, plans, leases, presence, running }
    }

    /// Returns the source of the node's status: what it is, has and lacks.
    #[must_use]
    pub fn status(&self) -> &StatusSource {
        &self.status
    }

    /// Returns the node's metrics.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Asks the reconciler what its next pass would change.
    pub async fn plan(&self) -> Result<oneshot::Receiver<Result<Vec<Op>, String>>, String> {
        let (request, answer) = oneshot::channel();
        self.plans.send(request).await.map_err(|_| "the reconciler has stopped".to_owned())?;
        Ok(answer)
    }

    /// Ends every task and waits until each has ended; what is in the store and in the kernel stays.
    pub async fn stop(&mut self) {
        for task in ["evidence", "env", "snapshot", "reconciler", "lease", "presence", "watch"] {
            self.running.stop(task).await;
        }
    }

    /// Stops a node that cannot go on, and ends its presence, so that it no longer counts as alive.
    pub async fn abandon(&mut self) {
        self.stop().await;
        if let Some(failure) = self.withdraw().await {
            tracing::debug!(failure, "presence stays until it expires");
        }
    }

    /// Returns what replaces this node's WireGuard key.
    #[must_use]
    pub fn rotation(&self) -> Rotation {
        Rotation {
            node: self.parts.owner.node,
            ports: self.status.ports.clone(),
            identity: self.parts.wireguard.clone(),
        }
    }

    /// Gives lost subnets up and takes new ones. Returns what could not be done.
    pub async fn renumber(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for lease in &self.leases {
            failures.extend(ask_lease(lease, LeaseAsk::Renumber).await);
        }
        failures
    }

    /// Gives everything back in the store, and in the kernel too if `purge` is set. Returns what could not be undone.
    pub async fn leave(&mut self, purge: bool) -> Vec<String> {
        // Nobody may program or publish while we take down.
        for task in ["evidence", "env", "snapshot", "reconciler"] {
            self.running.stop(task).await;
        }
        let mut failures = Vec::new();
        for lease in &self.leases {
            failures.extend(ask_lease(lease, LeaseAsk::Release).await);
        }
        for task in ["lease", "presence", "watch"] {
            self.running.stop(task).await;
        }
        failures.extend(self.withdraw().await);
        if purge {
            // The settings that earlier runs and this one changed.
            let sysctls =
                SysctlRecord::open(Arc::clone(&self.parts.dir)).unwrap_or_else(|_| self.parts.sysctls.clone());
            failures.extend(purge::kernel(self.parts.kernel.as_ref(), &sysctls).await);
            failures.extend(self.remove_files());
        }
        failures
    }

    /// Ends this node's presence. Returns the reason if that failed.
    async fn withdraw(&self) -> Option<String> {
        match tokio::time::timeout(LEAVE_TIMEOUT, self.presence.withdraw()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some("the store did not answer in time; this node counts as alive for 15 s more".to_owned()),
        }
    }

    fn remove_files(&self) -> Vec<String> {
        let dir = &self.parts.dir;
        let files = self.parts.networks.iter().map(|network| &network.env_file);
        let mut failures: Vec<String> =
            files.filter_map(|file| crate::state_dir::remove(file).err()).map(|error| chain(&error)).collect();
        let joined = self.parts.networks.iter().map(|network| network.keys.network().clone());
        let networks: Vec<NetworkName> = dir.networks().into_iter().chain(joined).collect();
        failures.extend(purge::files(dir, &networks));
        failures
    }
}

/// The ends by which the node reaches one joined network's tasks.
struct Joined {
    port: NetworkPort,
    lease: mpsc::Sender<LeaseAsk>,
    snapshot_problem: watch::Receiver<Option<Problem>>,
}

fn join<P: ControlPlane, K: Kernel>(
    parts: &NodeParts<P, K>,
    network: &NetworkSetup,
    outcome: &watch::Receiver<Outcome>,
    presence: &PresenceKeeper<P>,
    channels: &Channels,
    fatal: &mpsc::Sender<Failure>,
    running: &mut Running,
) -> Joined {
    let name = network.keys.network().clone();
    let from_disk = from_disk(&parts.dir, &network.keys).unwrap_or_default();
    let previous = parts.dir.read_subnet(&name).unwrap_or_else(|error| {
        tracing::warn!(network = %name, error = chain(&error), "the last subnet cannot be read");
        None
    });
    let config = in_force(&parts.dir, &name).or_else(|| Some((from_disk.state.valid_config().cloned()?, Vec::new())));
    let fitting = previous.zip(config).filter(|(subnets, (config, _))| lease_keeper::fits(config, *subnets));
    let held =
        fitting.map(|(subnets, (config, before))| Held { subnets, config, before, unread: Vec::new(), expires: None });
    let (view_sender, view) = watch::channel(from_disk);
    let (holding_sender, holding) = watch::channel(Holding { held, problems: Vec::new() });
    let port = NetworkPort { name, view, holding };
    let (lease, lease_asks) = mpsc::channel(ASKS);
    let keeper = LeaseKeeper {
        plane: Arc::clone(&parts.plane),
        keys: network.keys.clone(),
        owner: parts.owner.clone(),
        ttl: parts.lease_ttl,
        wanted: network.wanted.clone(),
        init: network.init.clone(),
        flannel_prefix: parts.flannel_prefix.clone(),
        dir: Arc::clone(&parts.dir),
        view: port.view.clone(),
        outcome: outcome.clone(),
        presence: presence.subscribe(),
        channels: channels.clone(),
        holding: holding_sender,
        fatal: fatal.clone(),
        random: parts.random.clone(),
    };
    running.spawn("lease", keeper.run(lease_asks));
    let (plane, keys) = (Arc::clone(&parts.plane), network.keys.clone());
    running.spawn("watch", follow_with(plane, keys, parts.lease_ttl, view_sender, parts.random.clone()));
    let (problem, snapshot_problem) = watch::channel(None);
    running.spawn("snapshot", snapshots::keep(Arc::clone(&parts.dir), network.keys.clone(), port.clone(), problem));
    Joined { port, lease, snapshot_problem }
}

/// Reads the configuration in force here, and the earlier backends, from disk.
fn in_force(dir: &StateDir, network: &NetworkName) -> Option<(NetworkConfig, Vec<BackendConfig>)> {
    let text = dir.read_config(network).unwrap_or_else(|error| {
        tracing::warn!(network = %network, error = chain(&error), "the configuration in force cannot be read");
        None
    })?;
    let mut configs = text.split(|byte| *byte == b'\n').filter_map(|json| decode_in_force(json).ok());
    let (config, _) = configs.next()?;
    Some((config, configs.map(|(earlier, _)| earlier.backend).take(EARLIER_BACKENDS).collect()))
}

fn from_disk(dir: &StateDir, keys: &NetworkKeys) -> Option<NetworkView> {
    let name = keys.network();
    let bytes = dir.read_snapshot(name).unwrap_or_else(|error| {
        tracing::warn!(network = %name, error = chain(&error), "the last view cannot be read");
        None
    })?;
    match snapshot::decode(keys, &bytes) {
        Ok(view) => {
            debug_assert_eq!(view.source, Source::Disk);
            tracing::info!(network = %name, leases = view.state.leases.len(), "starting from the last view on disk");
            Some(view)
        }
        Err(error) => {
            tracing::warn!(network = %name, %error, "the last view on disk is not usable; waiting for the store");
            None
        }
    }
}

/// Waits until this node may touch the kernel: until its identity is confirmed, or the store has stayed silent.
async fn wait_for_identity(ports: &[NetworkPort], mut presence: watch::Receiver<Presence>) {
    let confirmed = async {
        let _ = presence.wait_for(|presence| *presence == Presence::Confirmed).await;
    };
    let answers = || ports.iter().any(|port| port.view.borrow().connection == Connection::Connected);
    tokio::pin!(confirmed);
    if tokio::time::timeout(STORE_ANSWER_TIMEOUT, &mut confirmed).await.is_err() && answers() {
        let _ = tokio::time::timeout(IDENTITY_TIMEOUT, confirmed).await;
    }
}

async fn ask_lease(
    lease: &mpsc::Sender<LeaseAsk>,
    ask: impl FnOnce(oneshot::Sender<Result<(), String>>) -> LeaseAsk,
) -> Option<String> {
    let (reply, answer) = oneshot::channel();
    if lease.send(ask(reply)).await.is_err() {
        return None;
    }
    match tokio::time::timeout(LEAVE_TIMEOUT, answer).await {
        Ok(Ok(Ok(())) | Err(_)) => None,
        Ok(Ok(Err(failure))) => Some(failure),
        Err(_) => Some("the store did not answer in time; the lease stays until it expires".to_owned()),
    }
}
