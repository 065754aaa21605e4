//! The end of a command, the agent's as the control plane's: exit code, and error, causes and hint on stderr. This is
//! the only place that prints an error.

use std::error::Error;
use std::fmt;
use std::io::Write;
use std::process::ExitCode;

use flatnet_model::text::{lines, set_in};
use tonic::Code;

/// The kinds of failure people script against, with their exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// A bug.
    Internal = 1,
    /// Unknown flag, missing argument.
    Usage = 2,
    /// A value in a flag, a file or the store that cannot be used.
    InvalidConfig = 3,
    /// This host lacks something, or it is not allowed: a right, a program, a kernel feature.
    Unsupported = 4,
    /// The store or the agent does not answer; trying again may help.
    Unavailable = 5,
    /// Somebody else has it already, or nothing is left.
    Conflict = 6,
    /// The kernel refused.
    Kernel = 7,
    /// Something is wrong with what was looked at: `status`, `doctor`.
    Degraded = 8,
    /// No such thing.
    NotFound = 9,
}

impl Exit {
    /// Returns the exit code of a command to which a server answered with `code` (google.rpc.Code). It is the same for
    /// every server and command.
    #[must_use]
    pub fn of_code(code: Code) -> Self {
        match code {
            Code::InvalidArgument | Code::OutOfRange => Self::InvalidConfig,
            Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented => {
                Self::Unsupported
            }
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Self::Unavailable,
            Code::AlreadyExists | Code::Aborted | Code::ResourceExhausted => Self::Conflict,
            Code::NotFound => Self::NotFound,
            Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => Self::Internal,
        }
    }
}

/// A command's failure: the reason, and a hint what to do about it.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    /// Returns what to do about it; empty if nothing is known.
    #[must_use]
    pub fn hints(&self) -> &str {
        self.hint.as_deref().unwrap_or_default()
    }

    /// Makes a failure of one sentence.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None, source: None }
    }

    /// Sets the hint what to do about it; an empty one sets none.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        self.hint = (!hint.is_empty()).then_some(hint);
        self
    }

    /// Adds to the hint what else to do about it.
    #[must_use]
    pub fn hint_also(mut self, hint: &str) -> Self {
        self.hint = Some(self.hint.map_or_else(|| hint.to_owned(), |first| format!("{first}; {hint}")));
        self
    }

    /// Sets the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Returns the kind.
    #[must_use]
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Prints error, causes and hint on stderr; returns the code to end with.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        // When stderr is closed, nobody is left to tell.
        let _ = std::io::stderr().write_all(self.text().as_bytes());
        ExitCode::from(self.exit as u8)
    }

    /// Returns the text that is printed. Texts of others in it begin no line.
    fn text(&self) -> String {
        let mut text = format!("error: {}\n", set_in(&self.message));
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(&format!("  caused by: {}\n", set_in(&error.to_string())));
            cause = error.source();
        }
        if let Some(hint) = &self.hint {
            text.push_str(&format!("  hint: {}\n", set_in(hint)));
        }
        text
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn Error + 'static))
    }
}

/// Returns an error with its causes, in one line.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Prints a note on stderr, which is not an error.
pub fn note(text: &str) {
    // When stderr is closed, nobody is left to tell.
    let _ = std::io::stderr().write_all(format!("note: {}\n", set_in(text)).as_bytes());
}

/// Writes `text` to stdout. A reader that went away (`agent peers | head`) is not an error.
pub fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(lines(text).as_bytes()).and_then(|()| std::io::stdout().flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Internal, "cannot write to standard output").caused_by(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use flatnet_model::text::{HOSTILE, is_shown};

    use super::*;

    #[test]
    fn no_text_of_others_begins_a_line_or_speaks_to_the_terminal() {
        for hostile in HOSTILE {
            let failure = Failure::new(Exit::Unavailable, hostile).caused_by(hostile).hint(hostile);
            let text = failure.text();
            assert!(text.chars().all(|c| is_shown(c) || c == '\n'), "{text:?}");
            for line in text.lines() {
                assert!(
                    ["error: ", "  caused by: ", "  hint: ", "    "].iter().any(|begin| line.starts_with(begin)),
                    "{text}"
                );
            }
            assert_eq!(text.matches("\nerror: ").count(), 0, "{text}");
        }
    }
}
