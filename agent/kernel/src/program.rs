//! Other people's programs: nft and iptables, without a shell.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// The time that a program may take. A swap of 8,000 elements takes 0.2 s; iptables waits up to 5 s for the xtables
/// lock.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(20);

/// The reason why a program did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// There is no such program.
    #[error("{program}: no such program; install the package {package}")]
    Missing {
        /// The program's name.
        program: String,
        /// The package in which distributions have it.
        package: &'static str,
    },
    /// The program ended with an error.
    #[error("{program}: {words}")]
    Refused {
        /// The program's name.
        program: String,
        /// Its error output, in one line and bounded.
        words: String,
    },
    /// The program could not be started, or did not end.
    #[error("{program} could not be run")]
    Run {
        /// The program's name.
        program: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Runs `program` with `input` as its standard input, and returns its standard output. The program is killed if this
/// future is dropped.
pub(crate) async fn run(
    program: &str,
    package: &'static str,
    arguments: &[&str],
    input: &str,
) -> Result<String, ProgramError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ProgramError::Missing { program: program.to_owned(), package },
        _ => ProgramError::Run { program: program.to_owned(), source },
    };
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", search_path())
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    let write = async {
        if let Some(mut stdin) = stdin {
            // A program that ends before it has read everything says why on its standard error.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let both = async { tokio::join!(write, child.wait_with_output()).1 };
    let output = match tokio::time::timeout(PROGRAM_TIMEOUT, both).await {
        Ok(output) => output.map_err(failed)?,
        Err(_) => return Err(failed(io::Error::from(io::ErrorKind::TimedOut))),
    };
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let words = summary(&String::from_utf8_lossy(&output.stderr));
        Err(ProgramError::Refused { program: program.to_owned(), words })
    }
}

/// Returns the path on which programs are looked for: users' own PATH, which often lacks the directories of system
/// programs, and those.
#[must_use]
pub fn search_path() -> OsString {
    with_system_directories(std::env::var_os("PATH").as_deref())
}

/// Returns `path` with the directories of system programs at its end. An empty entry, which an empty PATH is as well,
/// means the working directory (environ(7)): nothing is run from there as root.
fn with_system_directories(path: Option<&OsStr>) -> OsString {
    let given =
        path.map(std::env::split_paths).into_iter().flatten().filter(|directory| !directory.as_os_str().is_empty());
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    // None of them has a colon in its name: they were split at colons.
    std::env::join_paths(given.chain(system)).unwrap_or_default()
}

/// Returns the first few lines of an error, in one line.
fn summary(words: &str) -> String {
    /// Characters that are kept: enough for nft's message and the line it is about.
    const LONGEST: usize = 300;
    let lines: Vec<&str> = words.lines().map(str::trim).filter(|line| !line.is_empty()).take(4).collect();
    lines.join("; ").chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_looked_for_in_the_working_directory() {
        let system = "/usr/local/sbin:/usr/sbin:/sbin";
        for empty in [None, Some(""), Some(":"), Some("::")] {
            assert_eq!(with_system_directories(empty.map(OsStr::new)), system, "{empty:?}");
        }
        for given in ["/opt/bin:/usr/bin", ":/opt/bin:/usr/bin", "/opt/bin::/usr/bin:"] {
            assert_eq!(*with_system_directories(Some(OsStr::new(given))), *format!("/opt/bin:/usr/bin:{system}"));
        }
    }
}
