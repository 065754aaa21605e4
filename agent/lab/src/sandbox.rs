//! The sandbox: a process that is number 1 of its own pid namespace, with a network, a mount and, without root, a user
//! namespace of its own.
//!
//! Entering a user namespace needs a process with one thread, and a pid namespace begins with the next child. So the
//! program starts *itself* again, with the same arguments, inside. [`is_inside`] tells the two apart.
//!
//! The child's life hangs on its standard input: the launcher holds the other end of the pipe, and when the launcher is
//! gone, however it went, the child reads the end of it.

use std::fs;
use std::io::{Error, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::unistd::{Pid, getegid, geteuid};

use flatnet_plane::failure::{Exit, Failure};

/// The mark of the program's second life. Alone it is not believed: the process must also be number 1.
const MARK: &str = "FLATNET_SANDBOX";

/// The directories of `ip`, `nft` and `etcd` on Debian; they are not in every user's `PATH`.
const SYSTEM_PATHS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Returns true if this is the program's second life, inside.
#[must_use]
pub fn is_inside() -> bool {
    std::process::id() == 1 && std::env::var_os(MARK).is_some()
}

/// The child inside, and its launcher's signals.
#[derive(Debug)]
pub struct Launched {
    /// The child. Its standard input is the pipe that its life hangs on.
    pub child: Child,
    signals: SignalFd,
}

/// Makes the namespaces and starts this program again inside. `configure` sets the child's output and environment.
///
/// From here on the caller must not start threads: the kernel refuses them to a process whose children live in another
/// pid namespace.
pub fn launch(configure: impl FnOnce(&mut Command)) -> Result<Launched, Failure> {
    let program = std::env::current_exe().map_err(|error| io("cannot find this program's own file", error))?;
    make_namespaces()?;
    let signals = watch_signals().map_err(|error| io("cannot watch signals", error.into()))?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).stdin(Stdio::piped());
    // Settings meant for the host's own agent would change the lab's agents.
    for (key, _) in std::env::vars_os() {
        if key.as_encoded_bytes().starts_with(b"FLATNET_") {
            command.env_remove(&key);
        }
    }
    command.env(MARK, "1").env("PATH", search_path());
    configure(&mut command);
    let child = command.spawn().map_err(|error| io("cannot start the process inside the sandbox", error))?;
    Ok(Launched { child, signals })
}

/// The event that the launcher waited for.
#[derive(Debug)]
pub enum Waited {
    /// The child ended.
    Ended(ExitStatus),
    /// The descriptor became readable or was closed.
    Readable,
}

impl Launched {
    /// Waits for the child's end or for something to read. Signals that ask for the end go on to the child, which
    /// cleans up.
    pub fn wait_or_readable(&mut self, descriptor: Option<&dyn AsFd>) -> Result<Waited, Failure> {
        loop {
            let polled = |error: Errno| io("cannot wait for the sandbox", error.into());
            let mut watched = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            watched.extend(descriptor.map(|descriptor| PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)));
            match poll(&mut watched, PollTimeout::NONE) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(polled(error)),
            }
            let readable = watched.get(1).and_then(PollFd::any).unwrap_or(false);
            let signalled = watched.first().and_then(PollFd::any).unwrap_or(false);
            drop(watched);
            if readable {
                return Ok(Waited::Readable);
            }
            if !signalled {
                continue;
            }
            let Some(signal) = self.signals.read_signal().map_err(polled)? else { continue };
            if signal.ssi_signo == Signal::SIGCHLD as u32 {
                if let Some(status) = self.child.try_wait().map_err(|error| io("cannot wait for the sandbox", error))? {
                    return Ok(Waited::Ended(status));
                }
            } else {
                let pid = i32::try_from(self.child.id()).map_err(|error| io("pid", Error::other(error)))?;
                // Process 1 of a pid namespace does not even notice a signal that it has no handler for, so it is told
                // both ways.
                drop(self.child.stdin.take());
                // The child may have ended by itself a moment ago, which the next SIGCHLD says.
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
        }
    }

    /// Waits for the child's end. Returns its exit code, or 128 plus the signal that killed it.
    pub fn wait(&mut self) -> Result<u8, Failure> {
        loop {
            if let Waited::Ended(status) = self.wait_or_readable(None)? {
                return Ok(exit_code(status));
            }
        }
    }
}

/// Returns a process's end as an exit code, as a shell has it.
#[must_use]
pub fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| signal + 128)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// Does the first things inside: sets signals back as they were, and mounts a private `/run`. Named namespaces, locks
/// and sockets are then the sandbox's own and vanish with it, even where the host's `/run` is not writable.
pub fn settle() -> Result<(), Failure> {
    // The launcher blocked the signals, and this process inherited that. etcd and the agents must not inherit it.
    ending_signals().thread_unblock().map_err(|errno| io("cannot unblock signals", errno.into()))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(|errno| refused("cannot make the mounts private", errno))?;
    // The command `ip netns` uses /var/run/netns: where that is not a link to /run it needs the same.
    let separate = fs::symlink_metadata("/var/run").is_ok_and(|metadata| metadata.is_dir());
    for directory in ["/run"].into_iter().chain(separate.then_some("/var/run")) {
        mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755"))
            .map_err(|errno| refused("cannot mount a private /run", errno))?;
    }
    fs::create_dir_all("/run/netns").map_err(|error| io("cannot create /run/netns", error))
}

/// Returns the search path for programs: the user's own, then the directories of system tools.
#[must_use]
pub fn search_path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push(SYSTEM_PATHS);
    path
}

fn make_namespaces() -> Result<(), Failure> {
    let namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID;
    if geteuid().is_root() {
        match unshare(namespaces) {
            // Root without CAP_SYS_ADMIN, as in most containers, is like any other user.
            Err(Errno::EPERM) => {}
            other => return other.map_err(|errno| refused("cannot make namespaces", errno)),
        }
    }
    let (user, group) = (geteuid(), getegid());
    unshare(namespaces | CloneFlags::CLONE_NEWUSER).map_err(|errno| refused("cannot make a user namespace", errno))?;
    // user_namespaces(7): without "deny" the kernel refuses a group map to the unprivileged.
    write_map("/proc/self/setgroups", "deny")?;
    write_map("/proc/self/uid_map", &format!("0 {user} 1"))?;
    write_map("/proc/self/gid_map", &format!("0 {group} 1"))
}

fn write_map(path: &str, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|error| {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
        refused("cannot map the user into the user namespace", errno)
    })
}

fn ending_signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}

fn watch_signals() -> Result<SignalFd, Errno> {
    let signals = ending_signals();
    signals.thread_block()?;
    SignalFd::with_flags(&signals, nix::sys::signalfd::SfdFlags::SFD_CLOEXEC)
}

fn io(message: &str, error: Error) -> Failure {
    Failure::new(Exit::Internal, message).caused_by(error)
}

/// Returns the failure of a refused call, with the setting that causes the refusal where one can be found.
fn refused(message: &str, errno: Errno) -> Failure {
    Failure::new(Exit::Unsupported, message)
        .caused_by(Error::from(errno))
        .hint(why_refused(Path::new("/proc/sys"), errno))
}

fn why_refused(sysctls: &Path, errno: Errno) -> String {
    let value = |name: &str| match fs::read_to_string(sysctls.join(name)) {
        Ok(text) => Some(text.trim().to_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(_) => None,
    };
    let cause = if value("kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        "unprivileged user namespaces are off: `sudo sysctl kernel.unprivileged_userns_clone=1`"
    } else if value("kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
        "AppArmor restricts user namespaces: `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`"
    } else if value("user/max_user_namespaces").as_deref() == Some("0") {
        "user namespaces are off: `sudo sysctl user.max_user_namespaces=10000`"
    } else if errno == Errno::ENOSPC {
        "a limit on namespaces is reached: see user.max_user_namespaces, user.max_net_namespaces, user.max_pid_namespaces"
    } else {
        "a container's seccomp or capability policy may forbid it (Docker: `--privileged`, or seccomp and AppArmor unconfined)"
    };
    format!("{cause}; or run the command as root")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_that_forbids_user_namespaces_is_named() {
        let directory = std::env::temp_dir().join(format!("flatnet-sysctl-{}", std::process::id()));
        fs::create_dir_all(directory.join("kernel")).unwrap();
        fs::create_dir_all(directory.join("user")).unwrap();
        assert!(why_refused(&directory, Errno::EPERM).contains("seccomp"));
        assert!(why_refused(&directory, Errno::ENOSPC).contains("max_user_namespaces"));
        fs::write(directory.join("user/max_user_namespaces"), "0\n").unwrap();
        assert!(why_refused(&directory, Errno::ENOSPC).contains("user.max_user_namespaces=10000"));
        fs::write(directory.join("kernel/unprivileged_userns_clone"), "0\n").unwrap();
        assert!(why_refused(&directory, Errno::EPERM).contains("kernel.unprivileged_userns_clone=1"));
        fs::remove_dir_all(directory).unwrap();
    }
}
