//! The command `agent lab`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::report::Failure;
use flatnet_lab::{self as lab, Families, LabBackend, LabPlan, LabStore};

/// Build a whole overlay on this machine: hosts and containers in namespaces, a control plane, real agents
#[derive(Subcommand, Clone, Debug)]
pub enum LabCommand {
    /// Build a lab, ping all pairs, measure, show each host's state, and take it down
    Demo(BuildArgs),
    /// Build a lab that stays until `agent lab down`
    Up(UpArgs),
    /// Run a command in a host (host1…), a container (c1…), `etcd` or `underlay`; its exit code is passed on
    Exec(ExecArgs),
    /// End the lab and check that nothing is left
    Down(DirectoryArgs),
    /// Run a recipe that people set up by hand, by hand and with the agent; without a name, list them
    Cookbook(CookbookArgs),
}

/// The arguments of `lab cookbook`.
#[derive(Args, Clone, Debug)]
pub struct CookbookArgs {
    /// gre, flannel, …
    recipe: Option<String>,
    /// Run it in a virtual machine with Debian's kernel (made by `make vm-image`; its directory: FLATNET_VM_DIR)
    #[arg(long)]
    vm: bool,
}

/// The arguments of `lab up`.
#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    #[command(flatten)]
    build: BuildArgs,
    #[command(flatten)]
    directory: DirectoryArgs,
}

/// The arguments of `lab exec`.
#[derive(Args, Clone, Debug)]
pub struct ExecArgs {
    #[command(flatten)]
    directory: DirectoryArgs,
    /// host1, c1, …
    name: String,
    /// The command and its arguments, after `--`
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

/// The options of a lab to build.
#[derive(Args, Clone, Debug)]
pub struct BuildArgs {
    /// Number of hosts, each with one container
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=i64::from(LabPlan::MAX_HOSTS)))]
    hosts: u8,
    /// How packets travel between hosts
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = LabBackend::Vxlan)]
    backend: LabBackend,
    /// Where agents meet
    #[arg(long, value_name = "STORE", value_enum, default_value_t = LabStore::Embedded)]
    store: LabStore,
    /// Give containers IPv6 addresses too
    #[arg(long)]
    ipv6: bool,
    /// Print every wiring command
    #[arg(long)]
    verbose: bool,
}

/// The directory that tells a lab from others.
#[derive(Args, Clone, Debug)]
pub struct DirectoryArgs {
    /// The lab's lock, record and logs [default: flatnet-lab-<uid> in the temporary directory]
    #[arg(long = "dir", value_name = "DIR", env = "FLATNET_LAB_DIR")]
    directory: Option<PathBuf>,
}

impl BuildArgs {
    fn plan(&self) -> LabPlan {
        let overlay = if self.ipv6 { Families::Dual } else { Families::V4 };
        LabPlan { hosts: self.hosts, backend: self.backend, store: self.store, overlay, verbose: self.verbose }
    }
}

impl DirectoryArgs {
    fn path(self) -> PathBuf {
        self.directory.unwrap_or_else(lab::default_directory)
    }
}

/// Runs the command. Must be called before any thread is started: namespaces are entered.
pub fn run(command: LabCommand) -> Result<ExitCode, Failure> {
    match command {
        LabCommand::Demo(build) => lab::demo(build.plan()),
        LabCommand::Up(args) => lab::up(args.build.plan(), &args.directory.path()),
        LabCommand::Exec(args) => lab::enter(&args.directory.path(), &args.name, &args.command),
        LabCommand::Down(directory) => lab::down(&directory.path()),
        LabCommand::Cookbook(args) => lab::cookbook(args.recipe.as_deref(), args.vm),
    }
}
