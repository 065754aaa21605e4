//! One node: the parts that make a store and a kernel into a member of its networks. It is generic over both, so that a
//! model test runs exactly what a host runs, on a store and a kernel in memory.
//!
//! Each part is one line in a list: those of the node in [`Node::start`], those of one network in `network::join`.
//! Dropping a [`Node`] cuts every part off where it stands, as `kill -9` does: what is in the store and in the kernel
//! stays. What belongs to a process (sockets, signals, the service manager) is in [`crate::daemon`].

mod network;

use std::sync::Arc;
use std::time::Duration;

use flatnet_controlplane::plane::ControlPlane;
use flatnet_controlplane::watch::Connection;
use flatnet_core::op::Op;
use flatnet_kernel::Kernel;
use flatnet_model::NetworkName;
use tokio::sync::{mpsc, oneshot, watch};

use crate::certificate;
use crate::channels::Channels;
use crate::context::{Context, NodeSetup};
use crate::env_files;
use crate::evidence;
use crate::lease_keeper::LeaseAsk;
use crate::metrics::Metrics;
use crate::networks::{NetworkPort, Presence};
use crate::outcome::Outcome;
use crate::part::{Part, Running, Stop};
use crate::presence_keeper::PresenceKeeper;
use crate::purge;
use crate::reconciler::{PlanRequest, Reconciler};
use crate::report::{Failure, chain};
use crate::rotation::Rotation;
use crate::status::StatusSource;
use crate::sysctl_record::SysctlRecord;
use crate::wall_clock;
use network::Joined;

/// The longest that a silent store may hold up the datapath of a node that knows its peers from disk.
const STORE_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// The time that a store that answers has to confirm that this node is not a copy. Another copy's presence lasts 15 s.
const IDENTITY_TIMEOUT: Duration = Duration::from_secs(20);
/// The number of questions that may wait for a part. People and scripts ask, one at a time.
const ASKS: usize = 8;
/// The time that leaving waits for a store that does not answer.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(8);

/// A running node.
pub struct Node<P: ControlPlane, K: Kernel> {
    context: Context<P, K>,
    status: StatusSource,
    /// Failures that end the agent because only an operator can put them right.
    pub fatal: mpsc::Receiver<Failure>,
    /// True once every joined network has its env file.
    pub ready: watch::Receiver<bool>,
    plans: mpsc::Sender<PlanRequest>,
    joined: Vec<Joined>,
    presence: PresenceKeeper<P>,
    running: Running,
}

impl<P: ControlPlane, K: Kernel> Drop for Node<P, K> {
    fn drop(&mut self) {
        self.running.cut_off();
    }
}

impl<P: ControlPlane, K: Kernel> Node<P, K> {
    /// Starts every part.
    #[must_use]
    pub fn start(setup: NodeSetup<P, K>) -> Self {
        let (fatal_sender, fatal) = mpsc::channel(ASKS);
        let (plans, plan_receiver) = mpsc::channel(ASKS);
        let (outcome_sender, outcome) = watch::channel(Outcome::default());
        let (presence_sender, presence) = watch::channel(Presence::default());
        let (networks_sender, networks) = watch::channel(Vec::new());
        let (ready_sender, ready) = watch::channel(false);
        let context = Context {
            setup: Arc::new(setup),
            networks,
            outcome,
            presence,
            channels: Channels::default(),
            metrics: Arc::new(Metrics::new()),
            fatal: fatal_sender,
        };
        let running = Running::default();
        let joined = join_all(&context, &running, &networks_sender);
        let keeper = PresenceKeeper::new(&context, presence_sender);
        // This is the list: a new part is a line here, and its own file.
        let parts = [
            keeper.part(context.networks.clone()),
            env_files::part(&context, ready_sender),
            reconciler(&context, outcome_sender, plan_receiver),
            evidence::part(&context),
            certificate::part(&context),
            wall_clock::part(&context),
        ];
        parts.into_iter().for_each(|part| running.start(None, part));
        let status = StatusSource {
            node: context.setup.owner.node,
            name: context.setup.owner.name.clone(),
            networks: context.networks.clone(),
            outcome: context.outcome.clone(),
            reports: running.reports(),
        };
        Self { context, status, fatal, ready, plans, joined, presence: keeper, running }
    }

    /// Returns the source of the node's status: what it is, has and lacks.
    #[must_use]
    pub fn status(&self) -> &StatusSource {
        &self.status
    }

    /// Returns the node's metrics.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.context.metrics
    }

    /// Asks the reconciler what its next pass would change.
    pub async fn plan(&self) -> Result<oneshot::Receiver<Result<Vec<Op>, String>>, String> {
        let (request, answer) = oneshot::channel();
        self.plans.send(request).await.map_err(|_| "the reconciler has stopped".to_owned())?;
        Ok(answer)
    }

    /// Ends every part and waits until each has ended; what is in the store and in the kernel stays.
    pub async fn stop(&mut self) {
        self.running.stop_until(Stop::Feed).await;
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
        Rotation::of(&self.context)
    }

    /// Gives lost subnets up and takes new ones. Returns what could not be done.
    pub async fn renumber(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for network in &self.joined {
            failures.extend(ask_lease(&network.lease, LeaseAsk::Renumber).await);
        }
        failures
    }

    /// Gives everything back in the store, and in the kernel too if `purge` is set. Returns what could not be undone.
    pub async fn leave(&mut self, purge: bool) -> Vec<String> {
        // Nobody may program or publish while we take down.
        self.running.stop_until(Stop::Effect).await;
        let mut failures = Vec::new();
        for network in &self.joined {
            failures.extend(ask_lease(&network.lease, LeaseAsk::Release).await);
        }
        self.running.stop_until(Stop::Feed).await;
        failures.extend(self.withdraw().await);
        if purge {
            let setup = &self.context.setup;
            // The settings that earlier runs and this one changed.
            let sysctls = SysctlRecord::open(Arc::clone(&setup.dir)).unwrap_or_else(|_| setup.sysctls.clone());
            failures.extend(purge::kernel(setup.kernel.as_ref(), &sysctls).await);
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
        let dir = &self.context.setup.dir;
        let files = self.joined.iter().map(|network| &network.setup.env_file);
        let mut failures: Vec<String> =
            files.filter_map(|file| crate::state_dir::remove(file).err()).map(|error| chain(&error)).collect();
        let joined = self.joined.iter().map(|network| network.port.name.clone());
        let networks: Vec<NetworkName> = dir.networks().into_iter().chain(joined).collect();
        failures.extend(purge::files(dir, &networks));
        failures
    }
}

/// Starts the parts of every network that the node is to join.
fn join_all<P: ControlPlane, K>(
    context: &Context<P, K>,
    running: &Running,
    networks: &watch::Sender<Vec<NetworkPort>>,
) -> Vec<Joined> {
    // The bridge of our own is the first network's.
    let mut bridge = context.setup.host.bridge;
    let mut all = Vec::new();
    for setup in &context.setup.networks {
        let (joined, parts) = network::join(context, setup.clone(), bridge.take());
        networks.send_modify(|ports| ports.push(joined.port.clone()));
        parts.into_iter().for_each(|part| running.start(Some(&joined.port.name), part));
        all.push(joined);
    }
    all
}

/// Makes the part that programs the kernel, once this node may act in its own name.
fn reconciler<P, K: Kernel>(
    context: &Context<P, K>,
    outcome: watch::Sender<Outcome>,
    plans: mpsc::Receiver<PlanRequest>,
) -> Part
where
    P: Send + Sync + 'static,
{
    let reconciler = Reconciler::new(context, outcome);
    let (networks, presence) = (context.networks.clone(), context.presence.clone());
    let run = async move {
        wait_for_identity(networks, presence).await;
        reconciler.run(plans).await;
    };
    Part::new("reconciler", Stop::Effect, run).reporting(context.outcome.clone())
}

/// Waits until this node may touch the kernel: until its identity is confirmed, or the store has stayed silent.
async fn wait_for_identity(networks: watch::Receiver<Vec<NetworkPort>>, mut presence: watch::Receiver<Presence>) {
    let confirmed = async {
        let _ = presence.wait_for(|presence| *presence == Presence::Confirmed).await;
    };
    let answers = || networks.borrow().iter().any(|port| port.view.borrow().connection == Connection::Connected);
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
