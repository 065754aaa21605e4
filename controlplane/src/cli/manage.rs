//! `controlplane token`, `node`, `admin`, `status`: commands sent over the server's local socket.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use flatnet_model::NodeId;
use flatnet_proto::controlplane::v1 as proto;
use proto::admin_client::AdminClient;
use serde_json::json;
use tonic::transport::Channel;

use super::DataDir;
use super::report::{Exit, Failure, print, print_json, said, say, table};
use crate::server::SOCKET;
use flatnet_plane::client::channel;

/// Make, list and end join tokens
#[derive(Subcommand, Clone, Debug)]
pub enum TokenCommand {
    /// Make a token; prints what a host needs to join
    Create(CreateTokenArgs),
    /// List the tokens that can still be used
    Ls(ListArgs),
    /// End a token
    Rm(RemoveTokenArgs),
}

/// The token to make.
#[derive(Args, Clone, Debug)]
pub struct CreateTokenArgs {
    /// How long it is good
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// How many hosts it may bring in
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    uses: u32,
    /// For this node only, which may come with another key
    #[arg(long, value_name = "ID")]
    node: Option<NodeId>,
    #[command(flatten)]
    dir: DataDir,
}

/// The format of a list.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    dir: DataDir,
}

/// The token to end.
#[derive(Args, Clone, Debug)]
pub struct RemoveTokenArgs {
    /// The token's id: the part before the dot
    id: String,
    #[command(flatten)]
    dir: DataDir,
}

/// List and end nodes
#[derive(Subcommand, Clone, Debug)]
pub enum NodeCommand {
    /// List the nodes that joined
    Ls(ListArgs),
    /// End a node's rights: it is cut off and removed from every peer
    Revoke(NodeArgs),
    /// Take a node's subnets out of all networks and give it none, for a host that is to be emptied
    Drain(DrainArgs),
    /// Remove a node that is gone; its id may join again with another key
    Rm(NodeArgs),
}

/// The node to act on.
#[derive(Args, Clone, Debug)]
pub struct NodeArgs {
    /// The node's id
    id: NodeId,
    #[command(flatten)]
    dir: DataDir,
}

/// The node to drain, or to give subnets again.
#[derive(Args, Clone, Debug)]
pub struct DrainArgs {
    /// The node's id
    id: NodeId,
    /// Give it subnets again
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    dir: DataDir,
}

/// Make administrators' certificates
#[derive(Subcommand, Clone, Debug)]
pub enum AdminCommand {
    /// Make a certificate with its key, for --credentials elsewhere
    Create(CreateAdminArgs),
}

/// The administrator for whom a certificate is made.
#[derive(Args, Clone, Debug)]
pub struct CreateAdminArgs {
    /// The administrator's name: a-z, 0-9 and '-'
    name: String,
    /// How long it is good
    #[arg(long, value_name = "TIME", default_value = "90days", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// Where it is written; not to be there yet
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    dir: DataDir,
}

/// Say what the server is and has
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    dir: DataDir,
}

impl DataDir {
    /// Returns true if a server runs with it. A server that was killed leaves its socket behind.
    pub fn is_served(&self) -> bool {
        std::os::unix::net::UnixStream::connect(self.data_dir.join(SOCKET)).is_ok()
    }

    /// Connects to the server whose data directory this is.
    pub fn admin(&self) -> Result<AdminClient<Channel>, Failure> {
        let socket = self.data_dir.join(SOCKET);
        if !self.is_served() {
            let message = format!("no server runs with the data directory {}", self.data_dir.display());
            return Err(Failure::new(Exit::Unavailable, message).hint("start it, or name its --data-dir"));
        }
        Ok(AdminClient::new(channel::local(&socket)).max_decoding_message_size(64 * 1024 * 1024))
    }
}

/// Runs a `token` command.
pub async fn token(command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Create(args) => {
            let message = proto::CreateTokenRequest {
                ttl_secs: args.ttl.as_secs(),
                uses: args.uses,
                node: args.node.map(|node| node.to_string()).unwrap_or_default(),
            };
            let made = args.dir.admin()?.create_token(message).await.map_err(said)?.into_inner();
            print(&format!("--token {} --ca-hash {}\n", made.token, made.ca_hash))
        }
        TokenCommand::Ls(args) => {
            let list = args.dir.admin()?.list_tokens(proto::Nothing {}).await.map_err(said)?.into_inner();
            if args.json {
                let tokens: Vec<_> = list
                    .tokens
                    .iter()
                    .map(|token| json!({"id": token.id, "expires": time(token.expires), "uses_left": token.uses_left, "node": token.node}))
                    .collect();
                return print_json(&tokens);
            }
            let rows: Vec<_> = list
                .tokens
                .iter()
                .map(|token| {
                    vec![token.id.clone(), time(token.expires), token.uses_left.to_string(), token.node.clone()]
                })
                .collect();
            print(&table(&["TOKEN", "EXPIRES", "USES LEFT", "NODE"], &rows))
        }
        TokenCommand::Rm(args) => {
            let message = proto::TokenRequest { id: args.id.clone() };
            args.dir.admin()?.revoke_token(message).await.map_err(said)?;
            say(&format!("token {} ended", args.id));
            Ok(())
        }
    }
}

/// Runs a `node` command.
pub async fn node(command: NodeCommand) -> Result<(), Failure> {
    match command {
        NodeCommand::Ls(args) => list_nodes(&args).await,
        NodeCommand::Revoke(args) => {
            let message = proto::NodeRequest { id: args.id.to_string() };
            args.dir.admin()?.revoke_node(message).await.map_err(said)?;
            say(&format!("node {} revoked: cut off, its leases removed", args.id));
            Ok(())
        }
        NodeCommand::Drain(args) => {
            let message = proto::DrainNodeRequest { id: args.id.to_string(), undo: args.undo };
            args.dir.admin()?.drain_node(message).await.map_err(said)?;
            let done = if args.undo { "gets subnets again" } else { "drained: its subnets are out of all networks" };
            say(&format!("node {} {done}", args.id));
            Ok(())
        }
        NodeCommand::Rm(args) => {
            let message = proto::NodeRequest { id: args.id.to_string() };
            args.dir.admin()?.remove_node(message).await.map_err(said)?;
            say(&format!("node {} removed with its leases", args.id));
            Ok(())
        }
    }
}

async fn list_nodes(args: &ListArgs) -> Result<(), Failure> {
    let list = args.dir.admin()?.list_nodes(proto::Nothing {}).await.map_err(said)?.into_inner();
    let state = |node: &proto::NodeInfo| match (node.revoked, node.drained, node.present) {
        (true, _, _) => "revoked",
        (false, true, _) => "drained",
        (false, false, true) => "present",
        (false, false, false) => "away",
    };
    if args.json {
        let nodes: Vec<_> = list
            .nodes
            .iter()
            .map(|node| {
                let leases: Vec<_> = node
                    .leases
                    .iter()
                    .map(|lease| json!({"network": lease.network, "subnets": lease.subnets}))
                    .collect();
                json!({"id": node.id, "name": node.name, "joined": time(node.joined), "state": state(node), "leases": leases})
            })
            .collect();
        return print_json(&nodes);
    }
    let leases = |node: &proto::NodeInfo| {
        let leases = node.leases.iter().map(|lease| format!("{}:{}", lease.network, lease.subnets));
        leases.collect::<Vec<_>>().join(" ")
    };
    let rows: Vec<_> = list
        .nodes
        .iter()
        .map(|node| vec![node.id.clone(), node.name.clone(), state(node).to_owned(), time(node.joined), leases(node)])
        .collect();
    print(&table(&["NODE", "NAME", "STATE", "JOINED", "LEASES"], &rows))
}

/// Runs an `admin` command.
pub async fn admin(command: AdminCommand) -> Result<(), Failure> {
    let AdminCommand::Create(args) = command;
    let output = args.output.display();
    let cannot = |error| Failure::new(Exit::InvalidConfig, format!("cannot write {output}")).caused_by(error);
    let file = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&args.output);
    let mut file = file.map_err(cannot)?;
    let made = async {
        let message = proto::CreateAdminRequest { name: args.name.clone(), ttl_secs: args.ttl.as_secs() };
        Ok(args.dir.admin()?.create_admin(message).await.map_err(said)?.into_inner())
    };
    match made.await {
        Ok(made) => {
            file.write_all(made.pem.as_bytes()).and_then(|()| file.sync_all()).map_err(cannot)?;
            say(&format!("{output}: use it with --credentials"));
            Ok(())
        }
        Err(failure) => {
            // The directory is empty, and ours.
            let _ = std::fs::remove_file(&args.output);
            Err(failure)
        }
    }
}

/// Prints the status of the server as a whole; exit 8 when its store does not answer.
pub async fn status(args: StatusArgs) -> Result<ExitCode, Failure> {
    let status = args.dir.admin()?.get_status(proto::Nothing {}).await.map_err(said)?.into_inner();
    if args.json {
        print_json(&json!({
            "version": status.version, "store": status.store, "ready": status.ready, "reason": status.reason,
            "revision": status.revision, "networks": status.networks, "leases": status.leases, "nodes": status.nodes,
            "present": status.present, "watchers": status.watchers, "ca_hash": status.ca_hash,
            "ca_expires": time(status.ca_not_after),
        }))?;
    } else {
        let ready = if status.ready { "ready".to_owned() } else { format!("NOT READY: {}", status.reason) };
        print(&format!(
            "{ready}\nstore      {} at revision {}\nnetworks   {} with {} leases\nnodes      {} joined, {} present\n\
             watchers   {}\nauthority  {} until {}\nversion    {}\n",
            status.store,
            status.revision,
            status.networks,
            status.leases,
            status.nodes,
            status.present,
            status.watchers,
            status.ca_hash,
            time(status.ca_not_after),
            status.version,
        ))?;
    }
    Ok(if status.ready { ExitCode::SUCCESS } else { ExitCode::from(Exit::Degraded as u8) })
}

/// Writes a time in RFC 3339.
fn time(unix: i64) -> String {
    let time: SystemTime = UNIX_EPOCH + Duration::from_secs(u64::try_from(unix).unwrap_or(0));
    humantime::format_rfc3339_seconds(time).to_string()
}
