use super::*;
use crate::store::memory::{Fault, MemoryStore};

fn who(nonce: u128) -> Owner {
    Owner { node: NodeId::new(1), name: "host1".into(), nonce: InstanceNonce::new(nonce) }
}

fn is_present(store: &MemoryStore) -> bool {
    store.dump().contains_key(flatnet_model::keys::presence(NodeId::new(1)).as_bytes())
}

#[tokio::test(start_paused = true)]
async fn presence_ends_with_its_ttl_and_lives_while_kept_alive() {
    let store = MemoryStore::new();
    let presence = announce(&store, &who(1)).await.unwrap();
    for _ in 0..10 {
        tokio::time::sleep(PRESENCE_TTL / 3).await;
        keep_alive(&store, &presence).await.unwrap();
    }
    assert!(is_present(&store));
    tokio::time::sleep(PRESENCE_TTL).await;
    assert!(!is_present(&store));
    assert!(matches!(keep_alive(&store, &presence).await, Err(StoreError::LeaseGone(_))));
}

#[tokio::test(start_paused = true)]
async fn the_same_copy_started_again_has_its_presence_at_once() {
    let store = MemoryStore::new();
    let first = announce(&store, &who(1)).await.unwrap();
    let began = Instant::now();
    assert_eq!(announce(&store, &who(1)).await.unwrap(), first);
    assert_eq!(began.elapsed(), Duration::ZERO);
    withdraw(&store, &first).await.unwrap();
    assert!(!is_present(&store));
}

#[tokio::test(start_paused = true)]
async fn a_rebooted_machine_waits_its_own_time_out() {
    let store = MemoryStore::new();
    announce(&store, &who(1)).await.unwrap();
    let began = Instant::now();
    announce(&store, &who(2)).await.unwrap();
    assert!(began.elapsed() >= PRESENCE_TTL - POLL && began.elapsed() <= PRESENCE_TTL + MARGIN);
}

#[tokio::test(start_paused = true)]
async fn a_copied_state_directory_is_refused_while_the_other_lives() {
    let store = MemoryStore::new();
    let other = announce(&store, &who(1)).await.unwrap();
    let renewing = store.clone();
    let task = tokio::spawn(async move {
        loop {
            tokio::time::sleep(PRESENCE_TTL / 3).await;
            keep_alive(&renewing, &other).await.unwrap();
        }
    });
    let began = Instant::now();
    let error = announce(&store, &who(2)).await.unwrap_err();
    assert!(began.elapsed() <= PRESENCE_TTL / 3 * RENEWALS + POLL, "{:?}", began.elapsed());
    assert!(matches!(&error, PresenceError::Cloned { name, .. } if name == "host1"), "{error}");
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_rebooted_machine_is_no_copy_because_the_store_renewed_all_leases_once() {
    let store = MemoryStore::new();
    let before = announce(&store, &who(1)).await.unwrap();
    let renewing = store.clone();
    tokio::spawn(async move {
        tokio::time::sleep(PRESENCE_TTL / 3).await;
        keep_alive(&renewing, &before).await.unwrap();
    });
    announce(&store, &who(2)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_read_and_garbage_replaced() {
    let store = MemoryStore::new();
    store.put(flatnet_model::keys::presence(NodeId::new(1)), "garbage", None);
    let client = store.client();
    client.fault_next([Fault::None, Fault::None, Fault::LoseReply]);
    let presence = announce(&client, &who(1)).await.unwrap();
    keep_alive(&store, &presence).await.unwrap();
    tokio::time::sleep(PRESENCE_TTL).await;
    assert!(!is_present(&store));
}
