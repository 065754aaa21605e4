//! etcd.
//!
//! One endpoint is in use at a time, the same for everything, until it fails: etcd-client's own balancing keeps sending
//! calls to a dead member. Whoever calls backs off; here nothing sleeps but for a call's own deadline.
//!
//! Nothing runs in the background. A call that is dropped may or may not have happened.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Client, CompareOp, GetOptions, PutOptions, TxnOp};
use flatnet_model::{EtcdLease, Revision};
use futures::Stream;

use crate::store::{
    CALL_TIMEOUT, Compare, KeyRange, KeyValue, RangeReply, Store, StoreError, Txn, TxnReply, WatchBatch, Write,
};

mod error;
mod options;
mod watch;

use options::Endpoint;
pub use options::{EtcdOptions, InvalidOptions};

/// The largest answer taken, in bytes. 20,000 leases of 600 bytes each (key, value, revisions) are 12 MB in the one
/// range read of a start, and tonic's default of 4 MB ends at 7,000; the rest is room for values of others that will be
/// skipped, of which etcd allows 1.5 MB each.
const ANSWER_LIMIT: usize = 64 * 1024 * 1024;

/// A cluster of etcd servers, one of them in use at a time.
#[derive(Clone)]
pub struct EtcdStore {
    inner: Arc<Inner>,
}

struct Inner {
    endpoints: Vec<Endpoint>,
    user: Option<(String, String)>,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    /// Which endpoint is in use.
    index: usize,
    /// Connected lazily.
    client: Option<Client>,
    /// Counts connections, so that late news of an old one does not end a new one.
    generation: u64,
}

/// One connection as taken for one call.
struct Connection {
    client: Client,
    generation: u64,
    endpoint: String,
}

impl EtcdStore {
    /// Checks `options`; connects with the first call, so an absent server blocks nothing here.
    pub fn connect(options: EtcdOptions) -> Result<Self, InvalidOptions> {
        let endpoints = options.endpoints()?;
        let inner = Inner { endpoints, user: options.user, current: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The endpoint in use.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let index = self.inner.lock().index;
        self.inner.endpoint(index).url.clone()
    }

    /// Carries out one call within [`CALL_TIMEOUT`], connecting first if needed.
    async fn call<T, F>(&self, f: impl FnOnce(Client) -> F + Send) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, etcd_client::Error>> + Send,
    {
        let mut generation = self.inner.lock().generation;
        let work = async {
            let connection = self.inner.connection().await?;
            generation = connection.generation;
            f(connection.client).await.map_err(|error| error::classify(&connection.endpoint, &error))
        };
        let result = match tokio::time::timeout(CALL_TIMEOUT, work).await {
            Ok(result) => result,
            Err(_elapsed) => Err(self.inner.silent(CALL_TIMEOUT)),
        };
        if let Err(error) = &result {
            self.inner.after_error(generation, error);
        }
        result
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn endpoint(&self, index: usize) -> &Endpoint {
        // There is at least one: `EtcdOptions::endpoints` refuses an empty list.
        &self.endpoints[index % self.endpoints.len()]
    }

    /// The connection in use, made if there is none.
    async fn connection(&self) -> Result<Connection, StoreError> {
        let (index, generation) = {
            let current = self.lock();
            if let Some(client) = &current.client {
                return Ok(Connection {
                    client: client.clone(),
                    generation: current.generation,
                    endpoint: self.endpoint(current.index).url.clone(),
                });
            }
            (current.index, current.generation)
        };
        let endpoint = self.endpoint(index);
        let client =
            endpoint.connect(self.user.as_ref()).await.map_err(|error| error::classify(&endpoint.url, &error))?;
        let mut current = self.lock();
        if current.generation == generation && current.client.is_none() {
            current.client = Some(client.clone());
        }
        Ok(Connection { client, generation, endpoint: endpoint.url.clone() })
    }

    /// What the end of a call means for the connection it used.
    fn after_error(&self, generation: u64, error: &StoreError) {
        let mut current = self.lock();
        if current.generation != generation {
            return;
        }
        match error {
            StoreError::Unavailable { .. } => {
                current.index = (current.index + 1) % self.endpoints.len();
                current.client = None;
                current.generation += 1;
            }
            // A token may have expired or the password changed: authenticate anew with the next call.
            StoreError::Denied { .. } => {
                current.client = None;
                current.generation += 1;
            }
            StoreError::Compacted(_) | StoreError::LeaseGone(_) | StoreError::Rejected { .. } => {}
        }
    }

    fn silent(&self, after: Duration) -> StoreError {
        let endpoint = self.endpoint(self.lock().index).url.clone();
        StoreError::Unavailable { endpoint, reason: format!("no answer within {} s", after.as_secs()) }
    }
}

impl Store for EtcdStore {
    async fn range(&self, range: &KeyRange) -> Result<RangeReply, StoreError> {
        let (start, end) = (range.start.clone(), range.end.clone());
        let reply = self.call(|client| async move {
            let mut kv = client.kv_client().max_decoding_message_size(ANSWER_LIMIT);
            kv.get(start, Some(GetOptions::new().with_range(end))).await
        });
        let mut reply = reply.await?;
        let revision = reply.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok(RangeReply { kvs: reply.take_kvs().into_iter().map(key_value).collect(), revision })
    }

    fn path_changed(&self) {
        let mut current = self.inner.lock();
        current.client = None;
        current.generation += 1;
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        let leases: Vec<i64> = txn
            .then
            .iter()
            .filter_map(|write| match write {
                Write::Put { lease, .. } => lease.map(|lease| lease.0),
                Write::Delete(_) => None,
            })
            .collect();
        let compares: Vec<_> = txn.when.into_iter().map(compare).collect();
        let writes: Vec<_> = txn.then.into_iter().map(write).collect();
        let request = etcd_client::Txn::new().when(compares).and_then(writes);
        let reply = self.call(|client| async move { client.kv_client().txn(request).await });
        let reply = reply.await.map_err(|error| error::name_lease(error, leases.first().copied()))?;
        let revision = reply.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok(if reply.succeeded() { TxnReply::Done(revision) } else { TxnReply::Refused(revision) })
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<EtcdLease, StoreError> {
        let up = u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(ttl.as_secs().saturating_add(up)).unwrap_or(i64::MAX).max(1);
        let reply = self.call(|client| async move { client.lease_client().grant(seconds, None).await }).await?;
        Ok(EtcdLease(reply.id()))
    }

    async fn lease_keep_alive(&self, lease: EtcdLease) -> Result<Duration, StoreError> {
        let ttl = self.call(|client| async move {
            // The first answer is checked and swallowed by etcd-client, only the second one shows the time left.
            let (mut keeper, mut answers) = client.lease_client().keep_alive(lease.0).await?;
            keeper.keep_alive().await?;
            Ok(answers.message().await?.map_or(0, |answer| answer.ttl()))
        });
        match ttl.await.map_err(|error| error::name_lease(error, Some(lease.0)))? {
            ttl if ttl > 0 => Ok(Duration::from_secs(u64::try_from(ttl).unwrap_or_default())),
            _ => Err(StoreError::LeaseGone(lease.0)),
        }
    }

    async fn lease_time_left(&self, lease: EtcdLease) -> Result<Duration, StoreError> {
        let left = self.call(|client| async move { client.lease_client().time_to_live(lease.0, None).await });
        let left = left.await.map_err(|error| error::name_lease(error, Some(lease.0)))?.ttl();
        // etcd answers -1 for one that does not exist.
        u64::try_from(left).map(Duration::from_secs).map_err(|_| StoreError::LeaseGone(lease.0))
    }

    async fn lease_revoke(&self, lease: EtcdLease) -> Result<(), StoreError> {
        match self.call(|client| async move { client.lease_client().revoke(lease.0).await }).await {
            Ok(_) | Err(StoreError::LeaseGone(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn watch(
        &self,
        range: &KeyRange,
        from: Revision,
    ) -> Result<impl Stream<Item = Result<WatchBatch, StoreError>> + Send + Unpin + 'static, StoreError> {
        watch::open(self, range, from).await
    }
}

fn key_value(kv: etcd_client::KeyValue) -> KeyValue {
    let (create_revision, mod_revision) = (kv.create_revision(), kv.mod_revision());
    let lease = Some(EtcdLease(kv.lease())).filter(|lease| lease.0 != 0);
    let (key, value) = kv.into_key_value();
    KeyValue { key, value, create_revision, mod_revision, lease }
}

fn compare(compare: Compare) -> etcd_client::Compare {
    match compare {
        Compare::Absent(range) => etcd_client::Compare::version(range.start, CompareOp::Equal, 0).with_range(range.end),
        Compare::ModRevision(key, revision) => etcd_client::Compare::mod_revision(key, CompareOp::Equal, revision),
    }
}

fn write(write: Write) -> TxnOp {
    match write {
        Write::Put { key, value, lease } => {
            let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
            TxnOp::put(key, value, options)
        }
        Write::Delete(key) => TxnOp::delete(key, None),
    }
}
