//! The command `agent join`: the daemon's flags.

mod options;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use flatnet_core::exposure::Exposed;
use flatnet_model::{IfName, NetworkName};
use flatnet_plane::etcd_args::EtcdArgs;

use super::values::{self, NamedCidr, Secret};
use crate::files::state_dir::{DEFAULT_RUN_DIR, DEFAULT_STATE_DIR};

/// Lease a subnet, build tunnels to all peers, and keep them
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Runs in the foreground. The datapath stays when the agent stops; `agent leave` gives the lease back."
)]
pub struct JoinArgs {
    /// What to join: an etcd, http(s)://host:2379 (without a scheme it is http), or a control plane, grpcs://host:7443
    #[arg(value_name = "ENDPOINT", required = true, env = "FLATNET_ENDPOINT")]
    pub endpoint: Vec<String>,
    /// Read flags from a TOML file (keys are the flags' names)
    #[arg(long, value_name = "FILE", env = "FLATNET_CONFIG")]
    pub config: Option<PathBuf>,

    /// This node's name, for people [default: the host name]
    #[arg(long, value_name = "NAME", env = "FLATNET_NODE_NAME", help_heading = "Identity")]
    pub node_name: Option<String>,
    /// Where the node's identity, keys and last snapshot are kept
    #[arg(long, value_name = "DIR", env = "FLATNET_STATE_DIR", default_value = DEFAULT_STATE_DIR, help_heading = "Identity")]
    pub state_dir: PathBuf,
    /// Where sockets and env files are put
    #[arg(long, value_name = "DIR", env = "FLATNET_RUN_DIR", default_value = DEFAULT_RUN_DIR, help_heading = "Identity")]
    pub run_dir: PathBuf,

    /// Network to join (repeatable)
    #[arg(long, value_name = "NAME", env = "FLATNET_NETWORK", value_delimiter = ',', default_value = NetworkName::DEFAULT, help_heading = "Networks")]
    pub network: Vec<NetworkName>,
    /// Create the network's configuration if there is none: CIDR or NAME=CIDR
    #[arg(long, value_name = "CIDR", env = "FLATNET_INIT", value_delimiter = ',', value_parser = values::named_cidr, help_heading = "Networks")]
    pub init: Vec<NamedCidr>,
    /// Ask for this subnet: CIDR or NAME=CIDR
    #[arg(long, value_name = "CIDR", env = "FLATNET_SUBNET", value_delimiter = ',', value_parser = values::named_cidr, help_heading = "Networks")]
    pub subnet: Vec<NamedCidr>,
    /// Env file for the network `default` [default: subnet.env in the run directory]
    #[arg(long, value_name = "FILE", env = "FLATNET_SUBNET_FILE", help_heading = "Networks")]
    pub subnet_file: Option<PathBuf>,
    /// Masquerade what leaves the network
    #[arg(long, value_name = "BOOL", env = "FLATNET_IP_MASQ", default_value_t = true, action = clap::ArgAction::Set, help_heading = "Networks")]
    pub ip_masq: bool,
    /// Let anybody who comes by this interface, or from this range, open connections into the networks (repeatable)
    #[arg(long, value_name = "IFACE|CIDR", env = "FLATNET_EXPOSE", value_delimiter = ',', help_heading = "Networks")]
    pub expose: Vec<Exposed>,
    /// Let containers of this host speak to the store
    #[arg(long, value_name = "BOOL", env = "FLATNET_CONTAINERS_REACH_STORE", default_value_t = false, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set, help_heading = "Networks")]
    pub containers_reach_store: bool,
    /// Own a bridge with the subnet's first address
    #[arg(long, value_name = "NAME", env = "FLATNET_BRIDGE", help_heading = "Networks")]
    pub bridge: Option<IfName>,
    /// How long the lease outlives this agent, e.g. 24h
    #[arg(long, value_name = "TIME", env = "FLATNET_LEASE_TTL", default_value = "24h", value_parser = values::lease_ttl, help_heading = "Networks")]
    pub lease_ttl: Duration,
    /// Replace a flannel.N device that flanneld left, and keep its subnet
    #[arg(long, value_name = "BOOL", env = "FLATNET_TAKE_OVER", default_value_t = false, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set, help_heading = "Networks")]
    pub take_over: bool,

    /// Underlay interface, by name or address (repeatable: first that exists)
    #[arg(long, value_name = "NAME|IP", env = "FLATNET_IFACE", value_delimiter = ',', help_heading = "Underlay")]
    pub iface: Vec<String>,
    /// Underlay interface, by a regular expression on its addresses or name
    #[arg(long, value_name = "REGEX", env = "FLATNET_IFACE_REGEX", help_heading = "Underlay")]
    pub iface_regex: Vec<String>,
    /// Underlay interface: the one whose route leads to this address
    #[arg(long, value_name = "IP", env = "FLATNET_IFACE_CAN_REACH", help_heading = "Underlay")]
    pub iface_can_reach: Option<IpAddr>,
    /// Underlay IPv4 address that peers send to
    #[arg(long, value_name = "IP", env = "FLATNET_PUBLIC_IP", value_parser = values::unicast::<Ipv4Addr>, help_heading = "Underlay")]
    pub public_ip: Option<Ipv4Addr>,
    /// Underlay IPv6 address that peers send to
    #[arg(long, value_name = "IP", env = "FLATNET_PUBLIC_IPV6", value_parser = values::unicast::<Ipv6Addr>, help_heading = "Underlay")]
    pub public_ipv6: Option<Ipv6Addr>,

    /// Refuse tunnels that the kernel has no module for, instead of carrying them in this process
    #[arg(long, value_name = "BOOL", env = "FLATNET_NO_USERSPACE", default_value_t = false, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set, help_heading = "Underlay")]
    pub no_userspace: bool,

    /// What this host joins a control plane with the first time; better from a file
    #[arg(
        long,
        value_name = "TOKEN",
        env = "FLATNET_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file",
        help_heading = "Control plane"
    )]
    pub token: Option<Secret>,
    /// File with that token
    #[arg(long, value_name = "FILE", env = "FLATNET_TOKEN_FILE", help_heading = "Control plane")]
    pub token_file: Option<PathBuf>,
    /// The control plane's authority, by its certificate's hash: sha256:…
    #[arg(long, value_name = "HASH", env = "FLATNET_CA_HASH", value_parser = values::ca_hash, help_heading = "Control plane")]
    pub ca_hash: Option<String>,

    /// etcd's keys and credentials
    #[command(flatten, next_help_heading = "etcd")]
    pub store: EtcdArgs,

    /// Serve /metrics, /healthz and /readyz there
    #[arg(long, value_name = "ADDR:PORT", env = "FLATNET_HTTP_LISTEN", help_heading = "Observation")]
    pub http_listen: Option<SocketAddr>,
}
