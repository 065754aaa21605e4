//! A store's content: keys, leases and history. Its owner decides how it is shared and whether it lasts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use flatnet_model::{EtcdLease, Revision};
use tokio::time::Instant;

use crate::store::{Compare, KeyRange, KeyValue, RangeReply, StoreError, Txn, TxnReply, WatchBatch, WatchEvent, Write};

/// The content of a store at one moment.
#[derive(Clone, Debug)]
pub struct Backup {
    revision: Revision,
    kvs: BTreeMap<Vec<u8>, KeyValue>,
    leases: BTreeMap<i64, Duration>,
}

#[derive(Debug)]
struct MemoryLease {
    ttl: Duration,
    deadline: Instant,
}

/// The content of a store, with its history. It does nothing by itself: its owner tells it the time.
#[derive(Debug)]
pub struct Data {
    revision: Revision,
    kvs: BTreeMap<Vec<u8>, KeyValue>,
    leases: BTreeMap<i64, MemoryLease>,
    /// Every change since `compacted`.
    history: VecDeque<(Revision, WatchEvent)>,
    compacted: Revision,
    next_lease: i64,
    /// The number of the content: it changes when the content is replaced, which breaks watches.
    epoch: u64,
    /// Transactions still on their way, with the time at which each is to happen.
    late: Vec<(Instant, Txn)>,
    /// The leases granted and ended since they were last asked for, if anybody asks.
    lease_journal: Option<BTreeSet<i64>>,
    /// The deadlines of the leases that ended since the content was last known to be on the disk.
    ended: BTreeMap<i64, Instant>,
}

/// The changes to write for the content to last.
#[derive(Debug, Default)]
pub struct Changes {
    /// The keys with what they now are; `None`: gone.
    pub keys: Vec<(Vec<u8>, Option<KeyValue>)>,
    /// The leases with their time to live; `None`: ended.
    pub leases: Vec<(i64, Option<Duration>)>,
    /// The revision after the changes.
    pub revision: Revision,
}

impl Changes {
    /// Returns true if nothing is to be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.leases.is_empty()
    }
}

/// Content that lasted: the sum of all [`Changes`].
#[derive(Debug, Default)]
pub struct Kept {
    /// The revision of the last change.
    pub revision: Revision,
    /// The keys with their values.
    pub kvs: BTreeMap<Vec<u8>, KeyValue>,
    /// The leases with their time to live.
    pub leases: BTreeMap<i64, Duration>,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            revision: 1,
            kvs: BTreeMap::new(),
            leases: BTreeMap::new(),
            history: VecDeque::new(),
            compacted: 0,
            next_lease: 0x1000,
            epoch: 0,
            late: Vec::new(),
            lease_journal: None,
            ended: BTreeMap::new(),
        }
    }
}

impl Data {
    /// Makes content from what lasted. Its history did not: a watch begins after `kept.revision`. Every lease has its
    /// whole time again, as after an etcd's restart: nobody could keep it alive meanwhile.
    pub fn of(kept: Kept, first_lease: i64, now: Instant) -> Self {
        let leases = kept.leases.into_iter().map(|(id, ttl)| (id, MemoryLease { ttl, deadline: now + ttl })).collect();
        Self {
            revision: kept.revision,
            kvs: kept.kvs,
            leases,
            compacted: kept.revision + 1,
            next_lease: first_lease,
            lease_journal: Some(BTreeSet::new()),
            ..Self::default()
        }
    }

    /// Keeps the leases' deadlines of `before`, put off by `stood`, the time in which nobody could keep one alive.
    /// Leases that had ended and are here again end at `soon`.
    pub fn keep_deadlines(&mut self, before: &Self, stood: Duration, now: Instant, soon: Instant) {
        for (id, lease) in &mut self.leases {
            let known = before.leases.get(id).map(|lease| lease.deadline).or_else(|| before.ended.get(id).copied());
            if let Some(deadline) = known.map(|deadline| deadline + stood) {
                lease.deadline = lease.deadline.min(if deadline > now { deadline } else { soon });
            }
        }
    }

    /// Notes that all of it is on the disk; at most `limit` changes are remembered.
    pub fn settled(&mut self, limit: usize) {
        self.ended.clear();
        self.trim_history(limit);
    }

    /// Returns the keys changed since revision `since`, and the leases changed since this was last asked.
    pub fn changes(&mut self, since: Revision) -> Changes {
        let start = self.history.partition_point(|(revision, _)| *revision <= since);
        let keys: BTreeSet<&[u8]> = self.history.range(start..).map(|(_, event)| event_key(event)).collect();
        let keys = keys.into_iter().map(|key| (key.to_vec(), self.kvs.get(key).cloned())).collect();
        let journal = self.lease_journal.as_mut().map(std::mem::take).unwrap_or_default();
        let leases = journal.into_iter().map(|id| (id, self.leases.get(&id).map(|lease| lease.ttl))).collect();
        Changes { keys, leases, revision: self.revision }
    }

    /// Returns the content as it is, without its history.
    pub fn kept(&self) -> Kept {
        let leases = self.leases.iter().map(|(id, lease)| (*id, lease.ttl)).collect();
        Kept { revision: self.revision, kvs: self.kvs.clone(), leases }
    }

    /// Forgets the oldest history beyond `limit` changes, whole revisions at a time.
    fn trim_history(&mut self, limit: usize) {
        if let Some(beyond) = self.history.len().checked_sub(limit + 1)
            && let Some((revision, _)) = self.history.get(beyond)
        {
            self.compact(revision + 1);
        }
    }

    /// Lets everything happen that is due by `now`.
    pub fn settle(&mut self, now: Instant) {
        loop {
            let late = self.late.iter().map(|(due, _)| *due).min().filter(|due| *due <= now);
            let expiry = self.leases.iter().map(|(id, lease)| (lease.deadline, *id)).min();
            let expiry = expiry.filter(|(deadline, _)| *deadline <= now);
            match (late, expiry) {
                (Some(due), expiry) if expiry.is_none_or(|(deadline, _)| due < deadline) => {
                    if let Some(index) = self.late.iter().position(|(at, _)| *at == due) {
                        let (_, txn) = self.late.remove(index);
                        let _nobody_waits = self.txn(&txn);
                    }
                }
                (_, Some((_, id))) => self.revoke(EtcdLease(id)),
                _ => return,
            }
        }
    }

    /// Returns the time at which something happens by itself: a lease ends, a late transaction arrives.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.leases.values().map(|lease| lease.deadline).chain(self.late.iter().map(|(due, _)| *due)).min()
    }

    /// Lets a transaction happen at `due`: its answer was lost, it was not.
    pub fn later(&mut self, due: Instant, txn: Txn) {
        self.late.push((due, txn));
    }

    /// Returns the revision of the last change.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Returns the number of the content. It is another one when the content was replaced, which breaks watches.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns another value whenever a watch may have something to say.
    pub fn version(&self) -> (Revision, u64, Revision) {
        (self.revision, self.epoch, self.compacted)
    }

    /// Returns all keys.
    #[must_use]
    pub fn dump(&self) -> BTreeMap<Vec<u8>, KeyValue> {
        self.kvs.clone()
    }

    /// Returns the keys in a range.
    #[must_use]
    pub fn range(&self, range: &KeyRange) -> RangeReply {
        let kvs = self.inside(range).cloned().collect();
        RangeReply { kvs, revision: self.revision }
    }

    fn inside(&self, range: &KeyRange) -> impl Iterator<Item = &KeyValue> {
        let (start, end) = (range.start.as_bytes().to_vec(), range.end.as_bytes().to_vec());
        // BTreeMap::range panics on a start beyond the end.
        let bounds = (start < end).then_some(start..end);
        bounds.into_iter().flat_map(|bounds| self.kvs.range(bounds)).map(|(_, kv)| kv)
    }

    /// Carries a transaction out, wholly or not at all.
    pub fn txn(&mut self, txn: &Txn) -> Result<TxnReply, StoreError> {
        let holds = |compare: &Compare| match compare {
            Compare::Absent(range) => self.inside(range).next().is_none(),
            Compare::ModRevision(key, revision) => {
                self.kvs.get(key.as_bytes()).map_or(0, |kv| kv.mod_revision) == *revision
            }
        };
        if !txn.when.iter().all(holds) {
            return Ok(TxnReply::Refused(self.revision));
        }
        let mut keys: Vec<&str> = txn.then.iter().map(write_key).collect();
        keys.sort_unstable();
        if keys.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(rejected("duplicate key given in txn request"));
        }
        for write in &txn.then {
            if let Write::Put { key, lease, .. } = write {
                if key.is_empty() {
                    return Err(rejected("key is not provided"));
                }
                self.check_lease(*lease)?;
            }
        }
        let revision = self.revision + 1;
        let mut changed = false;
        for write in &txn.then {
            changed |= match write {
                Write::Put { key, value, lease } => {
                    self.put_at(revision, key.as_bytes().to_vec(), value.clone(), *lease);
                    true
                }
                Write::Delete(key) => self.delete_at(revision, key.as_bytes()),
            };
        }
        if changed {
            self.revision = revision;
        }
        Ok(TxnReply::Done(self.revision))
    }

    fn check_lease(&self, lease: Option<EtcdLease>) -> Result<(), StoreError> {
        match lease {
            Some(EtcdLease(id)) if !self.leases.contains_key(&id) => Err(StoreError::LeaseGone(id)),
            _ => Ok(()),
        }
    }

    /// Writes one key, whatever it was; returns the revision of that.
    pub fn put_one(&mut self, key: Vec<u8>, value: Vec<u8>, lease: Option<EtcdLease>) -> Revision {
        self.revision += 1;
        self.put_at(self.revision, key, value, lease);
        self.revision
    }

    /// Deletes one key, if it is there; returns the revision after that.
    pub fn delete_one(&mut self, key: &[u8]) -> Revision {
        if self.delete_at(self.revision + 1, key) {
            self.revision += 1;
        }
        self.revision
    }

    fn put_at(&mut self, revision: Revision, key: Vec<u8>, value: Vec<u8>, lease: Option<EtcdLease>) {
        let create_revision = self.kvs.get(&key).map_or(revision, |kv| kv.create_revision);
        let kv = KeyValue { key: key.clone(), value, create_revision, mod_revision: revision, lease };
        self.history.push_back((revision, WatchEvent::Put(kv.clone())));
        self.kvs.insert(key, kv);
    }

    fn delete_at(&mut self, revision: Revision, key: &[u8]) -> bool {
        let removed = self.kvs.remove(key).is_some();
        if removed {
            self.history.push_back((revision, WatchEvent::Delete { key: key.to_vec(), revision }));
        }
        removed
    }

    /// Grants a lease.
    pub fn grant(&mut self, ttl: Duration, now: Instant) -> EtcdLease {
        let ttl = whole_seconds(ttl);
        self.next_lease += 1;
        self.leases.insert(self.next_lease, MemoryLease { ttl, deadline: now + ttl });
        self.note_lease(self.next_lease);
        EtcdLease(self.next_lease)
    }

    fn note_lease(&mut self, id: i64) {
        if let Some(journal) = &mut self.lease_journal {
            journal.insert(id);
        }
    }

    /// Gives a lease its whole time again; returns that.
    pub fn keep_alive(&mut self, lease: EtcdLease, now: Instant) -> Result<Duration, StoreError> {
        let found = self.leases.get_mut(&lease.0).ok_or(StoreError::LeaseGone(lease.0))?;
        found.deadline = now + found.ttl;
        Ok(found.ttl)
    }

    /// Returns the time that a lease has left.
    pub fn time_left(&self, lease: EtcdLease, now: Instant) -> Result<Duration, StoreError> {
        let found = self.leases.get(&lease.0).ok_or(StoreError::LeaseGone(lease.0))?;
        Ok(found.deadline.saturating_duration_since(now))
    }

    /// Ends a lease, with its keys.
    pub fn revoke(&mut self, lease: EtcdLease) {
        let Some(ended) = self.leases.remove(&lease.0) else { return };
        if self.lease_journal.is_some() {
            self.ended.insert(lease.0, ended.deadline);
        }
        self.note_lease(lease.0);
        let keys: Vec<Vec<u8>> =
            self.kvs.values().filter(|kv| kv.lease == Some(lease)).map(|kv| kv.key.clone()).collect();
        let revision = self.revision + 1;
        for key in &keys {
            self.delete_at(revision, key);
        }
        if !keys.is_empty() {
            self.revision = revision;
        }
    }

    /// Returns the changes in `range` from `from` to `upto`; `None`: none yet.
    pub fn since(&self, range: &KeyRange, from: Revision, upto: Revision) -> Result<Option<WatchBatch>, StoreError> {
        if from < self.compacted {
            return Err(StoreError::Compacted(self.compacted));
        }
        let start = self.history.partition_point(|(revision, _)| *revision < from);
        let end = self.history.partition_point(|(revision, _)| *revision <= upto).max(start);
        let inside = self.history.range(start..end).filter(|(_, event)| range.contains(event_key(event)));
        let events: Vec<WatchEvent> = inside.map(|(_, event)| event.clone()).collect();
        Ok((!events.is_empty()).then_some(WatchBatch { events, revision: self.revision.min(upto) }))
    }

    /// Forgets the history before `revision`.
    pub fn compact(&mut self, revision: Revision) {
        self.compacted = self.compacted.max(revision.min(self.revision));
        while self.history.front().is_some_and(|(at, _)| *at < self.compacted) {
            self.history.pop_front();
        }
    }

    /// Breaks every watch, as a store does that was restarted.
    pub fn break_watches(&mut self) {
        self.epoch += 1;
    }

    /// Deletes everything, also the history.
    pub fn wipe(&mut self) {
        // Lease ids are random in etcd; here it is enough that they do not come again.
        *self = Self { epoch: self.epoch + 1, next_lease: self.next_lease, ..Self::default() };
    }

    /// Returns a backup.
    #[must_use]
    pub fn backup(&self) -> Backup {
        let leases = self.leases.iter().map(|(id, lease)| (*id, lease.ttl)).collect();
        Backup { revision: self.revision, kvs: self.kvs.clone(), leases }
    }

    /// Puts a backup back.
    pub fn restore(&mut self, backup: &Backup) {
        self.wipe();
        let now = Instant::now();
        self.revision = backup.revision;
        self.compacted = backup.revision;
        self.kvs = backup.kvs.clone();
        self.leases =
            backup.leases.iter().map(|(id, ttl)| (*id, MemoryLease { ttl: *ttl, deadline: now + *ttl })).collect();
    }
}

fn event_key(event: &WatchEvent) -> &[u8] {
    match event {
        WatchEvent::Put(kv) => &kv.key,
        WatchEvent::Delete { key, .. } => key,
    }
}

fn write_key(write: &Write) -> &str {
    match write {
        Write::Put { key, .. } | Write::Delete(key) => key,
    }
}

/// Rounds up to whole seconds, which is how etcd counts.
fn whole_seconds(ttl: Duration) -> Duration {
    let up = u64::from(ttl.subsec_nanos() > 0);
    Duration::from_secs((ttl.as_secs() + up).max(1))
}

fn rejected(reason: &str) -> StoreError {
    StoreError::Rejected { endpoint: "store".to_owned(), reason: reason.to_owned() }
}
