//! Hiding the join token from the command line. Everybody on the host can read a command line (`/proc/PID/cmdline`,
//! proc(5)) for as long as the program runs. The line that tells a host how to join has a token in it, so an agent that
//! was given a token there starts anew without it.

use std::ffi::OsString;
use std::io::{Result, Write, pipe};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::values::Secret;

/// The flag for the token, and the environment variable that stands for it.
const FLAG: &str = "--token";
const VARIABLE: &str = "FLATNET_TOKEN";
/// The variable that stands for `--token-file`.
const FILE_VARIABLE: &str = "FLATNET_TOKEN_FILE";
/// The longest token hidden, in bytes: as much as a pipe is sure to take without a reader (`PIPE_BUF`, limits.h). Our
/// tokens have 51.
const LIMIT: usize = 4096;

/// Starts this program anew in its own place, with the same process id, and with `token` on standard input instead of
/// among the arguments or in the environment. Returns `Ok` if the token is in neither. An error means that the token
/// stays where it can be seen.
pub fn token(token: Option<&Secret>) -> Result<()> {
    let given: Vec<OsString> = std::env::args_os().collect();
    let arguments = without_token(&given);
    let is_shown = arguments.len() < given.len() || std::env::var_os(VARIABLE).is_some();
    let Some(token) = token.filter(|token| is_shown && token.0.len() <= LIMIT) else { return Ok(()) };
    let (reader, mut writer) = pipe()?;
    writer.write_all(token.0.as_bytes())?;
    drop(writer);
    let mut command = Command::new(std::env::current_exe()?);
    let mut arguments = arguments.into_iter();
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments).env_remove(VARIABLE).env(FILE_VARIABLE, "/dev/stdin").stdin(reader);
    Err(command.exec())
}

/// Returns the arguments without the token and its flag.
fn without_token(arguments: &[OsString]) -> Vec<OsString> {
    let mut kept = Vec::with_capacity(arguments.len());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "--" {
            kept.push(argument.clone());
            kept.extend(rest.cloned());
            break;
        }
        if argument == FLAG {
            rest.next();
        } else if !argument.as_encoded_bytes().starts_with(b"--token=") {
            kept.push(argument.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(line: &str) -> String {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let kept: Vec<String> =
            without_token(&arguments).into_iter().filter_map(|kept| kept.into_string().ok()).collect();
        kept.join(" ")
    }

    #[test]
    fn the_token_goes_and_nothing_else_does() {
        let plain = "agent join grpcs://vm0:7443 --ca-hash sha256:00 --token-file f";
        assert_eq!(kept(plain), plain);
        assert_eq!(kept("agent join --token a.b grpcs://vm0 --ca-hash c"), "agent join grpcs://vm0 --ca-hash c");
        assert_eq!(kept("agent join --token=a.b grpcs://vm0"), "agent join grpcs://vm0");
        assert_eq!(kept("agent join grpcs://vm0 --token"), "agent join grpcs://vm0");
        assert_eq!(kept("agent join -- --token a"), "agent join -- --token a", "arguments from there on");
    }
}
