//! Watchers: the position that each has reached in its network.

use std::sync::Arc;
use std::time::Duration;

use flatnet_model::Revision;
use flatnet_proto::controlplane::v1 as proto;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::state::{PART, reply};
use super::{Hub, STORE_AWAY_TIMEOUT};

/// One watcher of a network, with the position it has reached.
pub struct Watcher {
    pub(super) hub: Arc<Hub>,
    pub(super) changed: watch::Receiver<u64>,
    /// The epoch and revision it has seen; `None`: nothing yet.
    pub(super) seen: Option<(u64, Revision)>,
    /// True while it is still to be told that it missed nothing.
    pub(super) resumed: bool,
    /// The snapshot being sent, and the next part.
    pub(super) parts: Option<(Arc<Vec<proto::WatchReply>>, usize)>,
    /// Changes to be sent.
    pub(super) changes: Option<proto::Batch>,
    /// The time at which changes were sent last.
    pub(super) sent: Option<Instant>,
}

/// The pause between two messages with changes. A change that comes alone is sent at once. When a fleet starts, each
/// node's message to each other one would otherwise be a message of its own, a million for a thousand.
const NEXT_MESSAGE_AFTER: Duration = Duration::from_millis(50);
/// A message with this many changes gets no more of them.
const CHANGES: usize = PART;

impl Watcher {
    /// Returns the next news; `Err`: the store is away, with the reason.
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
            if let Some(changes) = self.changes.take() {
                self.sent = Some(Instant::now());
                return Ok(reply(proto::watch_reply::News::Batch(changes)));
            }
            if let Some(sent) = self.sent.take() {
                sleep_until(sent + NEXT_MESSAGE_AFTER).await;
            }
            self.changed.mark_unchanged();
            let wait = match self.take() {
                Taken::Something => continue,
                Taken::Nothing => Duration::from_secs(3600),
                Taken::Away { since, reason } => match STORE_AWAY_TIMEOUT.checked_sub(since.elapsed()) {
                    Some(left) if !left.is_zero() => left,
                    _ => return Err(reason),
                },
            };
            // Ends with the hub, which this holds.
            let _ = tokio::time::timeout(wait, self.changed.changed()).await;
        }
    }

    /// Takes what the hub has for this watcher.
    fn take(&mut self) -> Taken {
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
                let start = state.history.partition_point(|past| past.batch.revision <= revision);
                let mut taken = proto::Batch::default();
                for past in state.history.range(start..) {
                    taken.changes.extend(past.batch.changes.iter().cloned());
                    taken.revision = past.batch.revision;
                    if taken.changes.len() >= CHANGES {
                        // Changes that are not taken stay with the hub.
                        break;
                    }
                }
                if taken.changes.is_empty() {
                    return Taken::Nothing;
                }
                self.seen = Some((epoch, taken.revision));
                self.changes = Some(taken);
                Taken::Something
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
