//! The node's files: what must survive a reboot (state directory), and what must not be copied with a disk (run directory).
//!
//! | file | where | what |
//! |---|---|---|
//! | `node-id` | state | the node's identity |
//! | `lock` | state | held while an agent uses the directory |
//! | `<network>.snapshot` | state | the last view of a network, to start from when the store is away |
//! | `<network>.subnet` | state | the subnet this node held last |
//! | `<network>.config` | state | the network's configuration that was in force last |
//! | `underlay` | state | what carried the tunnels last, and where the store was |
//! | `clock` | state | the latest time at which the WireGuard key may have been used |
//! | `wireguard.key` | state | the node's WireGuard key, once a network needs one |
//! | `controlplane.key`, `controlplane.pem` | state | the node's key and certificate, if it joined a control plane's server |
//! | `left` | state | this node left: the service stays stopped while the file is there |
//! | `instance` | run | the nonce that tells a copied disk from the original |
//! | `sysctls` | run | settings we changed, with what they were |
//! | `ruleset` | run | which ruleset is loaded (written by the kernel crate) |
//! | `agent.sock` | run | the socket of the running agent |

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use flatnet_controlplane::client::credentials;
use flatnet_controlplane::files;
use flatnet_model::{InstanceNonce, NetworkName, NodeId, SubnetKey};

/// The state directory, unless another is named.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/flatnet";
/// The run directory, unless another is named.
pub const DEFAULT_RUN_DIR: &str = "/run/flatnet";
/// In the run directory: the agent's socket, at which other commands ask it.
pub const SOCKET: &str = "agent.sock";
/// In the run directory: which ruleset is loaded, as the kernel crate remembers it.
pub const RULESET_MEMORY: &str = "ruleset";

/// In the state directory: tells a service manager not to start an agent that was told to leave. The unit's
/// `ConditionPathExists=` names it.
pub const LEFT: &str = "left";

/// The two directories, locked for this process until dropped.
#[derive(Debug)]
pub struct StateDir {
    state: PathBuf,
    run: PathBuf,
    node: NodeId,
    nonce: InstanceNonce,
    _lock: File,
}

/// Why the directories cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another agent has them.
    #[error("another agent uses the state directory {0}")]
    InUse(PathBuf),
    /// A file or directory cannot be made, read or written.
    #[error("cannot {what} {path}")]
    Io {
        /// `create`, `read`, `write`, …
        what: &'static str,
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An identity file that does not hold an identity.
    #[error("{path} does not hold an identity")]
    BadIdentity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: flatnet_model::node::InvalidIdentity,
    },
    /// No random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

impl StateDir {
    /// Makes what is missing, locks the state directory, and reads or makes the identities.
    pub fn open(state: &Path, run: &Path) -> Result<Self, StateDirError> {
        // The state directory will hold private keys, the run directory files that others read.
        create_dir(state, 0o700)?;
        create_dir(run, 0o755)?;
        let lock_path = state.join("lock");
        let lock = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            // What somebody laid there leads nowhere.
            .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
            .open(&lock_path)
            .map_err(io("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StateDirError::InUse(state.to_owned())),
            Err(TryLockError::Error(source)) => return Err(io("lock", &lock_path)(source)),
        }
        let node = identity(&state.join("node-id"), NodeId::new)?;
        let nonce = match identity(&run.join("instance"), InstanceNonce::new) {
            // It only tells this boot's agents from those of a copied disk: another one is as good, once the presence of
            // the one before has ended. A power cut leaves an empty file.
            Err(StateDirError::BadIdentity { path, .. }) => {
                tracing::warn!(path = %path.display(), "the mark of this boot cannot be read; it is made anew");
                remove(&path)?;
                identity(&path, InstanceNonce::new)?
            }
            found => found?,
        };
        // Whoever starts an agent wants it to be here: a service manager that must not does not come this far.
        remove(&state.join(LEFT))?;
        Ok(Self { state: state.to_owned(), run: run.to_owned(), node, nonce, _lock: lock })
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// This copy of it.
    #[must_use]
    pub fn nonce(&self) -> InstanceNonce {
        self.nonce
    }

    /// Where this node's identity is.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Where sockets and env files are.
    #[must_use]
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// Leaves word for the service manager that this node left, also after a purge: without it the service would join
    /// again, at once or at the next boot.
    pub fn mark_left(&self) -> Result<(), StateDirError> {
        let path = self.state.join(LEFT);
        let text = format!(
            "This node left its networks; its service does not start while this file exists.\n\
             To join again: rm {} && systemctl start flatnet-agent\n",
            path.display()
        );
        create_dir(&self.state, 0o700)?;
        replace(&path, text.as_bytes(), 0o644)
    }

    /// The last view of `network`, if there is one; the bytes are to be parsed as hostile input.
    pub fn read_snapshot(&self, network: &NetworkName) -> Result<Option<Vec<u8>>, StateDirError> {
        read(&self.snapshot(network))
    }

    /// Keeps the last view of `network`.
    pub fn write_snapshot(&self, network: &NetworkName, bytes: &[u8]) -> Result<(), StateDirError> {
        replace(&self.snapshot(network), bytes, 0o600)
    }

    /// The subnet this node held last in `network`. A file that cannot be understood counts as none.
    pub fn read_subnet(&self, network: &NetworkName) -> Result<Option<SubnetKey>, StateDirError> {
        let bytes = read(&self.subnet(network))?;
        Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()).and_then(|text| text.trim().parse().ok()))
    }

    /// Keeps the subnet this node holds in `network`; `None` forgets it.
    pub fn write_subnet(&self, network: &NetworkName, subnet: Option<SubnetKey>) -> Result<(), StateDirError> {
        let path = self.subnet(network);
        match subnet {
            Some(subnet) => replace(&path, format!("{subnet}\n").as_bytes(), 0o600),
            // Without a subnet no configuration is in force.
            None => remove(&path).and_then(|()| remove(&self.config(network))),
        }
    }

    /// The configuration that is in force here for the subnet held, as flannel's JSON: the store's may be another one. Then,
    /// a line each, the same with the earlier backends that are still received by.
    pub fn read_config(&self, network: &NetworkName) -> Result<Option<Vec<u8>>, StateDirError> {
        read(&self.config(network))
    }

    /// Keeps the configuration in force.
    pub fn write_config(&self, network: &NetworkName, json: &[u8]) -> Result<(), StateDirError> {
        replace(&self.config(network), json, 0o600)
    }

    /// The networks this node has files of.
    #[must_use]
    pub fn networks(&self) -> Vec<NetworkName> {
        let entries = std::fs::read_dir(&self.state).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut networks: Vec<NetworkName> = names
            .filter_map(|name| name.strip_suffix(".subnet").or_else(|| name.strip_suffix(".snapshot"))?.parse().ok())
            .collect();
        networks.sort();
        networks.dedup();
        networks
    }

    /// Where the env file of `network` is unless a flag says otherwise: flannel's name for the network `default`.
    #[must_use]
    pub fn env_file(&self, network: &NetworkName) -> PathBuf {
        if network.is_default() { self.run.join("subnet.env") } else { self.run.join(format!("{network}.env")) }
    }

    /// What carried the tunnels last, if that is known; the bytes are to be parsed as hostile input.
    pub fn read_underlay(&self) -> Result<Option<Vec<u8>>, StateDirError> {
        read(&self.state.join("underlay"))
    }

    /// Keeps what carries the tunnels.
    pub fn write_underlay(&self, bytes: &[u8]) -> Result<(), StateDirError> {
        replace(&self.state.join("underlay"), bytes, 0o600)
    }

    /// Where this node's WireGuard key is.
    #[must_use]
    pub fn wireguard_key(&self) -> PathBuf {
        self.state.join("wireguard.key")
    }

    /// Keeps this node's WireGuard key: the old one or the new one is there at any time, whole, and its owner's alone.
    pub fn write_wireguard_key(&self, base64: &str) -> Result<(), StateDirError> {
        replace(&self.wireguard_key(), format!("{base64}\n").as_bytes(), 0o600)
    }

    fn clock(&self) -> PathBuf {
        self.state.join("clock")
    }

    /// The latest time by the wall clock at which this node's WireGuard key may have been used, if that was written down.
    #[must_use]
    pub fn read_clock(&self) -> Option<SystemTime> {
        let secs = String::from_utf8_lossy(&read(&self.clock()).ok()??).trim().parse().ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(secs))
    }

    /// Writes it down: seconds since 1970.
    pub fn write_clock(&self, latest: SystemTime) -> Result<(), StateDirError> {
        let secs = latest.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        replace(&self.clock(), format!("{secs}\n").as_bytes(), 0o600)
    }

    /// Settings changed by us and what they were before, one `path=value` a line.
    pub fn read_sysctls(&self) -> Result<String, StateDirError> {
        Ok(read(&self.run.join("sysctls"))?
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default())
    }

    /// Keeps the settings changed by us.
    pub fn write_sysctls(&self, text: &str) -> Result<(), StateDirError> {
        replace(&self.run.join("sysctls"), text.as_bytes(), 0o600)
    }

    /// Removes every file of ours in both directories, and the directories if nothing else is in them.
    pub fn purge(&self, networks: &[NetworkName]) -> Vec<StateDirError> {
        let mut files = vec![
            self.state.join("node-id"),
            self.wireguard_key(),
            self.clock(),
            self.state.join("underlay"),
            self.state.join(credentials::KEY_FILE),
            self.state.join(credentials::CERTIFICATE_FILE),
            self.run.join("instance"),
            self.run.join("sysctls"),
            self.run.join(RULESET_MEMORY),
            // Of an agent that was killed; whoever purges holds the lock, so nobody listens there.
            self.run.join(SOCKET),
        ];
        for network in networks {
            files.extend([self.snapshot(network), self.subnet(network), self.config(network), self.env_file(network)]);
        }
        files.push(self.state.join("lock"));
        let failures = files.iter().filter_map(|file| remove(file).err()).collect();
        for dir in [&self.state, &self.run] {
            // Not empty: somebody else's files, which stay.
            let _ = std::fs::remove_dir(dir);
        }
        failures
    }

    fn snapshot(&self, network: &NetworkName) -> PathBuf {
        self.state.join(format!("{network}.snapshot"))
    }

    fn config(&self, network: &NetworkName) -> PathBuf {
        self.state.join(format!("{network}.config"))
    }

    fn subnet(&self, network: &NetworkName) -> PathBuf {
        self.state.join(format!("{network}.subnet"))
    }
}

/// Writes `bytes` so that a reader, or a crash, sees the old file or the new one ([`files::replace`]).
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StateDirError> {
    files::replace(path, bytes, mode).map_err(io("write", path))
}

/// Removes a file; that it is not there is success.
pub fn remove(path: &Path) -> Result<(), StateDirError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, StateDirError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("read", path)(error)),
    }
}

fn create_dir(path: &Path, mode: u32) -> Result<(), StateDirError> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(io("create", path))
}

fn identity<T>(path: &Path, new: fn(u128) -> T) -> Result<T, StateDirError>
where
    T: std::str::FromStr<Err = flatnet_model::node::InvalidIdentity> + ToString,
{
    if let Some(bytes) = read(path)? {
        let text = String::from_utf8_lossy(&bytes);
        return text.trim().parse().map_err(|source| StateDirError::BadIdentity { path: path.to_owned(), source });
    }
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(StateDirError::Random)?;
    let id = new(u128::from_ne_bytes(random));
    replace(path, format!("{}\n", id.to_string()).as_bytes(), 0o600)?;
    Ok(id)
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StateDirError {
    let path = path.to_owned();
    move |source| StateDirError::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("flatnet-state-dir-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn the_node_keeps_its_identity_and_a_copy_of_the_disk_has_another_nonce() {
        let dir = scratch("identity");
        let first = StateDir::open(&dir.join("state"), &dir.join("run")).unwrap();
        let (node, nonce) = (first.node(), first.nonce());
        drop(first);
        let again = StateDir::open(&dir.join("state"), &dir.join("run")).unwrap();
        assert_eq!((again.node(), again.nonce()), (node, nonce));
        drop(again);
        let copy = StateDir::open(&dir.join("state"), &dir.join("other-run")).unwrap();
        assert_eq!(copy.node(), node);
        assert_ne!(copy.nonce(), nonce);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_mark_of_this_boot_that_is_broken_is_made_anew_and_a_nodes_identity_never() {
        let dir = scratch("broken");
        let (state, run) = (dir.join("state"), dir.join("run"));
        let node = StateDir::open(&state, &run).unwrap().node();
        for broken in ["", "\0\0\0\0", "nonsense"] {
            std::fs::write(run.join("instance"), broken).unwrap();
            let opened = StateDir::open(&state, &run).unwrap();
            let nonce = opened.nonce();
            drop(opened);
            let again = StateDir::open(&state, &run).unwrap();
            assert_eq!((again.node(), again.nonce()), (node, nonce), "{broken:?}");
        }
        std::fs::write(state.join("node-id"), "").unwrap();
        assert!(matches!(StateDir::open(&state, &run), Err(StateDirError::BadIdentity { .. })));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_second_agent_on_the_same_directory_is_refused() {
        let dir = scratch("lock");
        let _first = StateDir::open(&dir.join("state"), &dir.join("run")).unwrap();
        let second = StateDir::open(&dir.join("state"), &dir.join("run"));
        assert!(matches!(second, Err(StateDirError::InUse(_))), "{second:?}");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_node_that_left_is_marked_also_after_a_purge_until_somebody_starts_an_agent() {
        let dir = scratch("left");
        let opened = StateDir::open(&dir.join("state"), &dir.join("run")).unwrap();
        assert!(opened.purge(&[]).is_empty());
        opened.mark_left().unwrap();
        drop(opened);
        assert!(std::fs::read_to_string(dir.join("state").join(LEFT)).unwrap().contains("To join again: rm"));
        let again = StateDir::open(&dir.join("state"), &dir.join("run")).unwrap();
        assert!(!dir.join("state").join(LEFT).exists());
        drop(again);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn purge_leaves_nothing_of_ours_and_everything_of_others() {
        let dir = scratch("purge");
        let opened = StateDir::open(&dir.join("state"), &dir.join("run")).unwrap();
        let network = NetworkName::default_network();
        opened.write_snapshot(&network, b"{}").unwrap();
        opened.write_subnet(&network, Some("10.1.2.0-24".parse().unwrap())).unwrap();
        assert_eq!(opened.read_subnet(&network).unwrap(), Some("10.1.2.0-24".parse().unwrap()));
        std::fs::write(dir.join("run/other"), "x").unwrap();
        assert!(opened.purge(&[network]).is_empty());
        assert!(!dir.join("state").exists());
        assert_eq!(std::fs::read_dir(dir.join("run")).unwrap().count(), 1);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
