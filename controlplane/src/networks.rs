//! Creating, changing and removing networks and their permanent peers.
//!
//! Every change compares and bumps the catalog record, so overlap and VNI checks are a compare-and-swap over all
//! networks.

use std::net::IpAddr;

use flatnet_model::keys::NetworkKeys;
use flatnet_model::{Lease, NetworkConfig, NetworkName, Publication, SubnetKey};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::flannel::{ConfigWarning, InvalidConfig};
use crate::store::{Store, StoreError};

/// What `create` and `update` are asked for; `None` is the default on create and "unchanged" on update.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkSpec {
    /// `Network`.
    pub cidr: Option<Ipv4Net>,
    /// `IPv6Network`.
    pub cidr6: Option<Ipv6Net>,
    /// `SubnetLen`, or `IPv6SubnetLen` when there is no IPv4.
    pub subnet_len: Option<u8>,
    /// `SubnetMin` or `IPv6SubnetMin`, by its family.
    pub subnet_min: Option<IpAddr>,
    /// `SubnetMax` or `IPv6SubnetMax`, by its family.
    pub subnet_max: Option<IpAddr>,
    /// `Backend.Type`.
    pub backend: Option<String>,
    /// `Backend.VNI`.
    pub vni: Option<u32>,
    /// `Backend.Port`.
    pub port: Option<u16>,
    /// `Backend.Key` (GRE).
    pub key: Option<u32>,
    /// `Backend.MTU` in bytes.
    pub mtu: Option<u32>,
    /// `Backend.DirectRouting`.
    pub direct_routing: Option<bool>,
    /// Further fields of `Backend`, as a JSON object.
    pub backend_json: Option<String>,
}

/// One network as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkInfo {
    /// Name and keys.
    pub keys: NetworkKeys,
    /// The configuration read, or why it cannot be.
    pub config: Result<NetworkConfig, InvalidConfig>,
    /// The configuration's value as stored.
    pub config_value: Vec<u8>,
    /// What an operator should know about it.
    pub warnings: Vec<ConfigWarning>,
    /// Its leases in the order of their keys.
    pub leases: Vec<Lease>,
    /// Keys that cannot be read, and why.
    pub rejected: Vec<(String, String)>,
}

/// Why a network command failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// `create`: it is there already.
    #[error("network {0} exists already")]
    Exists(NetworkName),
    /// It is not there.
    #[error("network {0} does not exist")]
    NotFound(NetworkName),
    /// The configuration asked for is not one.
    #[error("network {name}: {source}")]
    Invalid {
        /// The network.
        name: NetworkName,
        /// What is wrong.
        #[source]
        source: InvalidConfig,
    },
    /// Its range overlaps another network's.
    #[error("network {name}: {cidr} overlaps {other_cidr} of network {other}")]
    Overlap {
        /// The network.
        name: NetworkName,
        /// Its range.
        cidr: IpNet,
        /// The other network.
        other: NetworkName,
        /// The other's range.
        other_cidr: IpNet,
    },
    /// The VNI is another network's.
    #[error("network {name}: VNI {vni} is in use by network {other}")]
    VniInUse {
        /// The network.
        name: NetworkName,
        /// The VNI.
        vni: u32,
        /// The other network.
        other: NetworkName,
    },
    /// `rm`: hosts still hold leases.
    #[error("network {name} still has {count} leases: {shown}", count = .leases.len(), shown = first_few(.leases))]
    InUse {
        /// The network.
        name: NetworkName,
        /// Their keys.
        leases: Vec<String>,
    },
    /// `update`: leases would end up outside the network.
    #[error("network {name}: the change would leave {count} leases outside: {shown}", count = .leases.len(), shown = first_few(.leases))]
    Strands {
        /// The network.
        name: NetworkName,
        /// Their keys.
        leases: Vec<String>,
    },
    /// A peer's subnet overlaps a lease.
    #[error("network {name}: {subnets} overlaps {other}")]
    PeerOverlap {
        /// The network.
        name: NetworkName,
        /// The peer's subnets.
        subnets: SubnetKey,
        /// What it overlaps.
        other: SubnetKey,
    },
    /// A peer's subnet is not inside the network.
    #[error("network {name}: {subnets} is not inside it")]
    PeerOutside {
        /// The network.
        name: NetworkName,
        /// The peer's subnets.
        subnets: SubnetKey,
    },
    /// No such permanent peer.
    #[error("network {name} has no permanent peer {subnets}")]
    NoSuchPeer {
        /// The network.
        name: NetworkName,
        /// What was asked for.
        subnets: SubnetKey,
    },
    /// Others were faster every time: worth trying again.
    #[error("others changed the networks in each of {0} attempts")]
    Busy(u32),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn first_few(keys: &[String]) -> String {
    /// Enough to recognise which hosts are meant.
    const SHOWN: usize = 8;
    let mut text = keys.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if keys.len() > SHOWN {
        text.push_str(", …");
    }
    text
}

/// Whether hosts that hold leases are in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// They are.
    No,
    /// They are not: do it all the same.
    Yes,
}

/// Creates a network; Type and a VNI of its own are always written.
pub async fn create<S: Store>(
    store: &S,
    flannel_prefix: &str,
    name: &NetworkName,
    spec: &NetworkSpec,
) -> Result<NetworkInfo, NetworkError> {
    let _ = (store, flannel_prefix, name, spec);
    todo!()
}

/// Changes a network; fields not named stay, unknown ones too.
pub async fn update<S: Store>(
    store: &S,
    flannel_prefix: &str,
    name: &NetworkName,
    spec: &NetworkSpec,
    force: Force,
) -> Result<NetworkInfo, NetworkError> {
    let _ = (store, flannel_prefix, name, spec, force);
    todo!()
}

/// One network with its leases.
pub async fn inspect<S: Store>(
    store: &S,
    flannel_prefix: &str,
    name: &NetworkName,
) -> Result<NetworkInfo, NetworkError> {
    let _ = (store, flannel_prefix, name);
    todo!()
}

/// All networks, `default` first.
pub async fn list<S: Store>(store: &S, flannel_prefix: &str) -> Result<Vec<NetworkInfo>, NetworkError> {
    let _ = (store, flannel_prefix);
    todo!()
}

/// Removes a network with everything under its prefix; refuses while hosts hold leases unless forced.
pub async fn remove<S: Store>(
    store: &S,
    flannel_prefix: &str,
    name: &NetworkName,
    force: Force,
) -> Result<(), NetworkError> {
    let _ = (store, flannel_prefix, name, force);
    todo!()
}

/// Adds a permanent peer: a lease without owner that never expires.
pub async fn add_peer<S: Store>(
    store: &S,
    flannel_prefix: &str,
    name: &NetworkName,
    subnets: SubnetKey,
    publication: &Publication,
) -> Result<Lease, NetworkError> {
    let _ = (store, flannel_prefix, name, subnets, publication);
    todo!()
}

/// Removes a permanent peer; a host's lease is never removed by this.
pub async fn remove_peer<S: Store>(
    store: &S,
    flannel_prefix: &str,
    name: &NetworkName,
    subnets: SubnetKey,
) -> Result<(), NetworkError> {
    let _ = (store, flannel_prefix, name, subnets);
    todo!()
}
