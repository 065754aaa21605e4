//! A store in one file, for a control plane without etcd: durable, one process.
//!
//! One thread owns the content and the file. Calls queue up for it; all that wait at once are carried out and written
//! in one commit, and answered when the disk has it. Nobody sees a change, by reading or watching, that a crash could
//! take back. Its content is in memory as a whole; the file is read once, when it is opened.
//!
//! The history is in memory only: after a restart a watch from an older revision is told that it is compacted.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flatnet_model::{EtcdLease, Revision};
use futures::Stream;
use futures::stream::{self, StreamExt};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use flatnet_plane::store::data::Data;
use flatnet_plane::store::{CALL_TIMEOUT, KeyRange, RangeReply, Store, StoreError, Txn, TxnReply, WatchBatch};

mod disk;
mod engine;

use disk::Disk;
pub use disk::OpenError;
use engine::{Answer, Engine, Request};

/// The most calls that may wait for the disk: more than a thousand agents that all start at once have under way, and
/// far less than memory holds. Beyond, a call fails at once and its caller backs off.
const QUEUE: usize = 8192;

/// The store; clones are the same one. Its file is closed with the last of them.
#[derive(Clone)]
pub struct EmbeddedStore {
    inner: Arc<Inner>,
}

struct Inner {
    /// The queue to the thread; `None` only while the store is dropped.
    requests: Option<SyncSender<Request>>,
    thread: Option<std::thread::JoinHandle<()>>,
    shared: Arc<Shared>,
}

/// The state that the thread shares with watches.
struct Shared {
    path: PathBuf,
    data: Mutex<Data>,
    /// The last revision that is on the disk; sent anew whenever a watch may have something to say.
    durable: watch::Sender<Revision>,
    /// The reason why the disk did not take a commit lately, and the time of that.
    refused: Mutex<Option<(String, Instant)>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Data> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self) -> MutexGuard<'_, Option<(String, Instant)>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unavailable(&self, reason: impl Into<String>) -> StoreError {
        StoreError::Unavailable { endpoint: self.path.display().to_string(), reason: reason.into() }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The thread ends when nobody can ask it any more; the file is free again when this returns.
        drop(self.requests.take());
        if let Some(thread) = self.thread.take() {
            // The thread does not panic; if it did there is nothing to save here.
            let _ = thread.join();
        }
    }
}

impl EmbeddedStore {
    /// Opens the file at `path`, made if it is not there, and reads it.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let (disk, kept) = Disk::open(path)?;
        let revision = kept.revision;
        let data = Data::of(kept, engine::first_lease(), Instant::now());
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            data: Mutex::new(data),
            durable: watch::Sender::new(revision),
            refused: Mutex::default(),
        });
        let (requests, receiver) = std::sync::mpsc::sync_channel(QUEUE);
        let engine = Engine::new(Arc::clone(&shared), disk);
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || engine.run(&receiver))
            .map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        Ok(Self { inner: Arc::new(Inner { requests: Some(requests), thread: Some(thread), shared }) })
    }

    /// Opens the file at `path`, which must be there.
    pub fn open_existing(path: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        // A new store begins as an empty file.
        if std::fs::metadata(path).map_err(io)?.len() == 0 {
            return Err(io(std::io::ErrorKind::InvalidData.into()));
        }
        // A backup that ended before its content was on the disk leaves a blank store.
        let (disk, _) = Disk::open(path)?;
        if disk.is_blank() {
            return Err(OpenError::Unusable {
                path: path.to_owned(),
                reason: "nothing was ever written to it".to_owned(),
            });
        }
        drop(disk);
        Self::open(path)
    }

    /// Forgets the history before `revision`.
    pub async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.call(|answer| Request::Compact(revision, answer)).await
    }

    /// Writes everything as it is now into a new file at `path`, which can be opened in this one's place.
    pub async fn backup(&self, path: PathBuf) -> Result<(), StoreError> {
        self.call(|answer| Request::Backup(path, answer)).await
    }

    /// Returns the last revision that is on the disk.
    #[must_use]
    pub fn revision(&self) -> Revision {
        *self.inner.shared.durable.borrow()
    }

    async fn call<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, StoreError> {
        let shared = &self.inner.shared;
        let (answer, reply) = oneshot::channel();
        let sent = self.inner.requests.as_ref().map(|requests| requests.try_send(request(answer)));
        match sent {
            Some(Ok(())) => {}
            Some(Err(TrySendError::Full(_))) => return Err(shared.unavailable("too many calls wait for the disk")),
            Some(Err(TrySendError::Disconnected(_))) | None => return Err(shared.unavailable("the store has stopped")),
        }
        match tokio::time::timeout(CALL_TIMEOUT, reply).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(shared.unavailable("the store has stopped")),
            Err(_) => Err(shared.unavailable(format!("the disk did not answer within {} s", CALL_TIMEOUT.as_secs()))),
        }
    }
}

impl Store for EmbeddedStore {
    async fn range(&self, range: &KeyRange) -> Result<RangeReply, StoreError> {
        let range = range.clone();
        self.call(|answer| Request::Range(range, answer)).await
    }

    fn refuses_changes(&self) -> Option<String> {
        let shared = &self.inner.shared;
        let refused = shared.refused();
        refused.as_ref().map(|(reason, _)| format!("{} takes no changes: {reason}", shared.path.display()))
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        self.call(|answer| Request::Txn(txn, answer)).await
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<EtcdLease, StoreError> {
        self.call(|answer| Request::Grant(ttl, answer)).await
    }

    async fn lease_keep_alive(&self, lease: EtcdLease) -> Result<Duration, StoreError> {
        self.call(|answer| Request::KeepAlive(lease, answer)).await
    }

    async fn lease_time_left(&self, lease: EtcdLease) -> Result<Duration, StoreError> {
        self.call(|answer| Request::TimeLeft(lease, answer)).await
    }

    async fn lease_revoke(&self, lease: EtcdLease) -> Result<(), StoreError> {
        self.call(|answer| Request::Revoke(lease, answer)).await
    }

    async fn watch(
        &self,
        range: &KeyRange,
        from: Revision,
    ) -> Result<impl Stream<Item = Result<WatchBatch, StoreError>> + Send + Unpin + 'static, StoreError> {
        let shared = &self.inner.shared;
        let at = self.revision();
        if at + 1 < from {
            return Err(StoreError::behind(&shared.path.display().to_string(), at, from));
        }
        let watcher = Watcher {
            shared: Arc::clone(shared),
            durable: shared.durable.subscribe(),
            range: range.clone(),
            next: from,
        };
        Ok(stream::unfold(Some(watcher), |watcher| async move {
            let mut watcher = watcher?;
            let item = watcher.next().await;
            let rest = item.is_ok().then_some(watcher);
            Some((item, rest))
        })
        .boxed())
    }
}

struct Watcher {
    shared: Arc<Shared>,
    durable: watch::Receiver<Revision>,
    range: KeyRange,
    next: Revision,
}

impl Watcher {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            let upto = *self.durable.borrow_and_update();
            let batch = self.shared.lock().since(&self.range, self.next, upto)?;
            if let Some(batch) = batch {
                self.next = batch.revision + 1;
                return Ok(batch);
            }
            if self.durable.changed().await.is_err() {
                return Err(self.shared.unavailable("the store has stopped"));
            }
        }
    }
}
