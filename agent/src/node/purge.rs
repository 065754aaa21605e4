//! The removal of everything of ours from this host: `leave --purge`, with and without an agent.

use std::path::Path;
use std::sync::Arc;

use flatnet_core::diff::Prune;
use flatnet_core::object::KernelState;
use flatnet_core::op::{Action, Object, ObjectKey, Op, OpOutcome};
use flatnet_core::plan::{Plan, plan};
use flatnet_kernel::wireguard::Keyring;
use flatnet_kernel::{Kernel, Scope};
use flatnet_model::NetworkName;

use crate::files::namespace_lock::NamespaceLock;
use crate::files::state_dir::{DEFAULT_STATE_DIR, StateDir, StateDirError};
use crate::files::sysctl_record::SysctlRecord;
use crate::node::host_kernel;
use crate::report::{Exit, Failure, chain};

/// The service as the package installs it. It keeps its state in [`DEFAULT_STATE_DIR`].
const UNIT: &str = "flatnet-agent.service";
/// The directories in which systemd looks for units that are not made at run time (systemd.unit(5)).
const UNIT_DIRS: [&str; 4] =
    ["/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

/// Removes every kernel object of ours, and puts back settings that still have the value we gave them. Returns what
/// could not be undone; the rest is done all the same.
pub async fn kernel<K: Kernel>(kernel: &K, sysctls: &SysctlRecord) -> Vec<String> {
    let mut failures = Vec::new();
    // The second round is for objects that could go only after something else had gone.
    for _ in 0..2 {
        failures.clear();
        let scope = Scope::also(sysctls.changed().keys().cloned().map(ObjectKey::Sysctl));
        let dump = match kernel.dump(&scope).await {
            Ok(dump) => dump,
            Err(error) => return vec![error.to_string()],
        };
        let nothing = KernelState::default();
        let Plan { mut ops, in_use, .. } = plan(&nothing, &dump, Prune::Yes);
        failures.extend(in_use.iter().map(|kept| format!("{kept}; ip link del {} when they are gone", kept.bridge)));
        ops.extend(restored(&dump.state, sysctls));
        if ops.is_empty() {
            break;
        }
        for outcome in kernel.apply(&ops).await {
            if let OpOutcome::Failed(error) = outcome {
                failures.push(error.to_string());
            }
        }
    }
    failures
}

/// Returns the operations that put settings back. A setting whose value is not ours now was changed after us, for a
/// router's or another program's needs, and stays.
fn restored<'a>(state: &'a KernelState, sysctls: &'a SysctlRecord) -> impl Iterator<Item = Op> + 'a {
    sysctls.changed().iter().filter_map(|(sysctl, changed)| {
        let now = state.sysctls.get(sysctl)?;
        let is_ours = *now != changed.before && changed.ours.as_ref().is_none_or(|ours| ours == now);
        let op = Op { action: Action::Change, object: Object::Sysctl(sysctl.clone(), changed.before.clone()) };
        is_ours.then_some(op)
    })
}

/// Cleans this host up when no agent runs.
pub async fn without_agent(state_dir: &Path, run_dir: &Path) -> Result<Vec<String>, Failure> {
    let dir = Arc::new(StateDir::open(state_dir, run_dir).map_err(|error| state_dir_failure(&error))?);
    // An agent that runs with other directories would lose its datapath.
    let _namespace = NamespaceLock::acquire()?;
    let real = host_kernel::open(run_dir, Keyring::default())?;
    let sysctls = SysctlRecord::open(Arc::clone(&dir)).map_err(|error| state_dir_failure(&error))?;
    let mut failures = kernel(&real, &sysctls).await;
    failures.extend(files(&dir, &dir.networks()));
    if state_dir == Path::new(DEFAULT_STATE_DIR) && UNIT_DIRS.iter().any(|dir| Path::new(dir).join(UNIT).exists()) {
        // The service, were it enabled, would join again at the next boot.
        failures.extend(dir.mark_left().err().map(|error| chain(&error)));
    }
    Ok(failures)
}

/// Removes the state files and the env files. Returns what could not be removed.
pub fn files(dir: &StateDir, networks: &[NetworkName]) -> Vec<String> {
    dir.purge(networks).iter().map(ToString::to_string).collect()
}

/// Returns the failure of a command that cannot use the directories.
#[must_use]
pub fn state_dir_failure(error: &StateDirError) -> Failure {
    let failure = match error {
        StateDirError::InUse(_) => Failure::new(Exit::Conflict, error.to_string())
            .hint("one agent is enough for all networks of a host; stop the other one, or give this one its own --state-dir and network namespace"),
        StateDirError::Io { .. } => {
            Failure::new(Exit::InvalidConfig, error.to_string()).hint("run as root, or name a writable --state-dir and --run-dir")
        }
        StateDirError::BadIdentity { .. } => Failure::new(Exit::InvalidConfig, error.to_string())
            .hint("restore the file, or remove it to make this a new node"),
        StateDirError::Random(_) => Failure::new(Exit::Unsupported, error.to_string()),
    };
    match std::error::Error::source(error) {
        Some(source) => failure.caused_by(source.to_string()),
        None => failure,
    }
}
