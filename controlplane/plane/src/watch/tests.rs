use std::time::Duration;

use flatnet_model::NetworkName;
use flatnet_model::state::ConfigState;

use super::*;
use crate::random::SeededRandom;
use crate::store::memory::{Link, MemoryStore};

const CONFIG: &str = r#"{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan"}}"#;
const GRACE: Duration = Duration::from_secs(3_600);

fn keys() -> NetworkKeys {
    NetworkKeys::new(&NetworkName::default_network(), "/coreos.com/network")
}

fn put(store: &MemoryStore, subnet: u8, host: u8) -> Revision {
    let value = format!(r#"{{"PublicIP":"192.168.33.{host}","PublicIPv6":null,"BackendType":"host-gw"}}"#);
    store.put(format!("{}10.100.{subnet}.0-24", keys().subnets()), value, None)
}

fn delete(store: &MemoryStore, subnet: u8) {
    store.delete(format!("{}10.100.{subnet}.0-24", keys().subnets()));
}

struct Followed {
    store: MemoryStore,
    client: MemoryStore,
    view: watch::Receiver<NetworkView>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Followed {
    fn of(store: &MemoryStore, begin: NetworkView) -> Self {
        let client = store.client();
        let (sender, view) = watch::channel(begin);
        let follow = follow_with(Arc::new(client.clone()), keys(), GRACE, sender, SeededRandom::new(3));
        Self { store: store.clone(), client, view, task: tokio::spawn(follow) }
    }

    async fn started(leases: &[(u8, u8)]) -> Self {
        let store = MemoryStore::new();
        store.put(keys().config(), CONFIG, None);
        for (subnet, host) in leases {
            put(&store, *subnet, *host);
        }
        let followed = Self::of(&store, NetworkView::default());
        followed.settle().await;
        followed
    }

    /// Reaches the store again, and lets no more time pass than that takes.
    async fn reconnect(&self) {
        self.client.set_link(Link::Up);
        while self.view().connection != Connection::Connected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lets everything happen that happens within a second.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    fn leases(&self) -> Vec<(u8, u8)> {
        let view = self.view.borrow();
        let octet = |lease: &flatnet_model::Lease| {
            (lease.subnets.v4().unwrap().addr().octets()[2], lease.public_ip.unwrap().octets()[3])
        };
        view.state.leases.values().map(octet).collect()
    }

    fn view(&self) -> NetworkView {
        self.view.borrow().clone()
    }

    fn suspected(&self) -> Option<String> {
        self.view.borrow().suspect.as_ref().map(|suspect| suspect.reason.clone())
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_then_changes_one_notification_a_batch() {
    let mut followed = Followed::started(&[(1, 1), (2, 2)]).await;
    assert_eq!(followed.leases(), [(1, 1), (2, 2)]);
    let view = followed.view();
    assert_eq!((view.source, view.connection, view.suspect), (Source::Store, Connection::Connected, None));
    assert!(matches!(view.state.config, ConfigState::Valid(_)));
    followed.view.mark_unchanged();
    for host in 1..=50 {
        put(&followed.store, 100, host);
    }
    let mut notified = 0;
    while tokio::time::timeout(Duration::from_secs(1), followed.view.changed()).await.is_ok() {
        notified += 1;
    }
    assert_eq!((notified, followed.leases()), (1, vec![(1, 1), (2, 2), (100, 50)]));
    delete(&followed.store, 1);
    followed.settle().await;
    assert_eq!(followed.leases(), [(2, 2), (100, 50)]);
    assert_eq!(followed.view().state.revision, followed.store.revision());
}

#[tokio::test(start_paused = true)]
async fn cut_off_it_keeps_the_state_and_sees_what_came_within_a_second_of_the_stores_return() {
    let followed = Followed::started(&[(1, 1)]).await;
    followed.client.set_link(Link::Down);
    followed.settle().await;
    put(&followed.store, 2, 2);
    delete(&followed.store, 1);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(followed.leases(), [(1, 1)]);
    assert!(matches!(followed.view().connection, Connection::Lost { .. }));
    followed.client.set_link(Link::Up);
    followed.settle().await;
    assert_eq!((followed.leases().last(), followed.view().connection), (Some(&(2, 2)), Connection::Connected));
    tokio::time::sleep(DROP_MISSING_AFTER).await;
    assert_eq!((followed.leases(), followed.suspected()), (vec![(2, 2)], None));
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_noticed() {
    let followed = Followed::started(&[(1, 1)]).await;
    followed.client.set_link(Link::Stalled);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(matches!(followed.view().connection, Connection::Lost { .. }));
}

#[tokio::test(start_paused = true)]
async fn after_a_compaction_changed_attributes_are_seen_too() {
    let followed = Followed::started(&[(1, 1), (2, 2), (3, 3)]).await;
    followed.client.set_link(Link::Down);
    followed.settle().await;
    put(&followed.store, 1, 9);
    delete(&followed.store, 2);
    put(&followed.store, 4, 4);
    followed.store.compact(followed.store.revision());
    followed.client.set_link(Link::Up);
    followed.settle().await;
    tokio::time::sleep(DROP_MISSING_AFTER).await;
    assert_eq!((followed.leases(), followed.suspected()), (vec![(1, 9), (3, 3), (4, 4)], None));
}

#[tokio::test(start_paused = true)]
async fn a_wiped_store_prunes_nobody_until_the_grace_is_over() {
    let followed = Followed::started(&[(1, 1), (2, 2), (3, 3)]).await;
    followed.store.wipe();
    followed.settle().await;
    assert_eq!(followed.leases(), [(1, 1), (2, 2), (3, 3)]);
    assert!(followed.suspected().unwrap().contains("went back"));
    assert!(followed.view().state.valid_config().is_some(), "the configuration stays too");

    // Somebody makes the network again; one host claims again, another one's subnet is taken.
    followed.store.put(keys().config(), CONFIG, None);
    put(&followed.store, 1, 8);
    put(&followed.store, 2, 2);
    followed.settle().await;
    assert_eq!(followed.leases(), [(1, 8), (2, 2), (3, 3)]);
    assert_eq!(followed.view().suspect.unwrap().kept.len(), 1);
    tokio::time::sleep(GRACE).await;
    assert_eq!((followed.leases(), followed.suspected()), (vec![(1, 8), (2, 2)], None));
}

#[tokio::test(start_paused = true)]
async fn an_old_backup_put_back_keeps_what_it_lacks_and_takes_what_it_has() {
    let followed = Followed::started(&[(1, 1)]).await;
    let backup = followed.store.backup();
    put(&followed.store, 2, 2);
    put(&followed.store, 1, 9);
    followed.settle().await;
    followed.store.restore(&backup);
    followed.settle().await;
    assert_eq!(followed.leases(), [(1, 1), (2, 2)]);
    assert!(followed.suspected().is_some());
    put(&followed.store, 2, 2);
    followed.settle().await;
    assert_eq!((followed.leases(), followed.suspected()), (vec![(1, 1), (2, 2)], None), "claimed again: trusted again");
}

/// The backup lacks a lease that was there by the revision known before. The owner of that lease may be about to claim
/// it again.
#[tokio::test(start_paused = true)]
async fn an_old_backup_that_has_grown_past_what_was_known_prunes_nobody_who_claims_again() {
    let followed = Followed::started(&[(1, 1)]).await;
    let backup = followed.store.backup();
    put(&followed.store, 2, 2);
    followed.settle().await;
    followed.client.set_link(Link::Down);
    followed.settle().await;
    followed.store.restore(&backup);
    for host in 3..9 {
        put(&followed.store, 3, host);
    }
    followed.reconnect().await;
    assert_eq!(followed.leases(), [(1, 1), (2, 2), (3, 8)]);
    let suspect = followed.view().suspect.unwrap();
    assert_eq!((suspect.sign, suspect.kept.len()), (Sign::Missing, 1));
    put(&followed.store, 2, 2);
    tokio::time::sleep(DROP_MISSING_AFTER).await;
    assert_eq!((followed.leases(), followed.suspected()), (vec![(1, 1), (2, 2), (3, 8)], None), "claimed again");

    // The node is cut off once more while it keeps a lease: it keeps that no longer than before. Another lease that is
    // gone by then is kept as well.
    followed.client.set_link(Link::Down);
    followed.settle().await;
    delete(&followed.store, 2);
    followed.reconnect().await;
    tokio::time::sleep(DROP_MISSING_AFTER / 2).await;
    followed.client.set_link(Link::Down);
    tokio::time::sleep(DROP_MISSING_AFTER * 2).await;
    delete(&followed.store, 3);
    followed.reconnect().await;
    assert_eq!(followed.leases(), [(1, 1), (2, 2), (3, 8)], "nobody could claim meanwhile");
    tokio::time::sleep(DROP_MISSING_AFTER / 2).await;
    assert_eq!((followed.leases(), followed.suspected()), (vec![(1, 1)], None));
}

#[tokio::test(start_paused = true)]
async fn everything_deleted_by_prefix_is_a_wipe_and_not_a_departure() {
    let followed = Followed::started(&[(1, 1), (2, 2)]).await;
    followed.store.delete(keys().config());
    delete(&followed.store, 1);
    delete(&followed.store, 2);
    followed.settle().await;
    assert_eq!(followed.leases(), [(1, 1), (2, 2)]);
    assert!(followed.view().state.valid_config().is_some());
    tokio::time::sleep(GRACE).await;
    assert!(followed.leases().is_empty());
    assert_eq!(followed.view().state.config, ConfigState::Missing);
    assert!(followed.view().usable_config.is_some());
}

#[tokio::test(start_paused = true)]
async fn the_grace_stands_still_while_nobody_can_claim() {
    let followed = Followed::started(&[(1, 1)]).await;
    followed.store.wipe();
    followed.settle().await;
    followed.client.set_link(Link::Down);
    tokio::time::sleep(GRACE * 2).await;
    followed.client.set_link(Link::Up);
    followed.settle().await;
    assert_eq!(followed.leases(), [(1, 1)]);
    tokio::time::sleep(GRACE).await;
    assert!(followed.leases().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_from_disk_serves_until_the_stores_prunes_what_left_meanwhile() {
    let first = Followed::started(&[(1, 1), (2, 2)]).await;
    let disk = crate::snapshot::decode(&keys(), &crate::snapshot::encode(&keys(), &first.view())).unwrap();
    let store = first.store.clone();
    drop(first);
    delete(&store, 1);
    let client = store.client();
    client.set_link(Link::Down);
    let (sender, view) = watch::channel(disk);
    let task = tokio::spawn(follow_with(Arc::new(client.clone()), keys(), GRACE, sender, SeededRandom::new(3)));
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!((view.borrow().state.leases.len(), view.borrow().source), (2, Source::Disk));
    client.set_link(Link::Up);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((view.borrow().state.leases.len(), view.borrow().source), (1, Source::Store));
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_wipe_is_noticed_also_by_an_agent_started_after_it() {
    let first = Followed::started(&[(1, 1), (2, 2)]).await;
    first.store.wipe();
    first.settle().await;
    // The node is started again in the middle of the grace: what was kept is still kept.
    let disk = crate::snapshot::decode(&keys(), &crate::snapshot::encode(&keys(), &first.view())).unwrap();
    let again = Followed::of(&first.store, disk);
    again.settle().await;
    assert_eq!(again.leases(), [(1, 1), (2, 2)]);
    assert!(again.suspected().is_some());
}

#[tokio::test(start_paused = true)]
async fn garbage_is_named_and_skipped_and_the_last_good_value_stays() {
    let followed = Followed::started(&[(1, 1)]).await;
    let garbage = |key: &str| followed.store.put(format!("{}{key}", keys().subnets()), "{", None);
    garbage("10.100.1.0-24");
    garbage("../config");
    followed.settle().await;
    assert_eq!((followed.leases(), followed.view().state.rejected.len()), (vec![(1, 1)], 2));
    followed.store.put(keys().config(), "{", None);
    followed.settle().await;
    assert!(matches!(followed.view().state.config, ConfigState::Invalid(_)));
    assert!(followed.view().usable_config.is_some());
    followed.store.compact(followed.store.revision());
    followed.store.break_watches();
    followed.settle().await;
    assert_eq!(
        (followed.leases(), followed.view().state.rejected.len()),
        (vec![(1, 1)], 2),
        "a snapshot says the same"
    );
    put(&followed.store, 1, 1);
    followed.store.delete(format!("{}../config", keys().subnets()));
    followed.settle().await;
    assert!(followed.view().state.rejected.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_went_back_without_lacking_anything_is_counted_too() {
    let followed = Followed::started(&[(1, 11)]).await;
    let backup = followed.store.backup();
    put(&followed.store, 1, 99);
    followed.settle().await;
    followed.store.restore(&backup);
    followed.settle().await;
    let view = followed.view.borrow();
    assert_eq!((view.rewinds, &view.suspect), (1, &None));
    assert!(view.state.leases.values().all(|lease| lease.public_ip == Some([192, 168, 33, 11].into())));
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_was_removed_does_not_come_back_with_a_wipe() {
    let followed = Followed::started(&[(1, 11), (2, 12)]).await;
    for _ in 0..50 {
        put(&followed.store, 2, 12);
    }
    followed.store.delete(keys().config());
    tokio::time::sleep(GRACE).await;
    followed.settle().await;
    assert_eq!(followed.view.borrow().state.config, ConfigState::Missing);
    followed.store.wipe();
    followed.settle().await;
    assert!(followed.store.dump().is_empty());
    let suspect = followed.view.borrow().suspect.clone().unwrap();
    assert!(suspect.sign == Sign::Revision && !suspect.kept_config, "{suspect:?}");
}
