//! Which settings we changed and what they were, so that they can be said and, on purge, put back.

use std::collections::BTreeMap;
use std::sync::Arc;

use flatnet_core::object::Sysctl;

use crate::state_dir::{StateDir, StateDirError};

/// The record, kept in the run directory: after a reboot the kernel has its own values again.
#[derive(Clone, Debug)]
pub struct SysctlRecord {
    dir: Arc<StateDir>,
    originals: BTreeMap<Sysctl, String>,
}

impl SysctlRecord {
    /// What was recorded by earlier runs since boot.
    pub fn open(dir: Arc<StateDir>) -> Result<Self, StateDirError> {
        let text = dir.read_sysctls()?;
        let originals = text.lines().filter_map(|line| line.split_once('='));
        let originals = originals.map(|(path, value)| (Sysctl::new(path), value.to_owned())).collect();
        Ok(Self { dir, originals })
    }

    /// Records that `sysctl` was `before` until we changed it; the first value recorded stays.
    pub fn changing(&mut self, sysctl: &Sysctl, before: &str) {
        if self.originals.contains_key(sysctl) {
            return;
        }
        self.originals.insert(sysctl.clone(), before.to_owned());
        let text: String =
            self.originals.iter().map(|(sysctl, value)| format!("{}={value}\n", sysctl.path())).collect();
        if let Err(error) = self.dir.write_sysctls(&text) {
            tracing::warn!(%error, sysctl = %sysctl, "cannot record a kernel setting before changing it");
        }
    }

    /// What each changed setting was.
    #[must_use]
    pub fn originals(&self) -> &BTreeMap<Sysctl, String> {
        &self.originals
    }
}
