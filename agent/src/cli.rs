//! The command line, one file per subcommand. People script against it, so names, exit codes and `--json` output are
//! stable.

mod completions;
mod conceal;
pub mod config_file;
mod docker_opts;
mod doctor;
pub mod join;
mod lab;
mod leave;
mod man;
mod network;
mod peers;
mod plan;
mod rotate_key;
mod status;
pub mod store_args;
pub mod values;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::daemon::telemetry::{self, LogFormat};
use crate::files::state_dir::DEFAULT_RUN_DIR;
use crate::report::{Exit, Failure};

/// One flat address space for the containers of many hosts
#[derive(Parser, Debug)]
#[command(name = "agent", version, arg_required_else_help = true)]
struct Cli {
    /// How much to log: error, warn, info, debug or trace
    #[arg(long, global = true, value_name = "LEVEL", env = "FLATNET_LOG_LEVEL", default_value = "info")]
    log_level: tracing::Level,
    /// How to log
    #[arg(long, global = true, value_name = "FORMAT", env = "FLATNET_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Join(Box<join::JoinArgs>),
    #[command(subcommand)]
    Network(Box<network::NetworkCommand>),
    Status(status::StatusArgs),
    Peers(peers::PeersArgs),
    Plan(plan::PlanArgs),
    Leave(leave::LeaveArgs),
    RotateKey(rotate_key::RotateKeyArgs),
    Doctor(doctor::DoctorArgs),
    DockerOpts(docker_opts::DockerOptsArgs),
    #[command(subcommand)]
    Lab(lab::LabCommand),
    Completions(completions::CompletionsArgs),
    #[command(hide = true)]
    Man(man::ManArgs),
}

/// The place of a running agent's socket.
#[derive(clap::Args, Clone, Debug)]
pub struct RunDir {
    /// Where the agent's socket is
    #[arg(long, value_name = "DIR", env = "FLATNET_RUN_DIR", default_value = DEFAULT_RUN_DIR)]
    pub run_dir: PathBuf,
}

/// Parses the command line, runs the command, and reports how it ended.
#[must_use]
pub fn main() -> ExitCode {
    match parse().and_then(run) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

/// Returns the command as clap has it, for completions and manual pages.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

fn parse() -> Result<Cli, Failure> {
    let mut arguments: Vec<_> = std::env::args_os().collect();
    let command = match config_file(&arguments) {
        Some(file) => config_file::with_defaults(command(), "join", &file)?,
        None => command(),
    };
    if let Some(program) = arguments.first_mut() {
        *program = "agent".into();
    }
    let matches = command.try_get_matches_from(arguments).unwrap_or_else(|error| error.exit());
    Cli::from_arg_matches(&matches).map_err(|error| Failure::new(Exit::Usage, error.to_string()))
}

/// Returns the file named by `--config` of `join`. It is found before the real parse because it supplies defaults to
/// it.
fn config_file(arguments: &[std::ffi::OsString]) -> Option<PathBuf> {
    // Arguments behind `--` are another program's.
    let own = arguments.iter().take_while(|argument| *argument != "--");
    if !own.clone().any(|argument| argument == "join") {
        return None;
    }
    let mut arguments = own;
    while let Some(argument) = arguments.next() {
        if argument == "--config" {
            return arguments.next().map(PathBuf::from);
        }
        if let Some(file) = argument.to_str().and_then(|argument| argument.strip_prefix("--config=")) {
            return Some(PathBuf::from(file));
        }
    }
    std::env::var_os("FLATNET_CONFIG").map(PathBuf::from)
}

/// The time that the end of a command waits for a thread that is in a system call. A file is written in less; a
/// resolver that hangs would take 10 s.
const SHUTDOWN_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    // The lab enters namespaces, which only a process with a single thread can do: no runtime before it.
    if let Command::Lab(command) = cli.command {
        return lab::run(command);
    }
    let concealed = match &cli.command {
        Command::Join(args) => conceal::token(args.token.as_ref()),
        _ => Ok(()),
    };
    let runtime = runtime(&cli.command)?;
    let done = |()| ExitCode::SUCCESS;
    let ended = match cli.command {
        Command::Join(args) => {
            telemetry::start(cli.log_level, cli.log_format)?;
            if let Err(error) = concealed {
                tracing::warn!(%error, "the token stays in the process list; --token-file keeps it out");
            }
            args.options().and_then(|options| runtime.block_on(crate::daemon::run(options))).map(done)
        }
        Command::Network(command) => runtime.block_on(network::run(*command)).map(done),
        Command::Status(args) => runtime.block_on(status::run(args)),
        Command::Peers(args) => runtime.block_on(peers::run(args)).map(done),
        Command::Plan(args) => runtime.block_on(plan::run(args)).map(done),
        Command::Leave(args) => runtime.block_on(leave::run(args)).map(done),
        Command::RotateKey(args) => runtime.block_on(rotate_key::run(args)).map(done),
        Command::Doctor(args) => runtime.block_on(doctor::run(args)),
        Command::DockerOpts(args) => docker_opts::run(&args).map(done),
        Command::Completions(args) => completions::run(&args).map(done),
        Command::Man(args) => man::run(&args).map(done),
        Command::Lab(command) => lab::run(command),
    };
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    ended
}

fn runtime(command: &Command) -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = match command {
        // Two workers: one may be in a long kernel batch while the other keeps leases alive and answers `status`.
        Command::Join(_) => {
            flatnet_kernel::memory::give_back_what_is_freed();
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(2);
            builder
        }
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    builder
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Internal, "cannot start the runtime").caused_by(error))
}
