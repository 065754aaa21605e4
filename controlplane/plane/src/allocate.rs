//! Claiming a subnet by compare-and-swap: it has one owner in the store, whatever crashes, waits or answers twice.

use std::net::IpAddr;
use std::time::Duration;

use flatnet_model::ipam::Exhausted;
use flatnet_model::keys::NetworkKeys;
use flatnet_model::state::NetworkState;
use flatnet_model::{EtcdLease, Lease, NetworkConfig, Owner, Publication, SubnetKey};
use ipnet::IpNet;

use crate::flannel::{decode_lease, encode_lease};
use crate::random::Random;
use crate::store::{Compare, KeyRange, Store, StoreError, Txn, TxnReply, Write};

mod plan;
mod survey;

use plan::Plan;
use survey::Survey;
pub use survey::{KnownLeases, last_holder};

/// A node's request for a lease.
#[derive(Clone, Debug)]
pub struct ClaimRequest {
    /// The network.
    pub keys: NetworkKeys,
    /// The node that asks.
    pub owner: Owner,
    /// The addresses and backend data that it publishes.
    pub publication: Publication,
    /// Particular subnets asked for (`--subnet`), at most one a family.
    pub wanted: Vec<IpNet>,
    /// The subnets this node held before, from its state directory.
    pub previous: Option<SubnetKey>,
    /// The time the lease lives without being kept alive.
    pub ttl: Duration,
    /// True if a lease that publishes this host's address may be taken over when its holder is gone. False for a caller
    /// that only claims to be the host at that address.
    pub adopt: bool,
    /// The leases as known to a caller that follows the store. With them, the first attempt does not read the leases
    /// again.
    pub known: Option<KnownLeases>,
}

/// The way in which a lease came to be held.
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
    /// The lease as it now is in the store.
    pub lease: Lease,
    /// The store's lease under it, to be kept alive.
    pub etcd_lease: EtcdLease,
    /// The way in which it came to be held.
    pub origin: Origin,
}

/// The holder of a subnet that we cannot have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The subnets it holds.
    pub subnets: SubnetKey,
    /// The node, its public address, or "a reservation".
    pub name: String,
}

/// The reason why no lease was acquired.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// The network has no usable configuration.
    #[error("network {network} has no usable configuration")]
    NoConfig {
        /// The network.
        network: String,
    },
    /// The subnet asked for is not one of the network's subnets.
    #[error("{subnet} is not a subnet that {network} hands out ({expected})")]
    Outside {
        /// The subnet asked for.
        subnet: IpNet,
        /// The network's name.
        network: String,
        /// The subnets that the network does hand out.
        expected: String,
    },
    /// The subnets this node holds or held are outside the network as it is configured now.
    #[error("this node's subnet {subnets} is not inside network {network} any more ({expected})")]
    Moved {
        /// The subnets it holds or held.
        subnets: SubnetKey,
        /// The network's name.
        network: String,
        /// The network's ranges.
        expected: String,
    },
    /// The subnet asked for is somebody else's.
    #[error("{subnet} is taken by {name} ({key})", name = .by.name, key = .by.subnets)]
    WantedTaken {
        /// The subnet asked for.
        subnet: IpNet,
        /// The holder.
        by: Holder,
    },
    /// This node's own subnet was taken by another meanwhile.
    #[error("this node's subnet {subnets} was taken by {name}", name = .by.name)]
    Taken {
        /// The subnets this node held.
        subnets: SubnetKey,
        /// The holder.
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
    /// Others were faster every time; it is worth trying again.
    #[error("others changed the store in each of {0} attempts")]
    Busy(u32),
    /// The store could not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AcquireError {
    /// Returns true if waiting and asking again may help without anybody changing this node's configuration.
    #[must_use]
    pub fn can_retry(&self) -> bool {
        match self {
            Self::Busy(_) | Self::Exhausted(_) => true,
            Self::Store(error) => error.can_retry(),
            _ => false,
        }
    }
}

/// The reason why a held lease could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// It is not ours any more (gone, or another's): acquire again.
    #[error("the lease {0} is not this node's any more")]
    Lost(SubnetKey),
    /// The store could not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Acquires this node's lease in a network whose configuration is in `state`.
///
/// In this order: the lease this node holds; what is asked for or was held before; the lease of a flanneld or of an
/// earlier installation on this host; a free one. Each is one transaction that names what it read, so that of two nodes
/// only one succeeds; the other reads again. When an answer is lost, the store is read again to learn what happened;
/// this node's own record ([`NetworkKeys::node_claim`]) keeps a transaction that is still on its way from happening
/// beside a later one.
pub async fn acquire<S: Store>(
    store: &S,
    request: &ClaimRequest,
    state: &NetworkState,
    random: &mut impl Random,
) -> Result<Claim, AcquireError> {
    let Some(config) = state.valid_config() else {
        return Err(AcquireError::NoConfig { network: request.keys.network().to_string() });
    };
    let known = request.known.clone();
    let attempt = Attempt { store, request, config, refresh_only: false, granted: None, known, outcome_unknown: false };
    attempt.end(random).await
}

/// Refreshes the lease on the subnets that this node held before, and nothing else, whatever else it asks for. This
/// makes it safe under a configuration that the caller alone vouches for. [`AcquireError::Busy`]: the node does not
/// hold the lease any more.
pub async fn refresh<S: Store>(
    store: &S,
    request: &ClaimRequest,
    state: &NetworkState,
    random: &mut impl Random,
) -> Result<Claim, AcquireError> {
    let Some(config) = state.valid_config() else {
        return Err(AcquireError::NoConfig { network: request.keys.network().to_string() });
    };
    // What is known may be old, so the store is read to see that the lease is there.
    let attempt =
        Attempt { store, request, config, refresh_only: true, granted: None, known: None, outcome_unknown: false };
    attempt.end(random).await
}

/// The most attempts at a claim before the caller is told. With a pause of about 20 ms each, ten nodes that start at
/// once on one etcd have all had their turn.
const ATTEMPTS: u32 = 20;
/// The pause between two attempts, varied: about as long as one transaction takes on a disk.
const RETRY_AFTER: Duration = Duration::from_millis(15);

struct Attempt<'a, S> {
    store: &'a S,
    request: &'a ClaimRequest,
    config: &'a NetworkConfig,
    /// True if only the lease that is held already may be written.
    refresh_only: bool,
    /// A lease that the store granted and that is not used yet.
    granted: Option<EtcdLease>,
    /// The leases known to the caller, used for the first attempt only.
    known: Option<KnownLeases>,
    /// True once a transaction was sent that may still happen.
    outcome_unknown: bool,
}

impl<S: Store> Attempt<'_, S> {
    async fn end(mut self, random: &mut impl Random) -> Result<Claim, AcquireError> {
        let result = self.run(random).await;
        if result.is_err() {
            self.abandon().await;
        }
        result
    }

    async fn run(&mut self, random: &mut impl Random) -> Result<Claim, AcquireError> {
        for _ in 0..ATTEMPTS {
            if let Some(claim) = self.once(random).await? {
                return Ok(claim);
            }
            tokio::time::sleep(random.jitter(RETRY_AFTER)).await;
        }
        Err(AcquireError::Busy(ATTEMPTS))
    }

    /// Makes one attempt. `None` means that somebody was faster or that the outcome is not known: read again.
    async fn once(&mut self, random: &mut impl Random) -> Result<Option<Claim>, AcquireError> {
        let (survey, plan) = match self.first_attempt(random).await? {
            Some(decided) => decided,
            None => {
                let survey = Survey::read(self.store, self.request).await?;
                let plan = plan::decide(self.store, self.request, self.config, &survey, random).await?;
                (survey, plan)
            }
        };
        if plan.is_ahead_of(&survey) {
            return Ok(None);
        }
        // The transaction compares the lease that is written over, so this holds when it happens too.
        if self.refresh_only && !plan.refreshes(self.request.previous) {
            return Err(AcquireError::Busy(1));
        }
        let etcd_lease = self.etcd_lease(&plan).await?;
        let value = encode_lease(&self.request.publication, Some(&self.request.owner));
        if plan.is_done(&survey, &value, etcd_lease) {
            return Ok(plan.claim(self.request, etcd_lease, None));
        }
        let txn = plan.transaction(self.request, &survey, value, etcd_lease);
        match self.store.txn(txn).await {
            Ok(TxnReply::Done(revision)) => {
                self.granted = None;
                Ok(plan.claim(self.request, etcd_lease, Some(revision)))
            }
            Ok(TxnReply::Refused(_)) => Ok(None),
            Err(StoreError::LeaseGone(_)) => {
                self.granted = None;
                Ok(None)
            }
            Err(StoreError::Unavailable { .. }) => {
                self.outcome_unknown = true;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the first attempt from what a follower knows; `None` when that is not enough to decide. This knowledge may
    /// be old, and the transaction compares it.
    async fn first_attempt(&mut self, random: &mut impl Random) -> Result<Option<(Survey, Plan)>, AcquireError> {
        let Some(known) = self.known.take() else { return Ok(None) };
        let Some(survey) = Survey::from_known(self.store, self.request, known).await? else { return Ok(None) };
        match plan::decide(self.store, self.request, self.config, &survey, random).await {
            Ok(plan) => Ok(Some((survey, plan))),
            Err(AcquireError::Store(error)) => Err(error.into()),
            // A refusal may rest on old knowledge, so the store itself is read before one is given.
            Err(_) => Ok(None),
        }
    }

    /// Returns the store's lease for the claim: that of the lease being refreshed while it lives, else a new one.
    async fn etcd_lease(&mut self, plan: &Plan) -> Result<EtcdLease, StoreError> {
        if let Some(lease) = plan.reusable_lease() {
            match self.store.lease_keep_alive(lease).await {
                Ok(_) => return Ok(lease),
                Err(StoreError::LeaseGone(_)) => {}
                Err(error) => return Err(error),
            }
        }
        if let Some(granted) = self.granted {
            return Ok(granted);
        }
        let granted = self.store.lease_grant(self.request.ttl).await?;
        self.granted = Some(granted);
        Ok(granted)
    }

    /// Gives back a lease of the store that no key is under; one that may be in use expires by itself.
    async fn abandon(&mut self) {
        if let Some(granted) = self.granted.take()
            && !self.outcome_unknown
        {
            // It expires anyway.
            let _ = self.store.lease_revoke(granted).await;
        }
    }
}

/// Publishes changed data (address, MAC) in place.
pub async fn update<S: Store>(
    store: &S,
    keys: &NetworkKeys,
    claim: &Claim,
    publication: &Publication,
) -> Result<Claim, UpdateError> {
    /// The most tries. A refusal means that somebody rewrote our key, and a lost answer that we may have: after each
    /// the key is read once more.
    const TRIES: u32 = 4;
    let subnets = claim.lease.subnets;
    let lost = || UpdateError::Lost(subnets);
    let owner = claim.lease.owner.as_ref().ok_or_else(lost)?;
    let key = keys.lease(&subnets);
    let value = encode_lease(publication, Some(owner));
    let mut last_error = None;
    for _ in 0..TRIES {
        let kv = store.range(&KeyRange::key(&key)).await?.kvs.into_iter().next().ok_or_else(lost)?;
        let lease = decode_lease(subnets, &kv).ok().filter(|lease| lease.is_owned_by(owner.node)).ok_or_else(lost)?;
        if lease.owner.as_ref().is_some_and(|now| now.nonce != owner.nonce) {
            return Err(lost());
        }
        let etcd_lease = kv.lease.unwrap_or(claim.etcd_lease);
        if kv.value == value {
            return Ok(Claim { lease, etcd_lease, origin: claim.origin });
        }
        let txn = Txn {
            when: vec![Compare::ModRevision(key.clone(), kv.mod_revision)],
            then: vec![Write::Put { key: key.clone(), value: value.clone(), lease: Some(etcd_lease) }],
        };
        match store.txn(txn).await {
            Ok(_) => {}
            Err(StoreError::LeaseGone(_)) => return Err(lost()),
            Err(error) if error.can_retry() => last_error = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last_error.map_or_else(lost, UpdateError::Store))
}

/// Gives the lease back: key, claims and the store's lease. What is already gone, or another's, is left alone.
pub async fn release<S: Store>(store: &S, keys: &NetworkKeys, claim: &Claim) -> Result<(), StoreError> {
    /// The most tries: somebody else may change the key between reading and deleting, and a few times is plenty.
    const TRIES: u32 = 4;
    let subnets = claim.lease.subnets;
    let key = keys.lease(&subnets);
    let node = claim.lease.owner.as_ref().map(|owner| owner.node);
    for _ in 0..TRIES {
        let Some(kv) = store.range(&KeyRange::key(&key)).await?.kvs.into_iter().next() else { break };
        let owner = decode_lease(subnets, &kv).ok().and_then(|lease| lease.owner);
        let Some(owner) = owner.filter(|owner| Some(owner.node) == node) else { break };
        let mut then = vec![Write::Delete(key.clone()), Write::Delete(keys.node_claim(owner.node))];
        then.extend(subnets.iter().map(|net| Write::Delete(keys.claim(net))));
        let when = vec![Compare::ModRevision(key.clone(), kv.mod_revision)];
        if let TxnReply::Done(_) = store.txn(Txn { when, then }).await? {
            break;
        }
    }
    store.lease_revoke(claim.etcd_lease).await
}

/// Keeps the lease alive once; returns the time it now lives. [`StoreError::LeaseGone`]: acquire again.
pub async fn keep_alive<S: Store>(store: &S, claim: &Claim) -> Result<Duration, StoreError> {
    store.lease_keep_alive(claim.etcd_lease).await
}

#[cfg(test)]
mod tests;
