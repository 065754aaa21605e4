use super::*;
use flatnet_plane::store::memory::{Fault, MemoryStore};

fn node(number: u128) -> NodeId {
    NodeId::new(number)
}

async fn token(store: &MemoryStore, uses: u32, only: Option<NodeId>) -> String {
    create(store, Duration::from_secs(3600), uses, only).await.unwrap().token
}

async fn try_with(store: &MemoryStore, token: &str, who: u128, key: &str) -> Result<(), Code> {
    use_for(store, &Line::default(), token, node(who), "a", key).await.map_err(|status| status.code())
}

#[tokio::test(start_paused = true)]
async fn a_token_brings_in_as_many_nodes_as_it_may_and_the_same_one_again() {
    let store = MemoryStore::new();
    let token = token(&store, 2, None).await;
    assert_eq!(try_with(&store, &token, 1, "k1").await, Ok(()));
    assert_eq!(try_with(&store, &token, 1, "k1").await, Ok(()), "an answer may have been lost");
    assert_eq!(try_with(&store, &token, 2, "k2").await, Ok(()));
    assert_eq!(try_with(&store, &token, 3, "k3").await, Err(Code::Unauthenticated), "used up");
    assert_eq!(try_with(&store, &token, 2, "k2").await, Ok(()));
    assert_eq!(try_with(&store, &token, 1, "k1").await, Ok(()), "however many came after it");
    store.delete(registry::key(node(1)));
    assert_eq!(try_with(&store, &token, 1, "k1").await, Err(Code::Unauthenticated), "who was removed joins anew");
}

#[tokio::test(start_paused = true)]
async fn a_revoked_node_does_not_come_back_with_what_it_joined_with() {
    let store = MemoryStore::new();
    for only in [None, Some(node(1))] {
        let token = token(&store, 1, only).await;
        assert_eq!(try_with(&store, &token, 1, "k1").await, Ok(()));
        assert!(registry::change(&store, node(1), |found| found.revoked = true).await.unwrap());
        assert!(try_with(&store, &token, 1, "k1").await.is_err());
        store.delete(registry::key(node(1)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_wrong_over_or_revoked_is_refused_in_the_same_words() {
    let store = MemoryStore::new();
    let good = token(&store, 9, None).await;
    let (id, _) = good.split_once('.').unwrap();
    let mut words = std::collections::BTreeSet::new();
    let long = format!("{id}.{}", "0".repeat(1000));
    for bad in ["", ".", "x", id, &format!("{id}."), &format!("{id}.00"), "0000000000.00", "../../etc.x", &long] {
        let status = use_for(&store, &Line::default(), bad, node(1), "a", "k").await.unwrap_err();
        words.insert(status.message().to_owned());
        assert_eq!(status.code(), Code::Unauthenticated, "{bad}");
    }
    assert!(revoke(&store, id).await.unwrap());
    assert!(!revoke(&store, id).await.unwrap());
    let short = create(&store, Duration::from_secs(60), 1, None).await.unwrap().token;
    tokio::time::advance(Duration::from_secs(61)).await;
    for bad in [&good, &short] {
        words.insert(use_for(&store, &Line::default(), bad, node(1), "a", "k").await.unwrap_err().message().to_owned());
    }
    assert_eq!(words.len(), 1, "{words:?}");
}

#[tokio::test(start_paused = true)]
async fn nobody_takes_over_a_nodes_id_with_a_token_but_one_made_for_it() {
    let store = MemoryStore::new();
    let any = token(&store, 9, None).await;
    assert_eq!(try_with(&store, &any, 1, "mine").await, Ok(()));
    assert_eq!(try_with(&store, &any, 1, "other").await, Err(Code::PermissionDenied));
    let made_for_it = token(&store, 1, Some(node(1))).await;
    assert_eq!(try_with(&store, &made_for_it, 2, "other").await, Err(Code::Unauthenticated));
    assert_eq!(try_with(&store, &made_for_it, 1, "other").await, Ok(()));
    assert!(registry::change(&store, node(1), |found| found.revoked = true).await.unwrap());
    assert_eq!(try_with(&store, &any, 1, "other").await, Err(Code::PermissionDenied), "revoked");
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_does_not_let_anybody_join() {
    let store = MemoryStore::new();
    let token = token(&store, 1, None).await;
    let (_, secret) = token.split_once('.').unwrap();
    for (key, kv) in store.dump() {
        assert!(
            !String::from_utf8_lossy(&kv.value).contains(secret) && !String::from_utf8_lossy(&key).contains(secret)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn bad_tokens_are_heard_a_few_times_a_minute_and_others_are_not_made_to_wait() {
    let failures = Failures::default();
    let bad = Some("192.0.2.1".parse().unwrap());
    for _ in 0..FAILURES {
        assert!(failures.may_try(bad).is_ok());
        failures.failed(bad);
    }
    assert_eq!(failures.may_try(bad).unwrap_err().code(), Code::ResourceExhausted);
    assert!(failures.may_try(Some("192.0.2.2".parse().unwrap())).is_ok());
    for address in 0..100_000_u32 {
        failures.failed(Some(std::net::Ipv4Addr::from(address).into()));
    }
    assert!(failures.0.lock().unwrap().by_address.len() <= ADDRESSES + 1, "bounded");
    tokio::time::advance(FAILURES_WINDOW).await;
    assert!(failures.may_try(bad).is_ok());
    // All addresses of one IPv6 network are one.
    for host in 0..5_000_u128 {
        failures.failed(Some(std::net::Ipv6Addr::from_bits((0x2001_0db8 << 96) + host).into()));
    }
    assert!(failures.may_try(Some("2001:db8::ffff".parse().unwrap())).is_err());
    for other in ["2001:db8:0:1::1", "192.0.2.3"] {
        assert!(failures.may_try(Some(other.parse().unwrap())).is_ok(), "{other}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fleet_joins_at_once_with_one_token_and_few_calls() {
    const NODES: u32 = 200;
    let store = MemoryStore::new();
    let token = token(&store, NODES, None).await;
    let line = Line::default();
    let before = store.calls();
    // All nodes read the token before anybody has written it.
    let took = Duration::from_millis(2);
    store.fault_next((0..NODES * 9).map(|_| Fault::Delay(took)));
    let all = (0..NODES).map(|who| {
        let (store, token, line) = (&store, token.clone(), &line);
        async move { use_for(store, line, &token, node(u128::from(who) + 1), "a", &format!("k{who}")).await }
    });
    for joined in futures::future::join_all(all).await {
        joined.unwrap();
    }
    let calls = store.calls() - before;
    store.clear_faults();
    let left = list(&store).await.unwrap()[0].1.uses_left;
    assert_eq!(left, 0);
    assert_eq!(calls, u64::from(NODES) * 3, "two to look, and one to use it");
}
