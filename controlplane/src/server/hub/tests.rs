use flatnet_model::NetworkName;
use flatnet_model::keys::FLANNEL_PREFIX;
use proto::watch_reply::News as Wire;

use super::*;
use crate::store::memory::{Link, MemoryStore};

fn keys() -> NetworkKeys {
    NetworkKeys::new(&NetworkName::default_network(), FLANNEL_PREFIX)
}

fn key(number: usize) -> String {
    format!("{}10.{}.{}.0-24", keys().subnets(), number / 256, number % 256)
}

async fn hub(store: &MemoryStore) -> (Hubs<MemoryStore>, Arc<Hub>) {
    store.put(keys().config(), br#"{"Network":"10.0.0.0/8"}"#.to_vec(), None);
    let hubs = Hubs::new(Arc::new(store.client()));
    let hub = hubs.get(&keys()).unwrap();
    assert!(hub.ready(store.revision(), Duration::from_secs(5)).await);
    (hubs, hub)
}

/// The parts of one snapshot: how many, the records together, the revision.
async fn snapshot(watcher: &mut Watcher) -> (usize, usize, Revision) {
    let (mut parts, mut records) = (0, 0);
    loop {
        match watcher.next().await.unwrap().news.unwrap() {
            Wire::Snapshot(part) => {
                parts += 1;
                records += part.records.len();
                if !part.more {
                    return (parts, records, part.revision);
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn batch(watcher: &mut Watcher) -> proto::Batch {
    match watcher.next().await.unwrap().news.unwrap() {
        Wire::Batch(batch) => batch,
        other => panic!("{other:?}"),
    }
}

fn position(hub: &Hub) -> Position {
    hub.position(&keys()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_watcher_gets_everything_in_parts_and_then_each_change() {
    let store = MemoryStore::new();
    for number in 0..2500 {
        store.put(key(number), "not a lease", None);
    }
    let (_hubs, hub) = hub(&store).await;
    let mut watcher = hub.watch(&keys(), None);
    assert_eq!(snapshot(&mut watcher).await, (3, 2501, store.revision()));
    let revision = store.put(key(1), "another", None);
    let changed = batch(&mut watcher).await;
    assert_eq!((changed.revision, changed.changes.len()), (revision, 1));
    store.delete(key(1));
    assert!(batch(&mut watcher).await.changes[0].deleted);
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_was_away_goes_on_where_it_was() {
    let store = MemoryStore::new();
    let (_hubs, hub) = hub(&store).await;
    let known = position(&hub);
    let revision = store.put(key(1), "x", None);
    assert!(hub.ready(revision, Duration::from_secs(5)).await);
    let mut watcher = hub.watch(&keys(), Some(&known));
    assert!(matches!(watcher.next().await.unwrap().news, Some(Wire::Resumed(_))));
    assert_eq!(batch(&mut watcher).await.revision, revision, "what it missed");
    let other = Position { config_created: 99, ..known };
    let mut stranger = hub.watch(&keys(), Some(&other));
    assert_eq!(snapshot(&mut stranger).await.1, 2, "another store's position leads nowhere");
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_does_not_read_costs_nothing_and_gets_a_snapshot_when_it_does() {
    let store = MemoryStore::new();
    let (_hubs, hub) = hub(&store).await;
    let mut slow = hub.watch(&keys(), None);
    snapshot(&mut slow).await;
    for round in 0..HISTORY + 10 {
        store.put(key(1), format!("{round}"), None);
        if round % 500 == 0 {
            assert!(hub.ready(store.revision(), Duration::from_secs(5)).await);
        }
    }
    assert!(hub.ready(store.revision(), Duration::from_secs(5)).await);
    assert!(hub.lock().history_len <= HISTORY);
    assert_eq!(snapshot(&mut slow).await, (1, 2, store.revision()), "not ten thousand changes");
}

#[tokio::test(start_paused = true)]
async fn a_short_absence_of_the_store_is_nobodys_business_and_a_long_one_is_said() {
    let store = MemoryStore::new();
    store.put(keys().config(), "{}", None);
    let client = store.client();
    let hubs = Hubs::new(Arc::new(client.clone()));
    let hub = hubs.get(&keys()).unwrap();
    let mut watcher = hub.watch(&keys(), None);
    snapshot(&mut watcher).await;
    client.set_link(Link::Down);
    let quiet = tokio::time::timeout(Duration::from_secs(2), watcher.next()).await;
    assert!(quiet.is_err(), "nothing is said yet");
    client.set_link(Link::Up);
    let revision = store.put(key(1), "x", None);
    assert_eq!(batch(&mut watcher).await.revision, revision);
    client.set_link(Link::Down);
    let said = tokio::time::timeout(PATIENCE * 2, watcher.next()).await.unwrap();
    assert!(said.is_err());
    assert!(hub.look(|_| ()).is_none(), "nor does anybody decide by what is old");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_put_back_is_shown_as_it_is() {
    let store = MemoryStore::new();
    let (_hubs, hub) = hub(&store).await;
    let backup = store.backup();
    for number in 0..10 {
        store.put(key(number), "x", None);
    }
    assert!(hub.ready(store.revision(), Duration::from_secs(5)).await);
    let mut watcher = hub.watch(&keys(), None);
    assert_eq!(snapshot(&mut watcher).await.1, 11);
    store.restore(&backup);
    let (_, records, revision) = snapshot(&mut watcher).await;
    assert_eq!((records, revision), (1, store.revision()), "the lower revision too: its reader must learn of it");
}

#[tokio::test(start_paused = true)]
async fn a_hub_ends_with_its_last_watcher() {
    let store = MemoryStore::new();
    let (hubs, hub) = hub(&store).await;
    let watcher = hub.watch(&keys(), None);
    assert_eq!(hubs.watchers(), 1);
    drop(hub);
    assert_eq!(hubs.watchers(), 1);
    drop(watcher);
    assert_eq!(hubs.watchers(), 0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let calls = store.calls();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(store.calls(), calls, "nobody follows for nobody");
}
