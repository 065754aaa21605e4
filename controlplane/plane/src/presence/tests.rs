use super::*;
use crate::store::memory::{Fault, MemoryStore};

fn who(nonce: u128) -> Owner {
    Owner { node: NodeId::new(1), name: "host1".into(), nonce: InstanceNonce::new(nonce) }
}

fn uses(prefix: &str) -> HostRanges {
    HostRanges::new([prefix.parse().unwrap()], ["192.0.2.53".parse().unwrap()])
}

fn said(store: &MemoryStore) -> Option<HostRanges> {
    let dump = store.dump();
    read(&dump.get(flatnet_model::keys::presence(NodeId::new(1)).as_bytes())?.value).map(|(_, ranges)| ranges)
}

fn is_present(store: &MemoryStore) -> bool {
    store.dump().contains_key(flatnet_model::keys::presence(NodeId::new(1)).as_bytes())
}

#[tokio::test(start_paused = true)]
async fn presence_ends_with_its_ttl_and_lives_while_kept_alive() {
    let store = MemoryStore::new();
    let presence = announce(&store, &who(1), &uses("192.0.2.0/24")).await.unwrap();
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
    let first = announce(&store, &who(1), &uses("192.0.2.0/24")).await.unwrap();
    let began = Instant::now();
    assert_eq!(announce(&store, &who(1), &uses("192.0.2.0/24")).await.unwrap(), first);
    assert_eq!(began.elapsed(), Duration::ZERO);
    withdraw(&store, &first).await.unwrap();
    assert!(!is_present(&store));
}

#[tokio::test(start_paused = true)]
async fn a_rebooted_machine_waits_its_own_time_out() {
    let store = MemoryStore::new();
    announce(&store, &who(1), &uses("192.0.2.0/24")).await.unwrap();
    let began = Instant::now();
    announce(&store, &who(2), &uses("192.0.2.0/24")).await.unwrap();
    assert!(began.elapsed() >= PRESENCE_TTL - POLL_EVERY && began.elapsed() <= PRESENCE_TTL + EXPIRY_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_copied_state_directory_is_refused_while_the_other_lives() {
    let store = MemoryStore::new();
    let other = announce(&store, &who(1), &uses("192.0.2.0/24")).await.unwrap();
    let renewing = store.clone();
    let task = tokio::spawn(async move {
        loop {
            tokio::time::sleep(PRESENCE_TTL / 3).await;
            keep_alive(&renewing, &other).await.unwrap();
        }
    });
    let began = Instant::now();
    let error = announce(&store, &who(2), &uses("192.0.2.0/24")).await.unwrap_err();
    assert!(began.elapsed() <= PRESENCE_TTL / 3 * RENEWALS + POLL_EVERY, "{:?}", began.elapsed());
    assert!(matches!(&error, PresenceError::Cloned { name, .. } if name == "host1"), "{error}");
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_rebooted_machine_is_no_copy_because_the_store_renewed_all_leases_once() {
    let store = MemoryStore::new();
    let before = announce(&store, &who(1), &uses("192.0.2.0/24")).await.unwrap();
    let renewing = store.clone();
    tokio::spawn(async move {
        tokio::time::sleep(PRESENCE_TTL / 3).await;
        keep_alive(&renewing, &before).await.unwrap();
    });
    announce(&store, &who(2), &uses("192.0.2.0/24")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_read_and_garbage_replaced() {
    let store = MemoryStore::new();
    store.put(flatnet_model::keys::presence(NodeId::new(1)), "garbage", None);
    let client = store.client();
    client.fault_next([Fault::None, Fault::None, Fault::LoseReply]);
    let presence = announce(&client, &who(1), &uses("192.0.2.0/24")).await.unwrap();
    keep_alive(&store, &presence).await.unwrap();
    tokio::time::sleep(PRESENCE_TTL).await;
    assert!(!is_present(&store));
}

#[tokio::test(start_paused = true)]
async fn what_a_host_uses_is_said_anew_under_the_same_lease_and_goes_with_it() {
    let store = MemoryStore::new();
    let presence = announce(&store, &who(1), &uses("10.1.0.0/16")).await.unwrap();
    assert_eq!(said(&store), Some(uses("10.1.0.0/16")));
    assert_eq!(announce(&store, &who(1), &uses("10.2.0.0/16")).await.unwrap(), presence);
    assert_eq!(said(&store), Some(uses("10.2.0.0/16")));
    tokio::time::sleep(PRESENCE_TTL).await;
    assert_eq!(said(&store), None);
}

#[tokio::test(start_paused = true)]
async fn one_that_says_nothing_new_writes_nothing() {
    let store = MemoryStore::new();
    announce(&store, &who(1), &uses("10.1.0.0/16")).await.unwrap();
    let before = store.dump();
    announce(&store, &who(1), &uses("10.1.0.0/16")).await.unwrap();
    assert_eq!(store.dump(), before);
}

#[test]
fn records_of_others_are_read_as_far_as_they_can_be() {
    let record = |more: &str| format!(r#"{{"version":1,"name":"host1","nonce":"{:032x}"{more}}}"#, 7);
    // An agent may publish nothing about its host.
    assert_eq!(read(record("").as_bytes()), Some(("host1".to_owned(), HostRanges::default())));
    let some = record(r#","routes":["10.1.0.0/16","not one","0.0.0.0/0"],"resolvers":["::1","10.9.0.53"],"later":[1]"#);
    let expected = HostRanges::new(["10.1.0.0/16".parse().unwrap()], ["10.9.0.53".parse().unwrap()]);
    assert_eq!(read(some.as_bytes()).unwrap().1, expected);
    let many: Vec<String> = (0..100_000).map(|n| format!("\"10.{}.{}.0/24\"", n / 256 % 256, n % 256)).collect();
    let many = record(&format!(r#","routes":[{}]"#, many.join(",")));
    assert_eq!(read(many.as_bytes()).unwrap().1.prefixes().len(), HostRanges::PREFIXES);
    for garbage in ["", "[]", r#"{"version":1}"#, r#"{"version":1,"name":"x","nonce":"x"}"#] {
        assert_eq!(read(garbage.as_bytes()), None, "{garbage}");
    }
}
