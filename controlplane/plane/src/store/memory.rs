//! A store in memory, faithful to etcd and failing on demand: for simulations and tests.
//!
//! A [`MemoryStore`] is one client's handle; [`MemoryStore::client`] makes another one of the same store with faults of
//! its own. Time is tokio's, so paused time drives expiry; nothing runs in the background.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flatnet_model::{EtcdLease, Revision};
use futures::Stream;
use futures::stream::{self, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::store::{CALL_TIMEOUT, KeyRange, KeyValue, RangeReply, Store, StoreError, Txn, TxnReply, WatchBatch};

pub use super::data::Backup;
use super::data::Data;

/// The fault that happens to one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing happens to it.
    None,
    /// It is not carried out and fails at once.
    Fail,
    /// It is carried out; its reply is lost.
    LoseReply,
    /// It is carried out this much later. From [`CALL_TIMEOUT`] on the caller has given up by then, but a transaction
    /// still happens.
    Delay(Duration),
}

/// The time after which a watch notices that the server is silent, the same as for etcd's.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(4);

/// A client's way to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// It works.
    Up,
    /// Every call and every watch fails at once.
    Down,
    /// Every call times out, every watch is silent and soon notices: a stopped server.
    Stalled,
}

/// One client's handle.
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
    client: Arc<Client>,
}

struct Shared {
    data: Mutex<Data>,
    /// Bumped with every change, to wake watches.
    changed: watch::Sender<u64>,
}

struct Client {
    faults: Mutex<VecDeque<Fault>>,
    calls: AtomicU64,
    link: watch::Sender<Link>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// Makes an empty store at revision 1, as a new etcd is.
    #[must_use]
    pub fn new() -> Self {
        let shared = Shared { data: Mutex::new(Data::default()), changed: watch::Sender::new(0) };
        Self { shared: Arc::new(shared), client: Client::new() }
    }

    /// Makes another client of the same store.
    #[must_use]
    pub fn client(&self) -> Self {
        Self { shared: self.shared.clone(), client: Client::new() }
    }

    /// Sets the faults of this client's next calls, one a call, after those set before.
    pub fn fault_next(&self, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.client.faults).extend(faults);
    }

    /// Drops the faults that no call has met yet.
    pub fn clear_faults(&self) {
        lock(&self.client.faults).clear();
    }

    /// Returns the number of calls this client has made, watches included, whatever became of them.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.client.calls.load(Ordering::Relaxed)
    }

    /// Sets this client's way to the store.
    pub fn set_link(&self, link: Link) {
        self.client.link.send_replace(link);
    }

    /// Returns this client's way to the store.
    #[must_use]
    pub fn link(&self) -> Link {
        *self.client.link.borrow()
    }

    /// Forgets the history before `revision`.
    pub fn compact(&self, revision: Revision) {
        self.change(|data| data.compact(revision));
    }

    /// Empties the store: revision 1 again; watches break.
    pub fn wipe(&self) {
        self.change(Data::wipe);
    }

    /// Returns the store as it is now.
    #[must_use]
    pub fn backup(&self) -> Backup {
        self.change(|data| data.backup())
    }

    /// Puts a backup back: its revision too; watches break.
    pub fn restore(&self, backup: &Backup) {
        self.change(|data| data.restore(backup));
    }

    /// Lets a lease expire now.
    pub fn expire(&self, lease: EtcdLease) {
        self.change(|data| data.revoke(lease));
    }

    /// Breaks every watch of every client, as a restart of the server does.
    pub fn break_watches(&self) {
        self.change(Data::break_watches);
    }

    /// Returns the revision now.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.change(|data| data.revision())
    }

    /// Writes a key with no conditions, for ever or under a lease, as an operator with etcdctl does.
    pub fn put(&self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>, lease: Option<EtcdLease>) -> Revision {
        let (key, value) = (key.into(), value.into());
        self.change(|data| data.put_one(key, value, lease))
    }

    /// Removes a key, as an operator with etcdctl does.
    pub fn delete(&self, key: impl Into<Vec<u8>>) -> Revision {
        let key = key.into();
        self.change(|data| data.delete_one(&key))
    }

    /// Returns every key, as of now.
    #[must_use]
    pub fn dump(&self) -> BTreeMap<Vec<u8>, KeyValue> {
        self.change(|data| data.dump())
    }

    /// Runs `f` on the settled data, and wakes the watches if there is something for them.
    fn change<T>(&self, f: impl FnOnce(&mut Data) -> T) -> T {
        let (result, news) = {
            let mut data = lock(&self.shared.data);
            let before = (data.version(), data.next_due());
            data.settle(Instant::now());
            let result = f(&mut data);
            let sooner = data.next_due().is_some_and(|due| before.1.is_none_or(|before| due < before));
            (result, data.version() != before.0 || sooner)
        };
        // A read wakes no watch.
        if news {
            self.shared.changed.send_modify(|count| *count = count.wrapping_add(1));
        }
        result
    }

    /// Carries out one call with whatever fault is due.
    async fn call<T>(&self, f: impl FnOnce(&mut Data) -> Result<T, StoreError>) -> Result<T, StoreError> {
        match self.next_fault().await? {
            Fault::Fail => Err(unavailable("the call failed")),
            Fault::LoseReply => {
                let _unseen = self.change(f);
                Err(unavailable("the reply was lost"))
            }
            Fault::Delay(by) => {
                tokio::time::sleep(by.min(CALL_TIMEOUT)).await;
                if by >= CALL_TIMEOUT { Err(timed_out()) } else { self.change(f) }
            }
            Fault::None => self.change(f),
        }
    }

    async fn next_fault(&self) -> Result<Fault, StoreError> {
        self.client.calls.fetch_add(1, Ordering::Relaxed);
        let link = *self.client.link.borrow();
        match link {
            Link::Up => Ok(lock(&self.client.faults).pop_front().unwrap_or(Fault::None)),
            Link::Down => Err(unavailable("connection refused")),
            Link::Stalled => {
                tokio::time::sleep(CALL_TIMEOUT).await;
                Err(timed_out())
            }
        }
    }
}

impl Client {
    fn new() -> Arc<Self> {
        Arc::new(Self { faults: Mutex::default(), calls: AtomicU64::new(0), link: watch::Sender::new(Link::Up) })
    }
}

impl Store for MemoryStore {
    async fn range(&self, range: &KeyRange) -> Result<RangeReply, StoreError> {
        self.call(|data| Ok(data.range(range))).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        match self.next_fault().await? {
            Fault::Fail => Err(unavailable("the call failed")),
            Fault::LoseReply => {
                let _unseen = self.change(|data| data.txn(&txn));
                Err(unavailable("the reply was lost"))
            }
            Fault::Delay(by) if by >= CALL_TIMEOUT => {
                self.change(|data| data.later(Instant::now() + by, txn));
                tokio::time::sleep(CALL_TIMEOUT).await;
                Err(timed_out())
            }
            Fault::Delay(by) => {
                tokio::time::sleep(by).await;
                self.change(|data| data.txn(&txn))
            }
            Fault::None => self.change(|data| data.txn(&txn)),
        }
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<EtcdLease, StoreError> {
        self.call(|data| Ok(data.grant(ttl, Instant::now()))).await
    }

    async fn lease_keep_alive(&self, lease: EtcdLease) -> Result<Duration, StoreError> {
        self.call(|data| data.keep_alive(lease, Instant::now())).await
    }

    async fn lease_time_left(&self, lease: EtcdLease) -> Result<Duration, StoreError> {
        self.call(|data| data.time_left(lease, Instant::now())).await
    }

    async fn lease_revoke(&self, lease: EtcdLease) -> Result<(), StoreError> {
        self.call(|data| {
            data.revoke(lease);
            Ok(())
        })
        .await
    }

    async fn watch(
        &self,
        range: &KeyRange,
        from: Revision,
    ) -> Result<impl Stream<Item = Result<WatchBatch, StoreError>> + Send + Unpin + 'static, StoreError> {
        let epoch = self
            .call(|data| match data.revision() {
                at if at + 1 < from => Err(StoreError::behind("memory", at, from)),
                _ => Ok(data.epoch()),
            })
            .await?;
        let watcher = Watcher {
            shared: self.shared.clone(),
            changed: self.shared.changed.subscribe(),
            link: self.client.link.subscribe(),
            range: range.clone(),
            next: from,
            epoch,
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
    changed: watch::Receiver<u64>,
    link: watch::Receiver<Link>,
    range: KeyRange,
    next: Revision,
    epoch: u64,
}

impl Watcher {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            self.changed.mark_unchanged();
            let link = *self.link.borrow_and_update();
            let mut deadline = None;
            match link {
                Link::Down => return Err(unavailable("connection lost")),
                Link::Stalled => {}
                Link::Up => {
                    let mut data = lock(&self.shared.data);
                    data.settle(Instant::now());
                    if data.epoch() != self.epoch {
                        return Err(unavailable("the server went away"));
                    }
                    if let Some(batch) = data.since(&self.range, self.next, Revision::MAX)? {
                        self.next = batch.revision + 1;
                        return Ok(batch);
                    }
                    deadline = data.next_due();
                }
            }
            let stalled = link == Link::Stalled;
            let due = async {
                match deadline {
                    _ if stalled => tokio::time::sleep(SILENCE_TIMEOUT).await,
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Neither sender goes away while a handle lives; if all are gone there is nothing more to see.
                changed = self.changed.changed() => if changed.is_err() { return Err(unavailable("the store is gone")) },
                changed = self.link.changed() => if changed.is_err() { return Err(unavailable("the client is gone")) },
                () = due => if stalled { return Err(unavailable("the watch is silent")) },
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unavailable(reason: &str) -> StoreError {
    StoreError::Unavailable { endpoint: "memory".to_owned(), reason: reason.to_owned() }
}

fn timed_out() -> StoreError {
    unavailable("timed out")
}
