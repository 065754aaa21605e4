//! The networks that this node has joined: the set changes while the node runs.
//!
//! The set is published on a `watch` channel, from which every part that works for all networks takes it. Joining
//! starts the parts of one network and waits until packets can flow; leaving gives its lease back, takes it out of the
//! set, and ends its parts. What belongs to other networks is not touched by either. What was joined and left is
//! written down before anything else is done ([`NetworkRecord`]).

mod network;
mod up;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flatnet_core::problem::Problem;
use flatnet_model::NetworkName;
use flatnet_plane::plane::ControlPlane;
use flatnet_proto::agent::v1::Network as Document;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::files::network_record::{NetworkRecord, RunTimeOptions};
use crate::files::state_dir::StateDirError;
use crate::node::lease_keeper::{LeaseAsk, LeaseError};
use crate::report::Failure;
use crate::wiring::context::Context;
use crate::wiring::networks::{NetworkPort, NetworkSetup};
use crate::wiring::part::Running;
use network::Joined;

/// The longest that leaving waits for the loop to take the network's objects out of the kernel.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a keeper may take to give a lease back to a store that does not answer.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(8);
/// The number of failures of one network that may wait: the first one decides.
const FAILURES: usize = 1;

/// The state of a network after it was joined.
#[derive(Clone, Debug)]
pub struct Joining {
    /// True if the lease is confirmed, the kernel has what carries packets, and the env file is written.
    pub up: bool,
    /// The problems that keep it from being up. It stays joined and goes on trying.
    pub problems: Vec<Problem>,
    /// The network's place in the status document.
    pub document: Document,
}

/// The end of a membership.
#[derive(Debug)]
pub struct Left {
    /// True if the command line names the network.
    pub is_named: bool,
    /// What could not be undone. The network is left all the same.
    pub remains: Vec<Remains>,
}

/// The reason why a network was not joined. Nothing is left of the attempt.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It is joined with other options already.
    #[error("network {0} is joined already, with other options")]
    OtherOptions(NetworkName),
    /// The command line has the options of this network.
    #[error("network {0} is named by the agent's command line, which has its options")]
    Named(NetworkName),
    /// Another network has the env file.
    #[error("{} is the env file of network {other}", file.display())]
    FileInUse {
        /// The file.
        file: PathBuf,
        /// The other network.
        other: NetworkName,
    },
    /// The store has no such network.
    #[error("network {0} is not in the store")]
    NoSuchNetwork(NetworkName),
    /// Only an operator can put it right.
    #[error("{0}")]
    Refused(Failure),
    /// It could not be written down.
    #[error("network {network} was not joined: it could not be remembered")]
    Record {
        /// The network.
        network: NetworkName,
        /// The cause.
        #[source]
        source: StateDirError,
    },
    /// The agent ends.
    #[error("the agent is stopping")]
    Stopping,
}

/// The reason why a network was not left. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    /// This node has not joined it.
    #[error("network {0} is not joined")]
    NotJoined(NetworkName),
    /// It could not be written down.
    #[error("network {network} was not left: it could not be written down")]
    Record {
        /// The network.
        network: NetworkName,
        /// The cause.
        #[source]
        source: StateDirError,
    },
}

/// What could not be undone when a network was left.
#[derive(Debug, thiserror::Error)]
pub enum Remains {
    /// The lease was not given back.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The loop did not come to it in time.
    #[error("network {0}: its objects are still in the kernel; the agent goes on removing them")]
    Kernel(NetworkName),
    /// A file could not be removed.
    #[error(transparent)]
    File(#[from] StateDirError),
}

/// The membership of one node. Its tasks may be asked at once; changes are made one after the other.
pub struct Membership<P, K> {
    context: Context<P, K>,
    running: Running,
    /// The networks whose env file is written.
    written: watch::Receiver<BTreeSet<NetworkName>>,
    ports: watch::Sender<Vec<NetworkPort>>,
    /// Held while the set is changed.
    changing: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

struct State {
    joined: Vec<Joined>,
    record: NetworkRecord,
}

impl<P: ControlPlane, K: Send + Sync + 'static> Membership<P, K> {
    /// Joins the networks that the command line names and those joined at run time, without waiting. Failures of the
    /// former end the agent.
    pub fn start(
        context: Context<P, K>,
        running: Running,
        written: watch::Receiver<BTreeSet<NetworkName>>,
        ports: watch::Sender<Vec<NetworkPort>>,
    ) -> Self {
        let mut record = context.setup.record.clone();
        record.begin(&context.setup.networks);
        let setups = record.to_join(&context.setup.networks, &context.setup.flannel_prefix);
        let state = Mutex::new(State { joined: Vec::new(), record });
        let membership = Self { context, running, written, ports, changing: tokio::sync::Mutex::default(), state };
        for setup in setups {
            let fatal = match membership.named(setup.keys.network()) {
                Some(_) => membership.context.fatal.clone(),
                // Other networks run on: what is wrong with this one is a problem in the status.
                None => mpsc::channel(FAILURES).0,
            };
            membership.start_parts(setup, fatal);
        }
        membership
    }

    /// Joins a further network and waits until packets can flow, or until it is known what keeps them. Joining a
    /// network that is joined with the same options changes nothing.
    pub async fn join(&self, name: &NetworkName, options: RunTimeOptions) -> Result<Joining, JoinError> {
        let began = Instant::now();
        let changing = self.changing.lock().await;
        let (port, mut failures) = match self.port(name) {
            Some(port) => {
                self.check_same(name, &options)?;
                (port, None)
            }
            None => {
                let (setup, kept) = self.setup(name, options)?;
                self.state().record.join(name, kept).map_err(|source| {
                    let network = name.clone();
                    JoinError::Record { network, source }
                })?;
                tracing::info!(network = %name, "joining");
                let (fatal, failures) = mpsc::channel(FAILURES);
                (self.start_parts(setup, fatal), Some(failures))
            }
        };
        drop(changing);
        let is_new = failures.is_some();
        match self.wait_until_up(&port, &mut failures).await {
            Err(refused) if is_new => {
                tracing::warn!(network = %name, error = %refused, "not joined");
                // It has taken nothing: there is nothing to report of giving it back.
                let _ = self.leave(name, false).await;
                Err(refused)
            }
            Ok(joined) => {
                let elapsed_ms = began.elapsed().as_secs_f64() * 1_000.0;
                tracing::info!(network = %name, up = joined.up, elapsed_ms, "joined");
                Ok(joined)
            }
            Err(error) => Err(error),
        }
    }

    /// Leaves a network: gives its lease back, and takes what it has out of the kernel. `purge`: also forgets its last
    /// view and its subnet.
    pub async fn leave(&self, name: &NetworkName, purge: bool) -> Result<Left, LeaveError> {
        let _changing = self.changing.lock().await;
        let network = name.clone();
        let Some(lease) = self.lease(name) else { return Err(LeaveError::NotJoined(network)) };
        let is_named = self.named(name).is_some();
        self.state().record.leave(name, is_named).map_err(|source| LeaveError::Record { network, source })?;
        let mut remains = Vec::new();
        remains.extend(release(&lease).await.map(Remains::Lease));
        // From here on the loop does not want it, and the env file goes.
        self.ports.send_modify(|ports| ports.retain(|port| port.name != *name));
        self.running.stop_network(name).await;
        self.context.channels.forget(name);
        self.state().joined.retain(|joined| joined.port.name != *name);
        let mut outcome = self.context.outcome.clone();
        let gone = outcome.wait_for(|outcome| !outcome.networks.iter().any(|network| network.name == *name));
        if !matches!(tokio::time::timeout(REMOVE_TIMEOUT, gone).await, Ok(Ok(_))) {
            remains.push(Remains::Kernel(name.clone()));
        }
        if purge {
            remains.extend(self.context.setup.dir.forget_network(name).into_iter().map(Remains::File));
        }
        tracing::info!(network = %name, purge, "left");
        Ok(Left { is_named, remains })
    }

    /// Gives every lease back, for a node that leaves for good, and forgets what was joined and left at run time.
    pub async fn release_all(&self) -> Vec<Remains> {
        let _changing = self.changing.lock().await;
        let leases: Vec<_> = self.state().joined.iter().map(|joined| joined.lease.clone()).collect();
        let mut remains = Vec::new();
        for lease in leases {
            remains.extend(release(&lease).await.map(Remains::Lease));
        }
        remains.extend(self.state().record.forget().err().map(Remains::File));
        remains
    }

    /// Gives lost subnets up and takes new ones. Returns what could not be done.
    pub async fn renumber(&self) -> Vec<LeaseError> {
        let leases: Vec<_> = self.state().joined.iter().map(|joined| joined.lease.clone()).collect();
        let mut failures = Vec::new();
        for lease in leases {
            failures.extend(ask(&lease, LeaseAsk::Renumber).await);
        }
        failures
    }

    /// Returns the joined networks with what they were joined with.
    pub fn setups(&self) -> Vec<NetworkSetup> {
        self.state().joined.iter().map(|joined| joined.setup.clone()).collect()
    }

    /// Returns what `name` is to be joined with, and the options to remember.
    fn setup(
        &self,
        name: &NetworkName,
        options: RunTimeOptions,
    ) -> Result<(NetworkSetup, Option<RunTimeOptions>), JoinError> {
        match self.named(name) {
            Some(_) if options != RunTimeOptions::default() => Err(JoinError::Named(name.clone())),
            Some(setup) => Ok((setup.clone(), None)),
            None => {
                let state = self.state();
                let setup = state.record.setup(name, &options, &self.context.setup.flannel_prefix);
                match state.joined.iter().find(|joined| joined.setup.env_file == setup.env_file) {
                    Some(other) => Err(JoinError::FileInUse { file: setup.env_file, other: other.port.name.clone() }),
                    None => Ok((setup, Some(options))),
                }
            }
        }
    }

    /// Checks that `options` are those with which `name` is joined, or none.
    fn check_same(&self, name: &NetworkName, options: &RunTimeOptions) -> Result<(), JoinError> {
        let state = self.state();
        let Some(joined) = state.joined.iter().find(|joined| joined.port.name == *name) else { return Ok(()) };
        let subnets = options.subnets.is_empty() || options.subnets == joined.setup.wanted;
        let file = options.subnet_file.as_ref().is_none_or(|file| *file == joined.setup.env_file);
        if subnets && file { Ok(()) } else { Err(JoinError::OtherOptions(name.clone())) }
    }

    fn start_parts(&self, setup: NetworkSetup, fatal: mpsc::Sender<Failure>) -> NetworkPort {
        let name = setup.keys.network().clone();
        // The bridge of our own is in the first network that the command line names.
        let is_first = self.context.setup.networks.first().is_some_and(|first| *first.keys.network() == name);
        let bridge = self.context.setup.host.bridge.filter(|_| is_first);
        let (joined, parts) = network::join(&self.context, setup, bridge, fatal);
        let port = joined.port.clone();
        self.state().joined.push(joined);
        self.ports.send_modify(|ports| ports.push(port.clone()));
        parts.into_iter().for_each(|part| self.running.start(Some(&name), part));
        port
    }

    fn named(&self, name: &NetworkName) -> Option<&NetworkSetup> {
        self.context.setup.networks.iter().find(|setup| setup.keys.network() == name)
    }

    fn port(&self, name: &NetworkName) -> Option<NetworkPort> {
        self.state().joined.iter().find(|joined| joined.port.name == *name).map(|joined| joined.port.clone())
    }

    fn lease(&self, name: &NetworkName) -> Option<mpsc::Sender<LeaseAsk>> {
        self.state().joined.iter().find(|joined| joined.port.name == *name).map(|joined| joined.lease.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Both fields are whole between any two statements that change them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn release(lease: &mpsc::Sender<LeaseAsk>) -> Option<LeaseError> {
    ask(lease, LeaseAsk::Release).await
}

/// Asks a keeper. A keeper that has ended has nothing to give back.
async fn ask(
    lease: &mpsc::Sender<LeaseAsk>,
    ask: impl FnOnce(oneshot::Sender<Result<(), LeaseError>>) -> LeaseAsk,
) -> Option<LeaseError> {
    let (reply, answer) = oneshot::channel();
    if lease.send(ask(reply)).await.is_err() {
        return None;
    }
    match tokio::time::timeout(RELEASE_TIMEOUT, answer).await {
        Ok(Ok(Ok(())) | Err(_)) => None,
        Ok(Ok(Err(failure))) => Some(failure),
        Err(_) => Some(LeaseError::NoAnswer),
    }
}

#[cfg(test)]
mod tests;
