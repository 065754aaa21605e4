//! The command `agent leave`.

use clap::Args;
use flatnet_proto::agent::v1::LeaveRequest;

use super::RunDir;
use crate::files::state_dir::{DEFAULT_STATE_DIR, LEFT};
use crate::report::{Exit, Failure, note};
use crate::serve::local_api;

/// Give the lease back and stop the agent for good
#[derive(Args, Clone, Debug)]
#[command(after_help = "Without --purge the kernel's state stays as it is, so that containers keep running.")]
pub struct LeaveArgs {
    #[command(flatten)]
    run_dir: RunDir,
    /// Where the node's identity is kept; used when no agent runs
    #[arg(long, value_name = "DIR", env = "FLATNET_STATE_DIR", default_value = DEFAULT_STATE_DIR)]
    state_dir: std::path::PathBuf,
    /// Also remove devices, routes, firewall rules and state files
    #[arg(long)]
    purge: bool,
    /// Stay, but give up a subnet that another node has taken, or that the network has no more, and lease a new one
    #[arg(long, conflicts_with = "purge")]
    renumber: bool,
}

/// Asks the agent to leave. Without an agent, `--purge` cleans up by itself.
pub async fn run(args: LeaveArgs) -> Result<(), Failure> {
    let failures = match local_api::connect(&args.run_dir.run_dir).await {
        Ok(mut client) => {
            let request = LeaveRequest { purge: args.purge, renumber: args.renumber };
            client.leave(request).await.map_err(|status| local_api::refused(&status))?.into_inner().failures
        }
        Err(_) if args.purge => crate::node::purge::without_agent(&args.state_dir, &args.run_dir.run_dir).await?,
        Err(failure) => return Err(failure.hint_also("`agent leave --purge` cleans this host up without an agent")),
    };
    let marker = args.state_dir.join(LEFT);
    if marker.exists() {
        note(&format!(
            "the service stays stopped, also at boot, until: rm {} && systemctl start flatnet-agent",
            marker.display()
        ));
    }
    match failures.as_slice() {
        [] => Ok(()),
        failures => {
            let (what, hint) = if args.renumber {
                ("not every subnet could be given up", "try again when the store answers")
            } else if args.purge {
                ("left, but not everything could be undone", "run `agent leave --purge` again; it is safe to repeat")
            } else {
                (
                    "left, but not everything was given back",
                    "nothing is to be done: what is left in the store ends by itself",
                )
            };
            Err(Failure::new(Exit::Kernel, format!("{what}:\n  {}", failures.join("\n  "))).hint(hint))
        }
    }
}
