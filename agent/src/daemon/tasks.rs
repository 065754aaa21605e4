//! The tasks of a running agent, and how they are ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flatnet_controlplane::snapshot;
use flatnet_controlplane::watch::{Connection, NetworkView, Source, follow};
use flatnet_core::problem::Problem;
use flatnet_model::NetworkName;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::setup::{NetworkSetup, Setup};
use crate::env_files;
use crate::http;
use crate::lease_keeper::{LeaseAsk, LeaseKeeper};
use crate::local_api::{self, Ask, LocalApi};
use crate::metrics::Metrics;
use crate::networks::{Held, Holding, NetworkPort};
use crate::presence_keeper::{Presence, PresenceKeeper};
use crate::purge;
use crate::reconciler::{Outcome, PlanRequest, Reconciler};
use crate::report::{Exit, Failure};
use crate::snapshots;
use crate::status::StatusSource;

/// How long a store that has not said a word may hold up the datapath of a node that knows its peers from disk.
const STORE_PATIENCE: Duration = Duration::from_secs(1);
/// How long a store that answers may take to confirm that this node is not a copy: another copy's presence lasts 15 s.
const IDENTITY_PATIENCE: Duration = Duration::from_secs(20);
/// Questions over the socket that may wait: people and scripts ask, one at a time.
const ASKS: usize = 8;
/// How long leaving waits for a store that does not answer.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(8);

/// Handles to everything that runs.
pub(super) struct Tasks {
    pub(super) asks: mpsc::Receiver<Ask>,
    pub(super) fatal: mpsc::Receiver<Failure>,
    running: BTreeMap<&'static str, Vec<JoinHandle<()>>>,
    plans: mpsc::Sender<PlanRequest>,
    leases: Vec<mpsc::Sender<LeaseAsk>>,
    presence: Option<PresenceKeeper<flatnet_controlplane::store::etcd::EtcdStore>>,
    api_stop: Option<oneshot::Sender<()>>,
}

impl Tasks {
    pub(super) async fn start(setup: &Setup) -> Result<Self, Failure> {
        let listener = local_api::listen(setup.dir.run()).map_err(|error| {
            let socket = setup.dir.run().join(local_api::SOCKET);
            Failure::new(Exit::InvalidConfig, format!("cannot listen on {}", socket.display())).caused_by(error)
        })?;
        let http = match setup.args.http_listen {
            Some(address) => Some(TcpListener::bind(address).await.map_err(|error| {
                Failure::new(Exit::InvalidConfig, format!("cannot listen on {address}"))
                    .hint("another program has that port, or the address is not this host's: choose another --http-listen")
                    .caused_by(error)
            })?),
            None => None,
        };
        let (fatal_sender, fatal) = mpsc::channel(ASKS);
        let (ask_sender, asks) = mpsc::channel(ASKS);
        let (plans, plan_receiver) = mpsc::channel(ASKS);
        let (outcome_sender, outcome) = watch::channel(Outcome::default());
        let metrics = Arc::new(Metrics::new());
        let presence = PresenceKeeper::new(Arc::clone(&setup.store), setup.owner.clone(), fatal_sender.clone());
        let mut tasks = Self {
            asks,
            fatal,
            running: BTreeMap::new(),
            plans,
            leases: Vec::new(),
            presence: Some(presence.clone()),
            api_stop: None,
        };
        let mut ports = Vec::new();
        let mut host_problems = Vec::new();
        let mut targets = Vec::new();
        for network in &setup.networks {
            let (port, holding, view) = ports_of(setup, network);
            let (lease_asks, lease_ask_receiver) = mpsc::channel(ASKS);
            tasks.leases.push(lease_asks);
            let keeper = LeaseKeeper {
                store: Arc::clone(&setup.store),
                keys: network.keys.clone(),
                owner: setup.owner.clone(),
                ttl: setup.args.lease_ttl,
                wanted: network.wanted.clone(),
                init: network.init.clone(),
                flannel_prefix: setup.args.store.etcd_prefix.clone(),
                dir: Arc::clone(&setup.dir),
                view: port.view.clone(),
                outcome: outcome.clone(),
                presence: presence.subscribe(),
                holding,
                fatal: fatal_sender.clone(),
            };
            tasks.spawn("lease", keeper.run(lease_ask_receiver));
            let store = Arc::clone(&setup.store);
            tasks.spawn("watch", follow(store, network.keys.clone(), setup.args.lease_ttl, view));
            let (problem, problem_receiver) = watch::channel(None);
            let dir = Arc::clone(&setup.dir);
            tasks.spawn("snapshot", snapshots::keep(dir, network.keys.clone(), port.clone(), problem));
            host_problems.push(problem_receiver);
            targets.push(env_files::Target { port: port.clone(), path: network.env_file.clone() });
            ports.push(port);
        }
        tasks.spawn("presence", presence.clone().run());
        let (env_problems_sender, env_problems) = watch::channel(Vec::new());
        let env = env_files::keep(targets, setup.args.ip_masq, outcome.clone(), env_problems_sender);
        tasks.spawn("env", env);
        let status = StatusSource {
            node: setup.owner.node,
            name: setup.owner.name.clone(),
            ports: ports.clone(),
            outcome: outcome.clone(),
            host_problems: host_problems_of(env_problems, host_problems),
        };
        tasks.serve(listener, http, &status, &metrics, setup, ask_sender);
        tasks.spawn("service-manager", tell_service_manager(status.clone(), outcome));
        let reconciler = Reconciler::new(
            Arc::clone(&setup.kernel),
            setup.host.clone(),
            ports.clone(),
            outcome_sender,
            metrics,
            setup.sysctls.clone(),
        );
        let identity = presence.subscribe();
        tasks.spawn("reconciler", async move {
            wait_for_identity(&ports, identity).await;
            reconciler.run(plan_receiver).await;
        });
        Ok(tasks)
    }

    /// Hands a question to the task that knows.
    pub(super) async fn pass_on(&self, ask: Ask) {
        match ask {
            Ask::Plan(reply) => {
                let (request, answer) = oneshot::channel();
                if self.plans.send(request).await.is_err() {
                    return;
                }
                tokio::spawn(async move {
                    if let Ok(plan) = answer.await {
                        let _ = reply.send(plan.map(|ops| ops.iter().map(planned).collect()));
                    }
                });
            }
            Ask::Renumber(reply) => {
                let mut failures = Vec::new();
                for lease in &self.leases {
                    failures.extend(ask_lease(lease, LeaseAsk::Renumber).await);
                }
                let _ = reply.send(failures);
            }
            // Handled by the daemon itself: it ends the process.
            Ask::Leave { .. } => {}
        }
    }

    /// Gives everything back in the store, and in the kernel too if asked to; what could not be undone.
    pub(super) async fn leave(&mut self, setup: &Setup, purge: bool) -> Vec<String> {
        // Nobody may program or publish while we take down.
        self.stop("env").await;
        self.stop("snapshot").await;
        self.stop("reconciler").await;
        let mut failures = Vec::new();
        for lease in &self.leases {
            failures.extend(ask_lease(lease, LeaseAsk::Release).await);
        }
        self.stop("lease").await;
        self.stop("presence").await;
        if let Some(presence) = self.presence.take()
            && let Err(error) = presence.withdraw().await
        {
            failures.push(error);
        }
        self.stop("watch").await;
        if purge {
            failures.extend(purge::kernel(setup.kernel.as_ref(), &setup.sysctls).await);
            for network in &setup.networks {
                failures.extend(
                    crate::state_dir::remove(&network.env_file).err().map(|error| crate::report::chain(&error)),
                );
            }
            let networks: Vec<NetworkName> = setup
                .dir
                .networks()
                .into_iter()
                .chain(setup.networks.iter().map(|network| network.keys.network().clone()))
                .collect();
            failures.extend(purge::files(&setup.dir, &networks));
        }
        failures
    }

    /// Lets the socket finish its answers, then closes it.
    pub(super) async fn finish_api(&mut self) {
        if let Some(stop) = self.api_stop.take() {
            let _ = stop.send(());
        }
        for task in self.running.remove("api").unwrap_or_default() {
            let _ = tokio::time::timeout(Duration::from_secs(1), task).await;
        }
    }

    fn serve(
        &mut self,
        listener: tokio::net::UnixListener,
        http: Option<TcpListener>,
        status: &StatusSource,
        metrics: &Arc<Metrics>,
        setup: &Setup,
        asks: mpsc::Sender<Ask>,
    ) {
        let (stop, stopped) = oneshot::channel();
        self.api_stop = Some(stop);
        let source = status.clone();
        let store = setup.args.store.document(&setup.endpoints);
        let api = LocalApi::new(move || source.status(), store, asks);
        self.spawn("api", async move {
            let stopped = async { stopped.await.unwrap_or_default() };
            if let Err(error) = api.serve(listener, stopped).await {
                tracing::error!(error = crate::report::chain(&error), "the agent's socket broke");
            }
        });
        if let Some(listener) = http {
            let (status, metrics) = (status.clone(), Arc::clone(metrics));
            self.spawn("http", async move {
                if let Err(error) = http::serve(listener, status, metrics).await {
                    tracing::error!(%error, "the HTTP listener broke");
                }
            });
        }
    }

    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.running.entry(name).or_default().push(tokio::spawn(task));
    }

    async fn stop(&mut self, name: &'static str) {
        for task in self.running.remove(name).unwrap_or_default() {
            task.abort();
            // Cancelled is what it should be.
            let _ = task.await;
        }
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
        Ok(Ok(Ok(()))) | Ok(Err(_)) => None,
        Ok(Ok(Err(failure))) => Some(failure),
        Err(_) => Some("the store did not answer in time; the lease stays until it expires".to_owned()),
    }
}

/// A network's channels, filled with what is known from disk.
fn ports_of(
    setup: &Setup,
    network: &NetworkSetup,
) -> (NetworkPort, watch::Sender<Holding>, watch::Sender<NetworkView>) {
    let name = network.keys.network().clone();
    let view = from_disk(setup, network).unwrap_or_default();
    let previous = setup.dir.read_subnet(&name).unwrap_or_else(|error| {
        tracing::warn!(network = %name, error = crate::report::chain(&error), "the last subnet cannot be read");
        None
    });
    let held = previous.zip(view.state.valid_config()).map(|(subnets, config)| Held {
        subnets,
        config: config.clone(),
        expires: None,
    });
    let (view_sender, view) = watch::channel(view);
    let (holding_sender, holding) = watch::channel(Holding { held, problems: Vec::new() });
    (NetworkPort { name, view, holding }, holding_sender, view_sender)
}

fn from_disk(setup: &Setup, network: &NetworkSetup) -> Option<NetworkView> {
    let name = network.keys.network();
    let bytes = setup.dir.read_snapshot(name).unwrap_or_else(|error| {
        tracing::warn!(network = %name, error = crate::report::chain(&error), "the last view cannot be read");
        None
    })?;
    match snapshot::decode(&network.keys, &bytes) {
        Ok(view) => {
            debug_assert_eq!(view.source, Source::Disk);
            tracing::info!(network = %name, peers = view.state.leases.len(), "starting from the last view on disk");
            Some(view)
        }
        Err(error) => {
            tracing::warn!(network = %name, %error, "the last view on disk is not usable; waiting for the store");
            None
        }
    }
}

/// Waits until this node may touch the kernel: its identity is confirmed, or the store does not say anything.
async fn wait_for_identity(ports: &[NetworkPort], mut presence: watch::Receiver<Presence>) {
    let confirmed = async {
        let _ = presence.wait_for(|presence| *presence == Presence::Confirmed).await;
    };
    let answers = || ports.iter().any(|port| port.view.borrow().connection == Connection::Connected);
    tokio::pin!(confirmed);
    if tokio::time::timeout(STORE_PATIENCE, &mut confirmed).await.is_err() && answers() {
        let _ = tokio::time::timeout(IDENTITY_PATIENCE, confirmed).await;
    }
}

/// All host problems in one receiver.
fn host_problems_of(
    mut env: watch::Receiver<Vec<Problem>>,
    mut snapshots: Vec<watch::Receiver<Option<Problem>>>,
) -> watch::Receiver<Vec<Problem>> {
    let (sender, receiver) = watch::channel(Vec::new());
    tokio::spawn(async move {
        loop {
            let mut problems = env.borrow_and_update().clone();
            problems.extend(snapshots.iter_mut().filter_map(|snapshot| snapshot.borrow_and_update().clone()));
            if sender.send(problems).is_err() {
                return;
            }
            let snapshot_changed =
                futures::future::select_all(snapshots.iter_mut().map(|snapshot| Box::pin(snapshot.changed())));
            let alive = tokio::select! {
                changed = env.changed() => changed.is_ok(),
                (changed, _, _) = snapshot_changed => changed.is_ok(),
            };
            if !alive {
                return;
            }
        }
    });
    receiver
}

/// Keeps the service manager's status line equal to the agent's state.
async fn tell_service_manager(status: StatusSource, mut outcome: watch::Receiver<Outcome>) {
    /// Changes that come with no pass of the reconciler (a lost store) are seen this late.
    const LOOK: Duration = Duration::from_secs(5);
    let mut last = String::new();
    loop {
        let now = status.status();
        let peers: usize = now.networks.iter().map(|network| network.peers.len()).sum();
        let first = now.problems.first().map(|problem| format!(": {}", problem.message)).unwrap_or_default();
        let line = format!("{}, {} networks, {peers} peers{first}", now.state, now.networks.len());
        if line != last {
            env_files::notify(&sd_notify::NotifyState::Status(&line));
            last = line;
        }
        if let Ok(Err(_)) = tokio::time::timeout(LOOK, outcome.changed()).await {
            return;
        }
    }
}

fn planned(op: &flatnet_core::op::Op) -> flatnet_proto::agent::v1::PlannedOp {
    flatnet_proto::agent::v1::PlannedOp {
        action: op.action.as_str().to_owned(),
        kind: op.object.kind().as_str().to_owned(),
        object: op.object.to_string(),
    }
}
