//! One network followed once, for however many agents watch it.
//!
//! A hub holds the network's records and its last changes; a watcher holds only how far it got. So a slow watcher costs
//! nothing but its connection: what it has not read is not kept for it, and when it is too far behind it gets a snapshot.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use flatnet_model::keys::NetworkKeys;
use flatnet_model::state::NetworkState;
use flatnet_model::{NetworkName, Revision};
use flatnet_proto::controlplane::v1 as proto;
use futures::StreamExt;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::flannel::decode_change;
use crate::plane::feed::{self, News, Position};
use crate::random::{Backoff, OsRandom};
use crate::store::{KeyValue, RangeReply, Store, StoreError, WatchBatch, WatchEvent};
use crate::wire;

/// Changes kept for watchers that were away: some minutes of a large fleet's, 600 bytes each.
const HISTORY: usize = 10_000;
/// Records in one part of a snapshot: 600 KB, well under what a client takes.
const PART: usize = 1000;
/// How long a store may be away before watchers are told: an election takes 1 to 2 s, and none of them needs to know.
const PATIENCE: Duration = Duration::from_secs(4);
/// Networks followed at a time.
const HUBS: usize = 512;

/// The hubs of the networks that somebody watches.
pub struct Hubs<S> {
    store: Arc<S>,
    hubs: Mutex<HashMap<NetworkName, Weak<Hub>>>,
}

/// One network.
pub struct Hub {
    prefix: String,
    state: Mutex<State>,
    /// Sent anew whenever there may be something for watchers.
    changed: watch::Sender<u64>,
    task: Mutex<Option<tokio::task::AbortHandle>>,
}

#[derive(Default)]
struct State {
    records: BTreeMap<Vec<u8>, KeyValue>,
    /// The same, read.
    network: NetworkState,
    revision: Revision,
    /// Changes after `history_from`, in order.
    history: VecDeque<Arc<proto::Batch>>,
    history_len: usize,
    history_from: Revision,
    /// Another store, or the same one put back: what watchers know of the one before counts for nothing.
    epoch: u64,
    /// Whether there is anything yet.
    loaded: bool,
    /// Since when the store is away, and why.
    lost: Option<(Instant, String)>,
    /// The records as parts of a snapshot, made once for all that want it.
    snapshot: Option<Arc<Vec<proto::WatchReply>>>,
}

impl<S: Store> Hubs<S> {
    /// None yet.
    pub fn new(store: Arc<S>) -> Self {
        Self { store, hubs: Mutex::default() }
    }

    /// The hub of the network of `keys`, started if it is not there; `None`: there are too many.
    pub fn get(&self, keys: &NetworkKeys) -> Option<Arc<Hub>> {
        let mut hubs = self.hubs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hub) = hubs.get(keys.network()).and_then(Weak::upgrade) {
            return Some(hub);
        }
        hubs.retain(|_, hub| hub.strong_count() > 0);
        if hubs.len() >= HUBS {
            return None;
        }
        let hub = Arc::new(Hub {
            prefix: keys.all(),
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            task: Mutex::default(),
        });
        let task = tokio::spawn(follow(Arc::clone(&self.store), keys.clone(), Arc::downgrade(&hub)));
        *hub.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
        hubs.insert(keys.network().clone(), Arc::downgrade(&hub));
        Some(hub)
    }

    /// Watchers of all of them.
    pub fn watchers(&self) -> usize {
        let hubs = self.hubs.lock().unwrap_or_else(PoisonError::into_inner);
        hubs.values().filter_map(Weak::upgrade).map(|hub| hub.changed.receiver_count()).sum()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

/// Keeps the hub equal to the store while somebody holds it.
async fn follow<S: Store>(store: Arc<S>, keys: NetworkKeys, hub: Weak<Hub>) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(700));
    loop {
        let position = match hub.upgrade() {
            Some(hub) => hub.position(&keys),
            None => return,
        };
        let began = Instant::now();
        let error = session(store.as_ref(), &keys, position, &hub).await;
        let Some(error) = error else { return };
        if began.elapsed() > Duration::from_secs(2) {
            backoff.reset();
        }
        let Some(hub) = hub.upgrade() else { return };
        hub.lost(&error);
        drop(hub);
        tokio::time::sleep(backoff.wait(&mut OsRandom)).await;
    }
}

/// Follows until something breaks; `None`: nobody holds the hub any more.
async fn session<S: Store>(
    store: &S,
    keys: &NetworkKeys,
    position: Option<Position>,
    hub: &Weak<Hub>,
) -> Option<StoreError> {
    let mut feed = match feed::open(store, keys, position).await {
        Ok(feed) => feed,
        Err(error) => return Some(error),
    };
    loop {
        let news = match feed.next().await {
            Some(Ok(news)) => news,
            Some(Err(error)) => return Some(error),
            None => {
                let reason = "the watch ended".to_owned();
                return Some(StoreError::Unavailable { endpoint: "store".to_owned(), reason });
            }
        };
        let hub = hub.upgrade()?;
        match news {
            News::Snapshot(reply) => hub.replace(keys, reply),
            News::Resumed => hub.modify(|_| {}),
            News::Batch(batch) => hub.apply(keys, &batch),
        }
    }
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn modify(&self, change: impl FnOnce(&mut State)) {
        {
            let mut state = self.lock();
            change(&mut state);
            state.lost = None;
        }
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn lost(&self, error: &StoreError) {
        {
            let mut state = self.lock();
            let since = state.lost.as_ref().map_or_else(Instant::now, |(since, _)| *since);
            state.lost = Some((since, error.to_string()));
            if matches!(error, StoreError::Compacted(_)) {
                // What is here cannot be led on from.
                state.loaded = false;
            }
        }
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Where to go on in the store.
    fn position(&self, keys: &NetworkKeys) -> Option<Position> {
        let state = self.lock();
        let config = state.records.get(keys.config().as_bytes());
        let newest = state.network.leases.values().max_by_key(|lease| lease.mod_revision);
        state.loaded.then(|| Position {
            revision: state.revision,
            config_created: config.map_or(0, |kv| kv.create_revision),
            newest: newest.map(|lease| (lease.subnets, lease.create_revision, lease.mod_revision)),
        })
    }

    fn replace(&self, keys: &NetworkKeys, reply: RangeReply) {
        self.modify(|state| {
            let went_back = reply.revision < state.revision;
            state.epoch += u64::from(state.loaded && went_back);
            state.network = NetworkState { revision: reply.revision, ..NetworkState::default() };
            state.records.clear();
            for kv in reply.kvs {
                if let Some(change) = decode_change(keys, &WatchEvent::Put(kv.clone())) {
                    state.network.apply(change);
                }
                state.records.insert(kv.key.clone(), kv);
            }
            state.revision = reply.revision;
            (state.history, state.history_len, state.history_from) = (VecDeque::new(), 0, reply.revision);
            state.snapshot = None;
            state.loaded = true;
        });
    }

    fn apply(&self, keys: &NetworkKeys, batch: &WatchBatch) {
        if batch.events.is_empty() {
            // Only how far the store is.
            self.lock().revision = batch.revision;
            return;
        }
        self.modify(|state| {
            for event in &batch.events {
                if let Some(change) = decode_change(keys, event) {
                    state.network.apply(change);
                }
                match event {
                    WatchEvent::Put(kv) => drop(state.records.insert(kv.key.clone(), kv.clone())),
                    WatchEvent::Delete { key, .. } => drop(state.records.remove(key)),
                }
            }
            state.revision = batch.revision;
            state.network.revision = batch.revision;
            state.snapshot = None;
            let changes: Vec<_> = batch.events.iter().filter_map(|event| wire::change(&self.prefix, event)).collect();
            state.history_len += changes.len();
            state.history.push_back(Arc::new(proto::Batch { changes, revision: batch.revision }));
            while state.history_len > HISTORY
                && let Some(oldest) = state.history.pop_front()
            {
                state.history_len -= oldest.changes.len();
                state.history_from = oldest.revision;
            }
        });
    }

    /// Looks at the network as it is; `None`: the store has not been read yet, or is away for longer than a moment.
    pub fn look<T>(&self, f: impl FnOnce(&NetworkState) -> T) -> Option<T> {
        let state = self.lock();
        let away = state.lost.as_ref().is_some_and(|(since, _)| since.elapsed() >= PATIENCE);
        (state.loaded && !away).then(|| f(&state.network))
    }

    /// Waits until the network has been read, at least as of `revision`.
    pub async fn ready(&self, revision: Revision, limit: Duration) -> bool {
        let mut changed = self.changed.subscribe();
        let ready = async {
            loop {
                {
                    let state = self.lock();
                    if state.loaded && state.lost.is_none() && state.revision >= revision {
                        return true;
                    }
                }
                // The revision moves without a change too.
                let _ = tokio::time::timeout(Duration::from_millis(200), changed.changed()).await;
            }
        };
        tokio::time::timeout(limit, ready).await.unwrap_or(false)
    }

    /// A watcher that goes on after `position` if that leads on from here, else begins with a snapshot.
    pub fn watch(self: &Arc<Self>, keys: &NetworkKeys, position: Option<&Position>) -> Watcher {
        let changed = self.changed.subscribe();
        let seen = position.and_then(|position| {
            let state = self.lock();
            let leads_on = state.loaded && leads_on(&state, keys, position) && position.revision >= state.history_from;
            leads_on.then_some((state.epoch, position.revision))
        });
        let resumed = seen.is_some();
        Watcher { hub: Arc::clone(self), changed, seen, resumed, parts: None, batches: VecDeque::new() }
    }
}

/// As [`feed::leads_on`], on what is here.
fn leads_on(state: &State, keys: &NetworkKeys, position: &Position) -> bool {
    let created = state.records.get(keys.config().as_bytes()).map_or(0, |kv| kv.create_revision);
    let newest = position.newest.is_none_or(|(subnets, created, modified)| {
        let found = state.records.get(keys.lease(&subnets).as_bytes());
        found.is_some_and(|kv| (kv.create_revision, kv.mod_revision) == (created, modified))
    });
    state.revision >= position.revision && created == position.config_created && newest
}

/// How far one watcher got.
pub struct Watcher {
    hub: Arc<Hub>,
    changed: watch::Receiver<u64>,
    /// Epoch and revision; `None`: nothing yet.
    seen: Option<(u64, Revision)>,
    /// Whether it is still to be told that it missed nothing.
    resumed: bool,
    /// A snapshot being sent, and the next part.
    parts: Option<(Arc<Vec<proto::WatchReply>>, usize)>,
    /// Changes being sent.
    batches: VecDeque<Arc<proto::Batch>>,
}

impl Watcher {
    /// What comes next; `Err`: the store is away, and why.
    pub async fn next(&mut self) -> Result<proto::WatchReply, String> {
        loop {
            if let Some((parts, next)) = &mut self.parts {
                if let Some(part) = parts.get(*next) {
                    *next += 1;
                    return Ok(part.clone());
                }
                self.parts = None;
            }
            if std::mem::take(&mut self.resumed) {
                return Ok(reply(proto::watch_reply::News::Resumed(proto::Nothing {})));
            }
            if let Some(batch) = self.batches.pop_front() {
                return Ok(reply(proto::watch_reply::News::Batch(batch.as_ref().clone())));
            }
            self.changed.mark_unchanged();
            let wait = match self.take() {
                Taken::Something => continue,
                Taken::Nothing => Duration::from_secs(3600),
                Taken::Away { since, reason } => match PATIENCE.checked_sub(since.elapsed()) {
                    Some(left) if !left.is_zero() => left,
                    _ => return Err(reason),
                },
            };
            // Ends with the hub, which this holds.
            let _ = tokio::time::timeout(wait, self.changed.changed()).await;
        }
    }

    /// Takes what there is for this watcher.
    fn take(&mut self) -> Taken {
        /// Changes taken at a time: what is not taken stays with the hub.
        const BATCHES: usize = 64;
        let hub = Arc::clone(&self.hub);
        let mut state = hub.lock();
        if let Some((since, reason)) = &state.lost {
            return Taken::Away { since: *since, reason: reason.clone() };
        }
        if !state.loaded {
            return Taken::Nothing;
        }
        match self.seen {
            Some((epoch, revision)) if epoch == state.epoch && revision >= state.history_from => {
                let start = state.history.partition_point(|batch| batch.revision <= revision);
                self.batches.extend(state.history.range(start..).take(BATCHES).cloned());
                match self.batches.back() {
                    Some(last) => {
                        self.seen = Some((epoch, last.revision));
                        Taken::Something
                    }
                    None => Taken::Nothing,
                }
            }
            _ => {
                self.seen = Some((state.epoch, state.revision));
                self.resumed = false;
                self.parts = Some((state.snapshot(&hub.prefix), 0));
                Taken::Something
            }
        }
    }
}

enum Taken {
    Something,
    Nothing,
    Away { since: Instant, reason: String },
}

impl State {
    fn snapshot(&mut self, prefix: &str) -> Arc<Vec<proto::WatchReply>> {
        if let Some(made) = &self.snapshot {
            return Arc::clone(made);
        }
        let records: Vec<_> = self.records.values().filter_map(|kv| wire::record(prefix, kv)).collect();
        let made = Arc::new(snapshot_parts(records, self.revision));
        self.snapshot = Some(Arc::clone(&made));
        made
    }
}

/// A snapshot in parts; at least one.
fn snapshot_parts(mut records: Vec<proto::Record>, revision: Revision) -> Vec<proto::WatchReply> {
    let mut parts = Vec::new();
    loop {
        let rest = records.split_off(records.len().min(PART));
        let more = !rest.is_empty();
        parts.push(reply(proto::watch_reply::News::Snapshot(proto::Snapshot { records, revision, more })));
        if !more {
            return parts;
        }
        records = rest;
    }
}

fn reply(news: proto::watch_reply::News) -> proto::WatchReply {
    proto::WatchReply { news: Some(news) }
}

#[cfg(test)]
mod tests;
