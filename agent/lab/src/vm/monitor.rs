//! QEMU's monitor (QMP): a command and its answer are lines of JSON; events in between are skipped.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::guest::{connect, pause};
use flatnet_plane::failure::{Exit, Failure};

/// The time that a command has to answer. It answers at once; a loaded machine may be slow to read it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The time that writing or reading a machine's memory may take. It takes a second or two.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(120);
/// The pause between two looks at a migration.
const POLL_EVERY: Duration = Duration::from_millis(20);

/// The monitor of one machine.
#[derive(Debug)]
pub struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects to the monitor and greets it.
    pub fn connect(socket: &Path) -> Result<Self, Failure> {
        let stream = connect(socket)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(lost)?;
        let mut monitor = Self { stream: BufReader::new(stream) };
        monitor.read()?;
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Stops the machine and writes its memory and devices to `file`.
    pub fn save(&mut self, file: &Path) -> Result<(), Failure> {
        self.execute("stop", &json!({}))?;
        // The default is 1 Gbit/s (QEMU's migration.c), which would be most of the time.
        self.execute("migrate-set-parameters", &json!({ "max-bandwidth": 8_u64 << 30 }))?;
        self.execute("migrate", &json!({ "uri": format!("exec:cat > {}", file.display()) }))?;
        let began = Instant::now();
        loop {
            let status = self.execute("query-migrate", &json!({}))?;
            match status["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    return Err(Failure::new(Exit::Internal, format!("QEMU cannot save the machine: {status}")));
                }
                _ if began.elapsed() > MIGRATION_TIMEOUT => {
                    return Err(Failure::new(Exit::Internal, format!("QEMU does not save the machine: {status}")));
                }
                _ => pause(POLL_EVERY),
            }
        }
    }

    /// Lets a machine that was started from a saved one run.
    pub fn resume(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        loop {
            let status = self.execute("query-status", &json!({}))?;
            match status["status"].as_str() {
                Some("inmigrate") if began.elapsed() < MIGRATION_TIMEOUT => pause(POLL_EVERY),
                Some("running") => return Ok(()),
                // A machine saved while stopped comes up stopped.
                _ => return self.execute("cont", &json!({})).map(drop),
            }
        }
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, Failure> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.stream.get_mut().write_all(line.as_bytes()).map_err(lost)?;
        loop {
            let mut answer = self.read()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(Failure::new(Exit::Internal, format!("QEMU refuses `{command}`: {error}")));
            }
        }
    }

    fn read(&mut self) -> Result<Value, Failure> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).map_err(lost)? == 0 {
            return Err(Failure::new(Exit::Internal, "QEMU ended"));
        }
        serde_json::from_str(&line)
            .map_err(|error| Failure::new(Exit::Internal, format!("QEMU's monitor says {line:?}")).caused_by(error))
    }
}

fn lost(error: std::io::Error) -> Failure {
    Failure::new(Exit::Unavailable, "QEMU's monitor does not answer").caused_by(error)
}
