//! The hubs: each follows one network once, for however many agents watch it.
//!
//! A hub holds the network's records and its last changes; a watcher holds only how far it got. So a slow watcher costs
//! nothing but its connection: what it has not read is not kept for it, and when it is too far behind it gets a
//! snapshot.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use flatnet_model::keys::NetworkKeys;
use flatnet_model::state::NetworkState;
use flatnet_model::{NetworkName, Revision};
use futures::StreamExt;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use flatnet_plane::plane::feed::{self, News, Position};
use flatnet_plane::random::{Backoff, OsRandom};
use flatnet_plane::store::{RangeReply, Store, StoreError, WatchBatch};

mod state;
mod watcher;

use state::State;
pub use watcher::Watcher;

/// The time a store may be away before watchers are told: an election takes 1 to 2 s, and none of them needs to know.
const STORE_AWAY_TIMEOUT: Duration = Duration::from_secs(4);
/// The time a call waits for a network to be read.
pub const FIRST_READ_TIMEOUT: Duration = Duration::from_secs(2);
/// The most networks followed at a time: those that administrators made, and names that nodes make up. Each node has a
/// small share of them ([`super::watches`]).
const HUBS: usize = 4096;

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
    /// Notified when somebody knows of a later revision: a store tells its revision only with a change.
    behind: Arc<Notify>,
    task: Mutex<Option<tokio::task::AbortHandle>>,
}

impl<S: Store> Hubs<S> {
    /// Starts with no hubs.
    pub fn new(store: Arc<S>) -> Self {
        Self { store, hubs: Mutex::default() }
    }

    /// Returns the hub of the network of `keys`, started if it is not there; `None`: there are too many.
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
            state: Mutex::new(State::new(keys)),
            changed: watch::Sender::new(0),
            behind: Arc::default(),
            task: Mutex::default(),
        });
        let task = tokio::spawn(follow(Arc::clone(&self.store), keys.clone(), Arc::downgrade(&hub)));
        *hub.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
        hubs.insert(keys.network().clone(), Arc::downgrade(&hub));
        Some(hub)
    }

    /// Returns the number of watchers of all hubs.
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
        let began = Instant::now();
        let error = match session(store.as_ref(), &keys, &hub).await {
            End::Unwatched => return,
            End::Behind => continue,
            End::Broken(error) => error,
        };
        if began.elapsed() > Duration::from_secs(2) {
            backoff.reset();
        }
        let Some(hub) = hub.upgrade() else { return };
        hub.lost(&error);
        drop(hub);
        tokio::time::sleep(backoff.wait(&mut OsRandom)).await;
    }
}

/// The reason why a session ended.
enum End {
    /// Nobody holds the hub any more.
    Unwatched,
    /// Somebody knows of a later revision: reading the store again tells what became of this network up to it.
    Behind,
    /// The store was lost.
    Broken(StoreError),
}

/// Follows the network until something ends the session.
async fn session<S: Store>(store: &S, keys: &NetworkKeys, hub: &Weak<Hub>) -> End {
    let Some(behind) = hub.upgrade().map(|hub| Arc::clone(&hub.behind)) else { return End::Unwatched };
    let mut feed = match feed::open(store, keys).await {
        Ok(feed) => feed,
        Err(error) => return End::Broken(error),
    };
    loop {
        let news = tokio::select! {
            biased;
            news = feed.next() => news,
            () = behind.notified() => return End::Behind,
        };
        let news = match news {
            Some(Ok(news)) => news,
            Some(Err(error)) => return End::Broken(error),
            None => {
                let reason = "the watch ended".to_owned();
                return End::Broken(StoreError::Unavailable { endpoint: "store".to_owned(), reason });
            }
        };
        let Some(hub) = hub.upgrade() else { return End::Unwatched };
        match news {
            News::Snapshot(reply) => hub.read(keys, reply),
            // Only a server resumes; a store never does.
            News::Resumed => {}
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
        }
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Takes in a whole reading of the store. If it is the store it was, the reading counts as the changes since, so
    /// that watchers need no snapshot only because this server had to connect again.
    fn read(&self, keys: &NetworkKeys, reply: RangeReply) {
        let changes = self.lock().changes_to(keys, &reply);
        match changes {
            Some(changes) if changes.events.is_empty() => self.modify(|state| state.revision = changes.revision),
            Some(changes) => self.apply(keys, &changes),
            None => self.modify(|state| state.replace(keys, reply)),
        }
    }

    fn apply(&self, keys: &NetworkKeys, batch: &WatchBatch) {
        if batch.events.is_empty() {
            // The batch only tells how far the store is.
            self.lock().revision = batch.revision;
        } else {
            self.modify(|state| state.apply(keys, batch));
        }
    }

    /// Calls `f` with the network as it is; `None`: the store has not been read yet, or is away for longer than a
    /// moment.
    pub fn look<T>(&self, f: impl FnOnce(&NetworkState) -> T) -> Option<T> {
        let state = self.lock();
        let away = state.lost.as_ref().is_some_and(|(since, _)| since.elapsed() >= STORE_AWAY_TIMEOUT);
        (state.loaded && !away).then(|| f(&state.network))
    }

    /// Waits until the network has been read, at least as of `revision`.
    pub async fn ready(&self, revision: Revision, limit: Duration) -> bool {
        /// The time a change takes from the store to here, many times over.
        const CHANGE_TIMEOUT: Duration = Duration::from_millis(200);
        let mut changed = self.changed.subscribe();
        let ready = async {
            loop {
                let is_followed = {
                    let state = self.lock();
                    let is_followed = state.loaded && state.lost.is_none();
                    if is_followed && state.revision >= revision {
                        return true;
                    }
                    is_followed
                };
                // The revision also moves without a change to this network.
                let waited = tokio::time::timeout(CHANGE_TIMEOUT, changed.changed()).await;
                if is_followed && waited.is_err() {
                    self.behind.notify_one();
                }
            }
        };
        tokio::time::timeout(limit, ready).await.unwrap_or(false)
    }

    /// Makes a watcher. It goes on after `position` if the same records were held here by then, else it begins with a
    /// snapshot.
    pub fn watch(self: &Arc<Self>, position: Option<&Position>) -> Watcher {
        let changed = self.changed.subscribe();
        let seen = position.and_then(|position| {
            let state = self.lock();
            (state.held_by(position.revision) == Some(position.contents)).then_some((state.epoch, position.revision))
        });
        let resumed = seen.is_some();
        Watcher { hub: Arc::clone(self), changed, seen, resumed, parts: None, changes: None, sent: None }
    }
}

#[cfg(test)]
mod tests;
