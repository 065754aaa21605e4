//! The lock that keeps a network namespace to one agent.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, UnixAddr, connect, getsockopt, shutdown, socket, sockopt,
};

use crate::files::state_dir::DEFAULT_RUN_DIR;
use crate::report::{Exit, Failure};

/// The name that a namespace's agent has in it.
const NAME: &[u8] = b"flatnet/agent";

/// The lock held while this process is the agent of its network namespace.
///
/// It is an abstract socket: its name belongs to the namespace, and the kernel frees it however the process ends. Any
/// user of the host may take that name first. So a holder that is neither root nor ourselves counts for nothing, and a
/// file in a directory that only we write stands in for the socket.
#[derive(Debug)]
pub struct NamespaceLock {
    socket: Option<Arc<UnixListener>>,
    file: Option<(File, PathBuf)>,
}

/// The holder of the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    /// The process and user that listen there.
    Known(i32, u32),
    /// Nobody answers. An agent would.
    Silent,
}

impl Holder {
    /// Returns true if the holder may be an agent.
    fn may_be_an_agent(self, own: u32) -> bool {
        matches!(self, Self::Known(_, uid) if uid == 0 || uid == own)
    }
}

impl NamespaceLock {
    /// Becomes the agent of this network namespace.
    pub fn acquire() -> Result<Self, Failure> {
        let inode = std::fs::metadata("/proc/self/ns/net").map_err(failed)?.ino();
        Self::by(NAME, &Path::new(DEFAULT_RUN_DIR).join(format!("netns-{inode}.lock")))
    }

    fn by(name: &[u8], path: &Path) -> Result<Self, Failure> {
        match bind(name) {
            Ok(listener) => {
                // The file is held by an agent that came while somebody else had the name.
                if is_locked(path) {
                    return Err(conflict(""));
                }
                Ok(Self { socket: Some(answer(listener).map_err(failed)?), file: None })
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => Self::beside(name, path),
            Err(error) => Err(failed(error)),
        }
    }

    /// Takes the lock file, as somebody has the name.
    fn beside(name: &[u8], path: &Path) -> Result<Self, Failure> {
        let own = nix::unistd::geteuid().as_raw();
        let refuse_an_agent = || {
            let holder = holder(name);
            let said = match holder {
                Holder::Known(pid, uid) => format!(" (process {pid} of user {uid})"),
                Holder::Silent => String::new(),
            };
            if holder.may_be_an_agent(own) { Err(conflict(&said)) } else { Ok(said) }
        };
        let said = refuse_an_agent()?;
        let file = match lock_file(path, own) {
            Ok(Some(file)) => file,
            Ok(None) => return Err(conflict("")),
            Err(error) => {
                return Err(conflict(&said).caused_by(format!("{} cannot stand in: {error}", path.display())));
            }
        };
        let held = Self { socket: None, file: Some((file, path.to_owned())) };
        // An agent that got the name meanwhile had not seen the file.
        refuse_an_agent()?;
        tracing::warn!(
            holder = said,
            "another user keeps the name by which agents know each other in this network namespace; going on without"
        );
        Ok(held)
    }
}

impl Drop for NamespaceLock {
    fn drop(&mut self) {
        if let Some(listener) = &self.socket {
            // This ends the thread that answers there; the name is free once that has ended.
            let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
        }
        if let Some((_, path)) = &self.file {
            let _ = std::fs::remove_file(path);
            // The directory stays if it is not empty: others need what is in it.
            let _ = path.parent().map(std::fs::remove_dir);
        }
    }
}

fn failed(error: std::io::Error) -> Failure {
    Failure::new(Exit::Internal, "cannot lock this network namespace").caused_by(error)
}

fn conflict(holder: &str) -> Failure {
    Failure::new(Exit::Conflict, format!("another agent runs in this network namespace{holder}"))
        .hint("one agent serves several networks: --network is repeatable; stop the other one first")
}

fn bind(name: &[u8]) -> std::io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

/// Answers whoever asks who is there, so that nobody can fill the queue: a holder that does not answer is no agent.
fn answer(listener: UnixListener) -> std::io::Result<Arc<UnixListener>> {
    let listener = Arc::new(listener);
    let answers = Arc::clone(&listener);
    std::thread::Builder::new().name("lock".to_owned()).spawn(move || {
        loop {
            match answers.accept() {
                Ok(asked) => drop(asked),
                // The listener was shut down.
                Err(error) if error.kind() == ErrorKind::InvalidInput => return,
                // For example, no descriptors are left.
                Err(_) => std::thread::park_timeout(Duration::from_millis(100)),
            }
        }
    })?;
    Ok(listener)
}

/// Asks who has the name, without waiting: a full queue would be waited for without end.
fn holder(name: &[u8]) -> Holder {
    let ask = || {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new_abstract(name)?)?;
        getsockopt(&socket, sockopt::PeerCredentials)
    };
    ask().map_or(Holder::Silent, |holder| Holder::Known(holder.pid(), holder.uid()))
}

fn open(path: &Path) -> std::io::Result<File> {
    let mut options = std::fs::OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
    options.open(path)
}

/// Returns true if an agent holds the file.
fn is_locked(path: &Path) -> bool {
    let Ok(file) = std::fs::File::open(path) else { return false };
    matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock))
}

/// Locks the file. Returns `None` if another agent has it.
fn lock_file(path: &Path, own: u32) -> std::io::Result<Option<File>> {
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
        let meta = std::fs::symlink_metadata(dir)?;
        if !meta.is_dir() || meta.uid() != own || meta.mode() & 0o022 != 0 {
            return Err(std::io::Error::other("its directory is not this user's alone"));
        }
    }
    loop {
        let file = open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
            Err(std::fs::TryLockError::Error(error)) => return Err(error),
        }
        // An agent that ended meanwhile took its file with it.
        if std::fs::metadata(path).is_ok_and(|now| file.metadata().is_ok_and(|held| held.ino() == now.ino())) {
            return Ok(Some(file));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(test: &str) -> (Vec<u8>, PathBuf) {
        let id = std::process::id();
        let dir = std::env::temp_dir().join(format!("flatnet-lock-{test}-{id}"));
        (format!("flatnet/test/{test}/{id}").into_bytes(), dir.join("netns-1.lock"))
    }

    #[test]
    fn one_agent_has_a_namespace_and_it_is_free_again_when_that_ends() {
        let (name, path) = of("one");
        let first = NamespaceLock::by(&name, &path).unwrap();
        let refused = NamespaceLock::by(&name, &path).unwrap_err();
        assert_eq!(refused.exit(), Exit::Conflict);
        assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
        assert!(!path.exists(), "no file while the name will do");
        // However many ask, they are answered.
        for _ in 0..1_000 {
            assert_ne!(holder(&name), Holder::Silent);
        }
        drop(first);
        let began = std::time::Instant::now();
        while let Err(refused) = NamespaceLock::by(&name, &path) {
            assert!(began.elapsed() < Duration::from_secs(20), "{refused}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn somebody_who_squats_the_name_keeps_no_agent_out_and_there_is_still_but_one() {
        let (name, path) = of("squat");
        // Two squatters: one bound and never listening, so that nobody can tell who has the name, and one whose queue
        // is full.
        let squatter = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        nix::sys::socket::bind(squatter.as_raw_fd(), &UnixAddr::new_abstract(&name).unwrap()).unwrap();
        let first = NamespaceLock::by(&name, &path).unwrap();
        assert_eq!(NamespaceLock::by(&name, &path).unwrap_err().exit(), Exit::Conflict, "the file says so");
        // The file counts as well when the squatter is gone.
        drop(squatter);
        assert_eq!(NamespaceLock::by(&name, &path).unwrap_err().exit(), Exit::Conflict);
        drop(first);
        assert!(!path.exists() && !path.parent().unwrap().exists(), "nothing is left");
        NamespaceLock::by(&name, &path).unwrap();
    }

    #[test]
    fn a_name_of_another_users_counts_for_nothing_and_roots_and_ones_own_do() {
        for (holder, counts) in [
            (Holder::Known(1, 0), true),
            (Holder::Known(1, 1000), true),
            (Holder::Known(1, 65_534), false),
            (Holder::Silent, false),
        ] {
            assert_eq!(holder.may_be_an_agent(1000), counts, "{holder:?}");
        }
    }

    #[test]
    fn a_directory_that_others_may_write_stands_in_for_nothing() {
        use std::os::unix::fs::PermissionsExt;
        let (name, path) = of("open");
        let dir = path.parent().unwrap();
        std::fs::create_dir_all(dir).unwrap();
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777)).unwrap();
        let squatter = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        nix::sys::socket::bind(squatter.as_raw_fd(), &UnixAddr::new_abstract(&name).unwrap()).unwrap();
        assert_eq!(NamespaceLock::by(&name, &path).unwrap_err().exit(), Exit::Conflict);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
