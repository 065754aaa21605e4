//! A real etcd of three members behind a real server, while nodes come and go and members are killed, hung and restarted:
//! nobody ever has another's subnet, nothing acknowledged is lost, and soon after it is over every view is the store.
//!
//! `FLATNET_CLUSTER_SECS` says for how long; without it a short while.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "these are tests: a surprise fails them, and figures are printed"
)]

#[cfg(test)]
mod support;

#[path = "cluster/members.rs"]
mod members;
#[path = "cluster/nodes.rs"]
mod nodes;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flatnet_controlplane::server::{self, Server, ServerOptions};
use flatnet_controlplane::store::etcd::{EtcdOptions, EtcdStore};
use flatnet_controlplane::store::{Store, Txn, Write};
use flatnet_model::keys::FLANNEL_PREFIX;
use members::Members;
use nodes::{Load, keys};
use support::ScratchDir;

/// How long the faults last when nobody says.
const SECS: u64 = 30;
/// Nodes that come and go.
const NODES: u8 = 12;
/// When every view must be the store after the last fault: five seconds, and a loaded machine's three more.
const HEALED: Duration = Duration::from_secs(8);
const CONFIG: &[u8] = br#"{"Network":"10.50.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#;

fn store(members: &Members) -> EtcdStore {
    EtcdStore::connect(EtcdOptions { endpoints: members.endpoints(), ca: None, identity: None, user: None }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_given_twice_while_members_die_hang_and_restart() {
    let secs = std::env::var("FLATNET_CLUSTER_SECS").map_or(SECS, |text| text.parse().expect("seconds"));
    let dir = ScratchDir::new("cluster");
    let mut members = Members::start(dir.path()).await;
    let operator = store(&members);
    let put = Write::Put { key: keys().config(), value: CONFIG.to_vec(), lease: None };
    operator.txn(Txn { when: Vec::new(), then: vec![put] }).await.unwrap();
    let token = server::create_token(&operator, Duration::from_secs(3600), 1_000).await.unwrap().token;
    let mut servers = Vec::new();
    // Two replicas with one authority.
    for _ in 0..2 {
        let options = ServerOptions {
            store: Arc::new(store(&members)),
            store_name: "etcd",
            embedded: None,
            prefix: FLANNEL_PREFIX.to_owned(),
            data_dir: dir.path().join("controlplane"),
            authority: None,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            http_listen: None,
        };
        let server = Server::open(options).await.unwrap();
        servers.push((server.address().unwrap(), server.ca_hash()));
        tokio::spawn(async move {
            // Its socket has the other one's name: the second to end finds it gone.
            let _ = server.serve(std::future::pending()).await;
        });
    }
    let load = Load::start(NODES, &servers, &token, dir.path());
    load.everybody_has_a_lease(Duration::from_secs(60)).await;
    let watching = load.look_for_two_owners(store(&members));

    let until = Instant::now() + Duration::from_secs(secs);
    let mut round = 0_u32;
    while Instant::now() < until {
        let what = members.fault(round).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        members.heal().await;
        eprintln!("{what}; {} joins and {} leaves so far", load.joins(), load.leaves());
        round += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let healed = Instant::now();
    load.stay();
    loop {
        match load.compare(&operator).await {
            Ok(()) => break,
            Err(why) => assert!(healed.elapsed() < HEALED, "{why}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eprintln!(
        "{round} faults, {} joins, {} leaves; every view is the store {} ms after the last of them",
        load.joins(),
        load.leaves(),
        healed.elapsed().as_millis()
    );
    assert!(load.joins() > 10 && load.leaves() > 10, "there was hardly any load");
    let twice = watching.stop().await;
    assert!(twice.is_none(), "{twice:?}");
}
