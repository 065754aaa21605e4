//! The program in a virtual machine that is not Debian's: it boots the machine, and runs the requests that come over a
//! serial port.
//!
//! As `/init` of the initial RAM disk it loads modules, puts the root file system together (Debian read-only below,
//! changes in memory or on a disk above) and becomes what `lab.boot=` on the kernel's command line names. With `plain`
//! it is process 1 itself, which starts nothing else; with `systemd` it becomes systemd, whose first service is this
//! program. As `guest serve` it answers the port.
//!
//! Nothing here is part of what is tested, so it does as little as possible; what a test needs it does by its own
//! script.

mod boot;
mod port;
mod script;

use std::process::ExitCode;

use nix::sys::reboot::{RebootMode, reboot};

fn main() -> ExitCode {
    let serving = std::env::args().nth(1).is_some_and(|argument| argument == "serve");
    let failed = if serving { port::serve() } else { boot::boot() };
    let Err(message) = failed else { return ExitCode::SUCCESS };
    // The console is the machine's log.
    let _ = std::fs::write("/dev/console", format!("guest: {message}\n"));
    if std::process::id() == 1 {
        // Process 1 must not end: without it the kernel panics, and the reason above would scroll by.
        let _ = reboot(RebootMode::RB_POWER_OFF);
    }
    ExitCode::FAILURE
}

/// Makes an error with what was being done.
fn doing<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {error}")
}
