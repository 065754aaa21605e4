//! Named network namespaces, and commands in them.

use std::process::{Command, Stdio};

use serde_json::Value;

/// The result of a command in a namespace: its output and its exit code.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The exit code; 128 plus the number if a signal ended it.
    pub code: u8,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A network namespace that `ip netns` knows. Cheap to copy: it is only the name; the lab owns the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace(pub String);

impl Namespace {
    /// Makes `argv` a command in this namespace; not started.
    #[must_use]
    pub fn command<S: AsRef<str>>(&self, argv: &[S]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]).args(argv.iter().map(AsRef::as_ref)).stdin(Stdio::null());
        command
    }

    /// Runs `argv` to its end.
    pub fn run<S: AsRef<str>>(&self, argv: &[S]) -> Ran {
        run(&mut self.command(argv))
    }

    /// Runs a line of words that must succeed; returns what it printed.
    pub fn ok(&self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ran = self.run(&words);
        assert_eq!(ran.code, 0, "`{line}` in {} failed: {}{}", self.0, ran.stdout, ran.stderr);
        ran.stdout
    }

    /// Runs a line of words that prints JSON. No output is an empty list, as several of `ip`'s commands have it.
    pub fn json(&self, line: &str) -> Value {
        let text = self.ok(line);
        if text.trim().is_empty() {
            return Value::Array(Vec::new());
        }
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("`{line}` in {}: {error}: {text}", self.0))
    }
}

/// Runs a prepared command to its end.
pub fn run(command: &mut Command) -> Ran {
    let output = command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    Ran {
        code: flatnet_lab::sandbox::exit_code(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
