//! The command `agent lab up`: starts a lab that stays until `agent lab down`.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use super::directory::LabDirectory;
use super::sandbox::{Waited, exit_code};
use super::supervisor::Supervisor;
use super::{LabPlan, launch, sandbox, tools};
use flatnet_plane::failure::{Exit, Failure, print};

/// The text that the supervisor writes to its launcher once all pairs ping.
const READY: &[u8] = b"ready\n";
/// The interval at which the supervisor looks for processes that ended by themselves.
const REAP_EVERY: Duration = Duration::from_secs(1);

/// Starts a lab in the background. Returns when all pairs ping.
pub fn up(plan: LabPlan, path: &Path) -> Result<ExitCode, Failure> {
    let directory = LabDirectory::new(path);
    if sandbox::is_inside() {
        return launch::inside(supervise(plan, directory));
    }
    tools::require_programs(plan.store)?;
    directory.create()?;
    drop(directory.lock()?);
    let mut launched = sandbox::launch(|command| {
        command.env("FLATNET_LAB_DIR", path).stdout(Stdio::piped());
    })?;
    let mut output = launched.child.stdout.take();
    let waited = launched.wait_or_readable(output.as_ref().map(|output| output as &dyn std::os::fd::AsFd))?;
    let code = match waited {
        Waited::Ended(status) => exit_code(status),
        Waited::Readable => {
            let mut said = [0; READY.len()];
            let ready = output.as_mut().is_some_and(|output| output.read_exact(&mut said).is_ok()) && said == READY;
            if ready {
                print(&format!(
                    "the lab runs: `agent lab exec host1 -- agent status`, `agent lab exec c1 -- bash`, `agent lab down`\n\
                     logs: {}\n",
                    path.display()
                ))?;
                return Ok(ExitCode::SUCCESS);
            }
            launched.wait()?
        }
    };
    Ok(ExitCode::from(code))
}

async fn supervise(plan: LabPlan, directory: LabDirectory) -> Result<ExitCode, Failure> {
    let _lock = directory.lock()?;
    let mut lab = Supervisor::new(plan, directory.clone());
    let built = tokio::select! {
        built = build(&mut lab) => built,
        reason = launch::ended() => Err(Failure::new(Exit::Unavailable, format!("{}: the lab is taken down", reason?))),
    };
    let result = match built {
        Ok(()) => serve(&mut lab, &directory).await,
        Err(failure) => {
            lab.progress.abandon();
            Err(failure)
        }
    };
    lab.tear_down().await?;
    result.map(|()| ExitCode::SUCCESS)
}

async fn build(lab: &mut Supervisor) -> Result<(), Failure> {
    lab.build().await?;
    let pairs = lab.wait_for_pairs().await?;
    let failed: Vec<String> = pairs
        .iter()
        .filter(|pair| pair.rtt_millis.is_none())
        .map(|pair| format!("c{} → c{} ({})", pair.from, pair.to, pair.address))
        .collect();
    if !failed.is_empty() {
        return Err(Failure::new(Exit::Degraded, format!("these pairs cannot ping: {}", failed.join(", ")))
            .hint("`agent lab demo` shows each host's state"));
    }
    lab.progress.clear();
    lab.write_record()
}

async fn serve(lab: &mut Supervisor, directory: &LabDirectory) -> Result<(), Failure> {
    detach(directory)?;
    let mut interval = tokio::time::interval(REAP_EVERY);
    let signalled = launch::signalled();
    tokio::pin!(signalled);
    loop {
        tokio::select! {
            reason = &mut signalled => return reason.map(|_| ()),
            _ = interval.tick() => lab.reap().iter().for_each(|ended| lab.progress.line(ended)),
        }
    }
}

/// Tells the launcher that all is well, and lets go of it and of the terminal.
fn detach(directory: &LabDirectory) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(Exit::Internal, "cannot go to the background").caused_by(error);
    // This process is no group leader: process 1 of the namespace was started into the launcher's group.
    setsid().map_err(|errno| failed(errno.into()))?;
    let log = File::create(directory.log("supervisor")).map_err(failed)?;
    let nothing = File::open("/dev/null").map_err(failed)?;
    let mut output = std::io::stdout();
    output.write_all(READY).and_then(|()| output.flush()).map_err(failed)?;
    dup2_stdin(&nothing).map_err(|errno| failed(errno.into()))?;
    dup2_stdout(&log).map_err(|errno| failed(errno.into()))?;
    dup2_stderr(&log).map_err(|errno| failed(errno.into()))
}
