//! The store that a server was told to use.

use std::time::Duration;

use flatnet_model::{EtcdLease, Revision};
use futures::stream::{BoxStream, StreamExt};

use super::embedded::EmbeddedStore;
use flatnet_plane::store::etcd::EtcdStore;
use flatnet_plane::store::memory::MemoryStore;
use flatnet_plane::store::{KeyRange, RangeReply, Store, StoreError, Txn, TxnReply, WatchBatch};

/// One of the stores.
pub enum AnyStore {
    /// A file.
    Embedded(EmbeddedStore),
    /// etcd.
    Etcd(EtcdStore),
    /// Memory, where nothing lasts: for trying out.
    Memory(MemoryStore),
}

macro_rules! each {
    ($self:ident, $store:ident => $call:expr) => {
        match $self {
            Self::Embedded($store) => $call,
            Self::Etcd($store) => $call,
            Self::Memory($store) => $call,
        }
    };
}

impl Store for AnyStore {
    async fn range(&self, range: &KeyRange) -> Result<RangeReply, StoreError> {
        each!(self, store => store.range(range).await)
    }

    fn path_changed(&self) {
        each!(self, store => store.path_changed());
    }

    fn refuses_changes(&self) -> Option<String> {
        each!(self, store => store.refuses_changes())
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        each!(self, store => store.txn(txn).await)
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<EtcdLease, StoreError> {
        each!(self, store => store.lease_grant(ttl).await)
    }

    async fn lease_keep_alive(&self, lease: EtcdLease) -> Result<Duration, StoreError> {
        each!(self, store => store.lease_keep_alive(lease).await)
    }

    async fn lease_time_left(&self, lease: EtcdLease) -> Result<Duration, StoreError> {
        each!(self, store => store.lease_time_left(lease).await)
    }

    async fn lease_revoke(&self, lease: EtcdLease) -> Result<(), StoreError> {
        each!(self, store => store.lease_revoke(lease).await)
    }

    async fn watch(
        &self,
        range: &KeyRange,
        from: Revision,
    ) -> Result<impl futures::Stream<Item = Result<WatchBatch, StoreError>> + Send + Unpin + 'static, StoreError> {
        let stream: BoxStream<'static, _> = each!(self, store => store.watch(range, from).await?.boxed());
        Ok(stream)
    }
}
