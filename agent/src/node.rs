//! One node: the parts that make a store and a kernel into a member of its networks. It is generic over both, so that a
//! model test runs exactly what a host runs, on a store and a kernel in memory.
//!
//! Each part is one line in a list: those of the node in [`Node::start`], those of one network in
//! `membership/network.rs`. Dropping a [`Node`] cuts every part off where it stands, as `kill -9` does: what is in the
//! store and in the kernel stays. What belongs to a process (sockets, signals, the service manager) is in
//! [`crate::daemon`].

mod certificate;
pub mod env_files;
pub mod evidence;
pub mod host_kernel;
pub mod lease_keeper;
pub mod membership;
pub mod network_report;
pub mod presence_keeper;
pub mod purge;
pub mod rotation;
pub mod snapshots;
pub mod status;
mod wall_clock;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flatnet_core::op::Op;
use flatnet_kernel::Kernel;
use flatnet_model::NetworkName;
use flatnet_plane::plane::ControlPlane;
use flatnet_plane::watch::Connection;
use tokio::sync::{mpsc, oneshot, watch};

use crate::files::sysctl_record::SysctlRecord;
use crate::node::membership::Membership;
use crate::node::presence_keeper::PresenceKeeper;
use crate::node::rotation::Rotation;
use crate::node::status::StatusSource;
use crate::reconciler::{PlanError, PlanRequest, Reconciler};
use crate::report::{Failure, chain};
use crate::wiring::channels::Channels;
use crate::wiring::context::{Context, NodeSetup};
use crate::wiring::metrics::Metrics;
use crate::wiring::networks::{NetworkPort, Presence};
use crate::wiring::outcome::Outcome;
use crate::wiring::part::{Part, Running, Stop};

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
    membership: Arc<Membership<P, K>>,
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
        let (written_sender, written) = watch::channel(BTreeSet::new());
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
        let membership = Membership::start(context.clone(), running.clone(), written, networks_sender);
        let keeper = PresenceKeeper::new(&context, presence_sender);
        // This is the list: a new part is a line here, and its own file.
        let parts = [
            keeper.part(context.networks.clone()),
            env_files::part(&context, written_sender, ready_sender),
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
        Self { context, status, fatal, ready, plans, membership: Arc::new(membership), presence: keeper, running }
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
    pub async fn plan(&self) -> Result<oneshot::Receiver<Result<Vec<Op>, PlanError>>, PlanError> {
        let (request, answer) = oneshot::channel();
        self.plans.send(request).await.map_err(|_| PlanError::Stopping)?;
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
        self.membership.renumber().await.iter().map(|failure| chain(failure)).collect()
    }

    /// Returns the networks of this node, which change while it runs.
    #[must_use]
    pub fn membership(&self) -> &Arc<Membership<P, K>> {
        &self.membership
    }

    /// Gives everything back in the store, and in the kernel too if `purge` is set. Returns what could not be undone.
    pub async fn leave(&mut self, purge: bool) -> Vec<String> {
        // Nobody may program or publish while we take down.
        self.running.stop_until(Stop::Effect).await;
        let remains = self.membership.release_all().await;
        let mut failures: Vec<String> = remains.iter().map(|remains| chain(remains)).collect();
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
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("the store did not answer in time; this node counts as alive for 15 s more".to_owned()),
        }
    }

    fn remove_files(&self) -> Vec<String> {
        let dir = &self.context.setup.dir;
        let setups = self.membership.setups();
        let files = setups.iter().map(|setup| &setup.env_file);
        let mut failures: Vec<String> =
            files.filter_map(|file| crate::files::state_dir::remove(file).err()).map(|error| chain(&error)).collect();
        let joined = setups.iter().map(|setup| setup.keys.network().clone());
        let networks: Vec<NetworkName> = dir.networks().into_iter().chain(joined).collect();
        failures.extend(purge::files(dir, &networks));
        failures
    }
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
