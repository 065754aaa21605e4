//! etcd.
use std::time::Duration;

use flatnet_model::{EtcdLease, Revision};
use futures::Stream;

use crate::store::{KeyRange, RangeReply, Store, StoreError, Txn, TxnReply, WatchBatch};

/// How to reach an etcd.
#[derive(Clone, Default)]
pub struct EtcdOptions {
    /// `http(s)://host:port`, without a scheme http; at least one. The first is tried first.
    pub endpoints: Vec<String>,
    /// PEM of the CA that signed the servers' certificates.
    pub ca: Option<Vec<u8>>,
    /// PEM of the client's certificate and key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// User and password.
    pub user: Option<(String, String)>,
}

/// Options that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidOptions(pub String);

/// A cluster of etcd servers, one of them in use at a time.
pub struct EtcdStore {}

impl EtcdStore {
    /// Checks `options`; connects with the first call, so an absent server blocks nothing here.
    pub fn connect(options: EtcdOptions) -> Result<Self, InvalidOptions> {
        let _ = options;
        todo!()
    }

    /// The endpoint in use.
    #[must_use]
    pub fn endpoint(&self) -> String {
        todo!()
    }
}

impl Store for EtcdStore {
    async fn range(&self, _range: &KeyRange) -> Result<RangeReply, StoreError> {
        todo!()
    }
    async fn txn(&self, _txn: Txn) -> Result<TxnReply, StoreError> {
        todo!()
    }
    async fn lease_grant(&self, _ttl: Duration) -> Result<EtcdLease, StoreError> {
        todo!()
    }
    async fn lease_keep_alive(&self, _lease: EtcdLease) -> Result<Duration, StoreError> {
        todo!()
    }
    async fn lease_revoke(&self, _lease: EtcdLease) -> Result<(), StoreError> {
        todo!()
    }
    async fn watch(
        &self,
        _range: &KeyRange,
        _from: Revision,
    ) -> Result<impl Stream<Item = Result<WatchBatch, StoreError>> + Send + Unpin + 'static, StoreError> {
        Ok(futures::stream::pending())
    }
}
