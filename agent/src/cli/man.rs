//! The command `agent man DIRECTORY`: the manual pages, for packages.

use std::path::PathBuf;

use clap::Args;

use crate::report::{Exit, Failure};

/// Write the manual pages, one a subcommand
#[derive(Args, Clone, Debug)]
pub struct ManArgs {
    /// Where to; made if it is not there
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

/// Writes `agent.1`, `agent-join.1` and so on.
pub fn run(args: &ManArgs) -> Result<(), Failure> {
    let written = std::fs::create_dir_all(&args.directory)
        .and_then(|()| clap_mangen::generate_to(super::command(), &args.directory));
    written.map_err(|error| {
        let directory = args.directory.display();
        Failure::new(Exit::InvalidConfig, format!("cannot write manual pages to {directory}")).caused_by(error)
    })
}
