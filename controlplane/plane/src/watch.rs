//! Following one network for ever: a snapshot, then changes.
//!
//! Only [`follow`] writes the view, and its caller owns its life. Dropping its future at any await is safe.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use flatnet_model::keys::NetworkKeys;
use flatnet_model::state::NetworkState;
use flatnet_model::{NetworkConfig, Revision, SubnetKey};
use futures::StreamExt;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::flannel::ConfigWarning;
use crate::plane::ControlPlane;
use crate::plane::contents::Contents;
use crate::plane::feed::{News, Position};
use crate::random::{Backoff, OsRandom, Random};
use crate::store::{StoreError, StoreErrorKind, WatchBatch};

mod fold;

/// The source of the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// Nothing known yet.
    #[default]
    None,
    /// The last run's snapshot: good for keeping the datapath, never for pruning.
    Disk,
    /// A whole snapshot of the store in this run.
    Store,
}

/// The state of the connection to the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Connection {
    /// Not yet reached in this run.
    #[default]
    Connecting,
    /// The state is current.
    Connected,
    /// The state is the last known one.
    Lost {
        /// The cause, as told by the store or the network.
        reason: String,
        /// The kind of the cause: tells whether the store itself gave it.
        kind: StoreErrorKind,
    },
}

/// The store seems to have been wiped or put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// The sign that was seen, in one sentence.
    pub reason: String,
    /// Leases kept from before that the store does not have (yet). They are kept until claimed again or until the grace
    /// is over.
    pub kept: BTreeSet<SubnetKey>,
    /// True if the configuration in the view is the one from before because the store has none.
    pub kept_config: bool,
    /// The kind of the sign.
    pub sign: Sign,
}

/// The signs that make a store suspect: the later here, the surer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sign {
    /// It lacks leases that nobody was seen to give up. Most often their hosts left while the store was away. But it
    /// may have been put back, and have grown past what was known of it before this node looked again.
    Missing,
    /// Something in it is older than it was, or was made anew.
    Older,
    /// Its revision went back. Nobody removed what it lacks, and the configuration is written back.
    Revision,
}

/// One network as last known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkView {
    /// Configuration and leases.
    pub state: NetworkState,
    /// The last usable configuration. It stays while the store has none or a bad one, so that the datapath stays.
    pub usable_config: Option<NetworkConfig>,
    /// Its value as stored, for the snapshot on disk.
    pub config_value: Option<Vec<u8>>,
    /// Revision at which the configuration's key was created; 0 while unknown.
    pub config_created: Revision,
    /// The warnings about the configuration that an operator should know.
    pub warnings: Vec<ConfigWarning>,
    /// The source of the state.
    pub source: Source,
    /// The state of the connection, which tells whether the state is current.
    pub connection: Connection,
    /// Set while the store seems to have been wiped or put back.
    pub suspect: Option<Suspect>,
    /// The number of times that was found in this run: it may have been settled by the time anybody looks.
    pub rewinds: u64,
}

/// Keeps `view` equal to what the store says of the network of `keys`, for ever.
///
/// `grace` is the time for which leases that a wiped or restored store lacks are kept: one lease TTL. Those that are
/// only missing ([`Sign::Missing`]) are kept for 700 ms. A view that begins as a snapshot from disk
/// ([`crate::snapshot::decode`]) is kept until the first snapshot of the store.
pub async fn follow<P: ControlPlane>(
    plane: Arc<P>,
    keys: NetworkKeys,
    grace: Duration,
    view: watch::Sender<NetworkView>,
) {
    follow_with(plane, keys, grace, view, OsRandom).await;
}

/// Follows as [`follow`] does, with its randomness (of the waits before reconnecting) given.
pub async fn follow_with<P: ControlPlane>(
    plane: Arc<P>,
    keys: NetworkKeys,
    grace: Duration,
    view: watch::Sender<NetworkView>,
    mut random: impl Random,
) {
    let contents = Contents::new(&keys);
    let mut follower =
        Follower { plane, keys, grace, view, snapshot_needed: true, contents, grace_ends: None, grace_left: None };
    let mut backoff = Backoff::new(FIRST_RETRY_AFTER, LONGEST_RETRY_AFTER);
    loop {
        let began = Instant::now();
        let error = follower.session().await;
        if began.elapsed() >= STEADY_AFTER {
            backoff.reset();
        }
        let compacted = matches!(error, StoreError::Compacted(_));
        if compacted && !follower.snapshot_needed {
            // The store is there, only its history is not: read a snapshot at once. If even that one's revision is
            // forgotten by the time it is read, wait as after any other failure.
            follower.snapshot_needed = true;
            continue;
        }
        follower.snapshot_needed |= compacted;
        follower.lost(&error);
        let wait = backoff.wait(&mut random);
        let wait = if compacted || error.can_retry() { wait } else { REFUSED_RETRY_AFTER };
        tokio::time::sleep(wait).await;
    }
}

/// The first wait before reconnecting: etcd restarts and elections take longer, a lost connection does not.
const FIRST_RETRY_AFTER: Duration = Duration::from_millis(50);
/// The longest wait, before ± 25 % of jitter: new leases must be seen within 1 s after the store is back.
const LONGEST_RETRY_AFTER: Duration = Duration::from_millis(700);
/// The wait after a refusal (password, rights), which only somebody can change.
const REFUSED_RETRY_AFTER: Duration = Duration::from_secs(5);
/// The time for which leases that are only missing are kept. Most owners are back by then, since they wait no longer to
/// reconnect, and what is really gone is gone within 1 s.
const DROP_MISSING_AFTER: Duration = Duration::from_millis(700);
/// The time after which a session counts as a good one.
const STEADY_AFTER: Duration = Duration::from_secs(2);

struct Follower<P> {
    plane: Arc<P>,
    keys: NetworkKeys,
    grace: Duration,
    view: watch::Sender<NetworkView>,
    /// True if the next session begins with a snapshot rather than where the last one ended.
    snapshot_needed: bool,
    /// The records that the view was made from.
    contents: Contents,
    /// The time at which leases kept from before a wipe are given up.
    grace_ends: Option<Instant>,
    /// The rest of the grace when the store was lost: while nobody can claim, it stands still.
    grace_left: Option<Duration>,
}

impl<P: ControlPlane> Follower<P> {
    /// Connects and follows until something breaks.
    async fn session(&mut self) -> StoreError {
        match self.try_session().await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_session(&mut self) -> Result<Infallible, StoreError> {
        let plane = Arc::clone(&self.plane);
        let mut feed = plane.feed(&self.keys, self.position()).await?;
        loop {
            let news = tokio::select! {
                biased;
                news = feed.next() => news,
                () = grace_over(self.grace_ends) => {
                    self.end_grace();
                    continue;
                }
            };
            let news = news.unwrap_or_else(|| {
                Err(StoreError::Unavailable { endpoint: "store".to_owned(), reason: "the watch ended".to_owned() })
            })?;
            match news {
                News::Snapshot(reply) => {
                    self.contents.replace(&reply.kvs);
                    self.modify(|keys, view| fold::snapshot(keys, view, &reply));
                    self.restore_config().await?;
                    self.connected();
                    self.snapshot_needed = false;
                }
                News::Resumed => {
                    self.connected();
                    self.snapshot_needed = false;
                }
                News::Batch(batch) => self.apply(&batch),
            }
        }
    }

    /// Returns the position to go on from; `None`: with a snapshot.
    fn position(&self) -> Option<Position> {
        let revision = self.view.borrow().state.revision;
        (!self.snapshot_needed).then(|| Position { revision, contents: self.contents.fingerprint() })
    }

    /// Writes back the configuration that a wiped store lacks, so that a fleet gets over it without help. A
    /// configuration that somebody removed (the revision went on, or the control plane says so) stays away.
    async fn restore_config(&self) -> Result<(), StoreError> {
        let judges = self.plane.knows_what_was_removed();
        let value = {
            let view = self.view.borrow();
            let suspect = view.suspect.as_ref().filter(|suspect| suspect.kept_config);
            let lost = suspect.is_some_and(|suspect| judges || suspect.sign == Sign::Revision);
            view.config_value.clone().filter(|_| lost)
        };
        let Some(value) = value else { return Ok(()) };
        if self.plane.restore_config(&self.keys, value).await? {
            tracing::warn!(network = %self.keys.network(), "wrote the network's configuration back into the wiped store");
        }
        Ok(())
    }

    fn apply(&mut self, batch: &WatchBatch) {
        for event in &batch.events {
            self.contents.apply(event);
        }
        if batch.events.is_empty() {
            // The batch only tells how far the store is: nobody needs to be woken for that.
            self.view.send_if_modified(|view| {
                view.state.revision = view.state.revision.max(batch.revision);
                false
            });
        } else {
            self.modify(|keys, view| fold::batch(keys, view, batch));
        }
    }

    /// Changes the view in place, and starts or ends the grace as the change demands.
    fn modify(&mut self, change: impl FnOnce(&NetworkKeys, &mut NetworkView)) {
        let keys = &self.keys;
        let mut became = None;
        self.view.send_modify(|view| {
            let before = view.suspect.as_ref().map(|suspect| (suspect.sign, suspect.reason.clone()));
            change(keys, view);
            view.connection = Connection::Connected;
            became = view.suspect.as_ref().map(|now| {
                let is_new = before.as_ref().is_none_or(|(sign, reason)| (*sign, reason) != (now.sign, &now.reason));
                (now.sign, now.reason.clone(), is_new)
            });
        });
        let Some((sign, reason, is_new)) = became else {
            (self.grace_ends, self.grace_left) = (None, None);
            return;
        };
        if !is_new && self.grace_ends.is_some() {
            return;
        }
        let network = keys.network();
        match sign {
            _ if !is_new => {}
            Sign::Missing => tracing::info!(%network, reason, "kept for a moment"),
            Sign::Older | Sign::Revision => tracing::warn!(%network, reason, "the store was wiped or put back"),
        }
        let whole = if sign == Sign::Missing { self.grace.min(DROP_MISSING_AFTER) } else { self.grace };
        let left = self.grace_left.take().filter(|_| !is_new).unwrap_or(whole);
        self.grace_ends = Some(Instant::now() + left);
    }

    fn end_grace(&mut self) {
        self.grace_ends = None;
        self.view.send_modify(fold::end_grace);
    }

    fn connected(&mut self) {
        if let Some(left) = self.grace_left.take() {
            self.grace_ends = Some(Instant::now() + left);
        }
        let changed = self.view.send_if_modified(|view| {
            let changed = view.connection != Connection::Connected;
            view.connection = Connection::Connected;
            changed
        });
        if changed {
            tracing::info!(network = %self.keys.network(), "following the store again");
        }
    }

    fn lost(&mut self, error: &StoreError) {
        if let Some(ends) = self.grace_ends.take() {
            self.grace_left = Some(ends.saturating_duration_since(Instant::now()));
        }
        let (reason, kind) = (error.to_string(), error.kind());
        self.view.send_if_modified(|view| {
            let known = matches!(&view.connection, Connection::Lost { reason: before, .. } if *before == reason);
            if !known {
                tracing::info!(network = %self.keys.network(), reason, "lost the store");
                view.connection = Connection::Lost { reason, kind };
            }
            !known
        });
    }
}

async fn grace_over(ends: Option<Instant>) {
    match ends {
        Some(ends) => tokio::time::sleep_until(ends).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
