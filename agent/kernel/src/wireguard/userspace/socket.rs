//! The socket at which a device in this process is set up, also by `wg`.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use flatnet_model::IfName;
use tokio::net::UnixListener;

/// The directory in which `wg` looks for the sockets of such devices (wireguard-tools: `ipc-uapi-unix.h`).
const SOCKETS: &str = "/var/run/wireguard";

/// The socket of one device, removed when dropped.
pub(super) struct Socket {
    path: PathBuf,
    /// Device number and inode of the file, once it is there.
    file: Mutex<Option<(u64, u64)>>,
}

impl Socket {
    fn path_of(name: IfName) -> PathBuf {
        Path::new(SOCKETS).join(format!("{name}.sock"))
    }

    /// Makes room for the socket. If somebody answers at it, it is left alone: it belongs to another agent, in another
    /// network namespace on this file system.
    pub(super) fn claim(name: IfName) -> io::Result<Self> {
        let path = Self::path_of(name);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(SOCKETS)?;
        if std::os::unix::net::UnixStream::connect(&path).is_ok() {
            let what = format!("{} is in use by another process: give it its own /run/wireguard", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, what));
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(Self { path, file: Mutex::new(None) }),
        }
    }

    /// Listens at the socket. It is for root alone: whoever reaches it can read the private key.
    pub(super) fn listen(&self) -> io::Result<UnixListener> {
        let listener = UnixListener::bind(&self.path)?;
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o600))?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = identity(&self.path);
        Ok(listener)
    }

    /// Returns true if the file that is there is the one we made.
    pub(super) fn is_ours(&self) -> bool {
        let made = *self.file.lock().unwrap_or_else(PoisonError::into_inner);
        made.is_some() && made == identity(&self.path)
    }

    /// Removes a socket that a killed process left.
    pub(super) fn remove_stale(name: IfName) {
        let path = Self::path_of(name);
        if path.exists() && std::os::unix::net::UnixStream::connect(&path).is_err() {
            let _ = fs::remove_file(&path);
        }
        // Other programs' sockets keep the directory.
        let _ = fs::remove_dir(SOCKETS);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.is_ours() {
            let _ = fs::remove_file(&self.path);
            let _ = fs::remove_dir(SOCKETS);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
