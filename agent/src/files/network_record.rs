//! The record, kept across restarts, of the networks that were joined and left while the agent ran.
//!
//! What was said last holds: a network that was joined is joined again at the next start, besides those that the
//! command line names, and one that was left stays left although the command line names it. A mark that the command
//! line no longer names is forgotten, so that the name may be used anew.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use flatnet_model::NetworkName;
use flatnet_model::keys::NetworkKeys;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::files::state_dir::{StateDir, StateDirError};
use crate::report::chain;

/// One network that is to be joined.
#[derive(Clone, Debug)]
pub struct NetworkSetup {
    /// The network's name and keys.
    pub keys: NetworkKeys,
    /// The ranges to create the network with if it does not exist.
    pub init: Vec<IpNet>,
    /// The subnets asked for.
    pub wanted: Vec<IpNet>,
    /// The path of the network's env file.
    pub env_file: PathBuf,
}

/// The options with which a network is joined while the agent runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunTimeOptions {
    /// The subnets asked for, at most one of each family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<IpNet>,
    /// The path of the network's env file, if it is not the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet_file: Option<PathBuf>,
}

/// The record, in the state directory. The node's membership owns it.
#[derive(Clone, Debug)]
pub struct NetworkRecord {
    dir: Arc<StateDir>,
    file: File,
}

/// The file. Fields that a later release adds are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct File {
    /// The networks joined besides those that the command line names.
    #[serde(default)]
    joined: BTreeMap<String, RunTimeOptions>,
    /// The networks left although the command line names them.
    #[serde(default)]
    left: Vec<String>,
    #[serde(flatten)]
    other: BTreeMap<String, serde_json::Value>,
}

impl NetworkRecord {
    /// Opens what earlier runs kept. A file that cannot be read counts as empty.
    #[must_use]
    pub fn open(dir: Arc<StateDir>) -> Self {
        let bytes = dir.read_networks().unwrap_or_else(|error| {
            tracing::warn!(error = chain(&error), "which networks were joined and left before cannot be read");
            None
        });
        let file = bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose().unwrap_or_else(|error| {
            tracing::warn!(%error, "which networks were joined and left before cannot be understood; only the command line counts");
            None
        });
        Self { dir, file: file.unwrap_or_default() }
    }

    /// Begins a run: forgets the marks of networks that the command line no longer names (`named`: those that it does),
    /// and says which of those that it names stay left.
    pub fn begin(&mut self, named: &[NetworkSetup]) {
        let mut file = self.file.clone();
        file.left.retain(|left| named.iter().any(|setup| setup.keys.network().as_str() == left));
        if let Err(error) = self.replace(file) {
            tracing::warn!(error = chain(&error), "which networks were left cannot be written down");
        }
        for name in &self.file.left {
            let hint = format!("agent network join {name}");
            tracing::warn!(network = name, hint, "this network stays left, although the command line names it");
        }
    }

    /// Returns the networks to join. `named`: those that the command line names; `prefix`: the key prefix under which
    /// the network `default` lives.
    #[must_use]
    pub fn to_join(&self, named: &[NetworkSetup], prefix: &str) -> Vec<NetworkSetup> {
        let is_named = |name: &str| named.iter().any(|setup| setup.keys.network().as_str() == name);
        let mut setups: Vec<NetworkSetup> =
            named.iter().filter(|setup| !self.has_left(setup.keys.network())).cloned().collect();
        let joined = self.file.joined.iter().filter(|(name, _)| !is_named(name));
        setups.extend(joined.filter_map(|(name, options)| Some(self.setup(&name.parse().ok()?, options, prefix))));
        setups
    }

    /// Returns what a network that the command line does not name is joined with.
    #[must_use]
    pub fn setup(&self, name: &NetworkName, options: &RunTimeOptions, prefix: &str) -> NetworkSetup {
        NetworkSetup {
            keys: NetworkKeys::new(name, prefix),
            init: Vec::new(),
            wanted: options.subnets.clone(),
            env_file: options.subnet_file.clone().unwrap_or_else(|| self.dir.env_file(name)),
        }
    }

    /// Returns true if this node was told to leave `network`, which the command line names.
    #[must_use]
    pub fn has_left(&self, network: &NetworkName) -> bool {
        self.file.left.iter().any(|name| name == network.as_str())
    }

    /// Writes down that `network` was joined. `options`: `None` if the command line names it and has its options.
    pub fn join(&mut self, network: &NetworkName, options: Option<RunTimeOptions>) -> Result<(), StateDirError> {
        let mut file = self.file.clone();
        file.left.retain(|name| name != network.as_str());
        if let Some(options) = options {
            file.joined.insert(network.to_string(), options);
        }
        self.replace(file)
    }

    /// Forgets everything, for a node that leaves all its networks.
    pub fn forget(&mut self) -> Result<(), StateDirError> {
        self.replace(File::default())
    }

    /// Writes down that `network` was left. `named`: the command line names it.
    pub fn leave(&mut self, network: &NetworkName, named: bool) -> Result<(), StateDirError> {
        let mut file = self.file.clone();
        file.joined.remove(network.as_str());
        if named && !self.has_left(network) {
            file.left.push(network.to_string());
        }
        self.replace(file)
    }

    fn replace(&mut self, file: File) -> Result<(), StateDirError> {
        if file == self.file {
            return Ok(());
        }
        if file == File::default() {
            self.dir.write_networks(None)?;
        } else {
            // Names, paths and ranges only: this cannot fail.
            let mut bytes = serde_json::to_vec_pretty(&file).unwrap_or_default();
            bytes.push(b'\n');
            self.dir.write_networks(Some(&bytes))?;
        }
        self.file = file;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(name: &str) -> (PathBuf, Arc<StateDir>) {
        let path = std::env::temp_dir().join(format!("flatnet-network-record-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        (path.clone(), Arc::new(StateDir::open(&path.join("state"), &path.join("run")).unwrap()))
    }

    fn names(setups: &[NetworkSetup]) -> Vec<&str> {
        setups.iter().map(|setup| setup.keys.network().as_str()).collect()
    }

    #[test]
    fn what_was_said_last_holds_over_a_restart_and_a_name_that_was_taken_out_may_be_used_anew() {
        let (path, dir) = dir("restart");
        let (blue, red): (NetworkName, NetworkName) = ("blue".parse().unwrap(), "red".parse().unwrap());
        let mut record = NetworkRecord::open(Arc::clone(&dir));
        let named = [record.setup(&red, &RunTimeOptions::default(), "/f")];
        let options = RunTimeOptions { subnets: vec!["10.2.3.0/24".parse().unwrap()], subnet_file: None };
        record.join(&blue, Some(options.clone())).unwrap();
        record.leave(&red, true).unwrap();

        let mut record = NetworkRecord::open(Arc::clone(&dir));
        record.begin(&named);
        let setups = record.to_join(&named, "/f");
        assert_eq!(names(&setups), ["blue"]);
        assert_eq!(setups[0].wanted, options.subnets);
        record.begin(&[]);
        assert_eq!(names(&record.to_join(&[], "/f")), ["blue"], "the mark of a name that is gone is forgotten");
        assert_eq!(names(&NetworkRecord::open(Arc::clone(&dir)).to_join(&named, "/f")), ["red", "blue"]);
        record.leave(&blue, false).unwrap();
        assert_eq!(dir.read_networks().unwrap(), None, "nothing is left to be remembered");
        let _ = std::fs::remove_dir_all(path);
    }

    #[test]
    fn fields_of_a_later_release_are_kept_and_a_damaged_file_counts_as_none() {
        let (path, dir) = dir("later");
        dir.write_networks(Some(br#"{"joined":{"blue":{}},"held":{"red":1}}"#)).unwrap();
        let mut record = NetworkRecord::open(Arc::clone(&dir));
        record.leave(&"blue".parse().unwrap(), false).unwrap();
        let text = String::from_utf8(dir.read_networks().unwrap().unwrap()).unwrap();
        assert!(text.contains(r#""held""#), "{text}");
        dir.write_networks(Some(b"{\"joined\":")).unwrap();
        assert!(NetworkRecord::open(Arc::clone(&dir)).to_join(&[], "/f").is_empty());
        let _ = std::fs::remove_dir_all(path);
    }
}
