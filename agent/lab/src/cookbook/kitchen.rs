//! The hosts as namespaces, and whoever types the lines.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::page::Line;
use crate::Families;
use crate::command_line::CommandLine;
use crate::sandbox::search_path;
use crate::topology::{Station, Topology, UNDERLAY_V4};
use flatnet_plane::failure::{Exit, Failure, print};

/// The time for which a line that waits for something is tried. What it waits for takes a second or two; in an emulated
/// machine on a busy one, twenty times that.
const PATIENT_LINE_TIMEOUT: Duration = Duration::from_secs(60);
/// The time that any line may take.
const LINE_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause between two attempts.
const LINE_RETRY_AFTER: Duration = Duration::from_millis(200);
/// The number of hosts beside the master.
const HOSTS: u8 = 2;
/// The directory in the sandbox's private `/run` for each host's files, and the programs' logs.
const DIRECTORY: &str = "/run/cookbook";

/// Fresh hosts, and what runs on them.
#[derive(Debug)]
pub struct Kitchen {
    background: Vec<(Line, Child, PathBuf)>,
}

impl Kitchen {
    /// Wires `master`, `host1` and `host2` to one switch.
    pub async fn new() -> Result<Self, Failure> {
        let topology =
            Topology { prefix: String::new(), hosts: HOSTS, underlay: Families::Dual, underlay_v4: UNDERLAY_V4 };
        // The port has another name: `master` is a word of ip(8).
        let master = Station { namespace: "master".to_owned(), port: "store".to_owned(), ..topology.store() };
        let mut wiring = topology.underlay_commands();
        wiring.extend(topology.station_commands(&master));
        for number in 1..=HOSTS {
            wiring.extend(topology.station_commands(&topology.host(number)));
        }
        for command in &wiring {
            command.run().await?;
        }
        let programs = Path::new(DIRECTORY).join("bin");
        let agent = std::env::current_exe().map_err(|error| failed("cannot find this program's own file", error))?;
        std::fs::create_dir_all(&programs).map_err(|error| failed("cannot create the cookbook's directory", error))?;
        // The program may have another name than the one that the lines call it by.
        std::os::unix::fs::symlink(agent, programs.join("agent"))
            .map_err(|error| failed("cannot link to this program", error))?;
        Ok(Self { background: Vec::new() })
    }

    /// Types a line: shows it, runs it, and shows what it prints.
    pub async fn type_line(&mut self, line: &Line) -> Result<(), Failure> {
        print(&format!("{line}\n"))?;
        if line.background {
            return self.start(line);
        }
        let began = Instant::now();
        loop {
            let (ok, said) = run(line).await?;
            if ok || !line.patient || began.elapsed() > PATIENT_LINE_TIMEOUT {
                print(&said.lines().map(|line| format!("    {line}\n")).collect::<String>())?;
            }
            if ok {
                return Ok(());
            }
            if !line.patient || began.elapsed() > PATIENT_LINE_TIMEOUT {
                return Err(Failure::new(Exit::Degraded, format!("`{line}` failed")).hint(self.logs()));
            }
            tokio::time::sleep(LINE_RETRY_AFTER).await;
        }
    }

    /// Ends what runs and removes the hosts and containers.
    pub async fn clean(&mut self) -> Result<(), Failure> {
        for (_, mut child, _) in self.background.drain(..).rev() {
            // An error means that it has ended by itself.
            let _ = child.kill().await;
        }
        CommandLine::words("ip -all netns delete").run().await?;
        std::fs::remove_dir_all(DIRECTORY).map_err(|error| failed("cannot remove the cookbook's directory", error))?;
        for entry in std::fs::read_dir("/run").map_err(|error| failed("cannot read /run", error))?.flatten() {
            // The recipes' lines made these entries.
            if entry.file_name().as_encoded_bytes().starts_with(b"cookbook-") {
                std::fs::remove_dir_all(entry.path())
                    .map_err(|error| failed("cannot remove a recipe's files", error))?;
            }
        }
        Ok(())
    }

    fn start(&mut self, line: &Line) -> Result<(), Failure> {
        let log = Path::new(DIRECTORY).join(format!("{}-{}.log", line.place, self.background.len()));
        let file = std::fs::File::create(&log).map_err(|error| failed("cannot create a log", error))?;
        let copy = file.try_clone().map_err(|error| failed("cannot create a log", error))?;
        // The shell does not wait for the program but becomes it, so that the program itself can be ended.
        let script = format!("exec {}", line.command);
        // The program gets a view of /sys and a mount namespace of that host's own, as `ip netns exec` gives.
        let mut command = on(&line.place, &["ip", "netns", "exec", &line.place, "sh", "-c", &script]);
        let child = command.stdout(file).stderr(copy).spawn().map_err(|error| failed("cannot start a shell", error))?;
        self.background.push((line.clone(), child, log));
        Ok(())
    }

    /// Returns the ends of the logs of what runs.
    fn logs(&self) -> String {
        let tail = |log: &Path| {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            lines.iter().skip(lines.len().saturating_sub(10)).map(|line| format!("\n    {line}")).collect::<String>()
        };
        let log = |(line, _, log): &(Line, Child, PathBuf)| format!("\n  `{line}` said last:{}", tail(log));
        self.background.iter().map(log).collect()
    }
}

async fn run(line: &Line) -> Result<(bool, String), Failure> {
    let (script, namespace) = (format!("{{ {}\n}} 2>&1", line.command), format!("--net=/run/netns/{}", line.place));
    // Only the network namespace is entered: `ip netns add` in a mount namespace of its own would name a container for
    // nobody else.
    let mut command = on(&line.place, &["nsenter", &namespace, "sh", "-c", &script]);
    let output = tokio::time::timeout(LINE_TIMEOUT, command.output())
        .await
        .map_err(|_| Failure::new(Exit::Degraded, format!("`{line}` does not end")))?
        .map_err(|error| failed("cannot start a shell", error))?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Returns a command with the agent's directories of that host.
fn on(place: &str, argv: &[&str]) -> Command {
    let host = Path::new(DIRECTORY).join(place);
    let mut path = std::ffi::OsString::from(format!("{DIRECTORY}/bin:"));
    path.push(search_path());
    let mut command = Command::from(CommandLine::argv(argv.iter().copied()).to_command());
    command.env("PATH", path).env("ETCDCTL_API", "3").env("FLATNET_NODE_NAME", place);
    command.env("FLATNET_RUN_DIR", host.join("run")).env("FLATNET_STATE_DIR", host.join("state"));
    command.kill_on_drop(true);
    command
}

fn failed(message: &str, error: std::io::Error) -> Failure {
    Failure::new(Exit::Internal, message).caused_by(error)
}
