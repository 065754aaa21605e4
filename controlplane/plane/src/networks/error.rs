//! The errors of network commands.

use flatnet_model::{NetworkName, SubnetKey};
use ipnet::IpNet;

use crate::flannel::InvalidConfig;
use crate::store::StoreError;

/// The reason why a network command failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// `create`: the network is there already.
    #[error("network {0} exists already")]
    Exists(NetworkName),
    /// The network is not there.
    #[error("network {0} does not exist")]
    NotFound(NetworkName),
    /// The configuration asked for cannot be used.
    #[error("network {name}: {source}")]
    Invalid {
        /// The network.
        name: NetworkName,
        /// The reason.
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
    /// The UDP port is another network's.
    #[error("network {name}: UDP port {port} is in use by network {other}")]
    PortInUse {
        /// The network.
        name: NetworkName,
        /// The port.
        port: u16,
        /// The other network.
        other: NetworkName,
    },
    /// The GRE key is another network's.
    #[error("network {name}: GRE key {key} is in use by network {other}")]
    KeyInUse {
        /// The network.
        name: NetworkName,
        /// The key; 0 is "no key", which one network can use.
        key: u32,
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
    /// Hosts use its range themselves.
    #[error("network {name}: {ranges}: {count} hosts use a part of it themselves: {shown}", count = .hosts.len(), shown = first_few(.hosts))]
    UsedByHosts {
        /// The network.
        name: NetworkName,
        /// Its ranges that are new.
        ranges: String,
        /// The hosts, with the addresses they use.
        hosts: Vec<String>,
    },
    /// A peer's subnet overlaps a lease.
    #[error("network {name}: {subnets} overlaps {other}")]
    PeerOverlap {
        /// The network.
        name: NetworkName,
        /// The peer's subnets.
        subnets: SubnetKey,
        /// The subnets of the lease that it overlaps.
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
        /// The subnets asked for.
        subnets: SubnetKey,
    },
    /// Others were faster every time: worth trying again.
    #[error("others changed the networks in each of {0} attempts")]
    Busy(u32),
    /// The store could not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl NetworkError {
    /// The hint what to do about [`NetworkError::UsedByHosts`].
    pub const USED_BY_HOSTS_HINT: &'static str = "choose a range that no host uses; if those are only wider routes that lead elsewhere, --force: on a host the network's own routes win";
}

fn first_few(keys: &[String]) -> String {
    /// The most hosts named in an error: enough to recognise which are meant.
    const SHOWN: usize = 8;
    let mut text = keys.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if keys.len() > SHOWN {
        text.push_str(", …");
    }
    text
}
