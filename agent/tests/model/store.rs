//! A node's store: the one in memory, some milliseconds away. It is watched for what must never be in it.

use std::sync::Arc;
use std::time::Duration;

use flatnet_model::{EtcdLease, Revision};
use flatnet_plane::store::memory::MemoryStore;
use flatnet_plane::store::{KeyRange, RangeReply, Store, StoreError, Txn, TxnReply, WatchBatch, Write};
use futures::Stream;

use crate::oracle;
use crate::trace::RunLog;

/// A part that is broken on purpose, to show that this is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Nothing is broken.
    None,
    /// Transactions happen whatever their conditions: an allocator that does not compare.
    NoCompare,
    /// Objects that are no longer wanted are never found: a differ that walks the desired side only.
    DesiredSideOnly,
}

/// The way of one run of a node to the store.
pub struct ModelStore {
    /// The node's client.
    pub inner: MemoryStore,
    /// The log of the node's run.
    pub log: Arc<RunLog>,
    /// The part that is broken.
    pub mutant: Mutant,
}

impl Store for ModelStore {
    async fn range(&self, range: &KeyRange) -> Result<RangeReply, StoreError> {
        self.log.travel().await;
        let reply = self.inner.range(range).await;
        self.log.travel().await;
        if reply.is_ok() && self.log.networks.iter().any(|keys| *range == KeyRange::prefix(&keys.all())) {
            self.log.snapshots.lock().unwrap().insert(range.start.clone());
        }
        reply
    }

    async fn txn(&self, mut txn: Txn) -> Result<TxnReply, StoreError> {
        if self.mutant == Mutant::NoCompare {
            txn.when.clear();
        }
        let writes: Vec<String> = txn
            .then
            .iter()
            .map(|write| match write {
                Write::Put { key, lease, .. } => format!("put {key} {:x}", lease.map_or(0, |lease| lease.0)),
                Write::Delete(key) => format!("delete {key}"),
            })
            .collect();
        self.log.travel().await;
        let reply = self.inner.txn(txn).await;
        self.log.trace.say(format!("{} txn [{}] -> {reply:?}", self.log.name, writes.join(", ")));
        if let Some(two) = oracle::two_owners(&self.inner, &self.log.networks) {
            self.log.trace.violation(two);
        }
        self.log.travel().await;
        reply
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<EtcdLease, StoreError> {
        self.log.travel().await;
        let reply = self.inner.lease_grant(ttl).await;
        self.log.travel().await;
        reply
    }

    async fn lease_keep_alive(&self, lease: EtcdLease) -> Result<Duration, StoreError> {
        self.log.travel().await;
        let reply = self.inner.lease_keep_alive(lease).await;
        self.log.travel().await;
        reply
    }

    async fn lease_time_left(&self, lease: EtcdLease) -> Result<Duration, StoreError> {
        self.log.travel().await;
        let reply = self.inner.lease_time_left(lease).await;
        self.log.travel().await;
        reply
    }

    async fn lease_revoke(&self, lease: EtcdLease) -> Result<(), StoreError> {
        self.log.travel().await;
        let reply = self.inner.lease_revoke(lease).await;
        self.log.travel().await;
        reply
    }

    async fn watch(
        &self,
        range: &KeyRange,
        from: Revision,
    ) -> Result<impl Stream<Item = Result<WatchBatch, StoreError>> + Send + Unpin + 'static, StoreError> {
        self.log.travel().await;
        self.inner.watch(range, from).await
    }
}
