//! Everything that the embedded store acknowledged is there after `kill -9`, in the middle of anything.

#![expect(clippy::unwrap_used, reason = "these are tests: a surprise fails them")]

#[cfg(test)]
mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flatnet_controlplane::store::embedded::EmbeddedStore;
use flatnet_plane::random::{Random, SeededRandom};
use flatnet_plane::store::{Compare, KeyRange, Store, StoreError, Txn, TxnReply, Write};
use futures::StreamExt;
use support::ScratchDir;

/// The variable with the store's file, set for the process that writes until it is killed.
const CHILD: &str = "FLATNET_TEST_STORE";
/// Writers of the child, each with its own keys.
const WRITERS: u32 = 8;
/// The number of times it is killed.
const ROUNDS: u64 = 15;

fn put(key: &str, value: &str) -> Write {
    Write::Put { key: key.to_owned(), value: value.as_bytes().to_vec(), lease: None }
}

/// The child: counts each writer's keys up by compare-and-swap and prints on stdout what was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the part of another test that is killed"]
async fn writer() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let store = EmbeddedStore::open(Path::new(&path)).unwrap();
    let mut tasks = Vec::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            let (a, b) = (format!("/w/{writer}/a"), format!("/w/{writer}/b"));
            let found = store.range(&KeyRange::key(&a)).await.unwrap().kvs.into_iter().next();
            let mut number: u64 =
                found.as_ref().map_or(0, |kv| std::str::from_utf8(&kv.value).unwrap().parse().unwrap());
            let mut revision = found.map_or(0, |kv| kv.mod_revision);
            loop {
                number += 1;
                let text = number.to_string();
                let lease = store.lease_grant(Duration::from_secs(600)).await.unwrap();
                let kept =
                    Write::Put { key: format!("/l/{writer}"), value: text.clone().into_bytes(), lease: Some(lease) };
                let when = vec![Compare::ModRevision(a.clone(), revision)];
                let txn = Txn { when, then: vec![put(&a, &text), put(&b, &text), kept] };
                let TxnReply::Done(now) = store.txn(txn).await.unwrap() else { panic!("nobody else writes {a}") };
                revision = now;
                let line = format!("ack {writer} {number} {revision} {}\n", lease.0);
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            }
        }));
    }
    // None of them ends.
    futures::future::join_all(tasks).await;
}

/// Runs the child on `path` for `life` and kills it. Returns what it printed as acknowledged: writer → (number,
/// revision, lease).
fn run_and_kill(path: &Path, life: Duration) -> BTreeMap<u32, (u64, i64, i64)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["writer", "--exact", "--ignored", "--nocapture"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        let mut acks = BTreeMap::new();
        // The last line may be cut off: then nobody read the acknowledgement either.
        for line in out.lines().map_while(Result::ok) {
            let Some(at) = line.find("ack ") else { continue };
            let words: Vec<i64> = line[at + 4..].split(' ').filter_map(|word| word.parse().ok()).collect();
            if let [writer, number, revision, lease] = words[..] {
                acks.insert(u32::try_from(writer).unwrap(), (u64::try_from(number).unwrap(), revision, lease));
            }
        }
        acks
    });
    let began = Instant::now();
    while began.elapsed() < life {
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9() {
    let dir = ScratchDir::new("durability");
    let path = dir.path().join("store.redb");
    let mut random = SeededRandom::new(5);
    let mut acknowledged = BTreeMap::new();
    let mut total = 0;
    for _ in 0..ROUNDS {
        let life = Duration::from_millis(60 + random.next_u64() % 300);
        let path = path.clone();
        let acks = tokio::task::spawn_blocking({
            let path = path.clone();
            move || run_and_kill(&path, life)
        });
        acknowledged.extend(acks.await.unwrap());
        let store = EmbeddedStore::open(&path).unwrap();
        for (writer, (number, revision, lease)) in &acknowledged {
            let read = |key: String| {
                let store = store.clone();
                async move { store.range(&KeyRange::key(&key)).await.unwrap().kvs.remove(0) }
            };
            let a = read(format!("/w/{writer}/a")).await;
            let b = read(format!("/w/{writer}/b")).await;
            let found: u64 = std::str::from_utf8(&a.value).unwrap().parse().unwrap();
            assert!(found >= *number, "writer {writer}: {number} was acknowledged, {found} is there");
            assert!(found <= number + 1, "writer {writer} has one call under way at most");
            assert_eq!((a.value, a.mod_revision), (b.value, b.mod_revision), "a transaction is one");
            assert!(store.revision() >= *revision);
            assert!(store.lease_keep_alive(flatnet_model::EtcdLease(*lease)).await.is_ok(), "leases last too");
        }
        total = acknowledged.values().map(|(number, ..)| number).sum();
    }
    assert!(total > 100, "the writer wrote next to nothing: {total}");
}

/// The child whose disk is full after a megabyte, and has room again later.
#[tokio::test]
#[ignore = "the part of another test that fills its disk"]
async fn filler() {
    const LEASE: Duration = Duration::from_secs(4);
    let Some(path) = std::env::var_os(CHILD) else { return };
    let limit = |bytes: &str| {
        let pid = std::process::id().to_string();
        assert!(
            Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={bytes}:")]).status().unwrap().success()
        );
    };
    let store = EmbeddedStore::open(Path::new(&path)).unwrap();
    let lease = store.lease_grant(LEASE).await.unwrap();
    let granted = Instant::now();
    let leased = Write::Put { key: "/leased".to_owned(), value: b"yes".to_vec(), lease: Some(lease) };
    store.txn(Txn { when: Vec::new(), then: vec![leased] }).await.unwrap();
    assert_eq!(store.refuses_changes(), None);
    limit(&(std::fs::metadata(&path).unwrap().len() + 1_000_000).to_string());
    let large = "x".repeat(200_000);
    let mut written = 0;
    let refused = loop {
        let txn = Txn { when: Vec::new(), then: vec![put(&format!("/large/{written}"), &large)] };
        match store.txn(txn).await {
            Ok(_) => written += 1,
            Err(error) => break error.to_string(),
        }
        assert!(written < 1000, "the disk takes everything");
    };
    // It is read all the same, what was acknowledged is there, and no lease lives longer for it.
    assert_eq!(store.range(&KeyRange::prefix("/large/")).await.unwrap().kvs.len(), written, "{refused}");
    let said = store.refuses_changes().unwrap();
    assert!(said.contains("takes no changes"), "{said}");
    while granted.elapsed() < LEASE / 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let txn = Txn { when: Vec::new(), then: vec![put("/large/more", &large)] };
        assert!(store.txn(txn).await.is_err());
    }
    let left = store.lease_time_left(lease).await.unwrap();
    assert!(left < LEASE * 3 / 4, "{left:?} of {LEASE:?} left");
    limit("unlimited");
    // Nobody writes, and yet it is known that the disk has room.
    let since = Instant::now();
    while store.refuses_changes().is_some() {
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}", store.refuses_changes());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    store.txn(Txn { when: Vec::new(), then: vec![put("/large/more", &large)] }).await.unwrap();
    let since = Instant::now();
    while !store.range(&KeyRange::key("/leased")).await.unwrap().kvs.is_empty() {
        assert!(since.elapsed() < 2 * LEASE, "the lease does not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("all of it was seen");
}

#[test]
fn a_full_disk_is_said_loses_nothing_and_prolongs_no_lease() {
    let dir = ScratchDir::new("full");
    // A write beyond the limit is to fail, not to end the process.
    let child = Command::new("sh")
        .args(["-c", r#"trap '' XFSZ; exec "$0" filler --exact --ignored --nocapture"#])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, dir.path().join("store.redb"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && said.contains("all of it was seen"),
        "{said}{}",
        String::from_utf8_lossy(&child.stderr)
    );
}

#[tokio::test]
async fn a_second_process_cannot_have_the_file() {
    let dir = ScratchDir::new("second");
    let path = dir.path().join("store.redb");
    let store = EmbeddedStore::open(&path).unwrap();
    assert!(EmbeddedStore::open(&path).is_err());
    drop(store);
    assert!(EmbeddedStore::open(&path).is_ok(), "closed with the last handle");
}

#[tokio::test]
async fn a_restart_keeps_everything_but_the_history() {
    let dir = ScratchDir::new("restart");
    let path = dir.path().join("store.redb");
    let store = EmbeddedStore::open(&path).unwrap();
    let lease = store.lease_grant(Duration::from_secs(2)).await.unwrap();
    let write = Write::Put { key: "/a".to_owned(), value: vec![0, 255], lease: Some(lease) };
    let TxnReply::Done(first) = store.txn(Txn { when: vec![], then: vec![write, put("/b", "x")] }).await.unwrap()
    else {
        panic!("there was no condition")
    };
    let before = store.range(&KeyRange::prefix("/")).await.unwrap();
    drop(store);

    let store = EmbeddedStore::open(&path).unwrap();
    assert_eq!(store.range(&KeyRange::prefix("/")).await.unwrap(), before);
    let mut old = store.watch(&KeyRange::prefix("/"), first).await.unwrap();
    assert!(matches!(old.next().await, Some(Err(StoreError::Compacted(_)))));
    let mut watch = store.watch(&KeyRange::prefix("/"), first + 1).await.unwrap();
    let expired = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(expired.events.len(), 1, "the lease runs out here as it would have there");

    let copy = dir.path().join("copy.redb");
    store.backup(copy.clone()).await.unwrap();
    assert!(store.backup(copy.clone()).await.is_err(), "a backup overwrites nothing");
    let now = store.range(&KeyRange::prefix("/")).await.unwrap();
    let copy = EmbeddedStore::open(&copy).unwrap();
    assert_eq!(copy.range(&KeyRange::prefix("/")).await.unwrap(), now);
}

#[tokio::test]
async fn what_is_no_store_is_refused_and_left_alone() {
    let dir = ScratchDir::new("foreign");
    let path = dir.path().join("store.redb");
    std::fs::write(&path, b"something else entirely, and longer than a header".repeat(200)).unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(EmbeddedStore::open(&path).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

/// Ten thousand leases, as of a large fleet: opening them is quick.
#[tokio::test]
async fn ten_thousand_leases_are_there_again_at_once() {
    let dir = ScratchDir::new("many");
    let path = dir.path().join("store.redb");
    let store = EmbeddedStore::open(&path).unwrap();
    let value = "x".repeat(600);
    let calls = (0..10_000).map(|index| {
        let (store, value) = (store.clone(), value.clone());
        async move {
            let lease = store.lease_grant(Duration::from_secs(86_400)).await?;
            let write = Write::Put { key: format!("/many/{index:05}"), value: value.into_bytes(), lease: Some(lease) };
            store.txn(Txn { when: vec![], then: vec![write] }).await
        }
    });
    let began = Instant::now();
    let done = futures::stream::iter(calls).buffer_unordered(256).collect::<Vec<_>>().await;
    assert!(done.iter().all(Result::is_ok));
    eprintln!("figure: 10,000 grants and puts by 256 at once: {} ms", began.elapsed().as_millis());
    drop(store);
    let began = Instant::now();
    let store = EmbeddedStore::open(&path).unwrap();
    let count = store.range(&KeyRange::prefix("/many/")).await.unwrap().kvs.len();
    eprintln!("figure: start with 10,000 leases: {} ms", began.elapsed().as_millis());
    assert_eq!(count, 10_000);
}
