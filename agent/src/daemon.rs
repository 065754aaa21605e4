//! What `agent join` is made of: everything is opened here, handed to the tasks that own it, and ended in order.
//!
//! The only place that starts tasks. They know each other through `watch` channels (state: latest wins) and one small
//! `mpsc` (work). When the process stops, tasks are simply dropped: each is safe to cut off at any await, and the datapath
//! stays.

mod setup;
mod tasks;

use std::path::Path;

use flatnet_kernel::NetlinkKernel;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::join::JoinArgs;
use crate::env_files::notify;
use crate::local_api::Ask;
use crate::report::{Exit, Failure};
use setup::Setup;
use tasks::Tasks;

/// The kernel of this process's network namespace.
pub fn real_kernel(_run_dir: &Path) -> Result<NetlinkKernel, Failure> {
    NetlinkKernel::new().map_err(|error| {
        Failure::new(Exit::Unsupported, "cannot open the kernel's netlink sockets")
            .hint("the agent needs AF_NETLINK sockets; a sandbox may forbid them")
            .caused_by(error)
    })
}

/// A kernel to look at only, without an agent's memory.
pub fn observing_kernel() -> std::io::Result<NetlinkKernel> {
    NetlinkKernel::new()
}

/// Runs the agent until it is told to stop, told to leave, or cannot go on.
pub async fn run(args: JoinArgs) -> Result<(), Failure> {
    let setup = Setup::new(args).await?;
    tracing::info!(node = %setup.owner.node, name = setup.owner.name, version = env!("CARGO_PKG_VERSION"), "starting");
    let mut tasks = Tasks::start(&setup).await?;
    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(failure) = tasks.fatal.recv() => {
                tracing::error!(error = %failure, "cannot go on");
                return Err(failure);
            }
            Some(ask) = tasks.asks.recv() => match ask {
                Ask::Leave { purge, reply } => {
                    let failures = tasks.leave(&setup, purge).await;
                    // Whoever asked may have gone away; the leaving is done all the same.
                    let _ = reply.send(failures);
                    // The answer travels over the socket that this process is about to close.
                    tasks.finish_api().await;
                    tracing::info!(purge, "left");
                    return Ok(());
                }
                other => tasks.pass_on(other).await,
            },
        }
    }
    notify(&NotifyState::Stopping);
    tracing::info!("stopping; the datapath stays as it is");
    Ok(())
}

fn signals(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Failure> {
    signal(kind).map_err(|error| Failure::new(Exit::Internal, "cannot listen for signals").caused_by(error))
}
