//! The options of a join: the command line's meaning, checked as far as possible without looking at the host.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use flatnet_core::exposure::Exposed;
use flatnet_core::underlay::Selection;
use flatnet_model::{IfName, NetworkName};
use flatnet_plane::endpoint::Endpoint;
use flatnet_plane::etcd_args::EtcdArgs;
use ipnet::IpNet;

/// The options of this host's join.
#[derive(Clone, Debug)]
pub struct JoinOptions {
    /// The store's endpoints: at least one, all of one kind.
    pub endpoints: Vec<Endpoint>,
    /// Keys and credentials of an etcd.
    pub etcd: EtcdArgs,
    /// The token that the first join at a control plane needs.
    pub token: Option<String>,
    /// The control plane's authority, by its certificate's hash.
    pub ca_hash: Option<String>,
    /// The node's name, for people.
    pub name: String,
    /// The state directory.
    pub state_dir: PathBuf,
    /// The run directory.
    pub run_dir: PathBuf,
    /// The networks to join, each once.
    pub networks: Vec<NetworkOptions>,
    /// The time that a lease outlives the agent.
    pub lease_ttl: Duration,
    /// The rules by which the underlay is chosen, without the store, whose address is not known yet.
    pub underlay: Selection,
    /// The bridge to own.
    pub bridge: Option<IfName>,
    /// True if traffic that leaves a network is masqueraded.
    pub masquerade: bool,
    /// True if the tunnel devices that flanneld left are taken over.
    pub take_over: bool,
    /// The interfaces and ranges that the networks are opened to.
    pub expose: Vec<Exposed>,
    /// True if containers may speak to the store.
    pub containers_reach_store: bool,
    /// True if this process may carry tunnels.
    pub userspace: bool,
    /// The address on which metrics and health are served.
    pub http_listen: Option<SocketAddr>,
}

/// The options of joining one network.
#[derive(Clone, Debug)]
pub struct NetworkOptions {
    /// The network's name.
    pub name: NetworkName,
    /// The ranges to create the network with if it does not exist, at most one of each family.
    pub init: Vec<IpNet>,
    /// The subnets asked for, at most one of each family.
    pub wanted: Vec<IpNet>,
    /// The path of the network's env file, if it is not the usual one.
    pub env_file: Option<PathBuf>,
}
