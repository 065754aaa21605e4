//! The command `agent rotate-key`.

use clap::Args;
use flatnet_proto::agent::v1::RotateKeyRequest;

use super::RunDir;
use crate::report::{Failure, print};
use crate::serve::local_api;

/// Replace this node's WireGuard key while its networks run
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Prints the new public key once it is published. Peers follow by themselves, those without an agent (agent \
                  network peer add) must be told. Refused while the store does not answer: peers would not learn the key."
)]
pub struct RotateKeyArgs {
    #[command(flatten)]
    run_dir: RunDir,
}

/// Asks the agent to replace the key, and prints the new public one.
pub async fn run(args: RotateKeyArgs) -> Result<(), Failure> {
    let mut client = local_api::connect(&args.run_dir.run_dir).await?;
    let reply = client.rotate_key(RotateKeyRequest {}).await.map_err(|status| local_api::refused(&status))?;
    print(&format!("{}\n", reply.into_inner().public_key))
}
