//! The interface of a store: ranges, transactions, leases, and watches from a revision.
//!
//! Modelled on etcd's v3 API, because etcd is the store of a fleet; the others keep its rules. Every change has the
//! next revision, a transaction happens wholly or not at all, and a watch from a revision misses nothing or says
//! `Compacted`. One conformance suite (`tests/store_conformance.rs`) holds them to it.

pub mod data;
pub mod etcd;
pub mod memory;

use std::future::Future;
use std::time::Duration;

use flatnet_model::{EtcdLease, Revision};
use futures::Stream;

/// A half-open range of keys, `[start, end)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key.
    pub start: String,
    /// The first key beyond the range.
    pub end: String,
}

impl KeyRange {
    /// Makes the range of exactly one key.
    #[must_use]
    pub fn key(key: &str) -> Self {
        Self { start: key.to_owned(), end: format!("{key}\0") }
    }

    /// Makes the range of every key that begins with `prefix`, which ends in an ASCII character other than DEL, as all
    /// of ours do.
    #[must_use]
    pub fn prefix(prefix: &str) -> Self {
        let mut end = prefix.to_owned();
        if let Some(last) = end.pop() {
            end.push(char::from(u8::try_from(last).unwrap_or(b'~').saturating_add(1)));
        }
        Self { start: prefix.to_owned(), end }
    }

    /// Returns true if `key` is inside.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start.as_bytes() <= key && key < self.end.as_bytes()
    }
}

/// A key with its value. Neither needs to be UTF-8: whoever can write the store can write anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
    /// Revision at which the key was created.
    pub create_revision: Revision,
    /// Revision of its last change.
    pub mod_revision: Revision,
    /// The lease it is under, if any.
    pub lease: Option<EtcdLease>,
}

/// The result of a range read, all as of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeReply {
    /// The keys with their values, in the order of keys.
    pub kvs: Vec<KeyValue>,
    /// The store's revision at the time.
    pub revision: Revision,
}

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// No key of the range exists.
    Absent(KeyRange),
    /// The key was last changed at this revision; 0: it does not exist.
    ModRevision(String, Revision),
}

/// A write of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets a key, under a lease or for ever.
    Put {
        /// The key.
        key: String,
        /// Its value.
        value: Vec<u8>,
        /// The lease it goes with.
        lease: Option<EtcdLease>,
    },
    /// Removes a key; removing what is not there changes nothing.
    Delete(String),
}

/// Conditions, and the writes that happen if all of them hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions, which must all hold.
    pub when: Vec<Compare>,
    /// The writes, which are done together, each key at most once.
    pub then: Vec<Write>,
}

/// The outcome of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxnReply {
    /// The conditions held and the writes were made at this revision.
    Done(Revision),
    /// A condition did not hold; nothing was written. This is the store's revision at the time.
    Refused(Revision),
}

/// One change seen by a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// A key was written.
    Put(KeyValue),
    /// A key was removed or expired, at this revision.
    Delete {
        /// The key.
        key: Vec<u8>,
        /// The revision.
        revision: Revision,
    },
}

/// Changes in the order of revisions. A batch may be empty, and then only tells how far the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    /// All changes of one or more whole revisions.
    pub events: Vec<WatchEvent>,
    /// Everything up to this revision has been delivered.
    pub revision: Revision,
}

/// The reason why a store could not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store is not reachable, timed out or has no leader; it is worth trying again.
    #[error("the store at {endpoint} is not reachable: {reason}")]
    Unavailable {
        /// The endpoint last tried.
        endpoint: String,
        /// The cause, as told by the store or the network.
        reason: String,
    },
    /// The revision asked for has been compacted away; read a snapshot again.
    #[error("the store has forgotten revisions before {0}")]
    Compacted(Revision),
    /// The lease does not exist (any more).
    #[error("the store's lease {0:x} is gone")]
    LeaseGone(i64),
    /// The credentials are wrong or missing, or do not allow the call.
    #[error("the store at {endpoint} refused: {reason}")]
    Denied {
        /// The endpoint.
        endpoint: String,
        /// The cause, as told by the store.
        reason: String,
    },
    /// Anything else the store refused; trying again will not help.
    #[error("the store at {endpoint} answered: {reason}")]
    Rejected {
        /// The endpoint.
        endpoint: String,
        /// The cause, as told by the store.
        reason: String,
    },
}

/// The kinds of a store's errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// [`StoreError::Unavailable`].
    Unavailable,
    /// [`StoreError::Compacted`].
    Compacted,
    /// [`StoreError::LeaseGone`].
    LeaseGone,
    /// [`StoreError::Denied`].
    Denied,
    /// [`StoreError::Rejected`].
    Rejected,
}

impl StoreErrorKind {
    /// Returns true if the store is there and refuses the call until somebody changes something.
    #[must_use]
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::Denied | Self::Rejected)
    }
}

impl StoreError {
    /// Returns the kind of the error.
    #[must_use]
    pub fn kind(&self) -> StoreErrorKind {
        match self {
            Self::Unavailable { .. } => StoreErrorKind::Unavailable,
            Self::Compacted(_) => StoreErrorKind::Compacted,
            Self::LeaseGone(_) => StoreErrorKind::LeaseGone,
            Self::Denied { .. } => StoreErrorKind::Denied,
            Self::Rejected { .. } => StoreErrorKind::Rejected,
        }
    }

    /// Makes the error of a server that has not got as far as the revision before `from`.
    pub fn behind(endpoint: &str, at: Revision, from: Revision) -> Self {
        let reason = format!("it is at revision {at}, behind {}: it was put back, or lags", from - 1);
        Self::Unavailable { endpoint: endpoint.to_owned(), reason }
    }

    /// Returns true if `reason`, as a store or the way to it gave it, is about certificates. Neither side then knows
    /// the other, and only somebody with another file can help.
    #[must_use]
    pub fn is_about_certificates(reason: &str) -> bool {
        let reason = reason.to_ascii_lowercase();
        ["certificate", "unknownissuer", "unknown ca"].iter().any(|word| reason.contains(word))
    }

    /// Returns true if the store is there and refuses the call until somebody changes something.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        self.kind().is_refusal()
    }

    /// Returns true if the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn can_retry(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// A store. Every call has a deadline of its own ([`CALL_TIMEOUT`]), so none waits for ever.
pub trait Store: Send + Sync + 'static {
    /// Reads all keys of `range`, as of now.
    fn range(&self, range: &KeyRange) -> impl Future<Output = Result<RangeReply, StoreError>> + Send;

    /// Tells that this host's address or route changed. A connection from the old one hears nothing any more, and would
    /// be waited for. The next call makes a new one; running watches find out by themselves.
    fn path_changed(&self) {}

    /// Returns the reason why the store takes no changes for now, if it knows of one although reading works: a disk may
    /// be full.
    fn refuses_changes(&self) -> Option<String> {
        None
    }

    /// Carries out `txn`. After [`StoreError::Unavailable`] it may or may not have happened: read to find out.
    fn txn(&self, txn: Txn) -> impl Future<Output = Result<TxnReply, StoreError>> + Send;

    /// Grants a new lease; `ttl` is rounded up to whole seconds.
    fn lease_grant(&self, ttl: Duration) -> impl Future<Output = Result<EtcdLease, StoreError>> + Send;

    /// Renews a lease once; returns the time it now has left.
    fn lease_keep_alive(&self, lease: EtcdLease) -> impl Future<Output = Result<Duration, StoreError>> + Send;

    /// Returns the time a lease has left, without renewing it.
    fn lease_time_left(&self, lease: EtcdLease) -> impl Future<Output = Result<Duration, StoreError>> + Send;

    /// Ends a lease and removes the keys under it; that it is already gone is success.
    fn lease_revoke(&self, lease: EtcdLease) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Watches every change in `range` from `from` on, `from` included. Ends with an error when it breaks, within 5 s
    /// also when the server merely falls silent.
    ///
    /// A store that is not yet at the revision before `from` refuses ([`StoreError::Unavailable`]): it was wiped or put
    /// back since that revision was read, and the watch would see nothing until it has grown past it.
    fn watch(
        &self,
        range: &KeyRange,
        from: Revision,
    ) -> impl Future<
        Output = Result<impl Stream<Item = Result<WatchBatch, StoreError>> + Send + Unpin + 'static, StoreError>,
    > + Send;
}

/// The longest one call may take: a healthy etcd answers in milliseconds, an election takes 1 to 2 s (etcd's default
/// election timeout is 1 s), and the agent must be at another endpoint within 5 s.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(3);
