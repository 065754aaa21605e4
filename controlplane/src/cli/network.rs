//! `controlplane network`: over the server's local socket. Elsewhere: `agent network --endpoint grpcs://…`.

use clap::{Args, Subcommand};
use flatnet_model::NetworkName;
use flatnet_model::keys::NetworkKeys;
use flatnet_proto::controlplane::v1 as proto;
use ipnet::{Ipv4Net, Ipv6Net};

use super::DataDir;
use super::report::{Failure, print, said, say, table};
use flatnet_plane::networks::{self, NetworkInfo, NetworkSpec, ReachableFrom};
use flatnet_plane::wire;

/// Create, list and remove networks
#[derive(Subcommand, Clone, Debug)]
pub enum NetworkCommand {
    /// Create a network
    Create(CreateArgs),
    /// List networks
    Ls(ListArgs),
    /// Remove a network; refused while hosts hold leases
    Rm(RemoveArgs),
}

/// The network to create.
#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// The network's name
    name: NetworkName,
    /// IPv4 range of all hosts together
    #[arg(long, value_name = "CIDR")]
    cidr: Option<Ipv4Net>,
    /// IPv6 range of all hosts together
    #[arg(long, value_name = "CIDR")]
    cidr6: Option<Ipv6Net>,
    /// Prefix length of each host's subnet [default: 24, IPv6 64]
    #[arg(long, value_name = "BITS")]
    subnet_len: Option<u8>,
    /// vxlan, wireguard, gre or host-gw
    #[arg(long, value_name = "TYPE")]
    backend: Option<String>,
    /// MTU for containers [default: the underlay's less the overhead]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(68..=65_535))]
    mtu: Option<u32>,
    /// Ranges outside the network from which anybody may open connections into it; "none": nobody
    #[arg(long, value_name = "CIDR,…")]
    reachable_from: Option<ReachableFrom>,
    /// Although hosts use the range themselves
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    dir: DataDir,
}

/// The server whose networks are listed.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    dir: DataDir,
}

/// The network to remove.
#[derive(Args, Clone, Debug)]
pub struct RemoveArgs {
    /// The network's name
    name: NetworkName,
    /// Also while hosts hold leases
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    dir: DataDir,
}

/// Runs a `network` command.
pub async fn run(command: NetworkCommand) -> Result<(), Failure> {
    match command {
        NetworkCommand::Create(args) => {
            let spec = NetworkSpec {
                cidr: args.cidr,
                cidr6: args.cidr6,
                subnet_len: args.subnet_len,
                backend: args.backend,
                mtu: args.mtu,
                reachable_from: args.reachable_from.map(|ranges| ranges.0),
                ..NetworkSpec::default()
            };
            let message = wire::change_request(&args.name, &spec, args.force);
            args.dir.admin()?.create_network(message).await.map_err(said)?;
            say(&format!("network {} created", args.name));
            Ok(())
        }
        NetworkCommand::Ls(args) => {
            let all = args.dir.admin()?.list_networks(proto::Nothing {}).await.map_err(said)?.into_inner();
            let rows: Vec<_> = all.networks.into_iter().filter_map(info).map(|info| row(&info)).collect();
            print(&table(&["NETWORK", "RANGE", "BACKEND", "LEASES"], &rows))
        }
        NetworkCommand::Rm(args) => {
            let message = proto::NetworkRequest { name: args.name.to_string(), force: args.force };
            args.dir.admin()?.remove_network(message).await.map_err(said)?;
            say(&format!("network {} removed", args.name));
            Ok(())
        }
    }
}

fn info(network: proto::NetworkInfo) -> Option<NetworkInfo> {
    let keys = NetworkKeys::new(&network.name.parse().ok()?, flatnet_model::keys::FLANNEL_PREFIX);
    networks::of_records(keys, network.records)
}

fn row(info: &NetworkInfo) -> Vec<String> {
    let name = info.keys.network().to_string();
    match &info.config {
        Ok(config) => {
            let ranges: Vec<String> = config.pools().map(|pool| pool.network().to_string()).collect();
            let backend = config.backend.kind().as_str().to_owned();
            vec![name, ranges.join(" "), backend, info.leases.len().to_string()]
        }
        Err(error) => vec![name, format!("unusable: {error}"), String::new(), info.leases.len().to_string()],
    }
}
