//! A command as data: it can be shown before it is run.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use flatnet_plane::failure::{Exit, Failure};

/// A program and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine(Vec<String>);

impl CommandLine {
    /// Splits `line` at white space. This is for wiring, whose words have none.
    #[must_use]
    pub fn words(line: &str) -> Self {
        Self(line.split_whitespace().map(str::to_owned).collect())
    }

    /// Takes a program and its arguments as they are.
    pub fn argv<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self(argv.into_iter().map(Into::into).collect())
    }

    /// Returns the same command inside the named network namespace.
    #[must_use]
    pub fn inside(&self, namespace: &str) -> Self {
        let prefix = ["ip", "netns", "exec", namespace].map(str::to_owned);
        Self(prefix.into_iter().chain(self.0.iter().cloned()).collect())
    }

    /// Returns the same command on a host of a lab: inside its network namespace, and with its own `/run/wireguard`,
    /// which the hosts of a lab would otherwise share. The sockets there are in `files`, the host's directory.
    #[must_use]
    pub fn on_host(&self, namespace: &str, files: &Path) -> Self {
        let own = files.join("wireguard").display().to_string();
        // The new process has a mount namespace of its own (ip-netns(8)).
        let script = "mkdir -p \"$0\" /run/wireguard && mount --bind \"$0\" /run/wireguard && exec \"$@\"";
        let prefix = ["sh", "-c", script].map(str::to_owned).into_iter().chain([own]);
        Self(prefix.chain(self.0.iter().cloned()).collect()).inside(namespace)
    }

    /// Returns the command ready to be started. Its standard input is empty.
    #[must_use]
    pub fn to_command(&self) -> Command {
        let (program, arguments) = self.0.split_first().map_or(("false", [].as_slice()), |(p, a)| (p.as_str(), a));
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs the command to its end and returns what it printed. Any exit code but 0 is an error that quotes it.
    pub async fn run(&self) -> Result<String, Failure> {
        let output = tokio::process::Command::from(self.to_command())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| Failure::new(Exit::Unsupported, format!("cannot start `{self}`")).caused_by(error))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let message = format!("`{self}` ended with {}: {}", output.status, said.trim());
        Err(Failure::new(Exit::Kernel, message))
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, word) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            let plain = !word.is_empty()
                && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./:=@,%+".contains(&byte));
            if plain {
                f.write_str(word)?;
            } else {
                write!(f, "'{}'", word.replace('\'', r"'\''"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_a_shell_would_take_it() {
        let line = CommandLine::argv(["etcdctl", "put", "/k", r#"{"a":"it's"}"#]).inside("host1");
        assert_eq!(line.to_string(), r#"ip netns exec host1 etcdctl put /k '{"a":"it'\''s"}'"#);
    }
}
