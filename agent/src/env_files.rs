//! The task that writes the env files which container runtimes read (`subnet.env`).

use flatnet_core::env_file::EnvFile;
use flatnet_core::problem::{Problem, ProblemCode};
use flatnet_model::NetworkName;
use tokio::sync::watch;

use crate::context::Context;
use crate::networks::NetworkPort;
use crate::outcome::Outcome;
use crate::part::{Part, Stop};
use crate::report::chain;
use crate::state_dir;

/// Makes the part that writes the files. `ready` becomes true once every joined network has its file.
pub fn part<P, K>(context: &Context<P, K>, ready: watch::Sender<bool>) -> Part {
    let (sender, problems) = watch::channel(Vec::new());
    let masquerade = context.setup.host.masquerade;
    let writing = keep(context.networks.clone(), masquerade, context.outcome.clone(), sender, ready);
    Part::new("env", Stop::Effect, writing).reporting(problems)
}

/// Writes the files whenever something in them has changed, and again when they are gone. Runs for ever.
async fn keep(
    networks: watch::Receiver<Vec<NetworkPort>>,
    masquerade: bool,
    mut outcome: watch::Receiver<Outcome>,
    problems: watch::Sender<Vec<Problem>>,
    ready: watch::Sender<bool>,
) {
    loop {
        let mut failed = Vec::new();
        let mut written = 0;
        let ports = networks.borrow().clone();
        for port in &ports {
            let Some(text) = content(port, masquerade, &outcome.borrow_and_update()) else { continue };
            match write(port, &text) {
                Ok(()) => written += 1,
                Err(problem) => failed.push(problem),
            }
        }
        problems.send_if_modified(|problems| {
            let changed = *problems != failed;
            *problems = failed;
            changed
        });
        if written == ports.len() {
            ready.send_if_modified(|ready| !std::mem::replace(ready, true));
        }
        if outcome.changed().await.is_err() {
            return;
        }
    }
}

/// Returns what belongs in the file, once lease and MTU are known.
fn content(port: &NetworkPort, masquerade: bool, outcome: &Outcome) -> Option<String> {
    let holding = port.holding.borrow();
    let held = holding.held.as_ref()?;
    let programmed = outcome.networks.iter().find(|network| network.name == port.name)?;
    Some(EnvFile::new(&held.config, held.subnets, programmed.mtu?, masquerade).to_string())
}

fn write(port: &NetworkPort, text: &str) -> Result<(), Problem> {
    // The file is read back each time: somebody may have removed or changed it, and a few hundred bytes cost nothing.
    if std::fs::read_to_string(&port.env_file).is_ok_and(|present| present == text) {
        return Ok(());
    }
    let network: &NetworkName = &port.name;
    // World-readable, as flannel's is: wrappers of container runtimes read it.
    state_dir::replace(&port.env_file, text.as_bytes(), 0o644).map_err(|error| {
        Problem::new(
            ProblemCode::EnvFileUnwritable,
            format!("the env file of network {network} cannot be written: {}", chain(&error)),
            "free space or make the directory writable; container runtimes start with what was there before",
            port.env_file.display(),
        )
    })?;
    tracing::info!(network = %network, file = %port.env_file.display(), "env file written");
    Ok(())
}
