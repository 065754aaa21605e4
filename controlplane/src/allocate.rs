//! A subnet by compare-and-swap: one owner in the store, whatever crashes, waits or answers twice.

use std::net::IpAddr;
use std::time::Duration;

use flatnet_model::ipam::Exhausted;
use flatnet_model::keys::NetworkKeys;
use flatnet_model::state::NetworkState;
use flatnet_model::{EtcdLease, Lease, Owner, Publication, SubnetKey};
use ipnet::IpNet;

use crate::random::Random;
use crate::store::{Store, StoreError};

/// What a node asks for.
#[derive(Clone, Debug)]
pub struct ClaimRequest {
    /// The network.
    pub keys: NetworkKeys,
    /// Who asks.
    pub owner: Owner,
    /// What it publishes.
    pub publication: Publication,
    /// Particular subnets asked for (`--subnet`), at most one a family.
    pub wanted: Vec<IpNet>,
    /// What this node held before, from its state directory.
    pub previous: Option<SubnetKey>,
    /// How long the lease lives without being kept alive.
    pub ttl: Duration,
}

/// How a lease came to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was ours already.
    Refreshed,
    /// It was asked for, or held before.
    Reclaimed,
    /// It was flanneld's on this host, or a reinstalled agent's.
    Adopted,
    /// Newly chosen.
    Chosen,
}

/// A lease held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// As it now is in the store.
    pub lease: Lease,
    /// The store's lease under it, to be kept alive.
    pub etcd_lease: EtcdLease,
    /// How it came.
    pub origin: Origin,
}

/// Who holds what we cannot have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its key.
    pub subnets: SubnetKey,
    /// The node, its public address, or "a reservation".
    pub name: String,
}

/// Why no lease was acquired.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// The network has no usable configuration.
    #[error("network {network} has no usable configuration")]
    NoConfig {
        /// The network.
        network: String,
    },
    /// What was asked for is not one of the network's subnets.
    #[error("{subnet} is not a subnet that {network} hands out ({expected})")]
    Outside {
        /// What was asked for.
        subnet: IpNet,
        /// The network's name.
        network: String,
        /// What it does hand out.
        expected: String,
    },
    /// What this node holds or held is outside the network as it is configured now.
    #[error("this node's subnet {subnets} is not inside network {network} any more ({expected})")]
    Moved {
        /// What it holds.
        subnets: SubnetKey,
        /// The network's name.
        network: String,
        /// The network's ranges.
        expected: String,
    },
    /// The subnet asked for is somebody else's.
    #[error("{subnet} is taken by {name} ({key})", name = .by.name, key = .by.subnets)]
    WantedTaken {
        /// What was asked for.
        subnet: IpNet,
        /// By whom.
        by: Holder,
    },
    /// This node's own subnet was taken by another meanwhile.
    #[error("this node's subnet {subnets} was taken by {name}", name = .by.name)]
    Taken {
        /// What this node held.
        subnets: SubnetKey,
        /// By whom.
        by: Holder,
    },
    /// A living node publishes the same underlay address.
    #[error("node {name} is alive and publishes the same public address {address} ({subnets})")]
    SamePublicIp {
        /// The address.
        address: IpAddr,
        /// The other's lease.
        subnets: SubnetKey,
        /// The other node.
        name: String,
    },
    /// No subnet is free.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// Others were faster every time: worth trying again.
    #[error("others changed the store in each of {0} attempts")]
    Busy(u32),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AcquireError {
    /// Whether waiting and asking again may help without anybody changing this node's configuration.
    #[must_use]
    pub fn can_retry(&self) -> bool {
        match self {
            Self::Busy(_) | Self::Exhausted(_) => true,
            Self::Store(error) => error.can_retry(),
            _ => false,
        }
    }
}

/// Why a held lease could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// It is not ours any more (gone, or another's): acquire again.
    #[error("the lease {0} is not this node's any more")]
    Lost(SubnetKey),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Acquires this node's lease in a network whose configuration is in `state`.
pub async fn acquire<S: Store>(
    store: &S,
    request: &ClaimRequest,
    state: &NetworkState,
    random: &mut impl Random,
) -> Result<Claim, AcquireError> {
    let _ = (store, request, state, random);
    todo!()
}

/// Publishes changed data (address, MAC) in place.
pub async fn update<S: Store>(
    store: &S,
    keys: &NetworkKeys,
    claim: &Claim,
    publication: &Publication,
) -> Result<Claim, UpdateError> {
    let _ = (store, keys, claim, publication);
    todo!()
}

/// Gives the lease back: key, claims and the store's lease. What is already gone, or another's, is left alone.
pub async fn release<S: Store>(store: &S, keys: &NetworkKeys, claim: &Claim) -> Result<(), StoreError> {
    let _ = (store, keys, claim);
    todo!()
}

/// Keeps the lease alive once; how long it now lives. [`StoreError::LeaseGone`]: acquire again.
pub async fn keep_alive<S: Store>(store: &S, claim: &Claim) -> Result<Duration, StoreError> {
    store.lease_keep_alive(claim.etcd_lease).await
}
