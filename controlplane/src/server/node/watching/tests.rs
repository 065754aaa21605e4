//! Tests with networks that are not there, and many of them.

use std::net::Ipv4Addr;
use std::time::Duration;

use futures::StreamExt;
use proto::watch_reply::News;

use super::*;
use crate::server::node::claim::tests::{caller, keys, service};
use flatnet_plane::store::memory::MemoryStore;

const CONFIG: &str = r#"{"Network":"10.100.0.0/16","SubnetLen":24,"Backend":{"Type":"host-gw"}}"#;

fn request(network: &str) -> proto::WatchRequest {
    proto::WatchRequest { network: network.to_owned(), position: None }
}

async fn next(stream: &mut WatchStream) -> News {
    stream.next().await.unwrap().unwrap().news.unwrap()
}

#[tokio::test(start_paused = true)]
async fn made_up_networks_keep_nobody_from_a_real_one_and_one_that_is_made_is_seen() {
    let store = MemoryStore::new();
    let service = service("hubs", &store);
    let (greedy, honest) = (caller(1, Ipv4Addr::LOCALHOST), caller(2, Ipv4Addr::LOCALHOST));
    let mut held = Vec::new();
    let mut refused = 0;
    for number in 0..600 {
        match service.do_watch(&greedy, &request(&format!("n{number}"))).await {
            Ok(stream) => held.push(stream),
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted);
                refused += 1;
            }
        }
    }
    assert!(held.len() < 100 && refused > 500, "{} watched", held.len());
    let mut waiting = service.do_watch(&honest, &request("default")).await.unwrap();
    let News::Snapshot(empty) = next(&mut waiting).await else { panic!("no snapshot") };
    assert!(empty.records.is_empty() && !empty.more);
    store.put(keys().config(), CONFIG, None);
    assert!(!matches!(next(&mut waiting).await, News::Snapshot(_)), "what is made is a change");
    // Dropped places are given back.
    held.clear();
    assert!(service.do_watch(&greedy, &request("default")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn nodes_put_back_what_the_server_saw_go_and_nothing_else_and_not_for_ever() {
    let store = MemoryStore::new();
    let service = service("witness", &store);
    let context = &service.context;
    let node = caller(1, Ipv4Addr::LOCALHOST);
    let restore = async |network: &str, config: &str| {
        let message = proto::RestoreNetworkRequest { network: network.to_owned(), config: config.as_bytes().to_vec() };
        service.do_restore(&node, &message).await.map_err(|status| status.code())
    };
    // A store that was never used does not count as wiped.
    assert!(!context.was_wiped().await.unwrap());
    assert_eq!(restore("default", CONFIG).await, Err(Code::PermissionDenied));
    store.put(keys().config(), CONFIG, None);
    assert!(!context.was_wiped().await.unwrap());
    store.wipe();
    assert!(context.was_wiped().await.unwrap());
    for (network, config) in [
        ("default", CONFIG.replace("10.100", "10.0")),
        ("default", CONFIG.replace("24", "25")),
        ("blue", CONFIG.to_owned()),
    ] {
        assert_eq!(restore(network, &config).await, Err(Code::PermissionDenied), "{network} {config}");
    }
    assert_eq!(restore("default", CONFIG).await, Ok(true));
    assert_eq!(restore("default", CONFIG).await, Ok(false));
    store.wipe();
    assert!(context.was_wiped().await.unwrap());
    tokio::time::advance(Duration::from_secs(16 * 60)).await;
    assert_eq!(restore("default", CONFIG).await, Err(Code::PermissionDenied), "it is an administrator's by now");
}
