//! The command `agent completions SHELL`.

use clap::Args;

use crate::report::{Failure, print};

/// Print a completion script for a shell
#[derive(Args, Clone, Debug)]
pub struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

/// Prints the script.
pub fn run(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "agent", &mut script);
    print(&String::from_utf8_lossy(&script))
}
