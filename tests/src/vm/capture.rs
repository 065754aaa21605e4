//! Captures of the packets between machines, seen from outside them.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::run;
use crate::wait::{SOON, pause, wait_until};

/// The pause before a capture ends. What was sent by then is in the kernel's buffer, and tcpdump reads it at once
/// (`--immediate-mode`).
const SETTLE: Duration = Duration::from_millis(200);

/// A running tcpdump.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    packets: PathBuf,
}

impl Capture {
    /// Starts it on `device`, in the sandbox's own namespace, and waits until it listens.
    #[must_use]
    pub fn start(device: &str, filter: &str, packets: PathBuf) -> Self {
        let said = packets.with_extension("said");
        let mut command = Command::new("tcpdump");
        command.args(["-n", "-U", "--immediate-mode", "-i", device, "-w"]).arg(&packets).arg(filter);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&said).unwrap());
        let child = command.spawn().unwrap();
        wait_until("tcpdump listens", SOON, || {
            let text = std::fs::read_to_string(&said).unwrap_or_default();
            if text.contains("listening on") { Ok(()) } else { Err(text) }
        });
        Self { child, packets }
    }

    /// Ends it; returns a line for each packet, with its bytes in hexadecimal and as text.
    #[must_use]
    pub fn stop(mut self) -> String {
        self.end();
        let ran = run(Command::new("tcpdump").args(["-n", "-v", "-X", "-r"]).arg(&self.packets));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran.stdout
    }

    /// Ends it; returns the file in pcap format, which lives as long as the test program.
    #[must_use]
    pub fn stop_to_file(mut self) -> PathBuf {
        self.end();
        self.packets.clone()
    }

    fn end(&mut self) {
        pause(SETTLE);
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // It may have ended by itself: then there is nothing to do.
            let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
