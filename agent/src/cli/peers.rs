//! The command `agent peers`.

use clap::Args;
use comfy_table::{Table, presets};
use flatnet_proto::agent::v1::{Network, Peer};

use super::{RunDir, status};
use crate::report::{Failure, print};

/// List the peers this host sends to
#[derive(Args, Clone, Debug)]
pub struct PeersArgs {
    #[command(flatten)]
    run_dir: RunDir,
    /// Print JSON: an object per network, each with its peers
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct NetworkPeers<'a> {
    network: &'a str,
    peers: &'a [Peer],
}

/// Asks the agent for the peers and prints them.
pub async fn run(args: PeersArgs) -> Result<(), Failure> {
    let status = status::fetch(&args.run_dir).await?;
    if args.json {
        let all: Vec<_> = status
            .networks
            .iter()
            .map(|network| NetworkPeers { network: &network.name, peers: &network.peers })
            .collect();
        return print(&status::json(&all)?);
    }
    print(&table(&status.networks))
}

fn table(networks: &[Network]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["NETWORK", "NODE", "SUBNET", "PUBLIC IP", "BACKEND", "STATE"]);
    for network in networks {
        for peer in &network.peers {
            let subnets: Vec<&str> = peer.subnet.iter().chain(&peer.subnet6).map(String::as_str).collect();
            let node = if peer.node.is_empty() { "-" } else { &peer.node };
            let cells = [&network.name, node, &subnets.join(" "), &peer.public_ip, &peer.backend, &peer.state];
            table.add_row(cells.map(flatnet_model::text::line));
        }
    }
    format!("{table}\n")
}
