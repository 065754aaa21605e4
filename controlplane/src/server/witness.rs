//! The networks this server saw, in `networks.json` of the data directory. A store without networks in which it saw
//! some was wiped. The networks that nodes put back then are those it saw, none that somebody makes up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flatnet_model::{NetworkConfig, NetworkName, Revision};
use serde::{Deserialize, Serialize};

use flatnet_plane::files;
use flatnet_plane::flannel::decode_config;

/// The file's version.
const VERSION: u32 = 1;
/// The longest configuration kept, in bytes; a longer one is put back by an administrator.
const LONGEST: usize = super::node::CONFIG_LIMIT;

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    /// The configuration of each network, as flannel's JSON.
    networks: BTreeMap<String, String>,
}

/// The networks that were seen.
pub struct Witness {
    path: PathBuf,
    seen: Mutex<BTreeMap<NetworkName, String>>,
    /// The store's latest revision at which a network was seen, since the store was looked at last.
    newest: AtomicI64,
}

impl Witness {
    /// Reads what an earlier run of this server saw.
    pub fn open(dir: &Path) -> Self {
        let path = dir.join("networks.json");
        let read = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<File>(&bytes).ok());
        let networks = read.filter(|file| file.version == VERSION).map(|file| file.networks).unwrap_or_default();
        let seen = networks.into_iter().filter_map(|(name, config)| Some((name.parse().ok()?, config))).collect();
        Self { path, seen: Mutex::new(seen), newest: AtomicI64::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NetworkName, String>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns true if it saw no network.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Returns the configuration of `name` when it was seen last.
    pub fn config(&self, name: &NetworkName) -> Option<NetworkConfig> {
        let seen = self.lock().get(name).cloned()?;
        decode_config(seen.as_bytes()).ok().map(|(config, _)| config)
    }

    /// Returns the latest revision at which a network was seen, and sets it to `now`.
    pub fn newest(&self, now: Revision) -> Revision {
        self.newest.swap(now, Ordering::Relaxed)
    }

    /// Notes that a network is there, as of `revision`.
    pub fn saw(&self, name: &NetworkName, config: &[u8], revision: Revision) {
        self.newest.fetch_max(revision, Ordering::Relaxed);
        let Some(text) = kept(config) else { return };
        let mut seen = self.lock();
        if seen.get(name).is_none_or(|known| known != text) {
            seen.insert(name.clone(), text.to_owned());
            self.write(&seen);
        }
    }

    /// Notes that these networks are there and, with `all`, no others.
    pub fn saw_these<'a>(&self, networks: impl Iterator<Item = (&'a NetworkName, &'a [u8])>, all: bool) {
        let mut seen = self.lock();
        let mut now = if all { BTreeMap::new() } else { seen.clone() };
        now.extend(networks.filter_map(|(name, config)| Some((name.clone(), kept(config)?.to_owned()))));
        if *seen != now {
            *seen = now;
            self.write(&seen);
        }
    }

    fn write(&self, seen: &BTreeMap<NetworkName, String>) {
        let networks = seen.iter().map(|(name, config)| (name.to_string(), config.clone())).collect();
        let file = File { version: VERSION, networks };
        // The value has only names and texts, so this cannot fail.
        let bytes = serde_json::to_vec(&file).unwrap_or_default();
        if let Err(error) = files::replace(&self.path, &bytes, 0o600) {
            tracing::warn!(path = %self.path.display(), %error, "which networks there are is not written down");
        }
    }
}

fn kept(config: &[u8]) -> Option<&str> {
    std::str::from_utf8(config).ok().filter(|text| text.len() <= LONGEST)
}
