//! The process behind `agent join`: everything is opened here, handed to the tasks that own it, and ended in order.
//!
//! Tasks are started here (those of the process) and in [`crate::node`] (those of the node), nowhere else. They know
//! each other through `watch` channels (state: latest wins) and small `mpsc` ones (work). When the process stops, tasks
//! are simply dropped: each is safe to cut off at any await, and the datapath stays.

mod options;
pub mod preflight;
mod setup;
mod tasks;
pub mod telemetry;

use std::sync::Arc;

use flatnet_kernel::NetlinkKernel;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

use crate::files::state_dir::StateDir;
use crate::node::Node;
use crate::reconciler::PlanError;
use crate::report::{Exit, Failure, chain};
use crate::serve::local_api::Ask;
use crate::store::plane::Plane;
pub use options::{JoinOptions, NetworkOptions};
use setup::Setup;
use tasks::{Listeners, Tasks, notify, planned};

/// Runs the agent until it is told to stop, told to leave, or cannot go on.
pub async fn run(options: JoinOptions) -> Result<(), Failure> {
    // Standard output is for data, and joining has none. A library (wireguard-control) prints there what it does not
    // understand. Where there is no standard error either, nothing can be said anyway.
    let _ = nix::unistd::dup2_stdout(std::io::stderr());
    let Setup { node, process, namespace: _namespace } = Setup::new(options).await?;
    let (owner, dir) = (&node.owner, Arc::clone(&node.dir));
    tracing::info!(node = %owner.node, name = owner.name, version = env!("CARGO_PKG_VERSION"), "starting");
    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;
    let listeners = Listeners::bind(&process).await?;
    let mut node = Node::start(node);
    let mut tasks = Tasks::start(listeners, process, node.status(), node.metrics(), node.ready.clone());
    let ended = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            Some(failure) = node.fatal.recv() => {
                tracing::error!(error = %failure, "cannot go on");
                break Err(failure);
            }
            Some(ask) = tasks.asks.recv() => {
                if answer(ask, &mut node, &dir).await {
                    break Ok(());
                }
            }
        }
    };
    notify(&NotifyState::Stopping);
    tracing::info!("stopping");
    match &ended {
        Ok(()) => node.stop().await,
        Err(_) => node.abandon().await,
    }
    tasks.finish().await;
    ended
}

/// Does what is asked over the socket. Returns true if this node has left.
async fn answer(ask: Ask, node: &mut Node<Plane, NetlinkKernel>, dir: &StateDir) -> bool {
    match ask {
        Ask::Leave { purge, reply } => {
            let mut failures = node.leave(purge).await;
            failures.extend(stay_away(dir));
            tracing::info!(purge, "left");
            // Whoever asked may have gone away; the leaving is done all the same.
            let _ = reply.send(failures);
            return true;
        }
        Ask::Renumber(reply) => drop(reply.send(node.renumber().await)),
        Ask::JoinNetwork { name, options, reply } => {
            let membership = Arc::clone(node.membership());
            tokio::spawn(async move { drop(reply.send(membership.join(&name, options).await)) });
        }
        Ask::LeaveNetwork { name, purge, reply } => {
            let membership = Arc::clone(node.membership());
            tokio::spawn(async move { drop(reply.send(membership.leave(&name, purge).await)) });
        }
        Ask::RotateKey(reply) => {
            let rotation = node.rotation();
            // A rotation waits for the store: the next ask must not wait for it.
            tokio::spawn(async move { drop(reply.send(rotation.run().await)) });
        }
        Ask::Plan(reply) => {
            let answer = node.plan().await;
            // A pass may be under way: the next ask must not wait for it.
            tokio::spawn(async move {
                let plan = match answer {
                    Ok(answer) => answer.await.unwrap_or(Err(PlanError::Stopping)),
                    Err(error) => Err(error),
                };
                drop(reply.send(plan.map(|ops| ops.iter().map(planned).collect())));
            });
        }
    }
    false
}

/// Keeps a service manager from starting an agent again that was told to leave. Returns what went wrong. A service
/// manager that waits for READY names its socket in `NOTIFY_SOCKET`; nobody else asks for the mark.
fn stay_away(dir: &StateDir) -> Option<String> {
    std::env::var_os("NOTIFY_SOCKET")?;
    let failure = dir.mark_left().err()?;
    Some(format!("the service will start again ({}): systemctl disable --now flatnet-agent", chain(&failure)))
}

fn signals(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Failure> {
    signal(kind).map_err(|error| Failure::new(Exit::Internal, "cannot listen for signals").caused_by(error))
}
