use std::net::Ipv4Addr;
use std::sync::Arc;

use flatnet_model::keys::presence;
use flatnet_model::{BackendData, BackendKind, InstanceNonce, Mac, NetworkName, NodeId, Vni};
use proptest::prelude::*;

use super::*;
use crate::flannel::decode_change;
use crate::random::SeededRandom;
use crate::store::WatchEvent;
use crate::store::memory::{Fault, MemoryStore};

const CONFIG: &str = r#"{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan"}}"#;
const DUAL: &str =
    r#"{"Network":"10.100.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"vxlan"}}"#;
const V6_ONLY: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"vxlan"}}"#;
/// Three subnets: 10.100.1.0/24 to 10.100.3.0/24.
const SMALL: &str = r#"{"Network":"10.100.0.0/22","Backend":{"Type":"vxlan"}}"#;
/// Many IPv4 subnets and three IPv6 ones: two leases can then share the IPv6 half alone.
const FEW_V6: &str = r#"{"Network":"10.100.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/60","IPv6SubnetLen":62}"#;
const DAY: Duration = Duration::from_secs(86_400);

fn keys() -> NetworkKeys {
    NetworkKeys::new(&NetworkName::default_network(), "/coreos.com/network")
}

fn publication(host: u8) -> Publication {
    Publication {
        public_ip: Some(Ipv4Addr::new(192, 168, 33, host)),
        public_ipv6: None,
        backend: BackendKind::Vxlan,
        data: BackendData::Vxlan { vni: Some(Vni::FLANNEL_DEFAULT), mac: Mac::local([host; 6]) },
        data_v6: BackendData::None,
        besides: Vec::new(),
    }
}

fn request(host: u8) -> ClaimRequest {
    let owner = Owner {
        node: NodeId::new(u128::from(host)),
        name: format!("host{host}"),
        nonce: InstanceNonce::new(u128::from(host)),
    };
    ClaimRequest {
        keys: keys(),
        owner,
        publication: publication(host),
        wanted: vec![],
        previous: None,
        ttl: DAY,
        adopt: true,
        known: None,
    }
}

async fn state(store: &MemoryStore) -> NetworkState {
    let mut state = NetworkState::default();
    for kv in store.dump().into_values() {
        if let Some(change) = decode_change(&keys(), &WatchEvent::Put(kv)) {
            state.apply(change);
        }
    }
    state.revision = store.revision();
    state
}

fn known(state: &NetworkState, request: &ClaimRequest) -> Option<KnownLeases> {
    KnownLeases::of(state, request.owner.node, &request.publication)
}

fn store(config: &str) -> MemoryStore {
    let store = MemoryStore::new();
    store.put(keys().config(), config, None);
    store
}

/// Asks for a lease as a node that follows the store does. Every rule must hold from what it knows as from what it
/// reads.
async fn ask(store: &MemoryStore, request: &ClaimRequest) -> Result<Claim, AcquireError> {
    let state = state(store).await;
    let request = ClaimRequest { known: known(&state, request), ..request.clone() };
    acquire(store, &request, &state, &mut SeededRandom::new(7)).await
}

async fn leases(store: &MemoryStore) -> Vec<Lease> {
    state(store).await.leases.into_values().collect()
}

/// Writes the lease that flanneld on host `host` would write.
async fn flanneld(store: &MemoryStore, subnet: &str, host: u8) -> EtcdLease {
    let lease = store.lease_grant(DAY).await.unwrap();
    store.put(format!("{}{subnet}", keys().subnets()), encode_lease(&publication(host), None), Some(lease));
    lease
}

#[tokio::test(start_paused = true)]
async fn a_new_node_gets_a_free_subnet_under_a_lease_with_its_claims() {
    let store = store(CONFIG);
    let claim = ask(&store, &request(1)).await.unwrap();
    assert_eq!(claim.origin, Origin::Chosen);
    assert_eq!(leases(&store).await, std::slice::from_ref(&claim.lease));
    let net = claim.lease.subnets.iter().next().unwrap();
    let dump = store.dump();
    assert!(dump[keys().claim(net).as_bytes()].lease.is_none());
    assert_eq!(dump[keys().lease(&claim.lease.subnets).as_bytes()].lease, Some(claim.etcd_lease));
}

#[tokio::test(start_paused = true)]
async fn asking_again_keeps_the_lease_and_writes_nothing() {
    let store = store(CONFIG);
    let first = ask(&store, &request(1)).await.unwrap();
    let revision = store.revision();
    let again = ask(&store, &request(1)).await.unwrap();
    assert_eq!((again.origin, again.lease, again.etcd_lease), (Origin::Refreshed, first.lease, first.etcd_lease));
    assert_eq!(store.revision(), revision);
}

#[tokio::test(start_paused = true)]
async fn a_changed_address_or_nonce_is_written_in_place() {
    let store = store(CONFIG);
    let first = ask(&store, &request(1)).await.unwrap();
    let mut changed = request(1);
    changed.publication = publication(9);
    changed.owner.nonce = InstanceNonce::new(77);
    let again = ask(&store, &changed).await.unwrap();
    assert_eq!((again.lease.subnets, again.etcd_lease), (first.lease.subnets, first.etcd_lease));
    assert_eq!(leases(&store).await, [again.lease]);
}

#[tokio::test(start_paused = true)]
async fn an_expired_subnet_is_claimed_again_by_its_node() {
    let store = store(CONFIG);
    let first = ask(&store, &request(1)).await.unwrap();
    store.expire(first.etcd_lease);
    assert!(leases(&store).await.is_empty());
    let mut back = request(1);
    back.previous = Some(first.lease.subnets);
    let again = ask(&store, &back).await.unwrap();
    assert_eq!((again.origin, again.lease.subnets), (Origin::Reclaimed, first.lease.subnets));
}

#[tokio::test(start_paused = true)]
async fn a_previous_subnet_that_another_took_is_never_silently_exchanged() {
    let store = store(CONFIG);
    let other = ask(&store, &request(2)).await.unwrap();
    let mut back = request(1);
    back.previous = Some(other.lease.subnets);
    let error = ask(&store, &back).await.unwrap_err();
    assert!(matches!(&error, AcquireError::Taken { by, .. } if by.name == "node host2"), "{error}");
    assert!(!error.can_retry());
    assert_eq!(leases(&store).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_subnet_asked_for_is_given_or_refused_with_the_reason() {
    let store = store(CONFIG);
    let mut asking = request(1);
    asking.wanted = vec!["10.100.7.0/24".parse().unwrap()];
    assert_eq!(ask(&store, &asking).await.unwrap().lease.subnets.to_string(), "10.100.7.0-24");
    let mut second = request(2);
    second.wanted = asking.wanted.clone();
    let error = ask(&store, &second).await.unwrap_err();
    assert_eq!(error.to_string(), "10.100.7.0/24 is taken by node host1 (10.100.7.0-24)");
    for outside in ["10.101.0.0/24", "10.100.0.0/24", "10.100.8.0/25", "fd00::/64"] {
        second.wanted = vec![outside.parse().unwrap()];
        assert!(matches!(ask(&store, &second).await, Err(AcquireError::Outside { .. })), "{outside}");
    }
}

#[tokio::test(start_paused = true)]
async fn flannelds_lease_on_this_host_is_adopted_in_place() {
    let store = store(CONFIG);
    flanneld(&store, "10.100.40.0-24", 3).await;
    let theirs = flanneld(&store, "10.100.41.0-24", 1).await;
    let claim = ask(&store, &request(1)).await.unwrap();
    assert_eq!((claim.origin, claim.lease.subnets.to_string()), (Origin::Adopted, "10.100.41.0-24".to_owned()));
    store.expire(theirs);
    assert_eq!(leases(&store).await.len(), 2, "what flanneld's own lease does is nothing to us");
}

#[tokio::test(start_paused = true)]
async fn a_reservation_is_never_adopted_nor_overlapped() {
    let store = store(SMALL);
    store.put(format!("{}10.100.1.0-24", keys().subnets()), encode_lease(&publication(1), None), None);
    store.put(format!("{}10.100.2.0-24", keys().subnets()), "garbage", None);
    let claim = ask(&store, &request(1)).await.unwrap();
    assert_eq!((claim.origin, claim.lease.subnets.to_string()), (Origin::Chosen, "10.100.3.0-24".to_owned()));
    assert!(matches!(ask(&store, &request(2)).await, Err(AcquireError::Exhausted(_))));
}

#[tokio::test(start_paused = true)]
async fn a_reinstalled_host_takes_its_lease_over_unless_the_other_is_alive() {
    let store = store(CONFIG);
    let first = ask(&store, &request(1)).await.unwrap();
    let mut reinstalled = request(1);
    reinstalled.owner.node = NodeId::new(99);
    store.put(presence(NodeId::new(1)), "{}", None);
    let error = ask(&store, &reinstalled).await.unwrap_err();
    assert!(matches!(&error, AcquireError::SamePublicIp { name, .. } if name == "host1"), "{error}");
    store.delete(presence(NodeId::new(1)));
    let claim = ask(&store, &reinstalled).await.unwrap();
    assert_eq!((claim.origin, claim.lease.subnets), (Origin::Adopted, first.lease.subnets));
    assert_eq!(leases(&store).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_expired_subnet_goes_to_another_only_when_no_other_is_free() {
    let store = store(SMALL);
    let first = ask(&store, &request(1)).await.unwrap();
    store.expire(first.etcd_lease);
    let second = ask(&store, &request(2)).await.unwrap();
    let third = ask(&store, &request(3)).await.unwrap();
    assert!(second.lease.subnets != first.lease.subnets && third.lease.subnets != first.lease.subnets);
    let fourth = ask(&store, &request(4)).await.unwrap();
    assert_eq!(fourth.lease.subnets, first.lease.subnets);
}

#[tokio::test(start_paused = true)]
async fn dual_stack_claims_both_halves_and_ipv6_only_its_one() {
    let dual = store(DUAL);
    let mut asking = request(1);
    asking.wanted = vec!["fd00:0:0:9::/64".parse().unwrap()];
    let claim = ask(&dual, &asking).await.unwrap();
    assert!(claim.lease.subnets.v4().is_some());
    assert_eq!(claim.lease.subnets.v6().unwrap().to_string(), "fd00:0:0:9::/64");
    assert_eq!(
        claim.lease.subnets.iter().filter(|net| dual.dump().contains_key(keys().claim(*net).as_bytes())).count(),
        2
    );
    let v6 = store(V6_ONLY);
    let claim = ask(&v6, &request(1)).await.unwrap();
    assert!(claim.lease.subnets.to_string().starts_with("0.0.0.0-0&fd00:"));
}

#[tokio::test(start_paused = true)]
async fn a_lease_outside_a_changed_network_is_refused_loudly() {
    let store = store(CONFIG);
    ask(&store, &request(1)).await.unwrap();
    store.put(keys().config(), r#"{"Network":"10.200.0.0/16"}"#, None);
    assert!(matches!(ask(&store, &request(1)).await, Err(AcquireError::Moved { .. })));
    let mut held_before = request(2);
    held_before.previous = Some("10.100.9.0-24".parse().unwrap());
    assert!(matches!(ask(&store, &held_before).await, Err(AcquireError::Moved { .. })));
}

#[tokio::test(start_paused = true)]
async fn without_a_configuration_nothing_is_claimed() {
    let store = MemoryStore::new();
    assert!(matches!(ask(&store, &request(1)).await, Err(AcquireError::NoConfig { .. })));
    assert!(store.dump().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_read_and_never_leads_to_a_second_lease() {
    let store = store(CONFIG);
    let client = store.client();
    // record, leases, claims, grant; then the transaction's answer.
    client.fault_next([Fault::None, Fault::None, Fault::None, Fault::None, Fault::LoseReply]);
    let claim = acquire(&client, &request(1), &state(&store).await, &mut SeededRandom::new(1)).await.unwrap();
    assert_eq!(leases(&store).await, [claim.lease]);
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_happens_late_does_not_happen_beside_a_later_one() {
    let store = store(CONFIG);
    let client = store.client();
    let late = Fault::Delay(Duration::from_secs(30));
    client.fault_next([Fault::None, Fault::None, Fault::None, Fault::None, late]);
    let claim = acquire(&client, &request(1), &state(&store).await, &mut SeededRandom::new(1)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(leases(&store).await, [claim.lease]);
}

#[tokio::test(start_paused = true)]
async fn update_changes_in_place_and_says_when_the_lease_is_lost() {
    let store = store(CONFIG);
    let claim = ask(&store, &request(1)).await.unwrap();
    let client = store.client();
    client.fault_next([Fault::None, Fault::LoseReply]);
    let changed = update(&client, &keys(), &claim, &publication(9)).await.unwrap();
    assert_eq!(leases(&store).await, std::slice::from_ref(&changed.lease));
    assert_eq!(changed.lease.publication(), publication(9));
    let mut copy = request(1);
    copy.owner.nonce = InstanceNonce::new(5);
    ask(&store, &copy).await.unwrap();
    assert!(matches!(update(&store, &keys(), &changed, &publication(1)).await, Err(UpdateError::Lost(_))));
}

#[tokio::test(start_paused = true)]
async fn release_leaves_no_trace_and_nothing_of_anothers() {
    let store = store(CONFIG);
    let before: Vec<_> = store.dump().into_keys().collect();
    let claim = ask(&store, &request(1)).await.unwrap();
    release(&store, &keys(), &claim).await.unwrap();
    assert_eq!(store.dump().into_keys().collect::<Vec<_>>(), before);
    let mut second = request(2);
    second.wanted = claim.lease.subnets.iter().collect();
    let theirs = ask(&store, &second).await.unwrap();
    release(&store, &keys(), &claim).await.unwrap();
    assert_eq!(leases(&store).await, [theirs.lease]);
}

/// Starts `hosts` nodes at once on `store`, each with faults of its own. They ask until each has a lease or there is
/// none.
async fn all_at_once(store: &MemoryStore, hosts: u8, seed: u64) -> Vec<Claim> {
    let state = Arc::new(state(store).await);
    let mut tasks = tokio::task::JoinSet::new();
    for host in 1..=hosts {
        let (client, state) = (store.client(), state.clone());
        tasks.spawn(async move {
            let mut random = SeededRandom::new(seed.wrapping_mul(1_000).wrapping_add(u64::from(host)));
            loop {
                let fault = match random.next_u64() % 6 {
                    0 => Fault::Fail,
                    1 => Fault::LoseReply,
                    2 => Fault::Delay(Duration::from_millis(random.next_u64() % 8_000)),
                    _ => Fault::None,
                };
                let before = vec![Fault::None; usize::try_from(random.next_u64() % 6).unwrap()];
                client.clear_faults();
                client.fault_next(before.into_iter().chain([fault]));
                let mut asking = request(host);
                // What it knows may be old: the others began at the same moment.
                asking.known = known(&state, &asking).filter(|_| random.next_u64().is_multiple_of(2));
                match acquire(&client, &asking, &state, &mut random).await {
                    Ok(claim) => return claim,
                    Err(error) => assert!(error.can_retry(), "{error}"),
                }
                tokio::time::sleep(random.jitter(Duration::from_millis(20))).await;
            }
        });
    }
    tasks.join_all().await
}

fn assert_one_owner_each(leases: &[Lease], hosts: usize) {
    assert_eq!(leases.len(), hosts);
    let nodes: std::collections::BTreeSet<_> = leases.iter().map(|lease| lease.owner.as_ref().unwrap().node).collect();
    assert_eq!(nodes.len(), hosts, "no node twice");
    let nets: Vec<IpNet> = leases.iter().flat_map(|lease| lease.subnets.iter().collect::<Vec<_>>()).collect();
    for (index, net) in nets.iter().enumerate() {
        assert!(nets[index + 1..].iter().all(|other| !net.contains(other) && !other.contains(net)), "{net} twice");
    }
}

#[tokio::test(start_paused = true)]
async fn many_at_once_with_lost_and_late_answers_never_share_a_subnet() {
    for seed in 0..150 {
        for (config, hosts) in [(r#"{"Network":"10.100.0.0/20"}"#, 15), (DUAL, 8), (V6_ONLY, 8), (FEW_V6, 3)] {
            let store = store(config);
            let claims = all_at_once(&store, hosts, seed).await;
            tokio::time::sleep(Duration::from_secs(20)).await;
            let leases = leases(&store).await;
            assert_one_owner_each(&leases, usize::from(hosts));
            for claim in claims {
                assert!(
                    leases.iter().any(|lease| lease.subnets == claim.lease.subnets && lease.owner == claim.lease.owner),
                    "seed {seed}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn claims_expiries_and_returns_in_any_order_never_overlap(steps in prop::collection::vec((1_u8..=6, 0_u8..4), 1..40), seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let store = store(SMALL);
            let mut random = SeededRandom::new(seed);
            let mut held = std::collections::BTreeMap::<u8, Claim>::new();
            for (host, what) in steps {
                let mut asking = request(host);
                asking.previous = held.get(&host).map(|claim| claim.lease.subnets);
                match (what, held.get(&host).cloned()) {
                    (0, Some(claim)) => store.expire(claim.etcd_lease),
                    (1, Some(claim)) => {
                        release(&store, &keys(), &claim).await.unwrap();
                        held.remove(&host);
                    }
                    _ => match acquire(&store, &asking, &state(&store).await, &mut random).await {
                        Ok(claim) => {
                            assert!(asking.previous.is_none_or(|previous| previous == claim.lease.subnets));
                            held.insert(host, claim);
                        }
                        Err(AcquireError::Exhausted(_)) => assert_eq!(leases(&store).await.len(), 3),
                        Err(AcquireError::Taken { .. }) => assert!(asking.previous.is_some()),
                        Err(error) => panic!("{error}"),
                    },
                }
                let leases = leases(&store).await;
                assert_one_owner_each(&leases, leases.len());
            }
        });
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_node_lives_in_comes_before_an_older_lease_of_its_own_that_a_backup_brought_back() {
    let store = store(CONFIG);
    let old = ask(&store, &request(1)).await.unwrap().lease.subnets;
    let held: SubnetKey = "10.100.77.0-24".parse().unwrap();
    assert_ne!(old, held);
    let claim = ask(&store, &ClaimRequest { previous: Some(held), ..request(1) }).await.unwrap();
    assert_eq!((claim.lease.subnets, claim.origin), (held, Origin::Reclaimed));
    let left: Vec<SubnetKey> = leases(&store).await.iter().map(|lease| lease.subnets).collect();
    assert_eq!(left, [held]);
    // Another node has it meanwhile: the error says so, and the node is not moved to its older lease.
    release(&store, &keys(), &claim).await.unwrap();
    ask(&store, &request(1)).await.unwrap();
    let taker = ask(&store, &ClaimRequest { previous: Some(held), ..request(2) }).await.unwrap();
    assert_eq!(taker.lease.subnets, held);
    let refused = ask(&store, &ClaimRequest { previous: Some(held), ..request(1) }).await;
    assert!(matches!(refused, Err(AcquireError::Taken { .. })), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_follows_the_store_does_not_read_all_leases_again() {
    let store = store(SMALL);
    ask(&store, &request(1)).await.unwrap();
    let before = state(&store).await;
    let mut asking = request(2);
    asking.known = known(&before, &asking);
    // A lease it does not know of is in the way of none it can choose; only the transaction sees it.
    let claim = acquire(&store, &asking, &before, &mut SeededRandom::new(3)).await.unwrap();
    assert_eq!(claim.origin, Origin::Chosen);
    // Its own claim of a moment ago is younger than what it knows. It is found all the same, and not made twice.
    let again = acquire(&store, &asking, &before, &mut SeededRandom::new(4)).await.unwrap();
    assert_eq!((again.origin, again.lease.subnets), (Origin::Refreshed, claim.lease.subnets));
    assert_eq!(leases(&store).await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_backups_lease_that_shares_one_half_with_what_a_node_lives_in_does_not_change_the_other_half() {
    let store = store(DUAL);
    let old: SubnetKey = "10.100.8.0-24&fd00:0:0:8::-64".parse().unwrap();
    let held: SubnetKey = "10.100.8.0-24&fd00:0:0:4::-64".parse().unwrap();
    ask(&store, &ClaimRequest { previous: Some(old), ..request(1) }).await.unwrap();
    let claim = ask(&store, &ClaimRequest { previous: Some(held), ..request(1) }).await.unwrap();
    assert_eq!((claim.lease.subnets, claim.origin), (held, Origin::Reclaimed));
    let left: Vec<SubnetKey> = leases(&store).await.iter().map(|lease| lease.subnets).collect();
    assert_eq!(left, [held]);
    // With one more form of the key, somebody else's, nothing is written.
    release(&store, &keys(), &claim).await.unwrap();
    ask(&store, &ClaimRequest { previous: Some(old), ..request(1) }).await.unwrap();
    flanneld(&store, "10.100.8.0-24&fd00:0:0:5::-64", 9).await;
    let refused = ask(&store, &ClaimRequest { previous: Some(held), ..request(1) }).await;
    assert!(matches!(refused, Err(AcquireError::Taken { .. })), "{refused:?}");
}
