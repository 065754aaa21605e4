//! The command `agent lab demo`: build, show, take down.

use std::process::ExitCode;

use super::directory::LabDirectory;
use super::host_state::HostState;
use super::supervisor::Supervisor;
use super::{LabPlan, launch, measure, render, sandbox, tools};
use flatnet_plane::failure::{Exit, Failure, print};

/// The exit code of a program that SIGINT ended, as shells have it.
const INTERRUPTED: u8 = 130;
/// The variable that tells the process inside where the directory is.
const DIRECTORY: &str = "FLATNET_LAB_DIR";

/// Runs the demo. The exit code is not 0 when any pair fails.
pub fn demo(plan: LabPlan) -> Result<ExitCode, Failure> {
    if sandbox::is_inside() {
        let path = std::env::var_os(DIRECTORY).unwrap_or_default();
        let directory = LabDirectory::new(path.as_ref());
        // The launcher does not do this: it could be interrupted between this and being ready to clean up.
        directory.create()?;
        return launch::inside(show(Supervisor::new(plan, directory)));
    }
    tools::require_programs(plan.store)?;
    let path = std::env::temp_dir().join(format!("flatnet-demo-{}", std::process::id()));
    let directory = LabDirectory::new(&path);
    let launched = sandbox::launch(|command| {
        command.env(DIRECTORY, &path);
    });
    let code = launched.and_then(|mut launched| launched.wait());
    // The process inside removes the directory; it still exists only if that process was killed.
    directory.remove()?;
    code.map(ExitCode::from)
}

async fn show(mut lab: Supervisor) -> Result<ExitCode, Failure> {
    let shown = tokio::select! {
        shown = build_and_print(&mut lab) => Some(shown),
        reason = launch::ended() => {
            let reason = reason?;
            lab.progress.abandon();
            lab.progress.line(reason);
            None
        }
    };
    if matches!(shown, Some(Err(_))) {
        lab.progress.abandon();
    }
    let cleaned = lab.tear_down().await;
    let code = match shown {
        Some(shown) => shown?,
        None => ExitCode::from(INTERRUPTED),
    };
    print(&format!("\n{}\n", cleaned?))?;
    Ok(code)
}

async fn build_and_print(lab: &mut Supervisor) -> Result<ExitCode, Failure> {
    lab.build().await?;
    let pairs = lab.wait_for_pairs().await?;
    let figures = measure::measure(&lab.topology, &lab.subnets, &mut lab.progress).await;
    lab.progress.step("reading each host's state");
    let mut hosts = Vec::new();
    for number in 1..=lab.plan.hosts {
        hosts.push(HostState::read(&lab.topology, number).await);
    }
    lab.progress.finish();
    let colours = render::colours();
    let LabPlan { backend, hosts: count, .. } = &lab.plan;
    let mut text = format!("\n{count} hosts, backend {}\n\n{}\n", backend.as_str(), render::pairs(&pairs, colours));
    match &figures {
        Ok(figures) => text.push_str(&format!("\n{}\n", render::figures(figures, colours))),
        Err(failure) => text.push_str(&format!("\nthe measurement failed: {failure}\n")),
    }
    text.push_str(&format!("\n{}\n", render::hosts(&hosts, colours)));
    let failed = pairs.iter().filter(|pair| pair.rtt_millis.is_none()).count();
    text.push_str(&match failed {
        0 => format!("\nall {} pairs reachable\n", pairs.len()),
        failed => format!("\n{failed} of {} pairs NOT reachable\n", pairs.len()),
    });
    print(&text)?;
    if failed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    for number in 1..=lab.plan.hosts {
        let host = lab.topology.host(number).namespace;
        lab.progress.line(&format!("{host}'s log ends:\n{}", lab.log_tail(&host)));
    }
    Ok(ExitCode::from(Exit::Degraded as u8))
}
