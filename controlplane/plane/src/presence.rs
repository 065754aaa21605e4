//! Presence: the record that a node is alive, and that it is the only one with its identity.

use std::net::IpAddr;
use std::time::Duration;

use flatnet_model::text::excerpt;
use flatnet_model::{EtcdLease, HostRanges, InstanceNonce, NodeId, Owner, Revision};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::store::{Compare, KeyRange, KeyValue, Store, StoreError, Txn, TxnReply, Write};

/// The record's version.
const VERSION: u32 = 1;

/// The time a node counts as alive after its last sign.
pub const PRESENCE_TTL: Duration = Duration::from_secs(15);

/// A node's presence, held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// The node.
    pub node: NodeId,
    /// The store's lease under it. Keep it alive every third of [`PRESENCE_TTL`].
    pub lease: EtcdLease,
}

/// The reason why presence could not be claimed.
#[derive(Debug, thiserror::Error)]
pub enum PresenceError {
    /// Another living machine has this node's identity.
    #[error("node id {node} is in use by another running machine ({name}): its state directory was copied")]
    Cloned {
        /// The identity.
        node: NodeId,
        /// The other's name.
        name: String,
        /// The other's nonce.
        nonce: InstanceNonce,
    },
    /// The store could not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The value under a node's key.
#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    name: String,
    nonce: InstanceNonce,
    /// The [`HostRanges`], as text, so that one that cannot be read spoils nothing else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    routes: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    resolvers: Vec<String>,
    /// The address it calls from, as seen by the server it called; none for a node that writes the store itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    endpoints: Vec<String>,
}

impl Record {
    fn new(who: &Owner, ranges: &HostRanges, from: Option<IpAddr>) -> Self {
        Self {
            version: VERSION,
            name: who.name.clone(),
            nonce: who.nonce,
            routes: ranges.prefixes().iter().map(ToString::to_string).collect(),
            resolvers: ranges.resolvers().iter().map(ToString::to_string).collect(),
            from,
            endpoints: ranges.endpoints().iter().map(ToString::to_string).collect(),
        }
    }

    /// Returns true if a record of this node's says what `new` says.
    fn says_the_same(&self, new: &Self) -> bool {
        self.from == new.from
            && self.name == new.name
            && self.routes == new.routes
            && self.resolvers == new.resolvers
            && self.endpoints == new.endpoints
    }
}

/// Reads what a present node publishes about itself: its name, and the addresses its host uses. `None`: the value is no
/// presence.
#[must_use]
pub fn read(value: &[u8]) -> Option<(String, HostRanges)> {
    let record: Record = serde_json::from_slice(value).ok()?;
    // The number is bounded before they are parsed: a client that can write the store can write anything.
    let routes = record.routes.iter().take(HostRanges::PREFIXES).filter_map(|text| text.parse().ok());
    let resolvers = record.resolvers.iter().take(HostRanges::RESOLVERS).filter_map(|text| text.parse().ok());
    let endpoints = record.endpoints.iter().take(HostRanges::ENDPOINTS).filter_map(|text| text.parse().ok());
    Some((excerpt(&record.name), HostRanges::new(routes, resolvers).with_endpoints(endpoints)))
}

/// Returns the address from which a present node calls, if a server saw that.
#[must_use]
pub fn called_from(value: &[u8]) -> Option<IpAddr> {
    serde_json::from_slice::<Record>(value).ok()?.from
}

/// Records that the node of the presence `kv` now calls from another address.
pub async fn moved<S: Store>(store: &S, node: NodeId, kv: &KeyValue, from: IpAddr) -> Result<(), StoreError> {
    let (Ok(mut record), Some(lease)) = (serde_json::from_slice::<Record>(&kv.value), kv.lease) else { return Ok(()) };
    record.from = Some(from);
    let key = flatnet_model::keys::presence(node);
    // A refusal means that it was written meanwhile, by the node itself.
    put(store, key, kv.mod_revision, node, &record, lease).await.map(drop)
}

/// The pause between two looks at the key of another copy while its time runs out.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// The time the store may take beyond the TTL to expire a lease (etcd looks every 500 ms), and for the calls.
const EXPIRY_TIMEOUT: Duration = Duration::from_secs(2);

/// The number of renewals after which a copy is sure to live. One may be a new leader's doing: etcd then gives every
/// lease its whole time again.
const RENEWALS: u32 = 2;

/// Claims the presence of `who`, whose host uses `ranges` itself. A presence that is held already publishes them from
/// then on.
///
/// Another copy's key is waited out once: after a reboot it is this machine's own, with the nonce of before. When its
/// lease is renewed meanwhile, or the key is still there after its TTL, another machine lives that has a copy of our
/// state directory.
pub async fn announce<S: Store>(store: &S, who: &Owner, ranges: &HostRanges) -> Result<Presence, PresenceError> {
    announce_from(store, who, ranges, None).await
}

/// Claims the presence as [`announce`] does, for a node that calls from `from`.
pub async fn announce_from<S: Store>(
    store: &S,
    who: &Owner,
    ranges: &HostRanges,
    from: Option<IpAddr>,
) -> Result<Presence, PresenceError> {
    let mut ends = Instant::now() + PRESENCE_TTL + EXPIRY_TIMEOUT;
    let mut granted = None;
    let new = Record::new(who, ranges, from);
    let mut signs = SignsOfLife::default();
    loop {
        let other = match attempt(store, who.node, &new, &mut granted).await {
            Ok(Attempt::Held(presence)) => return Ok(presence),
            Ok(Attempt::Again) => None,
            Ok(Attempt::Other(other, lease)) => {
                if signs.look(store, &other, lease).await == Sign::Renewed {
                    ends = Instant::now() + PRESENCE_TTL + EXPIRY_TIMEOUT;
                }
                Some(other)
            }
            Err(error) => return Err(error.into()),
        };
        if Instant::now() >= ends || signs.renewals >= RENEWALS {
            return Err(match other {
                Some(other) => PresenceError::Cloned { node: who.node, name: excerpt(&other.name), nonce: other.nonce },
                None => PresenceError::Store(StoreError::Unavailable {
                    endpoint: "store".to_owned(),
                    reason: "the node's presence changed in every attempt".to_owned(),
                }),
            });
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

enum Attempt {
    Held(Presence),
    /// The record has changed and is to be read again.
    Again,
    /// Another copy holds it, under this lease.
    Other(Record, EtcdLease),
}

/// The result of one look at a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    /// The lease has more time left than before.
    Renewed,
    /// No sign of life.
    None,
}

/// The signs of life seen of the lease under another copy's key.
#[derive(Default)]
struct SignsOfLife {
    last: Option<(EtcdLease, Duration)>,
    renewals: u32,
}

impl SignsOfLife {
    /// Looks at the lease once. A lease that nobody renews only gets shorter.
    async fn look<S: Store>(&mut self, store: &S, other: &Record, lease: EtcdLease) -> Sign {
        if self.last.is_none() {
            tracing::warn!(
                name = excerpt(&other.name),
                "another instance has this node's identity; waiting whether it is this machine before a reboot, or a copy that lives"
            );
        }
        // A lease that cannot be read now is looked at again, or waited out.
        let Ok(left) = store.lease_time_left(lease).await else { return Sign::None };
        match self.last.replace((lease, left)) {
            Some((known, before)) if known != lease || left > before => {
                self.renewals += 1;
                Sign::Renewed
            }
            Some(_) | None => Sign::None,
        }
    }
}

async fn attempt<S: Store>(
    store: &S,
    node: NodeId,
    new: &Record,
    granted: &mut Option<EtcdLease>,
) -> Result<Attempt, StoreError> {
    let key = flatnet_model::keys::presence(node);
    let found = store.range(&KeyRange::key(&key)).await?.kvs.into_iter().next();
    if let Some(kv) = &found
        && let Some(lease) = kv.lease
        // Nobody can be keeping a record alive that has no lease or is unreadable.
        && let Ok(record) = serde_json::from_slice::<Record>(&kv.value)
    {
        if record.nonce != new.nonce {
            return Ok(Attempt::Other(record, lease));
        }
        match store.lease_keep_alive(lease).await {
            Ok(_) if record.says_the_same(new) => return Ok(Attempt::Held(Presence { node, lease })),
            // The presence goes on under its lease, with the new record.
            Ok(_) => return put(store, key, kv.mod_revision, node, new, lease).await,
            Err(StoreError::LeaseGone(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let lease = match *granted {
        Some(lease) => lease,
        None => *granted.insert(store.lease_grant(PRESENCE_TTL).await?),
    };
    let revision = found.map_or(0, |kv| kv.mod_revision);
    let written = put(store, key, revision, node, new, lease).await;
    if let Err(StoreError::LeaseGone(_)) = written {
        *granted = None;
        return Ok(Attempt::Again);
    }
    written
}

/// Writes the record over the one of `revision`.
async fn put<S: Store>(
    store: &S,
    key: String,
    revision: Revision,
    node: NodeId,
    new: &Record,
    lease: EtcdLease,
) -> Result<Attempt, StoreError> {
    // The value has only strings and numbers, so this cannot fail.
    let value = serde_json::to_vec(new).unwrap_or_default();
    let txn = Txn {
        when: vec![Compare::ModRevision(key.clone(), revision)],
        then: vec![Write::Put { key, value, lease: Some(lease) }],
    };
    match store.txn(txn).await {
        Ok(TxnReply::Done(_)) => Ok(Attempt::Held(Presence { node, lease })),
        Ok(TxnReply::Refused(_)) | Err(StoreError::Unavailable { .. }) => Ok(Attempt::Again),
        Err(error) => Err(error),
    }
}

/// Keeps the presence alive once. [`StoreError::LeaseGone`]: announce again.
pub async fn keep_alive<S: Store>(store: &S, presence: &Presence) -> Result<Duration, StoreError> {
    store.lease_keep_alive(presence.lease).await
}

/// Ends the presence.
pub async fn withdraw<S: Store>(store: &S, presence: &Presence) -> Result<(), StoreError> {
    store.lease_revoke(presence.lease).await
}

#[cfg(test)]
mod tests;
