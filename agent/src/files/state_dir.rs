//! The node's files: those that must survive a reboot (state directory), and those that must not be copied with a disk
//! (run directory).
//!
//! | file | where | what |
//! |---|---|---|
//! | `node-id` | state | the node's identity |
//! | `lock` | state | held while an agent uses the directory |
//! | `<network>.snapshot` | state | the last view of a network, to start from when the store is away |
//! | `<network>.subnet` | state | the subnet this node held last |
//! | `<network>.config` | state | the network's configuration that was in force last |
//! | `networks` | state | the networks joined and left at run time |
//! | `underlay` | state | the underlay that carried the tunnels last, and where the store was |
//! | `clock` | state | the latest time at which the WireGuard key may have been used |
//! | `wireguard.key` | state | the node's WireGuard key, once a network needs one |
//! | `controlplane.key`, `controlplane.pem` | state | its key and certificate, if it joined a control plane's server |
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

use flatnet_model::{InstanceNonce, NetworkName, NodeId, SubnetKey};
use flatnet_plane::client::credentials;
use flatnet_plane::files;

/// The state directory, unless another one is named.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/flatnet";
/// The run directory, unless another one is named.
pub const DEFAULT_RUN_DIR: &str = "/run/flatnet";
/// The agent's socket, in the run directory: other commands ask the agent there.
pub const SOCKET: &str = "agent.sock";
/// The file, in the run directory, in which the kernel crate remembers which ruleset is loaded.
pub const RULESET_MEMORY: &str = "ruleset";

/// The file, in the state directory, that tells a service manager not to start an agent that was told to leave. The
/// unit's `ConditionPathExists=` names it.
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

/// The reason why the directories cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another agent uses the directories.
    #[error("another agent uses the state directory {0}")]
    InUse(PathBuf),
    /// A file or directory cannot be made, read or written.
    #[error("cannot {what} {path}")]
    Io {
        /// The operation: `create`, `read`, `write`, …
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// An identity file does not hold an identity.
    #[error("{path} does not hold an identity")]
    BadIdentity {
        /// The file.
        path: PathBuf,
        /// The mistake in it.
        #[source]
        source: flatnet_model::node::InvalidIdentity,
    },
    /// The system gives no random numbers.
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
            // A symbolic link that somebody put there is not followed.
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
            // The nonce only tells this boot's agents from those of a copied disk. A new one is as good, once the
            // presence under the previous one has ended. A power cut leaves an empty file.
            Err(StateDirError::BadIdentity { path, .. }) => {
                tracing::warn!(path = %path.display(), "the mark of this boot cannot be read; it is made anew");
                remove(&path)?;
                identity(&path, InstanceNonce::new)?
            }
            found => found?,
        };
        // Whoever starts an agent wants it to be here: a service manager that must not start it does not come this far.
        remove(&state.join(LEFT))?;
        Ok(Self { state: state.to_owned(), run: run.to_owned(), node, nonce, _lock: lock })
    }

    /// Returns this node's identity.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Returns the nonce of this copy of the node.
    #[must_use]
    pub fn nonce(&self) -> InstanceNonce {
        self.nonce
    }

    /// Returns the directory that holds this node's identity.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Returns the directory for sockets and env files.
    #[must_use]
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// Leaves word for the service manager that this node left, also after a purge. Without it the service would join
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

    /// Returns the last view of `network`, if there is one. The bytes are to be parsed as hostile input.
    pub fn read_snapshot(&self, network: &NetworkName) -> Result<Option<Vec<u8>>, StateDirError> {
        read(&self.snapshot(network))
    }

    /// Writes the last view of `network`.
    pub fn write_snapshot(&self, network: &NetworkName, bytes: &[u8]) -> Result<(), StateDirError> {
        replace(&self.snapshot(network), bytes, 0o600)
    }

    /// Returns the subnet this node held last in `network`. A file that cannot be understood counts as none.
    pub fn read_subnet(&self, network: &NetworkName) -> Result<Option<SubnetKey>, StateDirError> {
        let bytes = read(&self.subnet(network))?;
        Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()).and_then(|text| text.trim().parse().ok()))
    }

    /// Writes the subnet this node holds in `network`; `None` forgets it.
    pub fn write_subnet(&self, network: &NetworkName, subnet: Option<SubnetKey>) -> Result<(), StateDirError> {
        let path = self.subnet(network);
        match subnet {
            Some(subnet) => replace(&path, format!("{subnet}\n").as_bytes(), 0o600),
            // Without a subnet no configuration is in force.
            None => remove(&path).and_then(|()| remove(&self.config(network))),
        }
    }

    /// Returns the configuration that is in force here for the subnet held, as flannel's JSON; the store may have
    /// another one. Then follows, one per line, the same with each earlier backend that this host still receives by.
    pub fn read_config(&self, network: &NetworkName) -> Result<Option<Vec<u8>>, StateDirError> {
        read(&self.config(network))
    }

    /// Writes the configuration in force.
    pub fn write_config(&self, network: &NetworkName, json: &[u8]) -> Result<(), StateDirError> {
        replace(&self.config(network), json, 0o600)
    }

    /// Returns the networks this node has files of.
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

    /// Returns the path of the env file of `network` unless a flag says otherwise: flannel's name for the network
    /// `default`.
    #[must_use]
    pub fn env_file(&self, network: &NetworkName) -> PathBuf {
        if network.is_default() { self.run.join("subnet.env") } else { self.run.join(format!("{network}.env")) }
    }

    /// Returns the record of what carried the tunnels last, if there is one. The bytes are to be parsed as hostile
    /// input.
    pub fn read_underlay(&self) -> Result<Option<Vec<u8>>, StateDirError> {
        read(&self.state.join("underlay"))
    }

    /// Writes the record of what carries the tunnels.
    pub fn write_underlay(&self, bytes: &[u8]) -> Result<(), StateDirError> {
        replace(&self.state.join("underlay"), bytes, 0o600)
    }

    /// Returns the record of the networks that were joined and left at run time, if there is one. The bytes are to be
    /// parsed as hostile input.
    pub fn read_networks(&self) -> Result<Option<Vec<u8>>, StateDirError> {
        read(&self.state.join("networks"))
    }

    /// Writes that record; `None` forgets it.
    pub fn write_networks(&self, bytes: Option<&[u8]>) -> Result<(), StateDirError> {
        let path = self.state.join("networks");
        match bytes {
            Some(bytes) => replace(&path, bytes, 0o600),
            None => remove(&path),
        }
    }

    /// Removes what is remembered of a network that was left. Returns what failed.
    pub fn forget_network(&self, network: &NetworkName) -> Vec<StateDirError> {
        let files = [self.snapshot(network), self.subnet(network), self.config(network)];
        files.iter().filter_map(|file| remove(file).err()).collect()
    }

    /// Returns the path of this node's WireGuard key.
    #[must_use]
    pub fn wireguard_key(&self) -> PathBuf {
        self.state.join("wireguard.key")
    }

    /// Writes this node's WireGuard key. At any time the old key or the new one is there, whole, and readable by its
    /// owner only.
    pub fn write_wireguard_key(&self, base64: &str) -> Result<(), StateDirError> {
        replace(&self.wireguard_key(), format!("{base64}\n").as_bytes(), 0o600)
    }

    fn clock(&self) -> PathBuf {
        self.state.join("clock")
    }

    /// Returns the latest time by the wall clock at which this node's WireGuard key may have been used, if that was
    /// written down.
    #[must_use]
    pub fn read_clock(&self) -> Option<SystemTime> {
        let secs = String::from_utf8_lossy(&read(&self.clock()).ok()??).trim().parse().ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(secs))
    }

    /// Writes that time down, in seconds since 1970.
    pub fn write_clock(&self, latest: SystemTime) -> Result<(), StateDirError> {
        let secs = latest.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        replace(&self.clock(), format!("{secs}\n").as_bytes(), 0o600)
    }

    /// Returns the settings that we changed and what they were before, one `path=value` a line.
    pub fn read_sysctls(&self) -> Result<String, StateDirError> {
        Ok(read(&self.run.join("sysctls"))?
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default())
    }

    /// Writes the settings that we changed.
    pub fn write_sysctls(&self, text: &str) -> Result<(), StateDirError> {
        replace(&self.run.join("sysctls"), text.as_bytes(), 0o600)
    }

    /// Removes every file of ours in both directories, and the directories if nothing else is in them. Returns what
    /// failed.
    pub fn purge(&self, networks: &[NetworkName]) -> Vec<StateDirError> {
        let mut files = vec![
            self.state.join("node-id"),
            self.wireguard_key(),
            self.clock(),
            self.state.join("underlay"),
            self.state.join("networks"),
            self.state.join(credentials::KEY_FILE),
            self.state.join(credentials::CERTIFICATE_FILE),
            self.run.join("instance"),
            self.run.join("sysctls"),
            self.run.join(RULESET_MEMORY),
            // The socket of an agent that was killed. Whoever purges holds the lock, so nobody listens there.
            self.run.join(SOCKET),
        ];
        for network in networks {
            files.extend([self.snapshot(network), self.subnet(network), self.config(network), self.env_file(network)]);
        }
        files.push(self.state.join("lock"));
        let failures = files.iter().filter_map(|file| remove(file).err()).collect();
        for dir in [&self.state, &self.run] {
            // A directory that is not empty has somebody else's files in it, which stay.
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

/// Removes a file. A file that does not exist is a success.
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
