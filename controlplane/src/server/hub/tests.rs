use flatnet_model::NetworkName;
use flatnet_model::keys::FLANNEL_PREFIX;
use flatnet_proto::controlplane::v1 as proto;
use proto::watch_reply::News as Wire;

use super::state::HISTORY;
use super::*;
use flatnet_plane::plane::contents::Fingerprint;
use flatnet_plane::store::memory::{Link, MemoryStore};

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

/// Receives the parts of one snapshot: returns their number, the number of records together, and the revision.
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
    let state = hub.lock();
    Position { revision: state.revision, contents: state.contents.fingerprint() }
}

#[tokio::test(start_paused = true)]
async fn a_watcher_gets_everything_in_parts_and_then_each_change() {
    let store = MemoryStore::new();
    for number in 0..2500 {
        store.put(key(number), "not a lease", None);
    }
    let (_hubs, hub) = hub(&store).await;
    let mut watcher = hub.watch(None);
    assert_eq!(snapshot(&mut watcher).await, (40, 2501, store.revision()));
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
    let mut watcher = hub.watch(Some(&known));
    assert!(matches!(watcher.next().await.unwrap().news, Some(Wire::Resumed(_))));
    assert_eq!(batch(&mut watcher).await.revision, revision, "what it missed");
    let other = Position { contents: Fingerprint(99), ..known };
    let mut stranger = hub.watch(Some(&other));
    assert_eq!(snapshot(&mut stranger).await.1, 2, "another store's position leads nowhere");
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_does_not_read_costs_nothing_and_gets_a_snapshot_when_it_does() {
    let store = MemoryStore::new();
    let (_hubs, hub) = hub(&store).await;
    let mut slow = hub.watch(None);
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
    let mut watcher = hub.watch(None);
    snapshot(&mut watcher).await;
    client.set_link(Link::Down);
    let quiet = tokio::time::timeout(Duration::from_secs(2), watcher.next()).await;
    assert!(quiet.is_err(), "nothing is said yet");
    client.set_link(Link::Up);
    let revision = store.put(key(1), "x", None);
    assert_eq!(batch(&mut watcher).await.revision, revision);
    client.set_link(Link::Down);
    let said = tokio::time::timeout(STORE_AWAY_TIMEOUT * 2, watcher.next()).await.unwrap();
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
    let mut watcher = hub.watch(None);
    assert_eq!(snapshot(&mut watcher).await.1, 11);
    store.restore(&backup);
    let (_, records, revision) = snapshot(&mut watcher).await;
    assert_eq!((records, revision), (1, store.revision()), "the lower revision too: its reader must learn of it");
}

#[tokio::test(start_paused = true)]
async fn a_hub_ends_with_its_last_watcher() {
    let store = MemoryStore::new();
    store.put(keys().config(), "{}", None);
    let client = store.client();
    let hubs = Hubs::new(Arc::new(client.clone()));
    let hub = hubs.get(&keys()).unwrap();
    let watcher = hub.watch(None);
    assert_eq!(hubs.watchers(), 1);
    drop(hub);
    assert_eq!(hubs.watchers(), 1);
    drop(watcher);
    assert_eq!(hubs.watchers(), 0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let calls = client.calls();
    store.break_watches();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(client.calls(), calls, "nobody follows for nobody");
}

/// The store was put back and has reached the same revision again.
#[tokio::test(start_paused = true)]
async fn the_same_revision_of_another_history_is_no_place_to_go_on_from() {
    let store = MemoryStore::new();
    store.put(key(1), "x", None);
    let (_hubs, hub) = hub(&store).await;
    let backup = store.backup();
    store.put(key(2), "the watcher saw this", None);
    let revision = store.revision();
    assert!(hub.ready(revision, Duration::from_secs(5)).await);
    let known = position(&hub);
    for other in ["put", "deleted", "put where nobody looks"] {
        store.restore(&backup);
        match other {
            "put" => store.put(key(2), "and not this", None),
            "deleted" => store.delete(key(1)),
            _ => store.put("/elsewhere", "", None),
        };
        assert_eq!(store.revision(), revision);
        let (_hubs, hub) = {
            let hubs = Hubs::new(Arc::new(store.client()));
            let hub = hubs.get(&keys()).unwrap();
            assert!(hub.ready(revision, Duration::from_secs(5)).await);
            (hubs, hub)
        };
        let mut watcher = hub.watch(Some(&known));
        assert!(snapshot(&mut watcher).await.1 >= 1, "{other}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_had_to_connect_again_tells_its_watchers_what_changed_and_no_more() {
    let store = MemoryStore::new();
    for number in 1..4 {
        store.put(key(number), "x", None);
    }
    store.put(keys().config(), br#"{"Network":"10.0.0.0/8"}"#.to_vec(), None);
    let client = store.client();
    let hubs = Hubs::new(Arc::new(client.clone()));
    let hub = hubs.get(&keys()).unwrap();
    let mut watcher = hub.watch(None);
    snapshot(&mut watcher).await;
    let known = position(&hub);
    client.set_link(Link::Down);
    tokio::time::sleep(Duration::from_millis(500)).await;
    store.put(key(1), "changed", None);
    store.put(key(9), "new", None);
    store.compact(store.revision());
    client.set_link(Link::Up);
    let changed = batch(&mut watcher).await;
    assert_eq!((changed.changes.len(), changed.revision), (2, store.revision()));
    let mut away = hub.watch(Some(&known));
    assert!(matches!(away.next().await.unwrap().news, Some(Wire::Resumed(_))));
    assert_eq!(batch(&mut away).await, changed);
    // Nobody saw whether the records it lacks now were removed: each watcher judges that for itself.
    client.set_link(Link::Down);
    tokio::time::sleep(Duration::from_millis(500)).await;
    store.delete(key(2));
    client.set_link(Link::Up);
    assert_eq!(snapshot(&mut watcher).await.1, 4);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_has_grown_past_what_was_known_since_it_was_wiped_is_shown_as_it_is() {
    let store = MemoryStore::new();
    let (_hubs, hub) = hub(&store).await;
    let mut watcher = hub.watch(None);
    snapshot(&mut watcher).await;
    let before = store.revision();
    store.wipe();
    for number in 0..10 {
        store.put(key(number), "x", None);
    }
    store.put(keys().config(), br#"{"Network":"10.0.0.0/8"}"#.to_vec(), None);
    assert!(store.revision() > before);
    assert_eq!(snapshot(&mut watcher).await.1, 11, "and not as ten departures and ten arrivals");
}

/// The store's revision moves with writes elsewhere in it, which a network's watch does not show.
#[tokio::test(start_paused = true)]
async fn whoever_knows_of_a_later_revision_than_this_server_does_not_wait_for_the_next_change() {
    let store = MemoryStore::new();
    let (_hubs, hub) = hub(&store).await;
    let mut watcher = hub.watch(None);
    snapshot(&mut watcher).await;
    let revision = store.put("/elsewhere", "", None);
    assert!(hub.ready(revision, Duration::from_secs(1)).await);
    let known = Position { revision, contents: position(&hub).contents };
    assert!(matches!(hub.watch(Some(&known)).next().await.unwrap().news, Some(Wire::Resumed(_))));
    let quiet = tokio::time::timeout(Duration::from_secs(5), watcher.next()).await;
    assert!(quiet.is_err(), "that is no news");
}

#[tokio::test(start_paused = true)]
async fn what_changes_alone_is_told_at_once_and_many_changes_in_a_few_messages() {
    const MANY: usize = 300;
    let store = MemoryStore::new();
    let (_hubs, hub) = hub(&store).await;
    let mut watcher = hub.watch(None);
    snapshot(&mut watcher).await;
    for number in 0..3 {
        let (revision, since) = (store.put(key(number), "alone", None), Instant::now());
        assert_eq!(batch(&mut watcher).await.revision, revision);
        assert!(since.elapsed() < Duration::from_millis(5), "{:?}", since.elapsed());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let since = Instant::now();
    let (mut messages, mut changes) = (0, 0);
    let written = store.clone();
    let writing = tokio::spawn(async move {
        for number in 0..MANY {
            written.put(key(number), "many", None);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    while changes < MANY {
        let told = batch(&mut watcher).await;
        assert!(told.changes.len() <= 2 * 64, "{}", told.changes.len());
        changes += told.changes.len();
        messages += 1;
    }
    writing.await.unwrap();
    assert!(messages <= 10, "{messages} messages for {MANY} changes in {:?}", since.elapsed());
}
