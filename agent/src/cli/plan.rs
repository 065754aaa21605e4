//! The command `agent plan`.

use clap::Args;
use flatnet_proto::agent::v1::GetPlanRequest;

use super::{RunDir, status};
use crate::report::{Failure, print};
use crate::serve::local_api;

/// Show what the agent would change in the kernel next; nothing when converged
#[derive(Args, Clone, Debug)]
pub struct PlanArgs {
    #[command(flatten)]
    run_dir: RunDir,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Asks the agent for the plan and prints it.
pub async fn run(args: PlanArgs) -> Result<(), Failure> {
    let mut client = local_api::connect(&args.run_dir.run_dir).await?;
    let plan = client.get_plan(GetPlanRequest {}).await.map_err(|status| local_api::refused(&status))?.into_inner();
    if args.json {
        return print(&status::json(&plan)?);
    }
    let lines: Vec<String> = plan.ops.iter().map(|op| format!("{:<8} {}\n", op.action, op.object)).collect();
    print(&lines.concat())
}
