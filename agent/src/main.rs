//! The agent binary: parses the command line and hands over.

use std::process::ExitCode;

fn main() -> ExitCode {
    flatnet_agent::cli::main()
}
