//! The lab's long-running processes: the store and the agents, each with a log.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::command_line::CommandLine;
use flatnet_plane::failure::{Exit, Failure};

/// The time that a process has to end after SIGTERM before it is killed.
const KILL_AFTER: Duration = Duration::from_secs(5);
/// The number of lines of a log that are quoted in an error.
const QUOTED_LINES: usize = 15;

/// The processes, in the order in which they were started.
#[derive(Debug, Default)]
pub struct Processes {
    running: Vec<Process>,
}

#[derive(Debug)]
struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Processes {
    /// Starts `command`; its output goes to `log`.
    pub fn start(&mut self, name: &str, command: &CommandLine, log: &Path) -> Result<(), Failure> {
        let failed = |error| Failure::new(Exit::Internal, format!("cannot start `{command}`")).caused_by(error);
        let file = File::create(log).map_err(failed)?;
        let copy = file.try_clone().map_err(failed)?;
        let child =
            Command::from(command.to_command()).stdout(file).stderr(copy).kill_on_drop(true).spawn().map_err(failed)?;
        self.running.push(Process { name: name.to_owned(), log: log.to_owned(), child });
        Ok(())
    }

    /// Returns an error if any process has ended, quoting its log.
    pub fn all_running(&mut self) -> Result<(), Failure> {
        for process in &mut self.running {
            if let Ok(Some(status)) = process.child.try_wait() {
                return Err(process.ended(status));
            }
        }
        Ok(())
    }

    /// Returns the names of processes that ended since the last call, and how they ended.
    pub fn reap(&mut self) -> Vec<String> {
        let mut ended = Vec::new();
        self.running.retain_mut(|process| match process.child.try_wait() {
            Ok(Some(status)) => {
                ended.push(format!("{} ended by itself with {status}", process.name));
                false
            }
            _ => true,
        });
        ended
    }

    /// Ends all processes, the last started first. Returns how many there were, and how many of them had to be killed.
    pub async fn stop(&mut self) -> (usize, usize) {
        let (total, mut killed) = (self.running.len(), 0);
        let (store, agents): (Vec<_>, Vec<_>) =
            self.running.drain(..).partition(|process| ["etcd", "controlplane"].contains(&process.name.as_str()));
        // Agents may still write to the store while they end, so it goes last.
        for group in [agents, store] {
            group.iter().for_each(Process::ask_to_end);
            let deadline = tokio::time::Instant::now() + KILL_AFTER;
            for mut process in group {
                if tokio::time::timeout_at(deadline, process.child.wait()).await.is_err() {
                    killed += 1;
                    // An error means that it has ended after all.
                    let _ = process.child.kill().await;
                }
            }
        }
        (total, killed)
    }

    /// Returns the end of the named process's log.
    #[must_use]
    pub fn log_tail(&self, name: &str) -> String {
        self.running.iter().find(|process| process.name == name).map(|process| tail(&process.log)).unwrap_or_default()
    }
}

impl Process {
    fn ask_to_end(&self) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid {
            // The process may have ended a moment ago.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    fn ended(&self, status: ExitStatus) -> Failure {
        let message = format!("{} ended with {status}; its log ends:\n{}", self.name, tail(&self.log));
        Failure::new(Exit::Unavailable, message)
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let begin = lines.len().saturating_sub(QUOTED_LINES);
    lines.iter().skip(begin).map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
