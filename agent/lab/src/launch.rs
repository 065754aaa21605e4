//! The inside of a lab command: the runtime, the signals, and taking down whatever had been built when the end comes.

use std::future::Future;
use std::io::Read;

use tokio::signal::unix::{SignalKind, signal};

use super::sandbox;
use flatnet_plane::failure::{Exit, Failure};

/// Prepares the sandbox and runs `work` on a runtime of its own.
pub fn inside<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    sandbox::settle()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Internal, "cannot start the runtime").caused_by(error))?;
    let result = runtime.block_on(work);
    // The thread that watches standard input sits in a read that nothing ends.
    runtime.shutdown_background();
    result
}

/// Ends with the reason when the user or the system wants the lab to end: SIGINT, SIGTERM, SIGHUP.
pub async fn signalled() -> Result<&'static str, Failure> {
    let failed = |error| Failure::new(Exit::Internal, "cannot watch signals").caused_by(error);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(failed)?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "interrupted",
        _ = terminate.recv() => "asked to end",
        _ = hang_up.recv() => "the terminal was closed",
    })
}

/// Ends when the launcher is gone, however it went: its end of the pipe on standard input is then closed.
pub async fn launcher_gone() {
    let read_to_end = || {
        let mut sink = Vec::new();
        // Whatever the read says, there is nobody at the other end any more.
        let _ = std::io::stdin().read_to_end(&mut sink);
    };
    let _ = tokio::task::spawn_blocking(read_to_end).await;
}

/// Ends on a signal or when the launcher is gone. Returns the reason.
pub async fn ended() -> Result<&'static str, Failure> {
    tokio::select! {
        reason = signalled() => reason,
        () = launcher_gone() => Ok("the launcher is gone"),
    }
}
