//! What joining means: the command line's meaning, checked as far as that is possible without looking at the host.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use flatnet_controlplane::cli::etcd_args::EtcdArgs;
use flatnet_controlplane::endpoint::Endpoint;
use flatnet_core::exposure::Exposed;
use flatnet_core::underlay::Selection;
use flatnet_model::{IfName, NetworkName};
use ipnet::IpNet;

/// How this host joins.
#[derive(Clone, Debug)]
pub struct JoinOptions {
    /// Where the store is: at least one, all of one kind.
    pub endpoints: Vec<Endpoint>,
    /// Keys and credentials of an etcd.
    pub etcd: EtcdArgs,
    /// What the first join at a control plane needs.
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
    /// How long a lease outlives the agent.
    pub lease_ttl: Duration,
    /// How the underlay is chosen; without the store, whose address is not known yet.
    pub underlay: Selection,
    /// The bridge to own.
    pub bridge: Option<IfName>,
    /// Whether what leaves a network is masqueraded.
    pub masquerade: bool,
    /// Whether what flanneld left is taken over.
    pub take_over: bool,
    /// Whom the networks are opened to.
    pub expose: Vec<Exposed>,
    /// Whether containers may speak to the store.
    pub containers_reach_store: bool,
    /// Whether tunnels may be carried in this process.
    pub userspace: bool,
    /// Where metrics and health are served.
    pub http_listen: Option<SocketAddr>,
}

/// How one network is joined.
#[derive(Clone, Debug)]
pub struct NetworkOptions {
    /// Which.
    pub name: NetworkName,
    /// Ranges to create it with if it is not there, one of each family at most.
    pub init: Vec<IpNet>,
    /// Subnets asked for, one of each family at most.
    pub wanted: Vec<IpNet>,
    /// Where its env file goes, if not to the usual place.
    pub env_file: Option<PathBuf>,
}
