//! How a command ends: exit code, and error, causes and hint on stderr. The only place that prints.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use tonic::{Code, Status};

use crate::client::channel::with_causes;
use crate::wire::refusal;

/// The kinds of failure people script against, with their exit codes: the agent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// A bug.
    Internal = 1,
    /// Unknown flag, missing argument.
    Usage = 2,
    /// A value that cannot be used.
    InvalidConfig = 3,
    /// This host lacks something, or it is not allowed.
    Unsupported = 4,
    /// The store or the server does not answer; trying again may help.
    Unavailable = 5,
    /// Somebody else has it already, or nothing is left.
    Conflict = 6,
    /// Something is wrong with what was looked at.
    Degraded = 8,
    /// No such thing.
    NotFound = 9,
}

/// Why a command failed, and what to do about it.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
    hint: String,
    causes: Vec<String>,
}

impl Failure {
    /// A failure in one sentence.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: String::new(), causes: Vec::new() }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// What caused it.
    #[must_use]
    pub fn caused_by(mut self, error: impl Error) -> Self {
        let mut next: Option<&dyn Error> = Some(&error);
        while let Some(error) = next {
            self.causes.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// What a server said.
    #[must_use]
    pub fn said(status: Status) -> Self {
        let status = with_causes(status);
        let exit = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => Exit::InvalidConfig,
            Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented => {
                Exit::Unsupported
            }
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Exit::Unavailable,
            Code::AlreadyExists | Code::Aborted | Code::ResourceExhausted => Exit::Conflict,
            Code::NotFound => Exit::NotFound,
            _ => Exit::Internal,
        };
        Self::new(exit, status.message()).hint(refusal::details(&status).hint)
    }

    /// Prints error, causes and hint on stderr; the code to end with.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        let mut text = format!("error: {}\n", self.message);
        for cause in &self.causes {
            text.push_str(&format!("  caused by: {cause}\n"));
        }
        if !self.hint.is_empty() {
            text.push_str(&format!("  hint: {}\n", self.hint));
        }
        // Nobody is left to tell when stderr is closed.
        let _ = std::io::stderr().write_all(text.as_bytes());
        ExitCode::from(self.exit as u8)
    }
}

/// Says what was done: for people, so not on stdout.
pub fn say(text: &str) {
    // Nobody is left to tell when stderr is closed.
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Writes `text` to stdout. A reader that went away is not an error.
pub fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Internal, "cannot write to standard output").caused_by(error))
        }
        _ => Ok(()),
    }
}

/// A document for programs.
pub fn print_json(document: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|error| Failure::new(Exit::Internal, "cannot write JSON").caused_by(error))?;
    print(&format!("{text}\n"))
}

/// Columns, as wide as they need to be.
#[must_use]
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|head| head.len())).max().unwrap_or(0)
    };
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> =
            cells.iter().enumerate().map(|(column, cell)| format!("{cell:<width$}", width = width(column))).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut text = line(head.to_vec());
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}
