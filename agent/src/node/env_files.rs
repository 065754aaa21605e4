//! The task that writes the env files which container runtimes read (`subnet.env`).

use std::collections::BTreeSet;
use std::path::PathBuf;

use flatnet_core::env_file::EnvFile;
use flatnet_core::problem::{Problem, ProblemCode};
use flatnet_model::NetworkName;
use tokio::sync::watch;

use crate::files::state_dir;
use crate::report::chain;
use crate::wiring::context::Context;
use crate::wiring::networks::NetworkPort;
use crate::wiring::outcome::Outcome;
use crate::wiring::part::{Part, Stop};

/// Makes the part that writes the files. `written`: the networks that have theirs; `ready` becomes true once every
/// joined network has its file.
pub fn part<P, K>(
    context: &Context<P, K>,
    written: watch::Sender<BTreeSet<NetworkName>>,
    ready: watch::Sender<bool>,
) -> Part {
    let (problems, receiver) = watch::channel(Vec::new());
    let writer = Writer {
        masquerade: context.setup.host.masquerade,
        outcome: context.outcome.clone(),
        networks: context.networks.clone(),
        written,
        ready,
        problems,
    };
    Part::new("env", Stop::Effect, writer.run()).reporting(receiver)
}

/// The writer of the files.
struct Writer {
    masquerade: bool,
    outcome: watch::Receiver<Outcome>,
    networks: watch::Receiver<Vec<NetworkPort>>,
    written: watch::Sender<BTreeSet<NetworkName>>,
    ready: watch::Sender<bool>,
    problems: watch::Sender<Vec<Problem>>,
}

impl Writer {
    /// Writes the files whenever something in them has changed, and again when they are gone. Runs for ever. The file
    /// of a network that was left goes: its subnet may be another host's by now.
    async fn run(mut self) {
        let mut files: BTreeSet<PathBuf> = BTreeSet::new();
        loop {
            let ports = self.networks.borrow_and_update().clone();
            let now: BTreeSet<PathBuf> = ports.iter().map(|port| port.env_file.clone()).collect();
            files.retain(|file| now.contains(file) || state_dir::remove(file).is_err());
            files.extend(now);
            self.write_all(&ports);
            let woken = tokio::select! {
                woken = self.outcome.changed() => woken,
                woken = self.networks.changed() => woken,
            };
            if woken.is_err() {
                return;
            }
        }
    }

    fn write_all(&mut self, ports: &[NetworkPort]) {
        let (mut failed, mut written) = (Vec::new(), BTreeSet::new());
        for port in ports {
            let Some(text) = content(port, self.masquerade, &self.outcome.borrow_and_update()) else { continue };
            match write(port, &text) {
                Ok(()) => drop(written.insert(port.name.clone())),
                Err(problem) => failed.push(problem),
            }
        }
        let is_ready = written.len() == ports.len();
        replace(&self.problems, failed);
        replace(&self.written, written);
        if is_ready {
            replace(&self.ready, true);
        }
    }
}

/// Publishes a value, and wakes nobody if it is as it was.
fn replace<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|present| {
        let differs = *present != value;
        *present = value;
        differs
    });
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
