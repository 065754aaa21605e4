//! The line to the program in the machine: a serial port that is a socket here. The other end, and the format on the
//! line, are in `tests/guest`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use flatnet_plane::failure::{Exit, Failure};

/// The request to run a script.
const RUN: u32 = 1;
/// The request to write a file.
const WRITE: u32 = 2;
/// The time added to what a script may take: the machine counts that by its own, slower clock, and starts a shell
/// first.
const SCRIPT_EXTRA_TIMEOUT: Duration = Duration::from_secs(30);
/// The time to connect. QEMU makes its sockets before it runs the machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// The pause between two attempts to connect.
const CONNECT_RETRY_AFTER: Duration = Duration::from_millis(5);
/// The longest output in bytes: longer output is a program gone wild.
const MAX_OUTPUT_BYTES: u32 = 64 << 20;

/// The result of a script: what it printed, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// The exit code; 128 plus the number if a signal ended the script; 124 if it took too long.
    pub rc: u32,
    /// The standard output and standard error as they came.
    pub output: String,
}

/// The line to one machine.
#[derive(Debug)]
pub struct Guest {
    stream: UnixStream,
}

impl Guest {
    /// Connects to QEMU's socket. The machine need not have booted: what is sent waits for it.
    pub fn connect(socket: &Path) -> Result<Self, Failure> {
        Ok(Self { stream: connect(socket)? })
    }

    /// Runs a script with bash and waits for its end, at most `timeout` (whole seconds) of the machine's time.
    pub fn sh(&mut self, script: &str, timeout: Duration) -> Result<Ran, Failure> {
        let seconds = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX);
        self.request(RUN, &[&seconds.to_le_bytes(), script.as_bytes()], timeout.saturating_add(SCRIPT_EXTRA_TIMEOUT))
    }

    /// Writes a file there, with its directories. An error says why not.
    pub fn put(&mut self, path: &str, mode: u32, content: &[u8], timeout: Duration) -> Result<(), Failure> {
        let (mode, length) = (mode.to_le_bytes(), size(path.as_bytes())?.to_le_bytes());
        let parts = [mode.as_slice(), &length, path.as_bytes(), content];
        let ran = self.request(WRITE, &parts, timeout)?;
        if ran.rc == 0 {
            return Ok(());
        }
        Err(Failure::new(Exit::Internal, format!("cannot write {path} in the machine: {}", ran.output)))
    }

    fn request(&mut self, kind: u32, parts: &[&[u8]], timeout: Duration) -> Result<Ran, Failure> {
        let failed = |error: std::io::Error| {
            Failure::new(Exit::Unavailable, "the virtual machine does not answer").caused_by(error)
        };
        self.stream.set_write_timeout(Some(timeout)).map_err(failed)?;
        self.stream.set_read_timeout(Some(timeout)).map_err(failed)?;
        let body = parts.concat();
        let message = [&kind.to_le_bytes(), size(&body)?.to_le_bytes().as_slice(), &body].concat();
        self.stream.write_all(&message).map_err(failed)?;
        let mut number = || {
            let mut bytes = [0; 4];
            self.stream.read_exact(&mut bytes).map(|()| u32::from_le_bytes(bytes)).map_err(failed)
        };
        let (rc, length) = (number()?, number()?);
        if length > MAX_OUTPUT_BYTES {
            return Err(Failure::new(Exit::Internal, format!("an answer of {length} bytes")));
        }
        let mut output = vec![0; usize::try_from(length).map_err(|error| internal(&error))?];
        self.stream.read_exact(&mut output).map_err(failed)?;
        Ok(Ran { rc, output: String::from_utf8_lossy(&output).into_owned() })
    }
}

/// Connects to a socket that a process just started makes.
pub fn connect(socket: &Path) -> Result<UnixStream, Failure> {
    let began = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if began.elapsed() > CONNECT_TIMEOUT => {
                return Err(
                    Failure::new(Exit::Unavailable, format!("cannot connect to {}", socket.display())).caused_by(error)
                );
            }
            Err(_) => pause(CONNECT_RETRY_AFTER),
        }
    }
}

/// Sleeps for `time`.
#[expect(clippy::disallowed_methods, reason = "machines are driven by plain threads, not from a runtime")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

fn size(bytes: &[u8]) -> Result<u32, Failure> {
    u32::try_from(bytes.len()).map_err(|error| internal(&error))
}

fn internal(error: &std::num::TryFromIntError) -> Failure {
    Failure::new(Exit::Internal, format!("too long for the machine's line: {error}"))
}
