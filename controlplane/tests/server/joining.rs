//! Tokens, certificates, and following the network.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use flatnet_model::HostRanges;
use flatnet_plane::allocate::ClaimRequest;
use flatnet_plane::plane::ControlPlane;
use flatnet_plane::store::StoreError;
use flatnet_plane::watch::{Connection, NetworkView, follow};
use flatnet_proto::controlplane::v1 as proto;
use tokio::sync::watch;

use crate::fleet::{Fleet, keys};

const SOON: Duration = Duration::from_secs(20);

async fn until(view: &mut watch::Receiver<NetworkView>, what: &str, accept: impl Fn(&NetworkView) -> bool) {
    match tokio::time::timeout(SOON, view.wait_for(|view| accept(view))).await {
        Ok(Ok(_)) => {}
        _ => panic!("not in time: {what}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_with_a_token_once_and_lives_on_its_certificate() {
    let fleet = Fleet::start().await;
    let token = fleet.token(1).await;
    let node = fleet.newcomer(1, Some(&token));
    let presence = node.remote.announce(&node.owner, &HostRanges::default()).await.unwrap();
    let claim = node.acquire().await;
    assert!(claim.lease.is_owned_by(node.owner.node));
    assert!(node.remote.stay(&presence).await.unwrap() > Duration::from_secs(5));
    assert!(node.remote.renew(&keys(), &claim).await.unwrap() > Duration::from_secs(3000));
    for file in ["controlplane.key", "controlplane.pem"] {
        let mode = std::fs::metadata(node.dir.join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{file}");
        assert!(!std::fs::read_to_string(node.dir.join(file)).unwrap().contains(&token));
    }

    let again = fleet.newcomer(1, None);
    assert_eq!(again.acquire().await.lease.subnets, claim.lease.subnets, "without a token, the same subnet");
    again.remote.release(&keys(), &claim).await.unwrap();
    assert!(fleet.store.dump().keys().all(|key| *key != keys().lease(&claim.lease.subnets).into_bytes()));
    again.remote.withdraw(&presence).await.unwrap();

    let late = fleet.newcomer(2, Some(&token));
    assert!(matches!(late.remote.stay(&presence).await, Err(StoreError::Denied { .. })), "the token is used up");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_joins_an_authority_that_is_not_the_one_of_the_hash() {
    let (fleet, other) = (Fleet::start().await, Fleet::start().await);
    let token = fleet.token(1).await;
    let mut mistaken = Fleet::start_empty().await;
    // The host is told of one authority, and another one answers at the address.
    mistaken.ca_hash = fleet.ca_hash.clone();
    let node = mistaken.newcomer(1, Some(&token));
    let error = node.remote.announce(&node.owner, &HostRanges::default()).await.unwrap_err().to_string();
    assert!(error.contains("--ca-hash"), "{error}");
    assert!(!node.dir.join("controlplane.pem").exists());
    drop(other);
    assert_eq!(server_tokens(&fleet).await, 1, "the token was shown to nobody");
}

async fn server_tokens(fleet: &Fleet) -> usize {
    fleet.admin().list_tokens(proto::Nothing {}).await.unwrap().into_inner().tokens.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_sees_every_change_and_goes_on_after_a_restart_of_the_server() {
    let mut fleet = Fleet::start().await;
    let (a, b) = (fleet.node(1).await, fleet.node(2).await);
    let (sender, mut view) = watch::channel(NetworkView::default());
    let following = tokio::spawn(follow(Arc::new(a.remote.clone()), keys(), SOON, sender));
    until(&mut view, "the network", |view| view.state.valid_config().is_some()).await;
    let claim = b.acquire().await;
    let subnets = claim.lease.subnets;
    until(&mut view, "the other's lease", |view| view.state.leases.contains_key(&subnets)).await;
    let before: BTreeMap<_, _> = view.borrow().state.leases.clone();

    fleet.stop().await;
    until(&mut view, "the loss", |view| matches!(view.connection, Connection::Lost { .. })).await;
    assert_eq!(view.borrow().state.leases, before, "what is known stays");
    fleet.serve().await;
    until(&mut view, "the return", |view| view.connection == Connection::Connected).await;
    assert_eq!(view.borrow().state.leases, before);
    assert_eq!((view.borrow().rewinds, view.borrow().suspect.is_none()), (0, true), "nothing was wiped");
    let mut published = b.publication();
    published.public_ip = Some(std::net::Ipv4Addr::new(192, 0, 2, 77));
    let claim = b.remote.publish(&keys(), &claim, &published).await.unwrap();
    until(&mut view, "the new address", |view| {
        view.state.leases.get(&subnets).is_some_and(|lease| lease.public_ip == published.public_ip)
    })
    .await;
    b.remote.release(&keys(), &claim).await.unwrap();
    until(&mut view, "the departure", |view| !view.state.leases.contains_key(&subnets)).await;
    following.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_store_gets_its_network_and_leases_back_from_the_nodes_and_nobody_is_renumbered() {
    let mut fleet = Fleet::start().await;
    let node = fleet.node(1).await;
    let claim = node.acquire().await;
    let (sender, mut view) = watch::channel(NetworkView::default());
    let following = tokio::spawn(follow(Arc::new(node.remote.clone()), keys(), SOON * 10, sender));
    until(&mut view, "the lease", |view| view.state.leases.len() == 1).await;
    fleet.stop().await;
    fleet.store.wipe();
    fleet.serve().await;
    until(&mut view, "the network is back", |view| {
        view.suspect.as_ref().is_none_or(|suspect| !suspect.kept_config) && view.rewinds > 0
    })
    .await;
    let mut request = node.request();
    request.previous = Some(claim.lease.subnets);
    node.remote.announce(&node.owner, &HostRanges::default()).await.unwrap();
    let again = node.try_acquire(&request).await.unwrap();
    assert_eq!(again.lease.subnets, claim.lease.subnets);
    until(&mut view, "settled", |view| view.suspect.is_none() && view.state.leases.len() == 1).await;
    following.abort();

    // Once somebody looks after the networks, nodes put none back.
    let spec = proto::ChangeNetworkRequest {
        name: "blue".to_owned(),
        cidr: Some("10.60.0.0/16".to_owned()),
        ..Default::default()
    };
    fleet.admin().create_network(spec).await.unwrap();
    let message = proto::RestoreNetworkRequest {
        network: "red".to_owned(),
        config: br#"{"Network":"10.70.0.0/16","Backend":{"Type":"vxlan","VNI":70}}"#.to_vec(),
    };
    let refused = node.raw(&fleet).restore_network(message).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_store_that_grew_past_what_nodes_had_seen_gets_its_network_back_all_the_same() {
    let mut fleet = Fleet::start().await;
    let node = fleet.node(1).await;
    let claim = node.acquire().await;
    let (sender, mut view) = watch::channel(NetworkView::default());
    let following = tokio::spawn(follow(Arc::new(node.remote.clone()), keys(), SOON * 10, sender));
    until(&mut view, "the lease", |view| view.state.leases.len() == 1).await;
    fleet.stop().await;
    fleet.store.wipe();
    let seen = view.borrow().state.revision;
    while fleet.store.revision() <= seen + 10 {
        fleet.store.put("/flatnet/elsewhere", "others write too", None);
    }
    fleet.serve().await;
    let config = keys().config().into_bytes();
    until(&mut view, "the network is back", |view| {
        view.rewinds > 0 && view.suspect.as_ref().is_none_or(|suspect| !suspect.kept_config)
    })
    .await;
    assert!(fleet.store.dump().contains_key(&config));
    let request = ClaimRequest { previous: Some(claim.lease.subnets), ..node.request() };
    node.remote.announce(&node.owner, &HostRanges::default()).await.unwrap();
    assert_eq!(node.try_acquire(&request).await.unwrap().lease.subnets, claim.lease.subnets);
    following.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_wiped_under_a_running_server_gets_its_network_back() {
    let fleet = Fleet::start().await;
    let node = fleet.node(1).await;
    let (sender, mut view) = watch::channel(NetworkView::default());
    let following = tokio::spawn(follow(Arc::new(node.remote.clone()), keys(), SOON * 10, sender));
    until(&mut view, "the network", |view| view.state.valid_config().is_some()).await;
    fleet.store.wipe();
    let config = keys().config().into_bytes();
    tokio::time::timeout(SOON, async {
        while !fleet.store.dump().contains_key(&config) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
    until(&mut view, "the network", |view| view.state.valid_config().is_some()).await;
    following.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_an_administrator_removed_is_not_put_back_by_a_node_that_was_away() {
    let mut fleet = Fleet::start_empty().await;
    let spec = proto::ChangeNetworkRequest {
        name: "default".to_owned(),
        cidr: Some("10.50.0.0/16".to_owned()),
        ..Default::default()
    };
    fleet.admin().create_network(spec).await.unwrap();
    let node = fleet.node(1).await;
    let (sender, mut view) = watch::channel(NetworkView::default());
    let following = tokio::spawn(follow(Arc::new(node.remote.clone()), keys(), SOON, sender));
    until(&mut view, "the network", |view| view.state.valid_config().is_some()).await;
    following.abort();
    let seen = view.borrow().clone();
    // Another start of the server does not forget that somebody looks after the networks: the store says so.
    fleet.stop().await;
    fleet.serve().await;
    let remove = proto::NetworkRequest { name: "default".to_owned(), force: true };
    fleet.admin().remove_network(remove).await.unwrap();
    let (sender, mut view) = watch::channel(seen);
    let following = tokio::spawn(follow(Arc::new(node.remote.clone()), keys(), SOON, sender));
    until(&mut view, "that it is gone", |view| view.rewinds > 0 && view.connection == Connection::Connected).await;
    assert!(!fleet.store.dump().contains_key(keys().config().as_bytes()));
    following.abort();
}

/// Makes a root and an intermediate that it signed, as a company has them; returns certificate and key of the
/// intermediate as PEM.
fn of_a_company() -> (String, String) {
    let made = |name: &str| {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        params
    };
    let root = rcgen::Issuer::new(made("Example root"), rcgen::KeyPair::generate().unwrap());
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = made("Example networks").signed_by(&key, &root).unwrap();
    (certificate.pem(), key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_join_an_authority_of_the_users_own_and_no_longer_the_one_before() {
    let mut fleet = Fleet::start().await;
    let before = fleet.node(1).await;
    let (certificate, key) = of_a_company();
    let paths = (fleet.dir.path().join("their.pem"), fleet.dir.path().join("their.key"));
    std::fs::write(&paths.0, certificate).unwrap();
    std::fs::write(&paths.1, key).unwrap();
    let old = fleet.ca_hash.clone();
    fleet.change_authority(paths.0, paths.1).await;
    assert_ne!(fleet.ca_hash, old);
    let node = fleet.node(2).await;
    assert!(node.acquire().await.lease.is_owned_by(node.owner.node));
    assert!(
        fleet.newcomer(2, None).remote.announce(&node.owner, &HostRanges::default()).await.is_ok(),
        "by its certificate alone"
    );
    // The server does not have the authority that this one believes.
    assert!(before.remote.announce(&before.owner, &HostRanges::default()).await.is_err());
}
