//! A lab's directory outside the sandbox: a lock that tells whether the lab runs, a record of it, and the logs.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use flatnet_plane::failure::{Exit, Failure};

/// The record's file name.
const RECORD: &str = "lab.json";
/// The lock's file name.
const LOCK: &str = "lock";

/// The record of a running lab: what `lab exec` and `lab down` need to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The supervisor's process id, as seen from outside.
    pub supervisor: u32,
    /// The inode of the lab's pid namespace: every process of the lab is in it.
    pub pid_namespace: u64,
    /// The lab's network namespaces by name, with their inodes.
    pub namespaces: Vec<NamedNamespace>,
    /// etcd's endpoint, as the hosts use it.
    pub endpoint: String,
    /// The network's backend.
    pub backend: String,
}

/// A network namespace of the lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NamedNamespace {
    /// `host1`, `c1`, `etcd`, `underlay`.
    pub name: String,
    /// The inode, which tells namespaces apart.
    pub inode: u64,
}

/// The directory of a lab.
#[derive(Clone, Debug)]
pub struct LabDirectory {
    path: PathBuf,
}

/// The lock, held as long as the lab lives. The kernel releases it with the process that holds it.
#[derive(Debug)]
pub struct LabLock {
    _file: File,
}

/// Returns the default directory, one per user: `flatnet-lab-<uid>` in the directory for temporary files.
#[must_use]
pub fn default_directory() -> PathBuf {
    std::env::temp_dir().join(format!("flatnet-lab-{}", nix::unistd::getuid()))
}

impl LabDirectory {
    /// Creates a handle for the directory at `path`; nothing is created on disk yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Returns the path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of the log called `name`.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.log"))
    }

    /// Creates the directory, refusing one that somebody else made.
    pub fn create(&self) -> Result<(), Failure> {
        let failed =
            |error| Failure::new(Exit::Internal, format!("cannot create {}", self.path.display())).caused_by(error);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(failed)?;
        let metadata = fs::symlink_metadata(&self.path).map_err(failed)?;
        if !metadata.is_dir() || metadata.uid() != nix::unistd::geteuid().as_raw() {
            let message = format!("{} is not a directory of this user", self.path.display());
            return Err(Failure::new(Exit::Conflict, message).hint("name another one with --dir"));
        }
        Ok(())
    }

    /// Takes the lock. The exit code is 6 if a lab runs.
    pub fn lock(&self) -> Result<LabLock, Failure> {
        let path = self.path.join(LOCK);
        let failed = |error| Failure::new(Exit::Internal, format!("cannot lock {}", path.display())).caused_by(error);
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(LabLock { _file: file }),
            Err(TryLockError::WouldBlock) => {
                let message = format!("a lab is already running ({})", self.path.display());
                Err(Failure::new(Exit::Conflict, message)
                    .hint("end it with `agent lab down`, or give this one another directory with --dir"))
            }
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Returns true if a lab holds the lock.
    #[must_use]
    pub fn is_running(&self) -> bool {
        let file = File::options().write(true).open(self.path.join(LOCK));
        file.is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Writes the record.
    pub fn write_record(&self, record: &Record) -> Result<(), Failure> {
        let path = self.path.join(RECORD);
        let failed = |error| Failure::new(Exit::Internal, format!("cannot write {}", path.display())).caused_by(error);
        let text = serde_json::to_string_pretty(record).map_err(|error| failed(error.into()))?;
        fs::write(&path, text).map_err(failed)
    }

    /// Returns the record of the running lab. The exit code is 9 if none runs.
    pub fn running(&self) -> Result<Record, Failure> {
        let none = || {
            Failure::new(Exit::NotFound, format!("no lab is running ({})", self.path.display()))
                .hint("start one with `agent lab up`")
        };
        if !self.is_running() {
            return Err(none());
        }
        let text = fs::read_to_string(self.path.join(RECORD)).map_err(|error| none().caused_by(error))?;
        serde_json::from_str(&text).map_err(|error| {
            Failure::new(Exit::InvalidConfig, format!("{} cannot be read", self.path.join(RECORD).display()))
                .caused_by(error)
        })
    }

    /// Removes the files that labs put there, and the directory if nothing else is in it.
    pub fn remove(&self) -> Result<(), Failure> {
        let failed =
            |error| Failure::new(Exit::Internal, format!("cannot remove {}", self.path.display())).caused_by(error);
        let Ok(entries) = fs::read_dir(&self.path) else { return Ok(()) };
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let ours = path.extension().is_some_and(|extension| extension == "log" || extension == "json")
                || path.file_name().is_some_and(|name| name == LOCK);
            if ours {
                fs::remove_file(&path).map_err(failed)?;
            }
        }
        fs::remove_dir(&self.path).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lab_in_a_directory_is_refused_until_the_first_is_gone() {
        let directory = LabDirectory::new(&std::env::temp_dir().join(format!("flatnet-dir-{}", std::process::id())));
        assert_eq!(directory.running().unwrap_err().exit(), Exit::NotFound);
        directory.create().unwrap();
        let lock = directory.lock().unwrap();
        assert_eq!(directory.lock().unwrap_err().exit(), Exit::Conflict);
        assert!(directory.is_running());
        drop(lock);
        assert!(!directory.is_running());
        directory.remove().unwrap();
        assert!(!directory.path().exists());
    }
}
