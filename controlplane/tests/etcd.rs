//! Tests of what only a real etcd shows: races of real clients, restarts, silence.

#![expect(clippy::unwrap_used, reason = "these are tests: a surprise fails them")]

#[cfg(test)]
mod support;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flatnet_controlplane::migrate;
use flatnet_model::keys::{FLANNEL_PREFIX, NetworkKeys};
use flatnet_model::state::{ConfigState, NetworkState};
use flatnet_model::{
    BackendData, BackendKind, HostRanges, InstanceNonce, Mac, NetworkName, NodeId, Owner, Publication,
};
use flatnet_plane::allocate::{self, ClaimRequest, Origin, acquire};
use flatnet_plane::etcd_args::EtcdArgs;
use flatnet_plane::flannel::decode_config;
use flatnet_plane::presence;
use flatnet_plane::random::OsRandom;
use flatnet_plane::store::etcd::{EtcdOptions, EtcdStore};
use flatnet_plane::store::{KeyRange, Store, StoreError, Txn, Write};
use flatnet_plane::watch::{Connection, NetworkView, follow};
use futures::StreamExt;
use support::{Etcd, connect, free_port};
use tokio::sync::watch;

const CONFIG: &str = r#"{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan"}}"#;
const VALUE: &str = r#"{"PublicIP":"192.168.33.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"4e:f4:0c:52:b7:8d"}}"#;

fn keys() -> NetworkKeys {
    NetworkKeys::new(&NetworkName::default_network(), FLANNEL_PREFIX)
}

fn request(host: u8) -> ClaimRequest {
    let id = u128::from(host);
    ClaimRequest {
        keys: keys(),
        owner: Owner { node: NodeId::new(id), name: format!("host{host}"), nonce: InstanceNonce::new(id) },
        publication: Publication {
            public_ip: Some(Ipv4Addr::new(192, 168, 33, host)),
            public_ipv6: None,
            backend: BackendKind::Vxlan,
            data: BackendData::Vxlan { vni: None, mac: Mac::local([host; 6]) },
            data_v6: BackendData::None,
            besides: Vec::new(),
        },
        wanted: vec![],
        previous: None,
        ttl: Duration::from_secs(86_400),
        adopt: true,
        known: None,
    }
}

async fn configured() -> Etcd {
    let etcd = Etcd::start().await;
    etcd.ctl(&["put", "/coreos.com/network/config", CONFIG]);
    etcd
}

/// Follows the network of `store`.
async fn followed(store: EtcdStore) -> (watch::Receiver<NetworkView>, tokio::task::JoinHandle<()>) {
    let (sender, mut view) = watch::channel(NetworkView::default());
    let task = tokio::spawn(follow(Arc::new(store), keys(), Duration::from_secs(60), sender));
    until(&mut view, |view| view.connection == Connection::Connected).await;
    (view, task)
}

/// Waits until the view is as wanted; returns how long that took.
async fn until(view: &mut watch::Receiver<NetworkView>, wanted: impl Fn(&NetworkView) -> bool) -> Duration {
    let began = Instant::now();
    tokio::time::timeout(Duration::from_secs(20), view.wait_for(|view| wanted(view))).await.unwrap().unwrap();
    began.elapsed()
}

#[tokio::test]
async fn ten_agents_at_once_on_an_empty_store_all_get_their_own_subnet() {
    let etcd = configured().await;
    for round in 0..20 {
        let (view, follower) = followed(etcd.store()).await;
        let state = Arc::new(view.borrow().state.clone());
        let mut tasks = tokio::task::JoinSet::new();
        for host in 1..=10 {
            let (store, state) = (etcd.store(), state.clone());
            tasks.spawn(async move { acquire(&store, &request(host), &state, &mut OsRandom).await.unwrap() });
        }
        let subnets: BTreeSet<_> = tasks.join_all().await.into_iter().map(|claim| claim.lease.subnets).collect();
        assert_eq!(subnets.len(), 10, "round {round}");
        let seen = etcd.ctl(&["get", "--prefix", "--keys-only", "/coreos.com/network/subnets/"]);
        assert_eq!(seen.split_whitespace().count(), 10, "round {round}: {seen}");
        etcd.ctl(&["del", "--prefix", "/coreos.com/network/subnets/"]);
        etcd.ctl(&["del", "--prefix", "/flatnet/"]);
        follower.abort();
    }
}

#[tokio::test]
async fn flannelds_lease_is_adopted_and_stays_readable_for_it() {
    let etcd = configured().await;
    let granted = etcd.ctl(&["lease", "grant", "600"]);
    let lease = granted.split_whitespace().nth(1).unwrap();
    etcd.ctl(&["put", "--lease", lease, "/coreos.com/network/subnets/10.100.40.0-24", VALUE]);
    let store = etcd.store();
    let (view, follower) = followed(store.clone()).await;
    let state = view.borrow().state.clone();
    let claim = acquire(&store, &request(1), &state, &mut OsRandom).await.unwrap();
    assert_eq!((claim.origin, claim.lease.subnets.to_string()), (Origin::Adopted, "10.100.40.0-24".to_owned()));
    etcd.ctl(&["lease", "revoke", lease]);
    let written = etcd.ctl(&["get", "--print-value-only", "/coreos.com/network/subnets/10.100.40.0-24"]);
    assert!(
        written.starts_with(
            r#"{"PublicIP":"192.168.33.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VtepMAC":"#
        ),
        "{written}"
    );
    follower.abort();
}

#[tokio::test]
async fn a_killed_server_is_resumed_within_a_second_of_its_return() {
    let mut etcd = configured().await;
    let store = etcd.store();
    let (mut view, follower) = followed(store.clone()).await;
    let state = view.borrow().state.clone();
    let claim = acquire(&store, &request(1), &state, &mut OsRandom).await.unwrap();
    until(&mut view, |view| view.state.leases.len() == 1).await;
    for round in 1..=3_u8 {
        etcd.kill();
        until(&mut view, |view| matches!(view.connection, Connection::Lost { .. })).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(view.borrow().state.leases.len(), usize::from(round));
        etcd.run().await;
        let subnet = format!("/coreos.com/network/subnets/10.100.{}.0-24", 250 - round);
        etcd.ctl(&["put", &subnet, VALUE]);
        let took = until(&mut view, |view| view.state.leases.len() > usize::from(round)).await;
        assert!(took < Duration::from_secs(1), "new lease seen after {took:?}");
        store.lease_keep_alive(claim.etcd_lease).await.unwrap();
    }
    assert!(view.borrow().suspect.is_none());
    follower.abort();
}

#[tokio::test]
async fn a_wiped_server_is_suspected() {
    let mut etcd = configured().await;
    etcd.ctl(&["put", "/coreos.com/network/subnets/10.100.1.0-24", VALUE]);
    let (mut view, follower) = followed(etcd.store()).await;
    etcd.wipe();
    etcd.run().await;
    until(&mut view, |view| view.suspect.is_some()).await;
    assert_eq!(view.borrow().state.leases.len(), 1);
    follower.abort();
}

#[tokio::test]
async fn a_quiet_watch_stays_and_a_stopped_server_is_left_for_another_within_five_seconds() {
    let (first, second) = (configured().await, configured().await);
    let store = connect(&[first.url(), second.url()]);
    let mut events = store.watch(&KeyRange::prefix("/x/"), 2).await.unwrap();
    let quiet = tokio::time::timeout(Duration::from_secs(9), events.next()).await;
    assert!(quiet.is_err(), "nothing happened, and the server did not hang up: {quiet:?}");
    first.signal("STOP");
    let began = Instant::now();
    let end = tokio::time::timeout(Duration::from_secs(10), events.next()).await.unwrap().unwrap();
    assert!(matches!(end, Err(StoreError::Unavailable { .. })), "{end:?}");
    store.range(&KeyRange::key("/coreos.com/network/config")).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(store.endpoint(), second.url());
    first.signal("CONT");
}

#[tokio::test]
async fn a_dead_endpoint_is_named_and_the_next_one_used() {
    let etcd = configured().await;
    let dead = format!("http://127.0.0.1:{}", free_port());
    let store = connect(&[dead.clone(), etcd.url()]);
    let error = store.range(&KeyRange::key("x")).await.unwrap_err();
    assert!(error.can_retry() && error.to_string().contains(&dead), "{error}");
    store.range(&KeyRange::key("x")).await.unwrap();
}

#[tokio::test]
async fn a_password_is_needed_and_an_expired_token_renewed() {
    let etcd = configured().await;
    etcd.ctl(&["user", "add", "root:secret"]);
    etcd.ctl(&["user", "grant-role", "root", "root"]);
    let with = |password: &str| {
        flatnet_plane::store::etcd::EtcdStore::connect(flatnet_plane::store::etcd::EtcdOptions {
            endpoints: vec![etcd.url()],
            user: Some(("root".into(), password.into())),
            ..Default::default()
        })
        .unwrap()
    };
    with("secret").range(&KeyRange::key("x")).await.expect("while authentication is off a password is no obstacle");
    etcd.ctl(&["auth", "enable"]);
    let range = KeyRange::key("/coreos.com/network/config");
    assert!(matches!(etcd.store().range(&range).await, Err(StoreError::Denied { .. } | StoreError::Rejected { .. })));
    assert!(matches!(with("wrong").range(&range).await, Err(StoreError::Denied { .. })));
    let store = with("secret");
    assert_eq!(store.range(&range).await.unwrap().kvs.len(), 1);
    // Changing the users makes every token old.
    etcd.ctl(&["--user", "root:secret", "user", "add", "another:x"]);
    let mut last = store.range(&range).await;
    for _ in 0..3 {
        if last.is_err() {
            last = store.range(&range).await;
        }
    }
    last.unwrap();
}

/// Returns the network as an agent knows it.
fn state() -> NetworkState {
    let (config, _) = decode_config(CONFIG.as_bytes()).unwrap();
    NetworkState { config: ConfigState::Valid(config), ..NetworkState::default() }
}

/// The commands that `controlplane etcd-roles` prints, run as printed, make a user who can be one node and nothing
/// else.
#[tokio::test]
async fn the_user_of_etcd_roles_can_be_its_node_and_nothing_else() {
    let etcd = configured().await;
    let (mine, other) = (request(1), request(2));
    let others = acquire(&etcd.store(), &other, &state(), &mut OsRandom).await.unwrap();
    let subnet: ipnet::IpNet = "10.100.77.0/24".parse().unwrap();
    let text = migrate::etcd_roles(keys().network(), FLANNEL_PREFIX, mine.owner.node, &[subnet]).unwrap();
    let user = format!("flatnet-{}", mine.owner.node);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<String> =
            line.strip_prefix("etcdctl ").unwrap().split(' ').map(|word| word.trim_matches('\'').to_owned()).collect();
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        let with_password = format!("{user}:secret");
        if words[..2] == ["user", "add"] {
            // The command would ask for it on a terminal otherwise.
            words[2] = &with_password;
        }
        etcd.ctl(&words);
    }
    etcd.ctl(&["user", "add", "root:secret"]);
    etcd.ctl(&["user", "grant-role", "root", "root"]);
    etcd.ctl(&["auth", "enable"]);
    let store = EtcdStore::connect(EtcdOptions {
        endpoints: vec![etcd.url()],
        user: Some((user, "secret".to_owned())),
        ..EtcdOptions::default()
    })
    .unwrap();

    // The user is its node: a lease on the subnet reserved, kept alive, changed, given back; presence; the view.
    let wish = ClaimRequest { wanted: vec![subnet], ..mine.clone() };
    let claim = acquire(&store, &wish, &state(), &mut OsRandom).await.unwrap();
    assert_eq!(claim.lease.subnets.to_string(), "10.100.77.0-24");
    assert!(allocate::keep_alive(&store, &claim).await.unwrap() > Duration::from_secs(60));
    let mut publication = mine.publication.clone();
    publication.public_ip = Some(Ipv4Addr::new(192, 168, 33, 99));
    let claim = allocate::update(&store, &keys(), &claim, &publication).await.unwrap();
    let held = presence::announce(&store, &mine.owner, &HostRanges::default()).await.unwrap();
    presence::keep_alive(&store, &held).await.unwrap();
    let (mut view, following) = followed(store.clone()).await;
    until(&mut view, |view| view.state.leases.len() == 2).await;
    following.abort();

    // It is nothing else.
    let denied = |result: Result<flatnet_plane::store::TxnReply, StoreError>| {
        assert!(matches!(result, Err(StoreError::Denied { .. })), "{result:?}");
    };
    let foreign = [
        keys().lease(&others.lease.subnets),
        keys().config(),
        keys().node_claim(other.owner.node),
        flatnet_model::keys::presence(other.owner.node),
        flatnet_model::keys::CATALOG.to_owned(),
        "/coreos.com/network/subnets/10.100.78.0-24".to_owned(),
        "/flatnet/controlplane/nodes/x".to_owned(),
    ];
    for key in foreign {
        let put = Write::Put { key: key.clone(), value: b"{}".to_vec(), lease: None };
        denied(store.txn(Txn { when: vec![], then: vec![put] }).await);
        denied(store.txn(Txn { when: vec![], then: vec![Write::Delete(key)] }).await);
    }
    assert!(store.lease_revoke(others.etcd_lease).await.is_err(), "another's lease");
    assert!(matches!(store.range(&KeyRange::key("/elsewhere")).await, Err(StoreError::Denied { .. })));

    presence::withdraw(&store, &held).await.unwrap();
    allocate::release(&store, &keys(), &claim).await.unwrap();
    let left = etcd.ctl(&["--user", "root:secret", "get", "--prefix", "--keys-only", &keys().subnets()]);
    assert_eq!(left.split_whitespace().collect::<Vec<_>>(), [keys().lease(&others.lease.subnets)]);
}

/// A password that is changed, first in the store and then in the file; and a right that is taken away.
#[tokio::test]
async fn a_changed_password_is_said_ends_no_presence_and_is_read_again() {
    let etcd = configured().await;
    for line in [
        &["user", "add", "root:secret"] as &[&str],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "agents"],
        &["role", "grant-permission", "agents", "readwrite", "--prefix=true", "/flatnet/"],
        &["user", "add", "fl:one"],
        &["user", "grant-role", "fl", "agents"],
        &["auth", "enable"],
    ] {
        etcd.ctl(line);
    }
    let scratch = support::ScratchDir::new("password");
    let file = scratch.path().join("password");
    std::fs::write(&file, "one\n").unwrap();
    let args = EtcdArgs {
        etcd_username: Some("fl".to_owned()),
        etcd_password_file: Some(file.clone()),
        ..EtcdArgs::default()
    };
    let store = args.open(vec![etcd.url()]).unwrap();
    let owner = request(1).owner;
    let held = presence::announce(&store, &owner, &HostRanges::default()).await.unwrap();
    // The command is given as interactively: the new password is not an argument.
    let passwd = format!(
        "printf 'two\\ntwo\\n' | ETCDCTL_API=3 etcdctl --endpoints {} --user root:secret user passwd fl --interactive=false",
        etcd.url()
    );
    assert!(
        std::process::Command::new("sh")
            .args(["-c", &passwd])
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap()
            .success()
    );

    let began = Instant::now();
    while began.elapsed() < presence::PRESENCE_TTL + Duration::from_secs(3) {
        let refused = presence::announce(&store, &owner, &HostRanges::default()).await;
        assert!(matches!(&refused, Err(presence::PresenceError::Store(error)) if error.is_refusal()), "{refused:?}");
        presence::keep_alive(&store, &held).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let there = || etcd.ctl(&["--user", "root:secret", "get", "--keys-only", "--prefix", "/flatnet/nodes/"]);
    assert!(there().contains(&owner.node.to_string()), "its presence went on without a password");

    // While the file is half written, what was read before counts until there is a file again.
    std::fs::remove_file(&file).unwrap();
    assert!(presence::announce(&store, &owner, &HostRanges::default()).await.is_err());
    std::fs::write(&file, "two\n").unwrap();
    assert_eq!(presence::announce(&store, &owner, &HostRanges::default()).await.unwrap(), held);

    etcd.ctl(&["--user", "root:secret", "role", "revoke-permission", "agents", "/flatnet/", "--prefix=true"]);
    let refused = presence::announce(&store, &owner, &HostRanges::default()).await.unwrap_err();
    assert!(matches!(&refused, presence::PresenceError::Store(StoreError::Denied { .. })), "{refused:?}");
    presence::keep_alive(&store, &held).await.unwrap();
}

#[tokio::test]
async fn a_store_whose_quota_is_full_refuses_and_is_there() {
    let etcd = Etcd::start_with(&["--quota-backend-bytes", "1000000"]).await;
    let store = etcd.store();
    let lease = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    let put = |key: &str, value: Vec<u8>| Txn {
        when: vec![],
        then: vec![Write::Put { key: key.to_owned(), value, lease: Some(lease) }],
    };
    let mut refused = None;
    // etcd counts what it has committed, which it does ten times a second. Writes in between get past the quota.
    for number in 0..512 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if let Err(error) = store.txn(put(&format!("/junk/{number}"), vec![b'x'; 200_000])).await {
            refused = Some(error);
            break;
        }
    }
    assert!(matches!(&refused, Some(StoreError::Rejected { reason, .. }) if reason.contains("space")), "{refused:?}");
    // The refusal comes in every call that writes; calls that write nothing go on.
    let owner = request(1).owner;
    let announced = presence::announce(&store, &owner, &HostRanges::default()).await.unwrap_err();
    assert!(matches!(&announced, presence::PresenceError::Store(error) if error.is_refusal()), "{announced:?}");
    assert!(store.lease_keep_alive(lease).await.is_ok() && store.range(&KeyRange::key("x")).await.is_ok());
}

/// etcd's own proxy, which never says how far a watch has come.
#[tokio::test]
async fn a_quiet_watch_through_a_proxy_is_not_taken_for_dead() {
    let etcd = configured().await;
    let port = free_port();
    let mut proxy = std::process::Command::new("etcd")
        .args(["grpc-proxy", "start", "--endpoints", &etcd.url(), "--listen-addr", &format!("127.0.0.1:{port}")])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let store = connect(&[format!("http://127.0.0.1:{port}")]);
    let (mut view, following) = followed(store).await;
    let mut lost = view.clone();
    // Two watches are given up; the third is not.
    let steady = async {
        loop {
            let quiet = until(&mut lost, |view| matches!(view.connection, Connection::Lost { .. }));
            if tokio::time::timeout(Duration::from_secs(8), quiet).await.is_err() {
                break;
            }
            until(&mut lost, |view| view.connection == Connection::Connected).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(40), steady).await.expect("it stays connected");
    etcd.ctl(&["put", &keys().lease(&"10.100.5.0-24".parse().unwrap()), VALUE]);
    let began = Instant::now();
    until(&mut view, |view| view.state.leases.len() == 1).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(view.borrow().connection, Connection::Connected);
    // Once the proxy is gone, it is noticed as ever.
    proxy.kill().unwrap();
    proxy.wait().unwrap();
    until(&mut view, |view| matches!(view.connection, Connection::Lost { .. })).await;
    following.abort();
}
