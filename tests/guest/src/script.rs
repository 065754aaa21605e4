//! Runs a script, bounded in time.

use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::doing;

/// The exit code of a script that took too long, as in timeout(1).
const TIMED_OUT: u32 = 124;
/// The pause between two looks at a script: short beside the 100 ms that a shell takes to start here.
const POLL: Duration = Duration::from_millis(5);
/// The directories of system programs.
const PATH: &str = "/lab:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The file for output until the script ends. It is no pipe, because a program that the script left running would keep
/// that open.
const OUTPUT: &str = "/run/lab-output";

/// Runs `script` with bash. Returns its exit code (128 plus the number if a signal ended it), and all that it printed.
pub fn run(script: &str, timeout_secs: u64) -> Result<(u32, Vec<u8>), String> {
    let output = File::create(OUTPUT).map_err(doing(OUTPUT))?;
    let copy = output.try_clone().map_err(doing(OUTPUT))?;
    let mut child = Command::new("/bin/bash")
        .args(["-c", script])
        .env("PATH", PATH)
        .env("HOME", "/root")
        .env("TERM", "dumb")
        .current_dir("/root")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(copy)
        .process_group(0)
        .spawn()
        .map_err(doing("/bin/bash"))?;
    let began = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait().map_err(doing("wait"))? {
            let code = status.code().or_else(|| status.signal().map(|signal| signal + 128)).unwrap_or(1);
            break u32::try_from(code).map_err(doing("exit code"))?;
        }
        if began.elapsed() > Duration::from_secs(timeout_secs) {
            let group = Pid::from_raw(i32::try_from(child.id()).map_err(doing("pid"))?);
            // What left the group with setsid goes on, as a test that starts a daemon wants.
            let _ = killpg(group, Signal::SIGKILL);
            let _ = child.wait();
            break TIMED_OUT;
        }
        pause();
    };
    let text = fs::read(OUTPUT).map_err(doing(OUTPUT))?;
    // What the script left running keeps the old file.
    let _ = fs::remove_file(OUTPUT);
    Ok((code, text))
}

/// Lets a little time pass.
#[expect(clippy::disallowed_methods, reason = "no runtime here: one thread, one request at a time")]
pub fn pause() {
    std::thread::sleep(POLL);
}
