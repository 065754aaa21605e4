//! The command `agent doctor`.

use std::process::ExitCode;

use clap::Args;

use super::{RunDir, status};
use crate::doctor::{self, Check, Places, Verdict};
use crate::files::state_dir::DEFAULT_STATE_DIR;
use crate::node::host_kernel;
use crate::report::{Exit, Failure, print};

/// Look for what commonly breaks an overlay, and say what to do
#[derive(Args, Clone, Debug)]
#[command(after_help = "Exit code: 0 no failures, 8 otherwise. Changes nothing.")]
pub struct DoctorArgs {
    #[command(flatten)]
    run_dir: RunDir,
    /// Where the node's identity is kept
    #[arg(long, value_name = "DIR", env = "FLATNET_STATE_DIR", default_value = DEFAULT_STATE_DIR)]
    state_dir: std::path::PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Examines this host and prints the checks. The exit code is 8 on any failure.
pub async fn run(args: DoctorArgs) -> Result<ExitCode, Failure> {
    let kernel = host_kernel::observing().ok();
    let agent = status::fetch(&args.run_dir).await;
    let places = Places { state_dir: args.state_dir, run_dir: args.run_dir.run_dir };
    let checks = doctor::examine(kernel.as_ref(), agent, places).await;
    print(&if args.json { status::json(&checks)? } else { checks.iter().map(line).collect() })?;
    let failed = checks.iter().any(|check| check.verdict == Verdict::Failure);
    Ok(if failed { ExitCode::from(Exit::Degraded as u8) } else { ExitCode::SUCCESS })
}

fn line(check: &Check) -> String {
    let verdict = match check.verdict {
        Verdict::Ok => "ok     ",
        Verdict::Warning => "warning",
        Verdict::Failure => "FAILURE",
    };
    let hint = if check.hint.is_empty() { String::new() } else { format!("         hint: {}\n", check.hint) };
    format!("{verdict}  {}: {}\n{hint}", check.name, check.cause)
}
