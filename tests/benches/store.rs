//! The speed of the embedded store, beside the disk's own fsync. Prints; nothing is asserted on time.
//!
//! `cargo bench -p flatnet-tests --bench store`. The directory of the store is `TMPDIR`'s: name one on the disk in
//! question.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and one whose assumption fails has no figures to give"
)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flatnet_controlplane::store::embedded::EmbeddedStore;
use flatnet_plane::store::{KeyRange, Store, Txn, Write};
use futures::StreamExt;

/// Bytes of a lease's value, about.
const VALUE: usize = 600;
/// The time for which each figure is measured in a round; rounds alternate, because disks change from minute to minute.
const ROUND: Duration = Duration::from_millis(700);
/// Rounds of each figure; the median is printed.
const ROUNDS: usize = 5;
/// The leases of a large fleet.
const LEASES: usize = 10_000;

fn main() {
    let dir = std::env::temp_dir().join(format!("flatnet-bench-store-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(rates(&dir));
    runtime.block_on(start(&dir));
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Measures transactions a second by few and by many at once, beside writes of as many bytes that are waited for one by
/// one.
async fn rates(dir: &Path) {
    let store = EmbeddedStore::open(&dir.join("rates.redb")).unwrap();
    let (mut fsync, mut one, mut many) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        fsync.push(fsyncs(&dir.join("fsync")));
        one.push(transactions(&store, 1).await);
        many.push(transactions(&store, 256).await);
    }
    let (fsync, one, many) = (median(fsync), median(one), median(many));
    println!("| | per second | ratio to fsync |");
    println!("|---|---|---|");
    println!("| write {VALUE} bytes and fsync(2) | {fsync:.0} | 1 |");
    println!("| transactions, one at a time | {one:.0} | {:.2} |", one / fsync);
    println!("| transactions, 256 at once | {many:.0} | {:.1} |", many / fsync);
}

fn fsyncs(path: &PathBuf) -> f64 {
    let mut file = std::fs::File::create(path).unwrap();
    let (began, bytes) = (Instant::now(), [b'x'; VALUE]);
    let mut count = 0.0;
    while began.elapsed() < ROUND {
        file.write_all(&bytes).unwrap();
        file.sync_all().unwrap();
        count += 1.0;
    }
    count / began.elapsed().as_secs_f64()
}

async fn transactions(store: &EmbeddedStore, at_once: usize) -> f64 {
    let began = Instant::now();
    let calls = futures::stream::iter(0u64..).take_while(|_| std::future::ready(began.elapsed() < ROUND));
    let done =
        calls.map(|index| put(store, index)).buffer_unordered(at_once).fold(0.0, async |count, ()| count + 1.0).await;
    done / began.elapsed().as_secs_f64()
}

async fn put(store: &EmbeddedStore, index: u64) {
    let write = Write::Put { key: format!("/bench/{:05}", index % 10_000), value: vec![b'x'; VALUE], lease: None };
    store.txn(Txn { when: Vec::new(), then: vec![write] }).await.unwrap();
}

/// Measures the time a server takes until it has read the store of a large fleet.
async fn start(dir: &Path) {
    let path = dir.join("start.redb");
    let store = EmbeddedStore::open(&path).unwrap();
    let fill = (0..LEASES).map(|index| {
        let store = &store;
        async move {
            let lease = store.lease_grant(Duration::from_secs(86_400)).await.unwrap();
            let write = Write::Put { key: format!("/lease/{index:05}"), value: vec![b'x'; VALUE], lease: Some(lease) };
            store.txn(Txn { when: Vec::new(), then: vec![write] }).await.unwrap();
        }
    });
    futures::stream::iter(fill).buffer_unordered(256).collect::<Vec<()>>().await;
    drop(store);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let store = EmbeddedStore::open(&path).unwrap();
        let found = store.range(&KeyRange::prefix("/lease/")).await.unwrap().kvs.len();
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        assert_eq!(found, LEASES);
    }
    println!("\nstart with {LEASES} leases: {:.0} ms (the server's bar: 500 ms)", median(times));
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
