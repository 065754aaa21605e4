//! The record of the settings we changed and their values before, so that they can be reported and, on purge, put back.

use std::collections::BTreeMap;
use std::sync::Arc;

use flatnet_core::object::Sysctl;

use crate::files::state_dir::{StateDir, StateDirError};

/// A setting that was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The value before.
    pub before: String,
    /// The value it was changed to; `None` if an earlier release wrote the record.
    pub ours: Option<String>,
}

/// The record, kept in the run directory: after a reboot the kernel has its own values again. Each setting has one
/// line: `PATH=BEFORE=OURS`.
#[derive(Clone, Debug)]
pub struct SysctlRecord {
    dir: Arc<StateDir>,
    changed: BTreeMap<Sysctl, Changed>,
}

impl SysctlRecord {
    /// Opens the record of what earlier runs changed since boot.
    pub fn open(dir: Arc<StateDir>) -> Result<Self, StateDirError> {
        let text = dir.read_sysctls()?;
        let changed = text.lines().filter_map(|line| line.split_once('='));
        let changed = changed.map(|(path, values)| {
            let (before, ours) = values.split_once('=').map_or((values, None), |(before, ours)| (before, Some(ours)));
            (Sysctl::new(path), Changed { before: before.to_owned(), ours: ours.map(ToOwned::to_owned) })
        });
        Ok(Self { changed: changed.collect(), dir })
    }

    /// Records that `sysctl` was `before` until we changed it to `ours`; the first value recorded stays.
    pub fn changing(&mut self, sysctl: &Sysctl, before: &str, ours: &str) {
        if self.changed.get(sysctl).is_some_and(|changed| changed.ours.as_deref() == Some(ours)) {
            return;
        }
        let changed = self.changed.entry(sysctl.clone());
        changed.or_insert_with(|| Changed { before: before.to_owned(), ours: None }).ours = Some(ours.to_owned());
        let line = |(sysctl, changed): (&Sysctl, &Changed)| {
            let ours = changed.ours.as_ref().map(|ours| format!("={ours}")).unwrap_or_default();
            format!("{}={}{ours}\n", sysctl.path(), changed.before)
        };
        let text: String = self.changed.iter().map(line).collect();
        if let Err(error) = self.dir.write_sysctls(&text) {
            tracing::warn!(%error, sysctl = %sysctl, "cannot record a kernel setting before changing it");
        }
    }

    /// Returns the `accept_ra` settings of interfaces that had learnt a default route. The route would be lost if such
    /// a setting were set back.
    #[must_use]
    pub fn raised(&self) -> Vec<Sysctl> {
        let raised = self.changed.iter().filter(|(sysctl, changed)| {
            sysctl.device().is_some_and(|device| **sysctl == Sysctl::accept_ra(device))
                && changed.ours.as_deref() == Some(Sysctl::ACCEPT_RA_ALWAYS)
        });
        raised.map(|(sysctl, _)| sysctl.clone()).collect()
    }

    /// Returns the settings that were changed.
    #[must_use]
    pub fn changed(&self) -> &BTreeMap<Sysctl, Changed> {
        &self.changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_is_kept_with_our_last_one_also_across_runs_and_releases() {
        let path = std::env::temp_dir().join(format!("flatnet-sysctl-record-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        let dir = Arc::new(StateDir::open(&path.join("state"), &path.join("run")).unwrap());
        dir.write_sysctls("net/old=0\n").unwrap();
        let mut record = SysctlRecord::open(Arc::clone(&dir)).unwrap();
        record.changing(&Sysctl::new("net/a"), "1", "2");
        // Somebody set it back meanwhile.
        record.changing(&Sysctl::new("net/a"), "0", "2");
        record.changing(&Sysctl::new("net/b"), "5", "6");
        record.changing(&Sysctl::new("net/b"), "6", "7");
        assert_eq!(record.raised(), []);
        let of = |before: &str, ours: Option<&str>| Changed { before: before.to_owned(), ours: ours.map(Into::into) };
        let expected = [("net/a", of("1", Some("2"))), ("net/b", of("5", Some("7"))), ("net/old", of("0", None))];
        let expected = expected.into_iter().map(|(path, changed)| (Sysctl::new(path), changed)).collect();
        assert_eq!(*record.changed(), expected);
        assert_eq!(*SysctlRecord::open(dir).unwrap().changed(), expected);
        let _ = std::fs::remove_dir_all(&path);
    }

    #[test]
    fn raised_are_the_interfaces_whose_advertisements_are_heard_because_of_us() {
        let path = std::env::temp_dir().join(format!("flatnet-sysctl-raised-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        let dir = Arc::new(StateDir::open(&path.join("state"), &path.join("run")).unwrap());
        dir.write_sysctls(
            "net/ipv6/conf/eth0/accept_ra=1=2\nnet/ipv6/conf/eth1/accept_ra=1=0\nnet/ipv4/ip_forward=0=2\n",
        )
        .unwrap();
        let record = SysctlRecord::open(dir).unwrap();
        assert_eq!(record.raised(), [Sysctl::accept_ra(flatnet_model::IfName::new("eth0").unwrap())]);
        let _ = std::fs::remove_dir_all(&path);
    }
}
