//! The command `agent docker-opts`: prints what flannel's `mk-docker-opts.sh` prints.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use flatnet_core::docker_opts::{DockerOpts, Format};
use flatnet_core::env_file::EnvFile;

use crate::files::state_dir;
use crate::report::{Exit, Failure, print};

/// Print options for the Docker daemon from subnet.env
#[derive(Args, Clone, Debug)]
pub struct DockerOptsArgs {
    /// The env file [default: subnet.env in the run directory]
    #[arg(long, value_name = "FILE", env = "FLATNET_SUBNET_FILE")]
    subnet_file: Option<PathBuf>,
    #[command(flatten)]
    run_dir: super::RunDir,
    /// How to write them
    #[arg(long, value_name = "FORMAT", default_value = "shell")]
    format: OutputFormat,
    /// One variable with all options only
    #[arg(long)]
    combined: bool,
    /// Name of that variable
    #[arg(long, value_name = "KEY", default_value = DockerOpts::DEFAULT_KEY)]
    key: String,
    /// Whether to print --ip-masq
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    ip_masq: bool,
    /// Write to a file instead of stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OutputFormat {
    /// Variables for a shell, as flannel's script writes them
    Shell,
    /// Variables for systemd's EnvironmentFile=
    Systemd,
    /// For /etc/docker/daemon.json
    Json,
}

/// Reads the env file and prints the options.
pub fn run(args: &DockerOptsArgs) -> Result<(), Failure> {
    let path = args.subnet_file.clone().unwrap_or_else(|| args.run_dir.run_dir.join("subnet.env"));
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Failure::new(Exit::NotFound, format!("cannot read {}", path.display()))
            .hint("the agent writes it once it holds a lease: see `agent status`")
            .caused_by(error)
    })?;
    let invalid = |what: String| Failure::new(Exit::InvalidConfig, what);
    let env = EnvFile::parse(&text).map_err(|error| invalid(format!("{}: {error}", path.display())))?;
    let options = DockerOpts {
        format: match args.format {
            OutputFormat::Shell => Format::Shell,
            OutputFormat::Systemd => Format::Systemd,
            OutputFormat::Json => Format::Json,
        },
        individual: !args.combined,
        combined: true,
        key: args.key.clone(),
        ip_masq: args.ip_masq,
    };
    let text = options.render(&env).map_err(|error| invalid(format!("--key {error}")))?;
    match &args.output {
        None => print(&text),
        Some(path) => state_dir::replace(path, text.as_bytes(), 0o644)
            .map_err(|error| Failure::new(Exit::InvalidConfig, error.to_string()).caused_by(error)),
    }
}
