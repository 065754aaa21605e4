//! An agent process on a host of a lab. A test can start it with any flags, end it in any way, and ask it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flatnet_lab::command_line::CommandLine;
use flatnet_lab::sandbox::exit_code;
use flatnet_lab::subnet_env::SubnetEnv;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::netns::{Namespace, Ran, run};
use crate::wait::{SOON, wait_until};

/// The longest run of a start that must fail, in seconds: a copied identity is told from a restart only when presence
/// (15 s) is still renewed.
const RUN_SECS: &str = "45";

/// The bridge that agents own in tests that attach containers.
pub const BRIDGE: &str = "flbr0";

/// Finds the agent's program: `FLATNET_AGENT`, else beside this test program in cargo's target directory.
pub fn find_program() -> Result<PathBuf, String> {
    let named = std::env::var_os("FLATNET_AGENT").map(PathBuf::from);
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let beside = own.parent().and_then(Path::parent).map(|directory| directory.join("agent"));
    match named.or(beside) {
        Some(program) if program.is_file() => Ok(program),
        program => Err(format!(
            "{} does not exist: run `cargo build -p flatnet-agent`, or name the program in FLATNET_AGENT",
            program.unwrap_or_default().display()
        )),
    }
}

/// Returns the program found by [`find_program`].
pub fn program() -> PathBuf {
    find_program().unwrap()
}

/// An agent; killed when dropped, its state kept.
#[derive(Debug)]
pub struct Agent {
    /// The host's number, from 1.
    pub number: u8,
    /// The host.
    pub host: Namespace,
    /// `--state-dir`.
    pub state_dir: PathBuf,
    /// `--run-dir`.
    pub run_dir: PathBuf,
    /// The program that is started.
    pub program: PathBuf,
    /// All arguments.
    pub arguments: Vec<String>,
    /// Further environment variables.
    pub environment: Vec<(String, String)>,
    directory: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Agent {
    /// Makes an agent with its files in `directory` and the usual flags; not started.
    #[must_use]
    pub fn new(number: u8, host: Namespace, endpoint: &str, directory: &Path) -> Self {
        fs::create_dir_all(directory).unwrap();
        let (state_dir, run_dir) = (directory.join("state"), directory.join("run"));
        let arguments = vec![
            "join".to_owned(),
            endpoint.to_owned(),
            format!("--node-name=host{number}"),
            format!("--state-dir={}", state_dir.display()),
            format!("--run-dir={}", run_dir.display()),
        ];
        let log = directory.join("log");
        Self {
            number,
            host,
            state_dir,
            run_dir,
            program: program(),
            arguments,
            environment: Vec::new(),
            directory: directory.to_owned(),
            log,
            child: None,
        }
    }

    /// Adds flags.
    #[must_use]
    pub fn with(mut self, flags: &[&str]) -> Self {
        self.arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// Starts it.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "the agent of host{} is running", self.number);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut argv = vec![self.program.display().to_string()];
        argv.extend(self.arguments.iter().cloned());
        let mut command = self.on_host(argv);
        command.stdout(log.try_clone().unwrap()).stderr(log).envs(self.environment.iter().cloned());
        self.child = Some(command.spawn().unwrap());
    }

    /// Makes `argv` a command of this host, with its own `/run/wireguard`.
    pub fn on_host(&self, argv: Vec<String>) -> Command {
        let mut command = CommandLine::argv(argv).on_host(&self.host.0, &self.directory).to_command();
        command.stdin(Stdio::null());
        command
    }

    /// Returns the id of the process: `ip netns exec` becomes the program, so it is the agent itself. `None` if it is
    /// not running.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Sends a signal and waits for the end; returns the exit code.
    pub fn end(&mut self, signal: Signal) -> u8 {
        let child = self.child.as_ref().expect("the agent is not running");
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        self.wait_for_end(SOON)
    }

    /// Waits until it ends by itself; returns the exit code.
    pub fn wait_for_end(&mut self, deadline: Duration) -> u8 {
        let began = Instant::now();
        let mut child = self.child.take().expect("the agent is not running");
        while began.elapsed() < deadline {
            if let Some(status) = child.try_wait().unwrap() {
                return exit_code(status);
            }
            crate::wait::pause(Duration::from_millis(5));
        }
        // Not left running behind the test's back.
        let _ = child.kill();
        let _ = child.wait();
        panic!("host{}'s agent does not end; its log:\n{}", self.number, self.log());
    }

    /// Runs it to its end, as for a start that must fail.
    pub fn run(&self) -> Ran {
        let mut argv = vec!["timeout".to_owned(), RUN_SECS.to_owned(), self.program.display().to_string()];
        argv.extend(self.arguments.iter().cloned());
        let mut command = self.host.command(&argv);
        command.envs(self.environment.iter().cloned());
        run(&mut command)
    }

    /// Runs another subcommand of the agent, such as `leave`, against this one.
    pub fn command(&self, arguments: &[&str]) -> Ran {
        let program = program().display().to_string();
        let run_dir = format!("--run-dir={}", self.run_dir.display());
        let argv: Vec<&str> =
            [program.as_str()].into_iter().chain(arguments.iter().copied()).chain([run_dir.as_str()]).collect();
        run(&mut self.on_host(argv.into_iter().map(str::to_owned).collect()))
    }

    /// Runs `agent status --json`; `None` if no agent answers.
    pub fn status(&self) -> Option<Value> {
        serde_json::from_str(&self.command(&["status", "--json"]).stdout).ok()
    }

    /// Waits until `accept` takes the status; returns it.
    pub fn wait_for_status(&self, what: &str, accept: impl Fn(&Value) -> bool) -> Value {
        let what = format!("host{}: {what}", self.number);
        wait_until(&what, SOON, || match self.status() {
            Some(status) if accept(&status) => Ok(status),
            status => {
                let status = status.map(|status| status.to_string()).unwrap_or_default();
                Err(format!("status {status}\nlog:\n{}", self.log()))
            }
        })
    }

    /// Waits until it is converged with exactly `peers` programmed peers in its first network.
    pub fn wait_converged(&self, peers: usize) -> Value {
        self.wait_for_status(&format!("converged with {peers} peers"), |status| {
            let listed = status.pointer("/networks/0/peers").and_then(Value::as_array);
            let programmed =
                listed.map_or(0, |peers| peers.iter().filter(|peer| peer["state"] == "programmed").count());
            status["state"] == "converged" && programmed == peers
        })
    }

    /// Waits until `status` shows a problem with `code`; returns the problem.
    pub fn wait_for_problem(&self, code: &str) -> Value {
        let find =
            |status: &Value| status["problems"].as_array()?.iter().find(|problem| problem["code"] == code).cloned();
        let status = self.wait_for_status(&format!("problem {code}"), |status| find(status).is_some());
        find(&status).unwrap()
    }

    /// Returns the path of `subnet.env`.
    #[must_use]
    pub fn env_file(&self) -> PathBuf {
        self.run_dir.join("subnet.env")
    }

    /// Waits for `subnet.env`; returns its contents.
    pub fn subnet(&self) -> SubnetEnv {
        wait_until(&format!("host{}: subnet.env is written", self.number), SOON, || {
            let text = fs::read_to_string(self.env_file()).map_err(|error| format!("{error}\nlog:\n{}", self.log()))?;
            SubnetEnv::parse(&text).ok_or(text)
        })
    }

    /// Returns all that it logged, over all its lives.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself: then there is nothing to do.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
