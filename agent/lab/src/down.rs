//! The command `agent lab down`: ends the lab, and looks for anything that is left.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::directory::{LabDirectory, Record};
use flatnet_plane::failure::{Exit, Failure, print};

/// The time that the supervisor has to end. It gives its processes 5 s twice; this is longer.
const END_TIMEOUT: Duration = Duration::from_secs(20);
/// The time to wait after SIGKILL, when only the kernel has work to do.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause between two looks.
const POLL_EVERY: Duration = Duration::from_millis(20);

/// Ends the lab in `path`.
pub fn down(path: &Path) -> Result<ExitCode, Failure> {
    let directory = LabDirectory::new(path);
    let record = directory.running()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Internal, "cannot start the runtime").caused_by(error))?;
    runtime.block_on(end(&record))?;
    directory.remove()?;
    let left = left_over(&record);
    if !left.is_empty() {
        let message = format!("these processes are still in the lab's namespaces: {}", left.join(", "));
        return Err(Failure::new(Exit::Degraded, message)
            .hint("they were started with `lab exec`; the namespaces go when they end"));
    }
    print(&format!(
        "the lab is down: no process and none of its {} network namespaces is left\n",
        record.namespaces.len()
    ))?;
    Ok(ExitCode::SUCCESS)
}

async fn end(record: &Record) -> Result<(), Failure> {
    for (signal, deadline) in [(Signal::SIGTERM, END_TIMEOUT), (Signal::SIGKILL, KILL_TIMEOUT)] {
        send(record, signal)?;
        if tokio::time::timeout(deadline, gone(record)).await.is_ok() {
            return Ok(());
        }
    }
    let message = format!("process {} does not end", record.supervisor);
    Err(Failure::new(Exit::Kernel, message).hint(format!("look at /proc/{}/stack", record.supervisor)))
}

/// Signals the supervisor, and only the supervisor: a process of that number in another pid namespace is somebody
/// else's.
fn send(record: &Record, signal: Signal) -> Result<(), Failure> {
    if !is_alive(record) {
        return Ok(());
    }
    let pid = i32::try_from(record.supervisor).unwrap_or(0);
    if pid <= 1 {
        return Err(Failure::new(Exit::InvalidConfig, "the lab's record names no process"));
    }
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(errno) => Err(Failure::new(Exit::Unsupported, format!("cannot end process {pid}"))
            .hint("run this as the user who started the lab")
            .caused_by(std::io::Error::from(errno))),
    }
}

async fn gone(record: &Record) {
    while is_alive(record) {
        tokio::time::sleep(POLL_EVERY).await;
    }
}

fn is_alive(record: &Record) -> bool {
    namespace(record.supervisor, "pid") == Some(record.pid_namespace)
}

fn namespace(pid: u32, kind: &str) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/{kind}")).ok().map(|metadata| metadata.ino())
}

/// Returns the processes in any of the lab's namespaces, by number and name.
fn left_over(record: &Record) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let inside = |pid: &u32| {
        let net = namespace(*pid, "net");
        namespace(*pid, "pid") == Some(record.pid_namespace)
            || record.namespaces.iter().any(|namespace| net == Some(namespace.inode))
    };
    let name = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    pids.filter(inside).map(|pid| format!("{pid} ({})", name(pid).trim())).collect()
}
