//! The thread that owns the content: takes calls, changes the content, commits, answers.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use flatnet_model::{EtcdLease, Revision};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Shared;
use super::disk::{Disk, DiskError};
use flatnet_plane::random::{OsRandom, Random};
use flatnet_plane::store::data::{Changes, Data};
use flatnet_plane::store::{KeyRange, RangeReply, StoreError, Txn, TxnReply};

/// The channel for the result of a call.
pub(super) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// One call.
pub(super) enum Request {
    Range(KeyRange, Answer<RangeReply>),
    Txn(Txn, Answer<TxnReply>),
    Grant(Duration, Answer<EtcdLease>),
    KeepAlive(EtcdLease, Answer<Duration>),
    TimeLeft(EtcdLease, Answer<Duration>),
    Revoke(EtcdLease, Answer<()>),
    Compact(Revision, Answer<()>),
    Backup(PathBuf, Answer<()>),
}

/// The most calls carried out in one commit: what they change is then a few hundred KiB.
const BATCH: usize = 512;
/// The most changes kept for watches that were away: at 600 bytes each some 12 MB.
const HISTORY: usize = 20_000;
/// The pause before a disk that refused is tried again.
const DISK_RETRY_AFTER: Duration = Duration::from_millis(200);

/// The time for which a disk that refused a commit counts as refusing: a smaller one may fit into what the file has
/// free.
const REFUSAL_LIFETIME: Duration = Duration::from_secs(5);

/// Returns the first lease's id. Ids must not come again after a restart; 62 random bits, as etcd's are random.
pub(super) fn first_lease() -> i64 {
    i64::try_from(OsRandom.next_u64() >> 2).unwrap_or(1)
}

pub(super) struct Engine {
    shared: Arc<Shared>,
    disk: Disk,
    /// The last revision on the disk.
    durable: Revision,
    /// Set when the disk did not take the last commit; its content is to be read again before anything else.
    broken: Option<Broken>,
}

struct Broken {
    reason: String,
    /// The time since which it cannot be read either, so that nobody's lease can be kept alive.
    unread: Option<Instant>,
}

/// An answer that waits for the disk.
type Ready = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

impl Engine {
    pub(super) fn new(shared: Arc<Shared>, disk: Disk) -> Self {
        let durable = *shared.durable.borrow();
        Self { shared, disk, durable, broken: None }
    }

    /// Serves calls until nobody can ask any more.
    pub(super) fn run(mut self, requests: &Receiver<Request>) {
        loop {
            let due = self.shared.lock().next_due();
            let wait = due.map_or(Duration::from_secs(60), |due| due.saturating_duration_since(Instant::now()));
            let refused = self.broken.is_some() || self.shared.refused().is_some();
            let wait = if refused { DISK_RETRY_AFTER } else { wait };
            match requests.recv_timeout(wait) {
                Ok(first) => {
                    let batch = std::iter::once(first).chain(requests.try_iter().take(BATCH - 1)).collect();
                    self.batch(batch);
                }
                Err(RecvTimeoutError::Timeout) => self.batch(Vec::new()),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn batch(&mut self, batch: Vec<Request>) {
        if self.recover().is_err() {
            let reason = self.broken.as_ref().map(|broken| broken.reason.clone()).unwrap_or_default();
            for request in batch {
                refuse(request, self.shared.unavailable(reason.clone()));
            }
            return;
        }
        let mut answers: Vec<Ready> = Vec::with_capacity(batch.len());
        let (mut compactions, mut backups) = (Vec::new(), Vec::new());
        let changes = {
            let mut data = self.shared.lock();
            data.settle(Instant::now());
            for request in batch {
                match request {
                    Request::Compact(revision, answer) => compactions.push((revision, answer)),
                    Request::Backup(path, answer) => backups.push((path, answer)),
                    request => answers.extend(carry_out(&mut data, request)),
                }
            }
            data.changes(self.durable)
        };
        let committed = if changes.is_empty() { Ok(()) } else { self.commit(&changes) };
        for answer in answers {
            answer(committed.clone().map_err(|reason| self.shared.unavailable(reason)));
        }
        if changes.is_empty() && self.refused_long_ago() {
            // Nobody waits for this commit. It only shows whether the disk takes changes again; the reason why not has
            // been reported.
            let _ = self.commit(&changes);
        }
        for (revision, answer) in compactions {
            self.shared.lock().compact(revision);
            // Watches that are behind learn of it.
            self.shared.durable.send_modify(|_| {});
            drop(answer.send(Ok(())));
        }
        for (path, answer) in backups {
            let kept = self.shared.lock().kept();
            let done = Disk::write_new(&path, &kept).map_err(|error| self.shared.unavailable(error.to_string()));
            drop(answer.send(done));
        }
    }

    /// Returns true if the last commit that the disk refused is a while ago.
    fn refused_long_ago(&self) -> bool {
        self.shared.refused().as_ref().is_some_and(|(_, at)| at.elapsed() >= REFUSAL_LIFETIME)
    }

    /// Puts what changed on the disk and shows it to watches.
    fn commit(&mut self, changes: &Changes) -> Result<(), String> {
        match self.disk.write(changes) {
            Ok(()) => {
                self.shared.lock().settled(HISTORY);
                if self.refused_long_ago() {
                    self.shared.refused().take();
                    tracing::info!(path = %self.shared.path.display(), "the store's disk takes changes again");
                }
                self.durable = changes.revision;
                self.shared.durable.send_replace(self.durable);
                Ok(())
            }
            Err(error) => {
                let reason = error.to_string();
                if self.shared.refused().replace((reason.clone(), Instant::now())).is_none() {
                    tracing::error!(path = %self.shared.path.display(), error = reason, "the store's disk refused a commit");
                }
                self.broken = Some(Broken { reason: reason.clone(), unread: None });
                Err(reason)
            }
        }
    }

    /// Recovers after a commit that failed. What is in memory may not be on the disk, so the disk's content is read
    /// again. Nobody saw what it lacks.
    fn recover(&mut self) -> Result<(), DiskError> {
        let Some(broken) = &mut self.broken else { return Ok(()) };
        let kept = self.disk.reopen().inspect_err(|error| {
            broken.reason = error.to_string();
            broken.unread.get_or_insert_with(Instant::now);
        })?;
        let revision = kept.revision;
        let now = Instant::now();
        let mut data = Data::of(kept, first_lease(), now);
        let mut before = self.shared.lock();
        let stood = broken.unread.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        // Ending a lease that is over is a change, too, and while the disk refuses changes it fails together with all
        // calls made at the same time. So it is tried only now and then.
        data.keep_deadlines(&before, stood, now, now + REFUSAL_LIFETIME);
        *before = data;
        drop(before);
        self.durable = revision;
        self.shared.durable.send_replace(revision);
        self.broken = None;
        tracing::debug!(path = %self.shared.path.display(), revision, "the store's content was read again");
        Ok(())
    }
}

/// Carries out one call. Returns its answer, to be given when the disk has what it changed.
fn carry_out(data: &mut Data, request: Request) -> Option<Ready> {
    fn ready<T: Send + 'static>(answer: Answer<T>, result: Result<T, StoreError>) -> Option<Ready> {
        Some(Box::new(move |committed| {
            // The caller may have given up waiting.
            let _ = answer.send(committed.and(result));
        }))
    }
    let now = Instant::now();
    match request {
        Request::Range(range, answer) => ready(answer, Ok(data.range(&range))),
        Request::Txn(txn, answer) => ready(answer, data.txn(&txn)),
        Request::Grant(ttl, answer) => ready(answer, Ok(data.grant(ttl, now))),
        Request::KeepAlive(lease, answer) => ready(answer, data.keep_alive(lease, now)),
        Request::TimeLeft(lease, answer) => ready(answer, data.time_left(lease, now)),
        Request::Revoke(lease, answer) => {
            data.revoke(lease);
            ready(answer, Ok(()))
        }
        // These were taken out before.
        Request::Compact(..) | Request::Backup(..) => None,
    }
}

fn refuse(request: Request, error: StoreError) {
    match request {
        Request::Range(_, answer) => drop(answer.send(Err(error))),
        Request::Txn(_, answer) => drop(answer.send(Err(error))),
        Request::Grant(_, answer) => drop(answer.send(Err(error))),
        Request::KeepAlive(_, answer) | Request::TimeLeft(_, answer) => drop(answer.send(Err(error))),
        Request::Revoke(_, answer) | Request::Compact(_, answer) | Request::Backup(_, answer) => {
            drop(answer.send(Err(error)));
        }
    }
}
