//! This host's WireGuard key: one for all its networks, kept in the state directory so that peers know it after a
//! reboot.
//!
//! The key is made when the first WireGuard network needs it. The private half goes from the file to the kernel crate's
//! ring and nowhere else; everybody else is told the public half. A file that others can read is not used: to all
//! peers, whoever read it is this host.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flatnet_core::problem::{Problem, ProblemCode};
use flatnet_kernel::wireguard::{Keyring, PrivateKey};
use flatnet_model::WireguardKey;
use tokio::sync::watch;

use crate::files::state_dir::StateDir;
use crate::report::chain;

/// The permissions of group and others.
const OTHERS: u32 = 0o077;
/// The most bytes of a key file that are read: 44 of base64 and a newline, and room to see that it is something else.
const LIMIT: usize = 256;

/// The key, and the channel that tells when it is another one. All clones share both.
#[derive(Clone)]
pub struct WireguardIdentity {
    dir: Arc<StateDir>,
    keys: Keyring,
    current: Arc<Mutex<Option<WireguardKey>>>,
    changes: Arc<watch::Sender<u64>>,
}

impl WireguardIdentity {
    /// Creates the identity in `dir`, not read yet. Private keys go to `keys`.
    #[must_use]
    pub fn new(dir: Arc<StateDir>, keys: Keyring) -> Self {
        Self { dir, keys, current: Arc::default(), changes: Arc::new(watch::Sender::new(0)) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<WireguardKey>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the public half. It is read from the file, or made, the first time it is asked for; what failed is tried
    /// again.
    pub fn public(&self) -> Result<WireguardKey, Problem> {
        let mut current = self.lock();
        if let Some(key) = *current {
            return Ok(key);
        }
        let private = match self.read()? {
            Some(private) => private,
            None => self.make()?,
        };
        let public = self.add(private)?;
        tracing::info!(public_key = %public, "this host's WireGuard key");
        *current = Some(public);
        Ok(public)
    }

    /// Returns a receiver that changes whenever the key does.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Replaces the key by a new one, on disk first. Returns the public half of the new one.
    pub fn rotate(&self) -> Result<WireguardKey, Problem> {
        let mut current = self.lock();
        let public = self.make().and_then(|private| self.add(private))?;
        *current = Some(public);
        drop(current);
        self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
        tracing::info!(public_key = %public, "this host's WireGuard key is another one now");
        Ok(public)
    }

    fn read(&self) -> Result<Option<PrivateKey>, Problem> {
        let path = self.dir.wireguard_key();
        let unusable = |what: String, hint: &str| Err(self.problem(&what, hint));
        let metadata = match std::fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return unusable(format!("cannot be read: {error}"), READABLE),
        };
        let mode = metadata.permissions().mode();
        if !metadata.is_file() {
            return unusable("is not a file".to_owned(), "remove it: the agent makes a new key");
        }
        if mode & OTHERS != 0 {
            return unusable(
                format!("can be used by others (mode {:04o})", mode & 0o7777),
                "if somebody may have read it: remove it, and the agent makes a new key; else: chmod 600",
            );
        }
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => return unusable(format!("cannot be read: {error}"), READABLE),
        };
        let text = std::str::from_utf8(bytes.get(..LIMIT.min(bytes.len())).unwrap_or_default()).unwrap_or_default();
        match PrivateKey::from_base64(text.trim_end()) {
            Ok(key) if bytes.len() <= LIMIT => Ok(Some(key)),
            _ => unusable(
                "holds no WireGuard key (44 characters, as `wg genkey` prints)".to_owned(),
                "put the right one back, or remove it: the agent makes a new key, which peers learn from the store",
            ),
        }
    }

    fn make(&self) -> Result<PrivateKey, Problem> {
        let key = PrivateKey::generate()
            .map_err(|error| self.problem(&format!("cannot be made: {error}"), "the system gives no random numbers"))?;
        self.dir.write_wireguard_key(&key.to_base64()).map_err(|error| {
            self.problem(&format!("cannot be written: {}", chain(&error)), "free space, or repair the state directory")
        })?;
        Ok(key)
    }

    fn add(&self, key: PrivateKey) -> Result<WireguardKey, Problem> {
        self.keys.add(key).map_err(|error| self.problem(&error.to_string(), "remove it: the agent makes a new key"))
    }

    fn problem(&self, what: &str, hint: &str) -> Problem {
        let path: PathBuf = self.dir.wireguard_key();
        let message = format!("the WireGuard key {} {what}", path.display());
        Problem::new(ProblemCode::WireguardKeyFile, message, hint, path.display())
    }
}

/// The advice about a file that cannot be read.
const READABLE: &str = "repair the state directory; the file belongs to root with mode 600";

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(name: &str) -> (PathBuf, WireguardIdentity) {
        let scratch = std::env::temp_dir().join(format!("flatnet-wireguard-key-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&scratch);
        let dir = StateDir::open(&scratch.join("state"), &scratch.join("run")).unwrap();
        (scratch, WireguardIdentity::new(Arc::new(dir), Keyring::default()))
    }

    #[test]
    fn the_key_is_kept_and_only_its_owner_can_read_it() {
        let (scratch, first) = identity("kept");
        let public = first.public().unwrap();
        let file = scratch.join("state/wireguard.key");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        let again = WireguardIdentity::new(Arc::clone(&first.dir), Keyring::default());
        assert_eq!(again.public().unwrap(), public);
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(PrivateKey::from_base64(text.trim()).unwrap().public().unwrap(), public);
        std::fs::remove_dir_all(scratch).unwrap();
    }

    #[test]
    fn a_rotated_key_is_another_one_on_disk_too() {
        let (scratch, identity) = identity("rotated");
        let before = identity.public().unwrap();
        let mut changes = identity.changes();
        let after = identity.rotate().unwrap();
        assert_ne!(before, after);
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        let again = WireguardIdentity::new(Arc::clone(&identity.dir), Keyring::default());
        assert_eq!(again.public().unwrap(), after);
        std::fs::remove_dir_all(scratch).unwrap();
    }

    #[test]
    fn a_bad_file_is_said_not_replaced_and_healed_without_a_restart() {
        let (scratch, identity) = identity("bad");
        let file = scratch.join("state/wireguard.key");
        let good = PrivateKey::generate().unwrap();
        for (text, mode, says) in [
            (good.to_base64(), 0o644, "can be used by others (mode 0644)"),
            (good.to_base64(), 0o640, "can be used by others (mode 0640)"),
            ("c2hvcnQ=".to_owned(), 0o600, "holds no WireGuard key"),
            ("x".repeat(100_000), 0o600, "holds no WireGuard key"),
            (String::new(), 0o600, "holds no WireGuard key"),
        ] {
            std::fs::write(&file, &text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            let problem = identity.public().unwrap_err();
            assert!(problem.message.contains(says), "{problem:?}");
            assert!(!problem.message.contains(&good.to_base64()), "{problem:?}");
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "nothing is overwritten");
        }
        std::fs::write(&file, format!("{}\n", good.to_base64())).unwrap();
        assert_eq!(identity.public().unwrap(), good.public().unwrap());
        std::fs::remove_dir_all(scratch).unwrap();
    }
}
