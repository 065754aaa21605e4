//! The store in an etcd.
//!
//! One endpoint is in use at a time, the same for everything, until it fails: etcd-client's own balancing keeps sending
//! calls to a dead member. Callers back off; here nothing sleeps but for a call's own deadline.
//!
//! Nothing runs in the background. A call that is dropped may or may not have happened.

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Client, CompareOp, GetOptions, PutOptions, TxnOp};
use flatnet_model::{EtcdLease, Revision};
use futures::Stream;
use tokio::time::Instant;

use crate::store::{
    CALL_TIMEOUT, Compare, KeyRange, KeyValue, RangeReply, Store, StoreError, Txn, TxnReply, WatchBatch, Write,
};

mod error;
mod options;
mod trust;
mod watch;

use options::Endpoint;
pub use options::{Again, EtcdOptions, File, InvalidOptions};

/// The largest answer taken, in bytes. 20,000 leases of 600 bytes each (key, value, revisions) are 12 MB in the one
/// range read of a start; tonic's default of 4 MB ends at 7,000. The rest is room for values of others that will be
/// skipped; etcd allows 1.5 MB for each.
const ANSWER_LIMIT: usize = 64 * 1024 * 1024;

/// The time for which a password that was not accepted is not tried again, unless another one is read. Checking one
/// costs etcd a tenth of a second of CPU (bcrypt), and a whole fleet would ask.
const DENIED_RETRY_AFTER: Duration = Duration::from_secs(5);

/// A cluster of etcd servers, one of them in use at a time.
#[derive(Clone)]
pub struct EtcdStore {
    inner: Arc<Inner>,
}

struct Inner {
    /// The addresses and credentials as they were last read.
    access: Mutex<Arc<Access>>,
    /// Reads the addresses and credentials again.
    again: Option<Again>,
    current: Mutex<Current>,
    /// The number of watches in a row that were given up because nothing told of their progress.
    silences: AtomicU32,
}

/// The servers' addresses, and the credentials they know us by.
struct Access {
    /// The servers, at least one: `EtcdOptions::endpoints` refuses an empty list.
    endpoints: Vec<Endpoint>,
    user: Option<(String, String)>,
    /// The files that `endpoints` were made from.
    files: Files,
}

/// The contents of the files: the CA; certificate and key.
type Files = (Option<Vec<u8>>, Option<(Vec<u8>, Vec<u8>)>);

impl Access {
    fn new(options: EtcdOptions) -> Result<Self, InvalidOptions> {
        Ok(Self { endpoints: options.endpoints()?, user: options.user, files: (options.ca, options.identity) })
    }

    fn is_same(&self, other: &Self) -> bool {
        self.user == other.user && self.files == other.files
    }

    fn endpoint(&self, index: usize) -> &Endpoint {
        &self.endpoints[index % self.endpoints.len()]
    }
}

#[derive(Default)]
struct Current {
    /// The index of the endpoint in use.
    index: usize,
    /// The client, connected lazily.
    client: Option<Client>,
    /// A client without credentials, to keep leases alive while the server refuses to know us.
    keeper: Option<Client>,
    /// The time at which a server last did not accept our password, and its words.
    denied: Option<(Instant, String)>,
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
        let again = options.again.clone();
        let access = Mutex::new(Arc::new(Access::new(options)?));
        let inner = Inner { access, again, current: Mutex::default(), silences: AtomicU32::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Returns the endpoint in use.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let index = self.inner.lock().index;
        self.inner.access().endpoint(index).url.clone()
    }

    /// Carries out one call within [`CALL_TIMEOUT`], connecting first if needed.
    async fn call<T, F>(&self, f: impl FnOnce(Client) -> F + Send) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, etcd_client::Error>> + Send,
    {
        self.call_on(self.inner.connection(), f).await
    }

    /// Carries out one call on `connection`.
    async fn call_on<T, F>(
        &self,
        connection: impl Future<Output = Result<Connection, StoreError>> + Send,
        f: impl FnOnce(Client) -> F + Send,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, etcd_client::Error>> + Send,
    {
        let mut generation = self.inner.lock().generation;
        let work = async {
            let connection = connection.await?;
            generation = connection.generation;
            f(connection.client).await.map_err(|error| error::classify(&connection.endpoint, &error))
        };
        // Boxed: connecting is large, and every caller's future would hold it.
        let result = match tokio::time::timeout(CALL_TIMEOUT, Box::pin(work)).await {
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

    fn access(&self) -> Arc<Access> {
        Arc::clone(&self.access.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the files with our credentials again: whoever changes a password or renews a certificate changes them too.
    /// A file that cannot be used leaves what was read before. Returns true if they changed.
    fn read_again(&self) -> bool {
        let Some(again) = &self.again else { return false };
        match again.options().and_then(|options| Access::new(options).map_err(|error| error.to_string())) {
            Ok(read) => {
                let mut access = self.access.lock().unwrap_or_else(PoisonError::into_inner);
                let changed = !access.is_same(&read);
                *access = Arc::new(read);
                changed
            }
            Err(error) => {
                tracing::warn!(error, "password or certificates cannot be read again; going on with those of before");
                false
            }
        }
    }

    /// Returns the connection in use, made if there is none.
    async fn connection(&self) -> Result<Connection, StoreError> {
        let (index, generation) = {
            let current = self.lock();
            if let Some(client) = &current.client {
                return Ok(Connection {
                    client: client.clone(),
                    generation: current.generation,
                    endpoint: self.access().endpoint(current.index).url.clone(),
                });
            }
            (current.index, current.generation)
        };
        let is_new = self.read_again();
        let access = self.access();
        let endpoint = access.endpoint(index);
        if let Some((when, reason)) = self.lock().denied.clone()
            && !is_new
            && when.elapsed() < DENIED_RETRY_AFTER
        {
            return Err(StoreError::Denied { endpoint: endpoint.url.clone(), reason });
        }
        let connected = Box::pin(endpoint.connect(access.user.as_ref())).await;
        let connected = connected.map_err(|error| error::classify(&endpoint.url, &error));
        if let Err(StoreError::Denied { reason, .. }) = &connected {
            self.lock().denied = Some((Instant::now(), reason.clone()));
        }
        let client = connected?;
        let mut current = self.lock();
        if current.generation == generation && current.client.is_none() {
            (current.client, current.keeper, current.denied) = (Some(client.clone()), None, None);
        }
        Ok(Connection { client, generation, endpoint: endpoint.url.clone() })
    }

    /// Returns the connection in use or, while the server does not accept our password, one without it. A client that
    /// knows a lease may keep it alive, and a node must not be dead to others for a password.
    async fn connection_to_keep_alive(&self) -> Result<Connection, StoreError> {
        let denied = match Box::pin(self.connection()).await {
            Err(denied @ StoreError::Denied { .. }) => denied,
            other => return other,
        };
        let (index, generation, keeper) = {
            let current = self.lock();
            (current.index, current.generation, current.keeper.clone())
        };
        let access = self.access();
        let endpoint = access.endpoint(index);
        let client = match keeper {
            Some(keeper) => keeper,
            None => Box::pin(endpoint.connect(None)).await.map_err(|_| denied)?,
        };
        let mut current = self.lock();
        if current.generation == generation {
            current.keeper = Some(client.clone());
        }
        Ok(Connection { client, generation, endpoint: endpoint.url.clone() })
    }

    /// Decides from the end of a call whether the connection it used is kept.
    fn after_error(&self, generation: u64, error: &StoreError) {
        let known_as_before = match error {
            // The server knows us: only another user or certificate has other rights, not another connection.
            StoreError::Denied { reason, .. } if reason.contains("permission denied") => !self.read_again(),
            _ => false,
        };
        let mut current = self.lock();
        if current.generation != generation {
            return;
        }
        match error {
            StoreError::Unavailable { .. } => {
                current.index = (current.index + 1) % self.access().endpoints.len();
                (current.client, current.keeper, current.denied) = (None, None, None);
                current.generation += 1;
            }
            // A token may have expired or the password may have changed: authenticate anew with the next call. Leases
            // are kept alive meanwhile ([`Self::connection_to_keep_alive`]).
            StoreError::Denied { .. } if known_as_before => {}
            StoreError::Denied { .. } => {
                current.client = None;
                current.generation += 1;
            }
            StoreError::Compacted(_) | StoreError::LeaseGone(_) | StoreError::Rejected { .. } => {}
        }
    }

    fn silent(&self, after: Duration) -> StoreError {
        let index = self.lock().index;
        let endpoint = self.access().endpoint(index).url.clone();
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
        (current.client, current.keeper) = (None, None);
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
        let ttl = self.call_on(self.inner.connection_to_keep_alive(), |client| async move {
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
        // etcd answers -1 for a lease that does not exist.
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
