//! The task that writes the env files which container runtimes read (`subnet.env`).

use std::path::PathBuf;

use flatnet_core::env_file::EnvFile;
use flatnet_core::problem::{Problem, ProblemCode};
use flatnet_model::NetworkName;
use tokio::sync::watch;

use crate::networks::NetworkPort;
use crate::reconciler::Outcome;
use crate::report::chain;
use crate::state_dir;

/// One network's env file.
pub struct Target {
    /// The network.
    pub port: NetworkPort,
    /// The path of the network's env file.
    pub path: PathBuf,
}

/// Writes the files whenever something in them has changed, and again when they are gone. Runs for ever.
///
/// `ready` becomes true once every joined network has its file.
pub async fn keep(
    targets: Vec<Target>,
    masquerade: bool,
    mut outcome: watch::Receiver<Outcome>,
    problems: watch::Sender<Vec<Problem>>,
    ready: watch::Sender<bool>,
) {
    loop {
        let mut failed = Vec::new();
        let mut written = 0;
        for target in &targets {
            let Some(text) = content(target, masquerade, &outcome.borrow_and_update()) else { continue };
            match write(target, &text) {
                Ok(()) => written += 1,
                Err(problem) => failed.push(problem),
            }
        }
        problems.send_if_modified(|problems| {
            let changed = *problems != failed;
            *problems = failed;
            changed
        });
        if written == targets.len() {
            ready.send_if_modified(|ready| !std::mem::replace(ready, true));
        }
        if outcome.changed().await.is_err() {
            return;
        }
    }
}

/// Returns what belongs in the file, once lease and MTU are known.
fn content(target: &Target, masquerade: bool, outcome: &Outcome) -> Option<String> {
    let holding = target.port.holding.borrow();
    let held = holding.held.as_ref()?;
    let programmed = outcome.networks.iter().find(|network| network.name == target.port.name)?;
    Some(EnvFile::new(&held.config, held.subnets, programmed.mtu?, masquerade).to_string())
}

fn write(target: &Target, text: &str) -> Result<(), Problem> {
    // The file is read back each time: somebody may have removed or changed it, and a few hundred bytes cost nothing.
    if std::fs::read_to_string(&target.path).is_ok_and(|present| present == text) {
        return Ok(());
    }
    let network: &NetworkName = &target.port.name;
    // World-readable, as flannel's is: wrappers of container runtimes read it.
    state_dir::replace(&target.path, text.as_bytes(), 0o644).map_err(|error| {
        Problem::new(
            ProblemCode::EnvFileUnwritable,
            format!("the env file of network {network} cannot be written: {}", chain(&error)),
            "free space or make the directory writable; container runtimes start with what was there before",
            target.path.display(),
        )
    })?;
    tracing::info!(network = %network, file = %target.path.display(), "env file written");
    Ok(())
}
