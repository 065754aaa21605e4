//! The commands `agent network join` and `agent network leave`: which networks the running agent of this host is in.

use std::path::PathBuf;

use clap::Args;
use flatnet_model::NetworkName;
use flatnet_proto::agent::v1::{JoinNetworkRequest, LeaveNetworkRequest};
use ipnet::IpNet;

use super::say;
use crate::cli::{RunDir, status, values};
use crate::report::{Exit, Failure, note, print};
use crate::serve::local_api;

/// The arguments of `network join`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "The agent remembers it: it is joined again at every start. Waits until packets can flow, a few seconds at most. \
                  Exit code 8: joined, but not up yet; the problems say why, and the agent goes on trying."
)]
pub struct JoinArgs {
    /// The network's name
    name: NetworkName,
    /// Ask for this subnet (twice for dual stack)
    #[arg(long, value_name = "CIDR", value_parser = values::cidr, value_delimiter = ',')]
    subnet: Vec<IpNet>,
    /// Where to write the env file [default: NAME.env in the agent's run directory]
    #[arg(long, value_name = "FILE")]
    subnet_file: Option<PathBuf>,
    /// Print the network as `agent status --json` does
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run_dir: RunDir,
}

/// The arguments of `network leave`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Gives the network's lease back and takes its devices, routes and rules out of the kernel; other networks go on. It \
                  stays left, also at the next start and although the agent's command line names it, until `agent network join`."
)]
pub struct LeaveArgs {
    /// The network's name
    name: NetworkName,
    /// Also forget its last view, and its subnet although it could not be given back
    #[arg(long)]
    purge: bool,
    #[command(flatten)]
    run_dir: RunDir,
}

/// Asks the agent to join a further network.
pub(super) async fn join(args: JoinArgs) -> Result<(), Failure> {
    let of_v4 = args.subnet.iter().filter(|subnet| subnet.addr().is_ipv4()).count();
    if of_v4 > 1 || args.subnet.len() - of_v4 > 1 {
        return Err(Failure::new(Exit::Usage, "--subnet names at most one subnet of each family"));
    }
    // The agent has another working directory.
    let subnet_file = args.subnet_file.map(std::path::absolute).transpose().map_err(|error| {
        Failure::new(Exit::Usage, "the working directory is not known: name --subnet-file from the root")
            .caused_by(error)
    })?;
    let request = JoinNetworkRequest {
        name: args.name.to_string(),
        subnets: args.subnet.iter().map(ToString::to_string).collect(),
        subnet_file: subnet_file.map(|file| file.display().to_string()),
    };
    let mut client = local_api::connect(&args.run_dir.run_dir).await?;
    let reply = client.join_network(request).await.map_err(|status| local_api::refused(&status))?.into_inner();
    let network = reply.network.unwrap_or_default();
    if args.json {
        print(&status::json(&network)?)?;
    }
    if !reply.up {
        let problems: Vec<String> = reply.problems.iter().map(|problem| format!("\n  {}", problem.message)).collect();
        let failure = Failure::new(
            Exit::Degraded,
            format!("network {} is joined, but not up yet{}", args.name, problems.concat()),
        );
        let hint = reply.problems.into_iter().map(|problem| problem.hint).find(|hint| !hint.is_empty());
        return Err(failure
            .hint(hint.unwrap_or_else(|| "the agent goes on trying; `agent status` says how it fares".to_owned())));
    }
    let subnets: Vec<&str> = [&network.subnet, &network.subnet6].into_iter().flatten().map(String::as_str).collect();
    let on = network.device.map(|device| format!(" on {device}")).unwrap_or_default();
    say(&format!("network {} joined: {}{on}\n", args.name, subnets.join(" and ")))
}

/// Asks the agent to leave one of its networks.
pub(super) async fn leave(args: LeaveArgs) -> Result<(), Failure> {
    let mut client = local_api::connect(&args.run_dir.run_dir).await?;
    let request = LeaveNetworkRequest { name: args.name.to_string(), purge: args.purge };
    let reply = client.leave_network(request).await.map_err(|status| local_api::refused(&status))?.into_inner();
    if reply.named {
        note(&format!(
            "the agent's command line names {0}; it stays left all the same, also at the next start, until: agent network join {0}",
            args.name
        ));
    }
    if !reply.failures.is_empty() {
        let what = format!("network {} is left, but not everything was given back", args.name);
        return Err(Failure::new(Exit::Kernel, format!("{what}:\n  {}", reply.failures.join("\n  ")))
            .hint("nothing is to be done: what is left in the store ends by itself, and the agent removes what is left in the kernel"));
    }
    say(&format!("network {} left\n", args.name))
}
