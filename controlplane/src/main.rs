//! `controlplane`.

use std::process::ExitCode;

fn main() -> ExitCode {
    flatnet_controlplane::cli::main()
}
