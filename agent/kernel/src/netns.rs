//! Network namespaces: make and name them, enter them, run programs in them, and become root in one without being root.
//!
//! For the lab and for tests; the agent itself stays in the namespace it was started in.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{getegid, geteuid};

/// The directory in which `ip netns` keeps named namespaces (iproute2: `NETNS_RUN_DIR`).
pub const RUN_DIR: &str = "/run/netns";

/// The failure of an operation on a namespace, with what is missing.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct NetnsError {
    /// The action that could not be done, with the path or process.
    pub what: String,
    /// Advice on how to put it right; empty if none is known.
    pub hint: String,
    /// The system's answer.
    #[source]
    pub source: io::Error,
}

impl NetnsError {
    fn new(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let hint = match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                "needs CAP_SYS_ADMIN: run as root, or in a user namespace (`unshare -Urnm`)".to_owned()
            }
            Some(libc::ENOSPC) => "the limit of namespaces is reached: see /proc/sys/user/max_*_namespaces".to_owned(),
            Some(libc::EINVAL) => "the kernel lacks this kind of namespace, or the process has threads".to_owned(),
            _ => String::new(),
        };
        Self { what: what.into(), hint, source }
    }
}

/// An open network namespace. It lives at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl Netns {
    /// Opens the namespace bound at `path`, or of a process (`/proc/PID/ns/net`).
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let file = File::open(path).map_err(|source| {
            NetnsError::new(format!("cannot open the network namespace {}", path.display()), source)
        })?;
        Ok(Self { file })
    }

    /// Opens the namespace of the calling thread.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Makes a new namespace. The calling thread stays where it is, since a thread of its own makes it.
    pub fn create() -> Result<Self, NetnsError> {
        let made = std::thread::scope(|scope| {
            let maker = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET)
                    .map_err(|errno| NetnsError::new("cannot make a network namespace", errno))?;
                Self::current()
            });
            maker.join()
        });
        made.unwrap_or_else(|_| Err(NetnsError::new("cannot make a network namespace", io::Error::other("panicked"))))
    }

    /// Moves the calling thread into the namespace. Threads it starts afterwards are in it too; others are not.
    pub fn enter(&self) -> Result<(), NetnsError> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| NetnsError::new("cannot enter the network namespace", errno))
    }

    /// Runs `work` on a thread of its own inside the namespace, and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        let ran = std::thread::scope(|scope| scope.spawn(|| self.enter().map(|()| work())).join());
        ran.unwrap_or_else(|_| {
            Err(NetnsError::new("the work in a network namespace failed", io::Error::other("panicked")))
        })
    }

    /// Makes `command` start its program inside the namespace.
    #[expect(unsafe_code, reason = "pre_exec is the only way to run something between fork and exec")]
    pub fn command<'a>(&self, command: &'a mut Command) -> Result<&'a mut Command, NetnsError> {
        let namespace = self
            .file
            .try_clone()
            .map_err(|source| NetnsError::new("cannot duplicate the network namespace's descriptor", source))?;
        // SAFETY: between fork and exec only setns(2) is called, which is async-signal-safe (a bare system call), and
        // nothing is allocated; the descriptor is owned by the closure, hence open.
        Ok(unsafe { command.pre_exec(move || setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)) })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A network namespace bound to a path, as `ip netns add` does, so that `ip netns exec` sees it. It is unbound when
/// dropped, and ends once nothing else holds it.
#[derive(Debug)]
pub struct NamedNetns {
    netns: Netns,
    path: PathBuf,
}

impl NamedNetns {
    /// Makes a namespace named `name` in [`RUN_DIR`]. The name must not contain `/`.
    pub fn create(name: &str) -> Result<Self, NetnsError> {
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            let source = io::Error::from(io::ErrorKind::InvalidInput);
            return Err(NetnsError::new(format!("{name:?} cannot name a network namespace"), source));
        }
        fs::create_dir_all(RUN_DIR).map_err(|source| NetnsError::new(format!("cannot make {RUN_DIR}"), source))?;
        Self::create_at(Path::new(RUN_DIR).join(name))
    }

    /// Makes a namespace bound at `path`, which must not exist.
    pub fn create_at(path: PathBuf) -> Result<Self, NetnsError> {
        let what = || format!("cannot bind a network namespace to {}", path.display());
        let netns = Netns::create()?;
        File::create_new(&path).map_err(|source| NetnsError::new(what(), source))?;
        let from = format!("/proc/self/fd/{}", netns.file.as_raw_fd());
        let bound = mount(Some(from.as_str()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>);
        if let Err(errno) = bound {
            let _ = fs::remove_file(&path);
            return Err(NetnsError::new(what(), errno));
        }
        Ok(Self { netns, path })
    }

    /// Returns the namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Returns the path at which it is bound.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unbinds whatever is bound at `path`, as `ip netns del` does. If nothing is there, that is success.
    pub fn unbind(path: &Path) -> Result<(), NetnsError> {
        match umount2(path, MntFlags::MNT_DETACH) {
            // EINVAL: it is a file but not a mount, left by a crash between the two steps.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(NetnsError::new(format!("cannot unbind {}", path.display()), errno)),
        }
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(NetnsError::new(format!("cannot remove {}", path.display()), source))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for NamedNetns {
    fn drop(&mut self) {
        if let Err(error) = Self::unbind(&self.path) {
            tracing::warn!(%error, cause = %error.source, "a network namespace stays");
        }
    }
}

/// Moves the calling thread, which must be the process's only one, into the user, mount and network namespaces of the
/// process `pid`, as `nsenter -U -m -n --preserve-credentials -t PID` does.
pub fn enter_process(pid: u32) -> Result<(), NetnsError> {
    let open = |kind: &str| {
        let path = format!("/proc/{pid}/ns/{kind}");
        File::open(&path)
            .map_err(|source| NetnsError::new(format!("cannot open {path} (is process {pid} alive?)"), source))
    };
    let (user, mounts, network) = (open("user")?, open("mnt")?, open("net")?);
    let enter = |file: &File, flag, kind| {
        setns(file, flag).map_err(|errno| NetnsError::new(format!("cannot enter the {kind} namespace of {pid}"), errno))
    };
    // Entering one's own user namespace is refused (user_namespaces(7)), and needless.
    if !is_same_namespace(&user, Path::new("/proc/self/ns/user")) {
        enter(&user, CloneFlags::CLONE_NEWUSER, "user")?;
    }
    enter(&network, CloneFlags::CLONE_NEWNET, "network")?;
    enter(&mounts, CloneFlags::CLONE_NEWNS, "mount")
}

fn is_same_namespace(file: &File, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(other)) {
        (Ok(a), Ok(b)) => a.ino() == b.ino() && a.dev() == b.dev(),
        _ => false,
    }
}

/// Makes the calling process root in user, mount and network namespaces of its own, with its own `/run` and `/sys`, as
/// `unshare -Urnm` does. This works for root and for any user where user namespaces are permitted.
///
/// Call it before the process has a second thread: Linux refuses it otherwise.
pub fn unshare_rootless() -> Result<(), NetnsError> {
    let (uid, gid) = (geteuid(), getegid());
    let without_user = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    match unshare(without_user | CloneFlags::CLONE_NEWUSER) {
        Ok(()) => {
            // setgroups must be given up before an unprivileged process may map its group (user_namespaces(7)).
            write_map("/proc/self/setgroups", "deny")?;
            write_map("/proc/self/uid_map", &format!("0 {uid} 1"))?;
            write_map("/proc/self/gid_map", &format!("0 {gid} 1"))?;
        }
        // Root of a host that permits no user namespaces can do without.
        Err(Errno::EPERM | Errno::ENOSPC | Errno::EUSERS) if uid.is_root() => {
            unshare(without_user)
                .map_err(|errno| NetnsError::new("cannot make mount and network namespaces", errno))?;
        }
        Err(errno) => {
            let mut error = NetnsError::new("cannot make user, mount and network namespaces", errno);
            error.hint = why_no_user_namespaces();
            return Err(error);
        }
    }
    // Nothing mounted here is seen outside.
    mount_at(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    // /run of its own for named namespaces, and /sys of this network namespace.
    mount_at(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV)?;
    if let Err(error) = mount_at(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV) {
        tracing::debug!(cause = %error.source, "/sys stays that of the outer network namespace");
    }
    Ok(())
}

fn write_map(path: &str, text: &str) -> Result<(), NetnsError> {
    fs::write(path, text).map_err(|source| NetnsError::new(format!("cannot write {path}"), source))
}

fn mount_at(source: Option<&str>, target: &str, kind: Option<&str>, flags: MsFlags) -> Result<(), NetnsError> {
    mount(source, target, kind, flags, None::<&str>)
        .map_err(|errno| NetnsError::new(format!("cannot mount {} at {target}", kind.unwrap_or("private")), errno))
}

/// Returns the known switch that forbids user namespaces, with advice.
fn why_no_user_namespaces() -> String {
    let is = |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "unprivileged user namespaces are off: sysctl kernel.unprivileged_userns_clone=1, or run as root".to_owned()
    } else if is("/proc/sys/user/max_user_namespaces", "0") {
        "user namespaces are limited to none: sysctl user.max_user_namespaces=10000".to_owned()
    } else if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        "AppArmor forbids them: sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run as root".to_owned()
    } else {
        "user namespaces are not permitted here (seccomp or container?), or the process has threads; run as root"
            .to_owned()
    }
}

/// Ties the process to its parent: if the parent dies, in whatever way, the calling process gets SIGKILL
/// (`PR_SET_PDEATHSIG`). This is for children of a lab, so that none outlives it.
pub fn die_with_parent() -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(io::Error::from)
}
