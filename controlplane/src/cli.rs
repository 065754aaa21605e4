//! The command line of `controlplane`, with one file for each subject. Exit codes are those of `agent`.

mod manage;
mod network;
mod report;
mod serve;
mod store;
mod telemetry;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use report::{Exit, Failure};

/// The directory in which the server keeps its own files.
const DATA_DIR: &str = "/var/lib/flatnet-controlplane";

/// Flatnet's control plane: agents join it, only it has the store
#[derive(Parser, Debug)]
#[command(name = "controlplane", version, arg_required_else_help = true)]
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

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// A line an event, for people.
    Text,
    /// A JSON object an event.
    Json,
}

#[derive(Subcommand, Debug)]
enum Command {
    Serve(Box<serve::ServeArgs>),
    #[command(subcommand)]
    Token(manage::TokenCommand),
    #[command(subcommand)]
    Node(manage::NodeCommand),
    #[command(subcommand)]
    Network(network::NetworkCommand),
    #[command(subcommand)]
    Admin(manage::AdminCommand),
    Status(manage::StatusArgs),
    Backup(store::BackupArgs),
    Restore(store::RestoreArgs),
    Migrate(store::MigrateArgs),
    EtcdRoles(store::EtcdRolesArgs),
}

/// The server whose socket is used, by its data directory.
#[derive(clap::Args, Clone, Debug)]
struct DataDir {
    /// Where the server keeps its store, its authority and its socket
    #[arg(long, value_name = "DIR", env = "FLATNET_DATA_DIR", default_value = DATA_DIR)]
    data_dir: PathBuf,
}

/// Parses the command line, runs the command and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    telemetry::start(cli.log_level, cli.log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Internal, "cannot start the runtime").caused_by(error))?;
    let done = |()| ExitCode::SUCCESS;
    runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => serve::run(*args).await.map(done),
            Command::Token(command) => manage::token(command).await.map(done),
            Command::Node(command) => manage::node(command).await.map(done),
            Command::Network(command) => network::run(command).await.map(done),
            Command::Admin(command) => manage::admin(command).await.map(done),
            Command::Status(args) => manage::status(args).await,
            Command::Backup(args) => store::backup(args).await.map(done),
            Command::Restore(args) => store::restore(args).await.map(done),
            Command::Migrate(args) => store::migrate(args).await.map(done),
            Command::EtcdRoles(args) => store::etcd_roles(args).await.map(done),
        }
    })
}
