//! The command `agent network …`: networks and their permanent peers in the store, and which of them this host is in.

mod document;
mod members;
mod target;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::{Args, Subcommand};
use flatnet_model::{BackendData, BackendKind, Mac, NetworkName, Publication, SubnetKey, WireguardKey};
use flatnet_plane::networks::{Force, NetworkInfo, NetworkSpec, ReachableFrom};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use document::{detail, document, summary, table};

use super::store_args::StoreTarget;
use super::{status, values};
use crate::report::{Exit, Failure, print};

/// Create, show, change and remove networks; join and leave them
#[derive(Subcommand, Clone, Debug)]
pub enum NetworkCommand {
    /// Create a network; type and VNI are always written
    Create(ChangeArgs),
    /// Change a network's configuration; what is not named stays
    Update(ChangeArgs),
    /// List networks
    Ls(ListArgs),
    /// Show one network with its leases
    Inspect(InspectArgs),
    /// Remove a network; refused while hosts hold leases
    Rm(RemoveArgs),
    /// Join a further network while the agent of this host runs
    Join(members::JoinArgs),
    /// Leave a network while the agent of this host runs
    Leave(members::LeaveArgs),
    /// Permanent peers: hosts without an agent
    #[command(subcommand)]
    Peer(PeerCommand),
}

/// The configuration of a network to create or update.
#[derive(Args, Clone, Debug)]
pub struct ChangeArgs {
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
    /// First subnet to hand out
    #[arg(long, value_name = "IP")]
    subnet_min: Option<IpAddr>,
    /// Last subnet to hand out
    #[arg(long, value_name = "IP")]
    subnet_max: Option<IpAddr>,
    /// vxlan, wireguard, gre or host-gw
    #[arg(long, value_name = "TYPE")]
    backend: Option<String>,
    /// VXLAN network identifier, 1 to 16777215 [default: a free one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(flatnet_model::Vni::MAX)))]
    vni: Option<u32>,
    /// UDP port of VXLAN [default: 8472] or WireGuard [default: a free one from 51820 up]; 1024 at least
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..))]
    port: Option<u16>,
    /// GRE key; 0 for none [default: a free one]
    #[arg(long, value_name = "N")]
    key: Option<u32>,
    /// MTU for containers [default: the underlay's less the overhead]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(68..=65_535))]
    mtu: Option<u32>,
    /// Plain routes to peers on the same link
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    direct_routing: Option<bool>,
    /// Ranges outside the network from which anybody may open connections into it; "none": nobody
    #[arg(long, value_name = "CIDR,…")]
    reachable_from: Option<ReachableFrom>,
    /// Further fields of flannel's Backend, as a JSON object
    #[arg(long, value_name = "JSON")]
    backend_json: Option<String>,
    /// Although hosts use the range themselves; `update`: also when leases would end up outside the network
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    target: StoreTarget,
}

/// The arguments of `network ls`.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: StoreTarget,
}

/// The arguments of `network inspect`.
#[derive(Args, Clone, Debug)]
pub struct InspectArgs {
    /// The network's name
    name: NetworkName,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: StoreTarget,
}

/// The arguments of `network rm`.
#[derive(Args, Clone, Debug)]
pub struct RemoveArgs {
    /// The network's name
    name: NetworkName,
    /// Also while hosts hold leases
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    target: StoreTarget,
}

/// Permanent peers.
#[derive(Subcommand, Clone, Debug)]
pub enum PeerCommand {
    /// Add a host without an agent: its subnet and where to reach it
    Add(PeerAddArgs),
    /// Remove one
    Rm(PeerRemoveArgs),
}

/// A permanent peer.
#[derive(Args, Clone, Debug)]
pub struct PeerAddArgs {
    /// The network's name
    name: NetworkName,
    /// The peer's subnet (twice for dual stack)
    #[arg(long, value_name = "CIDR", required = true, value_parser = values::cidr, value_delimiter = ',')]
    subnet: Vec<IpNet>,
    /// Its underlay IPv4 address
    #[arg(long, value_name = "IP", value_parser = values::unicast::<Ipv4Addr>, required_unless_present = "public_ipv6")]
    public_ip: Option<Ipv4Addr>,
    /// Its underlay IPv6 address
    #[arg(long, value_name = "IP", value_parser = values::unicast::<Ipv6Addr>)]
    public_ipv6: Option<Ipv6Addr>,
    /// vxlan: the Ethernet address of its tunnel device
    #[arg(long, value_name = "MAC")]
    mac: Option<Mac>,
    /// wireguard: its public key, as `wg show` prints it
    #[arg(long, value_name = "KEY")]
    public_key: Option<WireguardKey>,
    /// wireguard: the UDP port it listens on [default: the network's]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    #[command(flatten)]
    target: StoreTarget,
}

/// The permanent peer to remove.
#[derive(Args, Clone, Debug)]
pub struct PeerRemoveArgs {
    /// The network's name
    name: NetworkName,
    /// The peer's subnet (twice for dual stack)
    #[arg(long, value_name = "CIDR", required = true, value_parser = values::cidr, value_delimiter = ',')]
    subnet: Vec<IpNet>,
    #[command(flatten)]
    target: StoreTarget,
}

/// Runs one of the commands.
pub async fn run(command: NetworkCommand) -> Result<(), Failure> {
    match command {
        NetworkCommand::Create(args) => {
            let info = args.target.open().await?.create(&args.name, &args.spec(), force(args.force)).await?;
            say(&format!("network {} created: {}\n", args.name, summary(&info)))
        }
        NetworkCommand::Update(args) => {
            let info = args.target.open().await?.update(&args.name, &args.spec(), force(args.force)).await?;
            say(&format!("network {} updated: {}\n", args.name, summary(&info)))
        }
        NetworkCommand::Ls(args) => {
            let all = args.target.open().await?.list().await?;
            print(&if args.json { status::json(&all.iter().map(document).collect::<Vec<_>>())? } else { table(&all) })
        }
        NetworkCommand::Inspect(args) => {
            let info = args.target.open().await?.inspect(&args.name).await?;
            print(&if args.json { status::json(&document(&info))? } else { detail(&info) })
        }
        NetworkCommand::Rm(args) => {
            args.target.open().await?.remove(&args.name, force(args.force)).await?;
            say(&format!("network {} removed\n", args.name))
        }
        NetworkCommand::Join(args) => members::join(args).await,
        NetworkCommand::Leave(args) => members::leave(args).await,
        NetworkCommand::Peer(PeerCommand::Add(args)) => {
            let target = args.target.open().await?;
            let publication = args.publication(&target.inspect(&args.name).await?)?;
            let subnets = subnets(&args.subnet)?;
            target.add_peer(&args.name, subnets, &publication).await?;
            say(&format!("peer {subnets} added to network {}\n", args.name))
        }
        NetworkCommand::Peer(PeerCommand::Rm(args)) => {
            let subnets = subnets(&args.subnet)?;
            args.target.open().await?.remove_peer(&args.name, subnets).await?;
            say(&format!("peer {subnets} removed from network {}\n", args.name))
        }
    }
}

fn force(yes: bool) -> Force {
    if yes { Force::Yes } else { Force::No }
}

impl ChangeArgs {
    fn spec(&self) -> NetworkSpec {
        NetworkSpec {
            cidr: self.cidr,
            cidr6: self.cidr6,
            subnet_len: self.subnet_len,
            subnet_min: self.subnet_min,
            subnet_max: self.subnet_max,
            backend: self.backend.clone(),
            vni: self.vni,
            port: self.port,
            key: self.key,
            mtu: self.mtu,
            direct_routing: self.direct_routing,
            backend_json: self.backend_json.clone(),
            reachable_from: self.reachable_from.clone().map(|ranges| ranges.0),
        }
    }
}

impl PeerAddArgs {
    /// Returns what the peer would have published itself.
    fn publication(&self, info: &NetworkInfo) -> Result<Publication, Failure> {
        let config = info.config.as_ref().map_err(|error| {
            Failure::new(Exit::InvalidConfig, format!("network {} has no usable configuration", self.name))
                .caused_by(error.clone())
        })?;
        let backend = config.backend.kind();
        let data = match (&backend, self.mac) {
            (BackendKind::Vxlan, Some(mac)) if mac.is_unicast() => {
                BackendData::Vxlan { vni: config.backend.vni(), mac }
            }
            (BackendKind::Vxlan, _) => {
                return Err(Failure::new(Exit::Usage, "a vxlan peer needs --mac").hint(
                    "it is the address of the peer's VXLAN device: `ip link show` there prints it after link/ether",
                ));
            }
            (BackendKind::Wireguard, _) => {
                let public_key = self.public_key.ok_or_else(|| {
                    Failure::new(Exit::Usage, "a wireguard peer needs --public-key")
                        .hint("`wg show DEVICE public-key` on the peer prints it")
                })?;
                BackendData::Wireguard { public_key, port: self.port }
            }
            _ => config.backend.gre_key().map_or(BackendData::None, |key| BackendData::Gre { key }),
        };
        // One WireGuard tunnel may carry both families over an underlay of one.
        let everywhere = backend == BackendKind::Wireguard;
        let over = |address: bool| if address || everywhere { data.clone() } else { BackendData::None };
        Ok(Publication {
            public_ip: self.public_ip,
            public_ipv6: self.public_ipv6,
            data: over(self.public_ip.is_some()),
            data_v6: over(self.public_ipv6.is_some()),
            ..Publication::of(backend)
        })
    }
}

fn subnets(nets: &[IpNet]) -> Result<SubnetKey, Failure> {
    let v4: Vec<Ipv4Net> =
        nets.iter().filter_map(|net| if let IpNet::V4(net) = net { Some(*net) } else { None }).collect();
    let v6: Vec<Ipv6Net> =
        nets.iter().filter_map(|net| if let IpNet::V6(net) = net { Some(*net) } else { None }).collect();
    if v4.len() > 1 || v6.len() > 1 {
        return Err(Failure::new(Exit::Usage, "a peer has at most one subnet of each family"));
    }
    SubnetKey::new(v4.first().copied(), v6.first().copied())
        .map_err(|error| Failure::new(Exit::InvalidConfig, error.to_string()))
}

/// Reports what was done: it is for people, so not on stdout.
fn say(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    std::io::stderr()
        .write_all(flatnet_model::text::lines(text).as_bytes())
        .map_err(|error| Failure::new(Exit::Internal, "cannot write to standard error").caused_by(error))
}
