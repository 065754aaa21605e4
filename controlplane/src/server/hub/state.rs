//! The records a hub holds of one network, and the history of how they came to be.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use flatnet_model::Revision;
use flatnet_model::keys::NetworkKeys;
use flatnet_model::state::NetworkState;
use flatnet_proto::controlplane::v1 as proto;
use tokio::time::Instant;

use flatnet_plane::flannel::decode_change;
use flatnet_plane::plane::contents::{Contents, Fingerprint};
use flatnet_plane::store::{KeyValue, RangeReply, WatchBatch, WatchEvent};
use flatnet_plane::wire;

/// The most changes kept for watchers that were away: some minutes of a large fleet's, 600 bytes each.
pub(super) const HISTORY: usize = 10_000;
/// The records in one part of a snapshot, 30 KB. A connection keeps the memory of the largest message it once sent.
pub(super) const PART: usize = 64;

/// The state of one network.
pub(super) struct State {
    pub(super) records: BTreeMap<Vec<u8>, KeyValue>,
    /// The records' digests, to be compared with what watchers hold.
    pub(super) contents: Contents,
    /// The records, decoded.
    pub(super) network: NetworkState,
    pub(super) revision: Revision,
    /// Changes after `history_from`, in order.
    pub(super) history: VecDeque<Past>,
    pub(super) history_len: usize,
    pub(super) history_from: Revision,
    /// The fingerprint of all records at `history_from`.
    pub(super) history_base: Fingerprint,
    /// The number of the store's history: it changes with another store, or with the same one put back. What watchers
    /// know of an earlier epoch counts for nothing.
    pub(super) epoch: u64,
    /// True once the network has been read.
    pub(super) loaded: bool,
    /// The time since which the store is away, and the reason.
    pub(super) lost: Option<(Instant, String)>,
    /// The records as parts of a snapshot, made once for all watchers that want it.
    pub(super) snapshot: Option<Arc<Vec<proto::WatchReply>>>,
}

/// The changes of one batch.
pub(super) struct Past {
    pub(super) batch: proto::Batch,
    /// The fingerprint of all records after it.
    pub(super) after: Fingerprint,
}

impl State {
    /// Starts with nothing read.
    pub(super) fn new(keys: &NetworkKeys) -> Self {
        Self {
            records: BTreeMap::new(),
            contents: Contents::new(keys),
            network: NetworkState::default(),
            revision: 0,
            history: VecDeque::new(),
            history_len: 0,
            history_from: 0,
            history_base: Fingerprint::default(),
            epoch: 0,
            loaded: false,
            lost: None,
            snapshot: None,
        }
    }

    /// Replaces the state by `reply`, which does not lead on from what it was.
    pub(super) fn replace(&mut self, keys: &NetworkKeys, reply: RangeReply) {
        self.epoch += u64::from(self.loaded);
        self.network = NetworkState { revision: reply.revision, ..NetworkState::default() };
        self.records.clear();
        self.contents.replace(&reply.kvs);
        for kv in reply.kvs {
            if let Some(change) = decode_change(keys, &WatchEvent::Put(kv.clone())) {
                self.network.apply(change);
            }
            self.records.insert(kv.key.clone(), kv);
        }
        self.revision = reply.revision;
        (self.history, self.history_len) = (VecDeque::new(), 0);
        (self.history_from, self.history_base) = (reply.revision, self.contents.fingerprint());
        self.snapshot = None;
        self.loaded = true;
    }

    /// Applies a batch of changes.
    pub(super) fn apply(&mut self, keys: &NetworkKeys, batch: &WatchBatch) {
        let prefix = keys.all();
        for event in &batch.events {
            if let Some(change) = decode_change(keys, event) {
                self.network.apply(change);
            }
            self.contents.apply(event);
            match event {
                WatchEvent::Put(kv) => drop(self.records.insert(kv.key.clone(), kv.clone())),
                WatchEvent::Delete { key, .. } => drop(self.records.remove(key)),
            }
        }
        self.revision = batch.revision;
        self.network.revision = batch.revision;
        self.snapshot = None;
        let changes: Vec<_> = batch.events.iter().filter_map(|event| wire::change(&prefix, event)).collect();
        self.history_len += changes.len();
        let batch = proto::Batch { changes, revision: batch.revision };
        self.history.push_back(Past { batch, after: self.contents.fingerprint() });
        while self.history_len > HISTORY
            && let Some(oldest) = self.history.pop_front()
        {
            self.history_len -= oldest.batch.changes.len();
            (self.history_from, self.history_base) = (oldest.batch.revision, oldest.after);
        }
    }

    /// Returns the fingerprint of all records there were by `revision`; `None`: it is not known (any more, or yet).
    pub(super) fn held_by(&self, revision: Revision) -> Option<Fingerprint> {
        if !self.loaded || !(self.history_from..=self.revision).contains(&revision) {
            return None;
        }
        let later = self.history.partition_point(|past| past.batch.revision <= revision);
        let last = later.checked_sub(1).and_then(|last| self.history.get(last));
        Some(last.map_or(self.history_base, |past| past.after))
    }

    /// Returns what has changed in the store up to `reply`; `None`: it cannot be seen that this is the same store, gone
    /// on. Watchers then have to judge for themselves what became of the records they knew. The same holds when the
    /// store lacks a record: nobody saw whether it was removed, or never was in a store put back.
    pub(super) fn changes_to(&self, keys: &NetworkKeys, reply: &RangeReply) -> Option<WatchBatch> {
        let config = keys.config();
        let created = |kv: Option<&KeyValue>| kv.map(|kv| kv.create_revision);
        let now = reply.kvs.iter().find(|kv| kv.key == config.as_bytes());
        let is_same = created(now) == created(self.records.get(config.as_bytes()));
        if !self.loaded || !is_same || reply.revision < self.revision {
            return None;
        }
        let mut events = Vec::new();
        for kv in &reply.kvs {
            if kv.mod_revision > self.revision {
                events.push(WatchEvent::Put(kv.clone()));
            } else if self.records.get(&kv.key) != Some(kv) {
                return None;
            }
        }
        let there: HashSet<&[u8]> = reply.kvs.iter().map(|kv| kv.key.as_slice()).collect();
        let lacks_none = self.records.keys().all(|key| there.contains(key.as_slice()));
        lacks_none.then_some(WatchBatch { events, revision: reply.revision })
    }

    /// Returns all records in parts, made once for all watchers that want them.
    pub(super) fn snapshot(&mut self, prefix: &str) -> Arc<Vec<proto::WatchReply>> {
        if let Some(made) = &self.snapshot {
            return Arc::clone(made);
        }
        let records: Vec<_> = self.records.values().filter_map(|kv| wire::record(prefix, kv)).collect();
        let made = Arc::new(snapshot_parts(records, self.revision));
        self.snapshot = Some(Arc::clone(&made));
        made
    }
}

/// Divides a snapshot into parts; at least one.
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

pub(super) fn reply(news: proto::watch_reply::News) -> proto::WatchReply {
    proto::WatchReply { news: Some(news) }
}
