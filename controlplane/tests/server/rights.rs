//! The calls a node may not make, tried with another node's valid certificate; and those that nobody may make without
//! one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flatnet_model::keys::presence;
use flatnet_model::{
    BackendData, BackendKind, Besides, HostRanges, IpFamily, NodeId, Publication, Vni, WireguardKey, vtep_mac,
};
use flatnet_plane::allocate::ClaimRequest;
use flatnet_plane::client::channel;
use flatnet_plane::flannel::encode_lease;
use flatnet_plane::plane::ControlPlane;
use flatnet_plane::store::StoreError;
use flatnet_plane::tls::{self, Trust};
use flatnet_plane::watch::{NetworkView, follow};
use flatnet_plane::wire;
use flatnet_proto::controlplane::v1 as proto;
use proto::admin_client::AdminClient;
use proto::enrollment_client::EnrollmentClient;
use proto::node_client::NodeClient;
use tokio::sync::watch;
use tonic::Code;

use crate::fleet::{Fleet, Node, keys};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_can_neither_publish_nor_renew_nor_release_anothers_lease() {
    let fleet = Fleet::start().await;
    let (victim, thief) = (fleet.node(1).await, fleet.node(2).await);
    let claim = victim.acquire().await;
    let (network, subnets) = ("default".to_owned(), claim.lease.subnets.to_string());
    let before = fleet.store.dump();
    let mut raw = thief.raw(&fleet);

    let publication = encode_lease(&thief.publication(), None);
    let instance = Some(wire::instance(&thief.owner));
    let publish = proto::PublishRequest { network: network.clone(), subnets: subnets.clone(), instance, publication };
    assert_eq!(raw.publish(publish).await.unwrap_err().code(), Code::PermissionDenied);
    let lease = claim.etcd_lease.0;
    let renew = proto::RenewRequest { network: network.clone(), subnets: subnets.clone(), lease };
    assert_eq!(raw.renew(renew).await.unwrap_err().code(), Code::PermissionDenied);
    let release = proto::ReleaseRequest { network, subnets, lease };
    assert_eq!(raw.release(release).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(fleet.store.dump(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_can_neither_keep_nor_end_anothers_presence_nor_any_lease_by_its_number() {
    let fleet = Fleet::start().await;
    let (victim, thief) = (fleet.node(1).await, fleet.node(2).await);
    let claim = victim.acquire().await;
    let mut raw = thief.raw(&fleet);
    let of_presence = fleet.store.dump()[presence(victim.owner.node).as_bytes()].lease.unwrap().0;
    for lease in [of_presence, claim.etcd_lease.0, 0, -1, i64::MAX] {
        assert_eq!(raw.stay(proto::Presence { lease }).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(raw.withdraw(proto::Presence { lease }).await.unwrap_err().code(), Code::NotFound);
    }
    assert!(fleet.store.dump().contains_key(presence(victim.owner.node).as_bytes()));
    assert!(fleet.store.dump().contains_key(keys().lease(&claim.lease.subnets).as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_cannot_draw_anothers_packets_by_its_tunnels_address() {
    let fleet = Fleet::start().await;
    let (victim, thief) = (fleet.node(1).await, fleet.node(2).await);
    victim.acquire().await;
    let own = thief.acquire().await;
    let mut stolen = thief.publication();
    stolen.data = victim.publication().data;
    let error = thief.remote.publish(&keys(), &own, &stolen).await.unwrap_err();
    assert!(error.to_string().contains("is not the one of node"), "{error}");
    let mut request = thief.request();
    request.publication = stolen;
    let refused = thief.try_acquire(&request);
    assert!(refused.await.is_err());
    // It may not take the address that the other is going to have either: in another network, of another family, beside
    // another way, without a number.
    let vni = Vni::new(9).unwrap();
    let (v4, v6) = (vtep_mac(NodeId::new(3), vni, IpFamily::V4), vtep_mac(NodeId::new(3), vni, IpFamily::V6));
    let data = |vni, mac| BackendData::Vxlan { vni, mac };
    let besides = |data: BackendData, data_v6| Besides { backend: BackendKind::Vxlan, data, data_v6, used: true };
    let own = thief.publication();
    let all = [
        Publication { data: data(Some(vni), v4), ..own.clone() },
        Publication { data: data(None, v4), ..own.clone() },
        Publication { data_v6: data(Some(vni), v6), ..own.clone() },
        Publication { besides: vec![besides(data(Some(vni), v4), BackendData::None)], ..own.clone() },
        Publication { besides: vec![besides(BackendData::None, data(Some(vni), v6))], ..own },
    ];
    for publication in all {
        let request = ClaimRequest { publication, ..thief.request() };
        let refused = thief.try_acquire(&request).await.unwrap_err().to_string();
        assert!(refused.contains("is not the one of node"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wireguard_key_stays_its_nodes_when_its_lease_has_lapsed() {
    let fleet = Fleet::start().await;
    let (victim, thief) = (fleet.node(1).await, fleet.node(2).await);
    let public_key = WireguardKey::new([7; 32]).unwrap();
    let of = |node: &Node| {
        let data = BackendData::Wireguard { public_key, port: None };
        let publication = Publication { backend: BackendKind::Wireguard, data, ..node.publication() };
        ClaimRequest { publication, ..node.request() }
    };
    let claim = victim.try_acquire(&of(&victim)).await.unwrap();
    fleet.store.delete(keys().lease(&claim.lease.subnets));
    let refused = thief.try_acquire(&of(&thief)).await.unwrap_err().to_string();
    assert!(refused.contains("belongs to node"), "{refused}");
    let own = thief.acquire().await;
    assert!(thief.remote.publish(&keys(), &own, &of(&thief).publication).await.is_err());
    victim.try_acquire(&of(&victim)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_cannot_take_over_a_dead_hosts_subnet_by_naming_its_address() {
    let fleet = Fleet::start().await;
    let (victim, thief) = (fleet.node(1).await, fleet.node(2).await);
    let claim = victim.acquire().await;
    let held = fleet.store.dump()[presence(victim.owner.node).as_bytes()].lease.unwrap();
    victim.remote.withdraw(&flatnet_plane::presence::Presence { node: victim.owner.node, lease: held }).await.unwrap();
    let mut request = thief.request();
    request.publication.public_ip = victim.publication().public_ip;
    let taken = thief.try_acquire(&request).await;
    assert_ne!(taken.unwrap().lease.subnets, claim.lease.subnets, "it does not call from there");
    assert!(fleet.store.dump().contains_key(keys().lease(&claim.lease.subnets).as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_no_more_than_a_subnet_by_naming_it_its_previous_one() {
    let fleet = Fleet::start().await;
    let (node, other) = (fleet.node(1).await, fleet.node(2).await);
    let ask = async |node: &Node, previous: &str| {
        node.try_acquire(&ClaimRequest { previous: Some(previous.parse().unwrap()), ..node.request() }).await
    };
    let refused = ask(&node, "10.50.128.0-17").await.unwrap_err().to_string();
    assert!(refused.contains("10.50.128.0/17 is larger than the subnets of network default"), "{refused}");
    assert!(!fleet.store.dump().keys().any(|key| String::from_utf8_lossy(key).contains("10.50.128.0")));
    // The store knows whose a larger subnet was, from when the network handed out such.
    fleet.store.put(keys().config(), r#"{"Network":"10.50.0.0/16","SubnetLen":20,"Backend":{"Type":"host-gw"}}"#, None);
    let claim = ask(&node, "10.50.64.0-20").await.unwrap();
    assert_eq!(claim.lease.subnets.to_string(), "10.50.64.0-20");
    fleet.store.put(keys().config(), r#"{"Network":"10.50.0.0/16","SubnetLen":24,"Backend":{"Type":"host-gw"}}"#, None);
    assert_eq!(ask(&node, "10.50.64.0-20").await.unwrap().lease.subnets, claim.lease.subnets);
    fleet.store.delete(keys().lease(&claim.lease.subnets));
    assert!(ask(&other, "10.50.64.0-20").await.is_err());
    let again = ask(&node, "10.50.64.0-20").await.unwrap();
    assert_eq!(again.lease.subnets, claim.lease.subnets);
    // Once given back, it is nobody's.
    node.remote.release(&keys(), &again).await.unwrap();
    assert!(ask(&node, "10.50.64.0-20").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_no_administrator() {
    let fleet = Fleet::start().await;
    let node = fleet.node(1).await;
    let mut admin = node.raw_admin(&fleet);
    let mut codes = vec![
        admin.list_nodes(proto::Nothing {}).await.unwrap_err().code(),
        admin.list_tokens(proto::Nothing {}).await.unwrap_err().code(),
        admin.list_networks(proto::Nothing {}).await.unwrap_err().code(),
        admin.get_status(proto::Nothing {}).await.unwrap_err().code(),
        admin
            .create_token(proto::CreateTokenRequest { ttl_secs: 60, uses: 1, ..Default::default() })
            .await
            .unwrap_err()
            .code(),
        admin.revoke_node(proto::NodeRequest { id: node.owner.node.to_string() }).await.unwrap_err().code(),
        admin.remove_node(proto::NodeRequest { id: node.owner.node.to_string() }).await.unwrap_err().code(),
        admin
            .drain_node(proto::DrainNodeRequest { id: node.owner.node.to_string(), undo: true })
            .await
            .unwrap_err()
            .code(),
        admin
            .remove_network(proto::NetworkRequest { name: "default".to_owned(), force: true })
            .await
            .unwrap_err()
            .code(),
        admin
            .create_network(proto::ChangeNetworkRequest { name: "x".to_owned(), ..Default::default() })
            .await
            .unwrap_err()
            .code(),
        admin
            .update_network(proto::ChangeNetworkRequest { name: "x".to_owned(), ..Default::default() })
            .await
            .unwrap_err()
            .code(),
        admin
            .add_peer(proto::PeerRequest { network: "default".to_owned(), ..Default::default() })
            .await
            .unwrap_err()
            .code(),
        admin
            .remove_peer(proto::PeerRequest { network: "default".to_owned(), ..Default::default() })
            .await
            .unwrap_err()
            .code(),
        admin
            .inspect_network(proto::NetworkRequest { name: "default".to_owned(), force: false })
            .await
            .unwrap_err()
            .code(),
        admin.revoke_token(proto::TokenRequest { id: "x".to_owned() }).await.unwrap_err().code(),
    ];
    codes.push(
        admin
            .create_admin(proto::CreateAdminRequest { name: "me".to_owned(), ttl_secs: 3600 })
            .await
            .unwrap_err()
            .code(),
    );
    codes.push(admin.backup(proto::BackupRequest { path: "/tmp/x".to_owned() }).await.unwrap_err().code());
    assert!(codes.iter().all(|code| *code == Code::PermissionDenied), "{codes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrators_certificate_is_no_nodes_and_makes_no_other_administrator() {
    let fleet = Fleet::start().await;
    let made =
        fleet.admin().create_admin(proto::CreateAdminRequest { name: "ops".to_owned(), ttl_secs: 3600 }).await.unwrap();
    let file = fleet.dir.path().join("ops.pem");
    std::fs::write(&file, made.into_inner().pem).unwrap();
    let credentials = flatnet_plane::client::credentials::Credentials::of_file(&file).unwrap();
    let channel = channel::tls(&fleet.server(), credentials.client_config()).unwrap();
    let mut admin = AdminClient::new(channel.clone());
    assert!(admin.get_status(proto::Nothing {}).await.unwrap().into_inner().ready);
    let another = admin.create_admin(proto::CreateAdminRequest { name: "x".to_owned(), ttl_secs: 3600 }).await;
    assert_eq!(another.unwrap_err().code(), Code::PermissionDenied);
    let mut node = NodeClient::new(channel);
    let watch = node.watch(proto::WatchRequest { network: "default".to_owned(), position: None }).await;
    assert_eq!(watch.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_there_is_nothing_but_joining() {
    let fleet = Fleet::start().await;
    let config = tls::client(&Trust::Hash(fleet.ca_hash.clone()), None).unwrap();
    let channel = channel::tls(&fleet.server(), config).unwrap();
    let mut node = NodeClient::new(channel.clone());
    let watch = node.watch(proto::WatchRequest { network: "default".to_owned(), position: None }).await;
    assert_eq!(watch.unwrap_err().code(), Code::Unauthenticated);
    let mut admin = AdminClient::new(channel);
    assert_eq!(admin.list_nodes(proto::Nothing {}).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_authoritys_certificate_is_not_let_in() {
    let (fleet, other) = (Fleet::start().await, Fleet::start().await);
    let stranger = other.node(1).await;
    let watch = stranger.raw(&fleet).watch(proto::WatchRequest { network: "default".to_owned(), position: None }).await;
    assert!(watch.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_for_its_own_key_only() {
    let fleet = Fleet::start().await;
    let node = fleet.node(1).await;
    let (_, csr) = flatnet_plane::identity::new_request().unwrap();
    let refused = node.raw(&fleet).rotate(proto::RotateRequest { csr }).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = node.raw(&fleet).rotate(proto::RotateRequest { csr: vec![0; 100_000] }).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_cut_off_and_gone_from_every_view_within_a_second() {
    let fleet = Fleet::start().await;
    let (bad, good) = (fleet.node(1).await, fleet.node(2).await);
    let claim = bad.acquire().await;
    let subnets = claim.lease.subnets;
    let (sender, mut view) = watch::channel(NetworkView::default());
    let following = tokio::spawn(follow(Arc::new(good.remote.clone()), keys(), Duration::from_secs(60), sender));
    view.wait_for(|view| view.state.leases.contains_key(&subnets)).await.unwrap();
    let mut stream = bad
        .raw(&fleet)
        .watch(proto::WatchRequest { network: "default".to_owned(), position: None })
        .await
        .unwrap()
        .into_inner();
    stream.message().await.unwrap();

    let began = Instant::now();
    fleet.admin().revoke_node(proto::NodeRequest { id: bad.owner.node.to_string() }).await.unwrap();
    view.wait_for(|view| !view.state.leases.contains_key(&subnets)).await.unwrap();
    let cut = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without a word"),
            Err(status) => break status.code(),
        }
    };
    // On an idle machine it is milliseconds.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(cut, Code::PermissionDenied);
    assert!(matches!(bad.remote.renew(&keys(), &claim).await, Err(StoreError::Denied { .. })));
    assert!(bad.remote.announce(&bad.owner, &HostRanges::default()).await.is_err());
    let token = fleet.token(1).await;
    assert!(
        fleet.newcomer(1, Some(&token)).remote.announce(&bad.owner, &HostRanges::default()).await.is_err(),
        "nor joins it again"
    );
    following.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_comes_back_with_a_token_only() {
    let fleet = Fleet::start().await;
    let node = fleet.node(1).await;
    node.acquire().await;
    let id = || proto::NodeRequest { id: node.owner.node.to_string() };
    // After the leases are removed, what was revoked stays so.
    fleet.admin().revoke_node(id()).await.unwrap();
    fleet.admin().remove_node(id()).await.unwrap();
    assert!(fleet.admin().list_nodes(proto::Nothing {}).await.unwrap().into_inner().nodes.is_empty());
    assert_eq!(fleet.admin().remove_node(id()).await.unwrap_err().code(), Code::NotFound);
    assert!(node.remote.announce(&node.owner, &HostRanges::default()).await.is_err());
    assert!(node.try_acquire(&node.request()).await.is_err());
    let csr = flatnet_plane::identity::new_request().unwrap().1;
    assert!(node.raw(&fleet).rotate(proto::RotateRequest { csr }).await.is_err());
    // As after `agent leave --purge` there, had it kept its id.
    let other = node.dir.with_extension("before");
    std::fs::rename(&node.dir, &other).unwrap();
    let again = fleet.newcomer(1, Some(&fleet.token(1).await));
    again.remote.announce(&again.owner, &HostRanges::default()).await.unwrap();
    again.acquire().await;
    assert_eq!(fleet.admin().list_nodes(proto::Nothing {}).await.unwrap().into_inner().nodes.len(), 1);
    assert!(node.try_acquire(&node.request()).await.is_err(), "its key is another one's now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_the_store_does_not_know_can_be_revoked_too() {
    let fleet = Fleet::start().await;
    let node = fleet.node(1).await;
    // As after a wipe.
    fleet.store.delete(format!("/flatnet/controlplane/nodes/{}", node.owner.node));
    fleet.admin().revoke_node(proto::NodeRequest { id: node.owner.node.to_string() }).await.unwrap();
    assert!(node.try_acquire(&node.request()).await.is_err());
    assert!(node.remote.announce(&node.owner, &HostRanges::default()).await.is_err());
    assert!(fleet.admin().list_nodes(proto::Nothing {}).await.unwrap().into_inner().nodes[0].revoked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_says_what_its_own_host_uses_and_is_named_by_its_id_where_that_is_in_the_way() {
    let fleet = Fleet::start().await;
    let (victim, liar) = (fleet.node(1).await, fleet.node(2).await);
    let record = |node: &Node| fleet.store.dump().remove(presence(node.owner.node).as_bytes()).unwrap().value;
    let (before, own) = (record(&victim), record(&liar));
    let mut raw = liar.raw(&fleet);
    // There is no field for the host that calls; the victim's name and nonce do not make a caller another one.
    let instance = proto::Instance { name: victim.owner.name.clone(), nonce: liar.owner.nonce.to_string() };
    let say = |routes: Vec<String>, resolvers: Vec<String>| proto::AnnounceRequest {
        instance: Some(instance.clone()),
        routes,
        resolvers,
        endpoints: Vec::new(),
    };
    for (routes, resolvers) in [
        (vec!["10.61.0.0/24".to_owned(); HostRanges::PREFIXES + 1], Vec::new()),
        (vec!["x".repeat(10_000)], Vec::new()),
        (Vec::new(), vec!["10.61.0.1".to_owned(); HostRanges::RESOLVERS + 1]),
        (Vec::new(), vec!["10.61.0.0/24".to_owned()]),
    ] {
        assert_eq!(raw.announce(say(routes, resolvers)).await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(record(&liar), own);
    }
    raw.announce(say(vec!["10.61.7.0/24".to_owned()], Vec::new())).await.unwrap();
    assert_eq!(record(&victim), before);

    let mut spec = proto::ChangeNetworkRequest {
        name: "blue".to_owned(),
        cidr: Some("10.61.0.0/16".to_owned()),
        ..Default::default()
    };
    let refused = fleet.admin().create_network(spec.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    let names = [format!("node1 ({})", liar.owner.node), "10.61.7.0/24".to_owned()];
    assert!(names.iter().all(|name| refused.message().contains(name)), "{}", refused.message());
    assert!(wire::refusal::details(&refused).hint.contains("--force"));
    // An administrator decides; and what a node publishes goes with the node.
    spec.force = true;
    fleet.admin().create_network(spec.clone()).await.unwrap();
    let remove = proto::NetworkRequest { name: "blue".to_owned(), force: false };
    fleet.admin().remove_network(remove).await.unwrap();
    fleet.admin().revoke_node(proto::NodeRequest { id: liar.owner.node.to_string() }).await.unwrap();
    spec.force = false;
    fleet.admin().create_network(spec).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_has_no_lease_and_gets_none_until_that_is_undone() {
    let fleet = Fleet::start().await;
    let (node, other) = (fleet.node(1).await, fleet.node(2).await);
    let (claim, kept) = (node.acquire().await, other.acquire().await);
    let lease_keys = || {
        let prefix = keys().subnets().into_bytes();
        fleet.store.dump().into_keys().filter(move |key| key.starts_with(&prefix)).collect::<Vec<_>>()
    };
    let drain = |undo| proto::DrainNodeRequest { id: node.owner.node.to_string(), undo };
    fleet.admin().drain_node(drain(false)).await.unwrap();
    assert_eq!(lease_keys(), [keys().lease(&kept.lease.subnets).into_bytes()]);
    let mut request = node.request();
    request.previous = Some(claim.lease.subnets);
    let refused = node.try_acquire(&request).await.unwrap_err().to_string();
    assert!(refused.contains("drained"), "{refused}");
    assert!(node.remote.publish(&keys(), &claim, &node.publication()).await.is_err());
    assert!(matches!(node.remote.renew(&keys(), &claim).await, Err(StoreError::LeaseGone(_))));
    node.remote.announce(&node.owner, &HostRanges::default()).await.unwrap();
    let listed = fleet.admin().list_nodes(proto::Nothing {}).await.unwrap().into_inner().nodes;
    assert_eq!(listed.iter().filter(|listed| listed.drained && listed.present).count(), 1);

    fleet.admin().drain_node(drain(true)).await.unwrap();
    assert_eq!(node.try_acquire(&request).await.unwrap().lease.subnets, claim.lease.subnets, "what it had");
    let nobody = proto::DrainNodeRequest { id: format!("{:032x}", 77), undo: false };
    assert_eq!(fleet.admin().drain_node(nobody).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_drained_at_one_replica_while_it_claims_at_another_ends_without_a_lease() {
    let fleet = Fleet::start().await;
    let here = fleet.node(1).await;
    let (server, mut other_admin) = fleet.replica().await;
    let there = here.at(server, &fleet.ca_hash);
    let mut admin = fleet.admin();
    let drain = |undo| proto::DrainNodeRequest { id: here.owner.node.to_string(), undo };
    for round in 0..40 {
        other_admin.drain_node(drain(true)).await.unwrap();
        let (one, two) = (here.request(), there.request());
        let (_, _, first, second) = tokio::join!(
            here.try_acquire(&one),
            there.try_acquire(&two),
            admin.drain_node(drain(false)),
            other_admin.drain_node(drain(false)),
        );
        // Both at once may be one too many for a record that is compared. The one that fails is told so, and the other
        // has done it.
        assert!(first.is_ok() || second.is_ok(), "{first:?} {second:?}");
        let prefix = keys().subnets().into_bytes();
        let left: Vec<_> = fleet.store.dump().into_keys().filter(|key| key.starts_with(&prefix)).collect();
        assert!(left.is_empty(), "round {round}: {left:?}");
        for node in [&here, &there] {
            let refused = node.try_acquire(&node.request()).await.unwrap_err().to_string();
            assert!(refused.contains("drained"), "{refused}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_in_the_audit_log_and_no_secret_is() {
    let fleet = Fleet::start().await;
    let token = fleet.token(1).await;
    let node = fleet.newcomer(1, Some(&token));
    node.remote.announce(&node.owner, &HostRanges::default()).await.unwrap();
    node.acquire().await;
    let spec = proto::ChangeNetworkRequest {
        name: "blue".to_owned(),
        cidr: Some("10.60.0.0/16".to_owned()),
        ..Default::default()
    };
    fleet.admin().create_network(spec).await.unwrap();
    let log = std::fs::read_to_string(fleet.dir.path().join("data/audit.log")).unwrap();
    let actions: Vec<String> = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["action"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(actions, ["join", "acquire", "create-network"]);
    let of_admins = std::fs::read_to_string(fleet.dir.path().join("data/audit-admin.log")).unwrap();
    assert_eq!(of_admins, log.lines().skip(2).map(|line| format!("{line}\n")).collect::<String>());
    // A request that no agent sends is not noted, and does not go on for ever.
    let config = tls::client(&Trust::Hash(fleet.ca_hash.clone()), None).unwrap();
    let stranger = channel::tls(&fleet.server(), config).unwrap();
    let mut codes = Vec::new();
    for _ in 0..30 {
        let message = proto::JoinRequest { node: "nonsense".to_owned(), ..Default::default() };
        codes.push(EnrollmentClient::new(stranger.clone()).join(message).await.unwrap_err().code());
    }
    assert!(codes.contains(&Code::InvalidArgument) && codes.contains(&Code::ResourceExhausted), "{codes:?}");
    assert_eq!(std::fs::read_to_string(fleet.dir.path().join("data/audit.log")).unwrap(), log);
    let (_, secret) = token.split_once('.').unwrap();
    assert!(!log.contains(secret));
    assert!(log.contains(&format!("spiffe://flatnet/node/{}", node.owner.node)));
}
