//! One suite for every store: etcd and the embedded store do what the memory store promises.

#![expect(clippy::unwrap_used, clippy::panic, reason = "these are tests: a surprise fails them")]

#[cfg(test)]
mod support;

use std::time::Duration;

use flatnet_controlplane::store::embedded::EmbeddedStore;
use flatnet_model::{EtcdLease, Revision};
use flatnet_plane::store::memory::MemoryStore;
use flatnet_plane::store::{Compare, KeyRange, Store, StoreError, Txn, TxnReply, WatchBatch, WatchEvent, Write};
use futures::{Stream, StreamExt};
use support::{Etcd, ScratchDir};

/// The functions the suite needs besides [`Store`].
trait Subject: Store {
    async fn compact(&self, revision: Revision);
    /// Waits for `wait` of the store's time.
    async fn pass(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
    }
    /// Returns true if there are clients beside ours, which may write anything.
    fn others_write(&self) -> bool {
        true
    }
    /// Writes any bytes, as any client can.
    async fn put_bytes(&self, key: &[u8], value: &[u8]);
}

impl Subject for MemoryStore {
    async fn compact(&self, revision: Revision) {
        MemoryStore::compact(self, revision);
    }

    async fn put_bytes(&self, key: &[u8], value: &[u8]) {
        self.put(key, value, None);
    }
}

impl Subject for EmbeddedStore {
    async fn compact(&self, revision: Revision) {
        EmbeddedStore::compact(self, revision).await.unwrap();
    }

    async fn put_bytes(&self, _key: &[u8], _value: &[u8]) {
        unreachable!("nobody else can write the file");
    }

    fn others_write(&self) -> bool {
        false
    }
}

#[derive(Clone)]
struct Real {
    store: flatnet_plane::store::etcd::EtcdStore,
    raw: etcd_client::Client,
}

impl Real {
    async fn new(etcd: &Etcd) -> Self {
        Self { store: etcd.store(), raw: etcd_client::Client::connect([etcd.url()], None).await.unwrap() }
    }
}

impl Store for Real {
    async fn range(&self, range: &KeyRange) -> Result<flatnet_plane::store::RangeReply, StoreError> {
        self.store.range(range).await
    }
    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        self.store.txn(txn).await
    }
    async fn lease_grant(&self, ttl: Duration) -> Result<EtcdLease, StoreError> {
        self.store.lease_grant(ttl).await
    }
    async fn lease_keep_alive(&self, lease: EtcdLease) -> Result<Duration, StoreError> {
        self.store.lease_keep_alive(lease).await
    }
    async fn lease_time_left(&self, lease: EtcdLease) -> Result<Duration, StoreError> {
        self.store.lease_time_left(lease).await
    }
    async fn lease_revoke(&self, lease: EtcdLease) -> Result<(), StoreError> {
        self.store.lease_revoke(lease).await
    }
    async fn watch(
        &self,
        range: &KeyRange,
        from: Revision,
    ) -> Result<impl Stream<Item = Result<WatchBatch, StoreError>> + Send + Unpin + 'static, StoreError> {
        self.store.watch(range, from).await
    }
}

impl Subject for Real {
    async fn compact(&self, revision: Revision) {
        self.raw.kv_client().compact(revision, None).await.unwrap();
    }

    async fn put_bytes(&self, key: &[u8], value: &[u8]) {
        self.raw.kv_client().put(key, value, None).await.unwrap();
    }
}

async fn suite<S: Subject>(store: &S) {
    transactions(store).await;
    range_guards(store).await;
    leases(store).await;
    watches(store).await;
    no_watch_begins_in_the_future(store).await;
    compaction(store).await;
    if store.others_write() {
        any_bytes(store).await;
    }
    thousands_of_keys(store).await;
}

#[tokio::test(start_paused = true)]
async fn the_memory_store_conforms() {
    suite(&MemoryStore::new()).await;
}

#[tokio::test]
async fn the_embedded_store_conforms() {
    let dir = ScratchDir::new("conformance");
    suite(&EmbeddedStore::open(&dir.path().join("store.redb")).unwrap()).await;
}

#[tokio::test]
async fn etcd_conforms() {
    let etcd = Etcd::start().await;
    suite(&Real::new(&etcd).await).await;
}

fn put(key: &str, value: &str) -> Write {
    Write::Put { key: key.into(), value: value.into(), lease: None }
}

async fn set<S: Store>(store: &S, key: &str, value: &str) -> Revision {
    match store.txn(Txn { when: vec![], then: vec![put(key, value)] }).await.unwrap() {
        TxnReply::Done(revision) => revision,
        TxnReply::Refused(_) => unreachable!("there was no condition"),
    }
}

async fn delete<S: Store>(store: &S, key: &str) -> Revision {
    match store.txn(Txn { when: vec![], then: vec![Write::Delete(key.into())] }).await.unwrap() {
        TxnReply::Done(revision) | TxnReply::Refused(revision) => revision,
    }
}

async fn value<S: Store>(store: &S, key: &str) -> Option<String> {
    let reply = store.range(&KeyRange::key(key)).await.unwrap();
    reply.kvs.first().map(|kv| String::from_utf8(kv.value.clone()).unwrap())
}

async fn transactions<S: Store>(store: &S) {
    let absent =
        Txn { when: vec![Compare::ModRevision("/t/a".into(), 0)], then: vec![put("/t/a", "1"), put("/t/b", "1")] };
    let TxnReply::Done(first) = store.txn(absent.clone()).await.unwrap() else { panic!("nothing was there") };
    let reply = store.range(&KeyRange::prefix("/t/")).await.unwrap();
    assert_eq!(reply.revision, first);
    assert!(reply.kvs.iter().all(|kv| kv.mod_revision == first && kv.create_revision == first && kv.lease.is_none()));
    assert_eq!(store.txn(absent).await.unwrap(), TxnReply::Refused(first));

    let swap = |revision| Txn {
        when: vec![Compare::ModRevision("/t/a".into(), revision)],
        then: vec![put("/t/a", "2"), Write::Delete("/t/b".into())],
    };
    let TxnReply::Done(second) = store.txn(swap(first)).await.unwrap() else { panic!("the revision is right") };
    assert_eq!(second, first + 1, "one transaction is one revision");
    assert_eq!(store.txn(swap(first)).await.unwrap(), TxnReply::Refused(second));
    assert_eq!((value(store, "/t/a").await.as_deref(), value(store, "/t/b").await), (Some("2"), None));
    let kv = store.range(&KeyRange::key("/t/a")).await.unwrap().kvs.remove(0);
    assert_eq!((kv.create_revision, kv.mod_revision), (first, second));
    assert_eq!(delete(store, "/t/nothing").await, second, "removing nothing is no change");

    let twice = Txn { when: vec![], then: vec![put("/t/a", "3"), put("/t/a", "4")] };
    assert!(matches!(store.txn(twice).await, Err(StoreError::Rejected { .. })));
    assert_eq!(value(store, "/t/a").await.as_deref(), Some("2"), "wholly or not at all");
}

async fn range_guards<S: Store>(store: &S) {
    let guard = |key: &str| Txn {
        when: vec![Compare::Absent(KeyRange { start: "/g/10.0.40.0-24".into(), end: "/g/10.0.40.0-24'".into() })],
        then: vec![put(key, "x")],
    };
    set(store, "/g/10.0.40.0-25", "another").await;
    set(store, "/g/10.0.40.0-240", "another").await;
    delete(store, "/g/10.0.40.0-240").await;
    assert!(matches!(store.txn(guard("/g/10.0.40.0-24&fd00:28::-64")).await.unwrap(), TxnReply::Done(_)));
    assert!(matches!(store.txn(guard("/g/10.0.40.0-24")).await.unwrap(), TxnReply::Refused(_)));
    delete(store, "/g/10.0.40.0-24&fd00:28::-64").await;
    assert!(matches!(store.txn(guard("/g/10.0.40.0-24")).await.unwrap(), TxnReply::Done(_)));
}

async fn leases<S: Subject>(store: &S) {
    let ttl = Duration::from_secs(2);
    let lease = store.lease_grant(ttl).await.unwrap();
    let write = |key: &str| Write::Put { key: key.into(), value: vec![], lease: Some(lease) };
    let reply = store.txn(Txn { when: vec![], then: vec![write("/l/a"), write("/l/b")] }).await.unwrap();
    let TxnReply::Done(revision) = reply else { panic!("there was no condition") };
    let kv = store.range(&KeyRange::key("/l/a")).await.unwrap().kvs.remove(0);
    assert_eq!(kv.lease, Some(lease));
    set(store, "/l/b", "no lease any more").await;

    for _ in 0..4 {
        store.pass(Duration::from_secs(1)).await;
        assert_eq!(store.lease_keep_alive(lease).await.unwrap(), ttl);
    }
    assert!(value(store, "/l/a").await.is_some(), "kept alive");
    let mut watch = store.watch(&KeyRange::prefix("/l/"), revision + 2).await.unwrap();
    let batch = tokio::time::timeout(Duration::from_secs(8), watch.next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(&batch.events[..], [WatchEvent::Delete { key, .. }] if key == b"/l/a"), "{batch:?}");
    assert_eq!((value(store, "/l/a").await, value(store, "/l/b").await.is_some()), (None, true));

    let gone = |result: Result<(), StoreError>| matches!(result, Err(StoreError::LeaseGone(id)) if id == lease.0);
    assert!(gone(store.lease_keep_alive(lease).await.map(drop)));
    assert!(gone(store.txn(Txn { when: vec![], then: vec![write("/l/c")] }).await.map(drop)));
    store.lease_revoke(lease).await.unwrap();

    let other = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    let left = store.lease_time_left(other).await.unwrap();
    assert!(left > Duration::from_secs(50) && left <= Duration::from_secs(60), "{left:?}");
    store.pass(Duration::from_secs(2)).await;
    assert!(store.lease_time_left(other).await.unwrap() < left, "looking does not renew");
    assert!(gone(store.lease_time_left(lease).await.map(drop)));
    let write = Write::Put { key: "/l/d".into(), value: vec![], lease: Some(other) };
    store.txn(Txn { when: vec![], then: vec![write] }).await.unwrap();
    store.lease_revoke(other).await.unwrap();
    assert_eq!(value(store, "/l/d").await, None);
}

/// Collects events until `count` of them are there.
async fn collect<T>(watch: &mut T, count: usize) -> Vec<(Revision, String, Option<String>)>
where
    T: Stream<Item = Result<WatchBatch, StoreError>> + Unpin,
{
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut seen = Vec::new();
    while seen.len() < count {
        let batch = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap().unwrap();
        for event in batch.events {
            let (revision, key, value) = match event {
                WatchEvent::Put(kv) => (kv.mod_revision, text(&kv.key), Some(text(&kv.value))),
                WatchEvent::Delete { key, revision } => (revision, text(&key), None),
            };
            assert!(revision <= batch.revision);
            seen.push((revision, key, value));
        }
    }
    seen
}

async fn watches<S: Store>(store: &S) {
    let range = KeyRange::prefix("/w/");
    let first = set(store, "/w/a", "1").await;
    set(store, "/other", "unseen").await;
    let third = set(store, "/w/a", "2").await;
    let fourth = delete(store, "/w/a").await;
    let mut watch = store.watch(&range, first).await.unwrap();
    let expected = [(first, Some("1")), (third, Some("2")), (fourth, None)];
    let expected = expected.map(|(revision, value)| (revision, "/w/a".to_owned(), value.map(str::to_owned)));
    assert_eq!(collect(&mut watch, 3).await, expected, "history, in order, from the revision on");

    let mut expected = Vec::new();
    let mut later = store.watch(&range, fourth + 1).await.unwrap();
    for index in 0..50 {
        let key = format!("/w/{}", index % 7);
        expected.push((set(store, &key, &index.to_string()).await, key, Some(index.to_string())));
    }
    assert_eq!(collect(&mut watch, 50).await, expected);
    assert_eq!(collect(&mut later, 50).await, expected, "every watcher sees the same");

    // One transaction stays together.
    let then = (0..20).map(|index| put(&format!("/w/t{index:02}"), "x")).collect();
    let TxnReply::Done(revision) = store.txn(Txn { when: vec![], then }).await.unwrap() else { panic!() };
    let batch = tokio::time::timeout(Duration::from_secs(5), watch.next()).await.unwrap().unwrap().unwrap();
    assert_eq!((batch.events.len(), batch.revision), (20, revision));
}

async fn no_watch_begins_in_the_future<S: Store>(store: &S) {
    let now = set(store, "/future/a", "1").await;
    assert!(store.watch(&KeyRange::prefix("/future/"), now + 1).await.is_ok());
    match store.watch(&KeyRange::prefix("/future/"), now + 2).await.map(|_| ()) {
        Err(StoreError::Unavailable { .. }) => {}
        other => panic!("{other:?}"),
    }
}

async fn compaction<S: Subject>(store: &S) {
    let range = KeyRange::prefix("/c/");
    let first = set(store, "/c/a", "1").await;
    let mut last = first;
    for _ in 0..5 {
        last = set(store, "/c/a", "2").await;
    }
    store.compact(last).await;
    let result = match store.watch(&range, first).await {
        Ok(mut watch) => watch.next().await.unwrap().map(drop),
        Err(error) => Err(error),
    };
    assert!(matches!(result, Err(StoreError::Compacted(at)) if at == last), "{result:?}");
    let mut watch = store.watch(&range, last + 1).await.unwrap();
    let next = set(store, "/c/a", "3").await;
    assert_eq!(collect(&mut watch, 1).await[0].0, next);
}

async fn any_bytes<S: Subject>(store: &S) {
    let (key, bytes) = (b"/b/\xff\x00\xfe".to_vec(), vec![0_u8, 255, 128, b'"']);
    let mut watch = store.watch(&KeyRange::prefix("/b/"), set(store, "/b/text", "x").await + 1).await.unwrap();
    store.put_bytes(&key, &bytes).await;
    let batch = watch.next().await.unwrap().unwrap();
    assert!(matches!(&batch.events[..], [WatchEvent::Put(kv)] if kv.key == key && kv.value == bytes));
    let reply = store.range(&KeyRange::prefix("/b/")).await.unwrap();
    assert!(reply.kvs.iter().any(|kv| kv.key == key && kv.value == bytes));
}

async fn thousands_of_keys<S: Store>(store: &S) {
    // As large as a value of ours ever is, so that 8,000 of them are beyond what tonic takes by default.
    let value = "x".repeat(600);
    for chunk in 0..80 {
        let then = (0..100).map(|index| put(&format!("/many/{chunk:03}-{index:03}"), &value)).collect();
        store.txn(Txn { when: vec![], then }).await.unwrap();
    }
    let reply = store.range(&KeyRange::prefix("/many/")).await.unwrap();
    assert_eq!(reply.kvs.len(), 8_000);
    assert!(reply.kvs.is_sorted_by(|a, b| a.key < b.key));
    let first = reply.kvs[0].mod_revision;
    let mut watch = store.watch(&KeyRange::prefix("/many/"), first).await.unwrap();
    assert_eq!(collect(&mut watch, 8_000).await.len(), 8_000, "catching up over many revisions loses nothing");
}
