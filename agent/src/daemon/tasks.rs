//! The tasks a process adds to a node: its socket, its HTTP listener, and the service manager.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flatnet_core::op::Op;
use flatnet_proto::agent::v1::PlannedOp;
use sd_notify::NotifyState;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::setup::ProcessSetup;
use crate::files::state_dir::SOCKET;
use crate::node::status::StatusSource;
use crate::report::{Exit, Failure, chain};
use crate::serve::http::{self, Pulse};
use crate::serve::local_api::{self, Ask, LocalApi};
use crate::serve::problem_log;
use crate::store::store_address;
use crate::wiring::metrics::Metrics;

/// The number of questions over the socket that may wait.
const ASKS: usize = 8;
/// The time that a closing socket has for its last answers.
const LAST_ANSWERS_TIMEOUT: Duration = Duration::from_secs(1);

/// The listeners of the process, bound but not served yet. A listener that cannot be bound ends the start with nothing
/// done.
pub(super) struct Listeners {
    socket: UnixListener,
    path: PathBuf,
    http: Option<TcpListener>,
}

impl Listeners {
    pub(super) async fn bind(setup: &ProcessSetup) -> Result<Self, Failure> {
        let path = setup.run_dir.join(SOCKET);
        let socket = local_api::listen(&setup.run_dir).map_err(|error| {
            Failure::new(Exit::InvalidConfig, format!("cannot listen on {}", path.display())).caused_by(error)
        })?;
        let http = match setup.http_listen {
            Some(address) => Some(TcpListener::bind(address).await.map_err(|error| {
                Failure::new(Exit::InvalidConfig, format!("cannot listen on {address}"))
                    .hint("another program has that port, or the address is not this host's: choose another --http-listen")
                    .caused_by(error)
            })?),
            None => None,
        };
        Ok(Self { socket, path, http })
    }
}

/// The tasks of the process.
pub(super) struct Tasks {
    /// The requests that come over the socket.
    pub(super) asks: mpsc::Receiver<Ask>,
    api: JoinHandle<()>,
    api_stop: Option<oneshot::Sender<()>>,
    socket: PathBuf,
}

impl Tasks {
    pub(super) fn start(
        listeners: Listeners,
        setup: ProcessSetup,
        status: &StatusSource,
        metrics: &Arc<Metrics>,
        ready: watch::Receiver<bool>,
    ) -> Self {
        let (ask_sender, asks) = mpsc::channel(ASKS);
        let (stop, stopped) = oneshot::channel();
        let source = status.clone();
        let api = LocalApi::new(move || source.status(), setup.store, ask_sender);
        let socket = listeners.socket;
        let api = tokio::spawn(async move {
            let stopped = async { stopped.await.unwrap_or_default() };
            if let Err(error) = api.serve(socket, stopped).await {
                tracing::error!(error = chain(&error), "the agent's socket broke");
            }
        });
        if let Some(listener) = listeners.http {
            let (status, metrics, ready) = (status.clone(), Arc::clone(metrics), ready.clone());
            tokio::spawn(async move {
                if let Err(error) = http::serve(listener, status, metrics, ready).await {
                    tracing::error!(%error, "the HTTP listener broke");
                }
            });
        }
        if let Some((endpoint, addresses)) = setup.lookup {
            tokio::spawn(store_address::look_up(endpoint, addresses));
        }
        tokio::spawn(problem_log::keep(status.clone()));
        if let Some((endpoints, told)) = setup.endpoints {
            tokio::spawn(store_address::follow(endpoints, told));
        }
        tokio::spawn(tell_service_manager(status.clone(), ready));
        Self { asks, api, api_stop: Some(stop), socket: listeners.path }
    }

    /// Lets the socket finish its answers, then closes and removes it.
    pub(super) async fn finish(mut self) {
        if let Some(stop) = self.api_stop.take() {
            // An error here means that it has stopped already, which is as good.
            let _ = stop.send(());
        }
        let _ = tokio::time::timeout(LAST_ANSWERS_TIMEOUT, &mut self.api).await;
        if let Err(error) = crate::files::state_dir::remove(&self.socket) {
            tracing::warn!(error = chain(&error), "the agent's socket stays");
        }
        if let Some(run_dir) = self.socket.parent() {
            // After a purge nothing is left in it; anything that is stays, and the directory with it.
            let _ = std::fs::remove_dir(run_dir);
        }
    }
}

/// Tells the service manager about `state`, if there is a service manager.
pub(super) fn notify(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

/// Says READY once, keeps the service manager's status line equal to the agent's state, and keeps its watchdog quiet
/// while the reconciler's loop turns.
async fn tell_service_manager(status: StatusSource, mut ready: watch::Receiver<bool>) {
    /// The interval at which changes are looked for that come with no pass of the reconciler (a lost store).
    const STATUS_CHECK_EVERY: Duration = Duration::from_secs(5);
    let mut outcome = status.outcome.clone();
    let pulse = Pulse::new(outcome.clone());
    let mut last = String::new();
    let mut told = false;
    loop {
        if !told && *ready.borrow_and_update() {
            notify(&NotifyState::Ready);
            told = true;
        }
        let line = status.line();
        if line != last {
            notify(&NotifyState::Status(&line));
            last = line;
        }
        if pulse.check().is_ok() {
            notify(&NotifyState::Watchdog);
        }
        tokio::select! {
            changed = outcome.changed() => if changed.is_err() { return },
            Ok(()) = ready.changed(), if !told => {}
            () = tokio::time::sleep(STATUS_CHECK_EVERY) => {}
        }
    }
}

/// Converts an operation to the form in which the socket's clients get it.
pub(super) fn planned(op: &Op) -> PlannedOp {
    PlannedOp {
        action: op.action.as_str().to_owned(),
        kind: op.object.kind().as_str().to_owned(),
        object: op.object.to_string(),
    }
}
