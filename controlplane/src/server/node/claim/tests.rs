//! Tests of the records a node gets while it changes its own records beside its call.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use flatnet_model::{BackendKind, NetworkName};

use super::*;
use crate::authority::Authority;
use crate::server::Context;
use crate::server::audit::Audit;
use crate::server::caller::Peer;
use crate::server::witness::Witness;
use flatnet_plane::flannel::encode_lease;
use flatnet_plane::store::memory::{Fault, MemoryStore};

/// The network's configuration in the store, and the one a node offers: another family beside, and larger subnets.
const STORED: &str = r#"{"Network":"10.100.0.0/16","SubnetLen":24,"Backend":{"Type":"host-gw"}}"#;
const OFFERED: &str = r#"{"Network":"10.100.0.0/16","SubnetLen":18,"EnableIPv6":true,"IPv6Network":"fd50::/48","Backend":{"Type":"host-gw"}}"#;
/// The time each call of the store takes, and the step in time from one try to the next.
const CALL: Duration = Duration::from_millis(100);
const STEP: Duration = Duration::from_millis(50);

pub(in crate::server::node) fn service(name: &str, store: &MemoryStore) -> NodeService<MemoryStore> {
    let dir = std::env::temp_dir().join(format!("flatnet-{name}-{}", std::process::id()));
    let authority = Authority::open(&dir).unwrap();
    let kept = (Audit::open(&dir).unwrap(), Witness::open(&dir));
    let context = Context::new(Arc::new(store.client()), "memory", "/coreos.com/network".to_owned(), authority, kept);
    // Open files stay open.
    std::fs::remove_dir_all(&dir).unwrap();
    NodeService { context: Arc::new(context) }
}

pub(in crate::server::node) fn caller(node: u128, address: Ipv4Addr) -> NodeCaller {
    let address = IpAddr::V4(address);
    NodeCaller {
        node: NodeId::new(node),
        key_hash: String::new(),
        address,
        peer: Peer::Remote { address, holder: None },
    }
}

pub(in crate::server::node) fn keys() -> NetworkKeys {
    NetworkKeys::new(&NetworkName::default_network(), "/coreos.com/network")
}

fn publication(address: Ipv4Addr) -> Vec<u8> {
    let publication = Publication {
        public_ip: Some(address),
        public_ipv6: None,
        backend: BackendKind::HostGw,
        data: BackendData::None,
        data_v6: BackendData::None,
        besides: Vec::new(),
    };
    encode_lease(&publication, None)
}

fn request(previous: &str, config: &str, wanted: &[&str]) -> proto::AcquireRequest {
    let publication = Publication {
        public_ip: Some(Ipv4Addr::new(192, 0, 2, 1)),
        public_ipv6: Some("2001:db8::1".parse().unwrap()),
        backend: BackendKind::HostGw,
        data: BackendData::None,
        data_v6: BackendData::None,
        besides: Vec::new(),
    };
    proto::AcquireRequest {
        network: "default".to_owned(),
        instance: Some(proto::Instance { name: "m".to_owned(), nonce: format!("{:032x}", 1) }),
        publication: encode_lease(&publication, None),
        wanted: wanted.iter().map(|net| (*net).to_owned()).collect(),
        previous: previous.to_owned(),
        ttl_secs: 3600,
        config: config.as_bytes().to_vec(),
    }
}

/// The lease is given back at every moment of a call that names it, between any two looks at the store.
#[tokio::test(start_paused = true)]
async fn under_a_configuration_of_its_own_making_a_node_gets_nothing_but_what_it_holds() {
    let mut refreshed = 0;
    for step in 0..60 {
        let store = MemoryStore::new();
        store.put(keys().config(), STORED, None);
        let service = service("race", &store);
        let caller = caller(1, Ipv4Addr::new(192, 0, 2, 1));
        let held = service.do_acquire(&caller, &request("", STORED, &[])).await.unwrap();
        let key = held.lease.subnets.to_string();
        service.context.store.fault_next(std::iter::repeat_n(Fault::Delay(CALL), 200));
        let message = request(&key, OFFERED, &["10.100.64.0/18"]);
        let release = async {
            tokio::time::sleep(STEP * step).await;
            let other = store.client();
            allocate::release(&other, &keys(), &held).await.unwrap();
        };
        let (answer, ()) = tokio::join!(service.do_acquire(&caller, &message), release);
        if let Ok(claim) = answer {
            assert_eq!(claim.lease.subnets, held.lease.subnets, "step {step}");
            refreshed += 1;
        }
        let prefix = keys().subnets();
        for found in store.dump().keys().filter_map(|key| std::str::from_utf8(key).ok()?.strip_prefix(&prefix)) {
            assert_eq!(found, key, "step {step}");
        }
    }
    assert!(refreshed > 0, "it was given back before the last moment each time");
}

#[tokio::test(start_paused = true)]
async fn a_lease_lives_no_longer_than_thirty_days() {
    let store = MemoryStore::new();
    store.put(keys().config(), STORED, None);
    let service = service("ttl", &store);
    for (ttl_secs, good) in
        [(0, false), (9, false), (10, true), (2_592_000, true), (2_592_001, false), (u64::MAX, false)]
    {
        let message = proto::AcquireRequest { ttl_secs, ..request("", STORED, &[]) };
        let answer = service.do_acquire(&caller(1, Ipv4Addr::new(192, 0, 2, 1)), &message).await;
        assert_eq!(answer.is_ok(), good, "{ttl_secs} s");
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_is_whose_who_calls_from_it_and_nobody_squats_it() {
    let store = MemoryStore::new();
    store.put(keys().config(), STORED, None);
    let service = service("squat", &store);
    let (theirs, other) = (Ipv4Addr::new(192, 0, 2, 7), Ipv4Addr::new(192, 0, 2, 66));
    let (victim, squatter) = (caller(1, theirs), caller(2, other));
    let announce = async |caller: &NodeCaller| {
        let instance = Some(proto::Instance { name: "m".to_owned(), nonce: format!("{:032x}", 1) });
        service.do_announce(caller, &proto::AnnounceRequest { instance, ..Default::default() }).await.unwrap()
    };
    let acquire = async |caller: &NodeCaller, address| {
        let message = proto::AcquireRequest { publication: publication(address), ..request("", STORED, &[]) };
        service.do_acquire(caller, &message).await
    };
    announce(&victim).await;
    let presence = announce(&squatter).await;
    // Nobody else publishes the address yet: a host may publish another address than the one it calls from.
    let squatted = acquire(&squatter, theirs).await.unwrap();
    let claim = acquire(&victim, theirs).await.unwrap();
    let gave_way = !store.dump().contains_key(keys().lease(&squatted.lease.subnets).as_bytes());
    // The other may have been given the very subnet that came free.
    assert!(gave_way || claim.lease.subnets == squatted.lease.subnets, "it gives way");
    // The squatter gets it neither by claiming nor by publishing, once the other is there.
    assert_eq!(acquire(&squatter, theirs).await.unwrap_err().code(), Code::Aborted);
    let own = acquire(&squatter, other).await.unwrap();
    let message = proto::PublishRequest {
        network: "default".to_owned(),
        subnets: own.lease.subnets.to_string(),
        instance: request("", STORED, &[]).instance,
        publication: publication(theirs),
    };
    assert_eq!(service.do_publish(&squatter, &message).await.unwrap_err().code(), Code::Aborted);
    assert!(store.dump().contains_key(keys().lease(&claim.lease.subnets).as_bytes()));
    // The node moves, and the server sees that with its next sign of life.
    let at_home = caller(2, Ipv4Addr::new(192, 0, 2, 67));
    let kv = service.check_presence(at_home.node, presence.0).await.unwrap();
    presence::moved(&store, at_home.node, &kv, at_home.address).await.unwrap();
    let kv = service.check_presence(at_home.node, presence.0).await.unwrap();
    assert_eq!(presence::called_from(&kv.value), Some(at_home.address));
}
