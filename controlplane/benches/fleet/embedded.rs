//! The embedded store, compared with what the disk under it can do at all.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flatnet_controlplane::store::embedded::EmbeddedStore;
use flatnet_plane::store::{KeyRange, Store, Txn, Write};
use tokio::task::JoinSet;

use crate::processes::{Scratch, Server};

/// The time for which each rate is measured.
const TIME: Duration = Duration::from_secs(2);
/// Writers at a time.
const WRITERS: usize = 64;
/// Leases at a start.
const LEASES: u32 = 10_000;
/// A lease as nodes write it, in bytes.
const VALUE: usize = 450;

/// Prints its figures.
pub async fn measure(scratch: &Scratch) {
    // On the disk that programs are built on, not in memory: flushing is what is measured.
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("embedded-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    let flushes = flushes(&dir.join("probe"));
    let store = Arc::new(EmbeddedStore::open(&dir.join("rate.redb")).unwrap());
    let (one, many) = (rate(&store, 1).await, rate(&store, WRITERS).await);
    println!("disk: {flushes:.0} writes of 4 KiB with fdatasync a second");
    println!("embedded store: {one:.0} transactions a second one after the other, {many:.0} with {WRITERS} writers");
    drop(store);

    let data = dir.join("data");
    drop(Server::start_in(&data, scratch, &[], 1));
    let file = data.join("store.redb");
    {
        let store = EmbeddedStore::open(&file).unwrap();
        for part in 0..LEASES / 100 {
            let put = |number: u32| Write::Put {
                key: format!("/coreos.com/network/subnets/10.{}.{}.0-24", number >> 8, number & 255),
                value: vec![b'x'; VALUE],
                lease: None,
            };
            let then = (part * 100..part * 100 + 100).map(put).collect();
            store.txn(Txn { when: Vec::new(), then }).await.unwrap();
        }
    }
    let began = Instant::now();
    let store = EmbeddedStore::open(&file).unwrap();
    let found = store.range(&KeyRange::prefix("/coreos.com/network/")).await.unwrap().kvs.len();
    println!("open with {found} records and read them all: {:.0} ms", began.elapsed().as_secs_f64() * 1_000.0);
    drop(store);
    let server = Server::start_in(&data, scratch, &[], 1);
    println!("start of the server with them, to its line: {:.0} ms", server.started.as_secs_f64() * 1_000.0);
    println!("resident: {} KiB", server.resident_kib());
    drop(server);
    let _ = std::fs::remove_dir_all(&dir);
}

/// Returns the number of flushes the disk can do, a second.
fn flushes(path: &Path) -> f64 {
    let mut file = File::create(path).unwrap();
    let (began, mut count) = (Instant::now(), 0_u32);
    while began.elapsed() < TIME {
        file.write_all(&[0; 4096]).unwrap();
        file.sync_data().unwrap();
        count += 1;
    }
    f64::from(count) / began.elapsed().as_secs_f64()
}

/// Transactions a second of some writers.
async fn rate(store: &Arc<EmbeddedStore>, writers: usize) -> f64 {
    let began = Instant::now();
    let mut writing = JoinSet::new();
    for writer in 0..writers {
        let store = Arc::clone(store);
        writing.spawn(async move {
            let mut count = 0_u32;
            while began.elapsed() < TIME {
                let key = format!("/bench/{writer}/{}", count % 100);
                let put = Write::Put { key, value: vec![b'x'; VALUE], lease: None };
                store.txn(Txn { when: Vec::new(), then: vec![put] }).await.unwrap();
                count += 1;
            }
            count
        });
    }
    let counts: u32 = writing.join_all().await.into_iter().sum();
    f64::from(counts) / began.elapsed().as_secs_f64()
}
