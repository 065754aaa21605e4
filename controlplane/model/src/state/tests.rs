use proptest::prelude::*;

use super::*;
use crate::backend::BackendData;
use crate::backend::{BackendConfig, BackendKind};
use crate::pool::Pool;

fn config() -> NetworkConfig {
    let pool = |text: &str| Pool::new(text.parse().unwrap(), None, None, None).unwrap();
    NetworkConfig {
        v4: Some(pool("10.100.0.0/16")),
        v6: Some(pool("fd00::/48")),
        backend: BackendConfig::HostGw,
        before: Vec::new(),
        reachable_from: Vec::new(),
    }
}

fn lease(subnets: &str, create_revision: Revision) -> Lease {
    Lease {
        subnets: subnets.parse().unwrap(),
        public_ip: Some([192, 168, 33, 11].into()),
        public_ipv6: None,
        backend: BackendKind::HostGw,
        data: BackendData::None,
        data_v6: BackendData::None,
        besides: Vec::new(),
        owner: None,
        etcd_lease: None,
        create_revision,
        mod_revision: create_revision,
    }
}

fn state(leases: &[Lease]) -> NetworkState {
    let mut state = NetworkState::default();
    for lease in leases {
        state.apply(Change::Lease(Box::new(lease.clone())));
    }
    state
}

#[test]
fn of_two_overlapping_leases_the_older_one_holds() {
    let state = state(&[lease("10.100.4.0-24", 9), lease("10.100.4.0-25", 3), lease("10.100.5.0-24", 4)]);
    let resolution = state.resolve(&config());
    let held: Vec<String> = resolution.leases.iter().map(|lease| lease.subnets.to_string()).collect();
    assert_eq!(held, ["10.100.4.0-25", "10.100.5.0-24"]);
    assert_eq!(resolution.refused[0].reason, "overlaps the older lease 10.100.4.0/25");
}

#[test]
fn an_overlap_in_the_ipv6_half_counts_too() {
    let state = state(&[lease("10.100.4.0-24&fd00:0:0:28::-64", 3), lease("10.100.5.0-24&fd00:0:0:28::-64", 4)]);
    assert_eq!(state.resolve(&config()).leases.len(), 1);
}

#[test]
fn a_lease_outside_the_network_or_as_large_as_it_does_not_hold() {
    let state = state(&[lease("10.101.4.0-24", 1), lease("10.100.0.0-16", 2), lease("10.0.0.0-8", 3)]);
    let resolution = state.resolve(&config());
    assert!(resolution.leases.is_empty());
    assert_eq!(resolution.refused.len(), 3);
}

#[test]
fn garbage_does_not_fill_memory() {
    let mut state = NetworkState::default();
    for number in 0..1000 {
        state.apply(Change::Rejected { key: format!("k{number}"), reason: "not JSON".into() });
    }
    assert_eq!(state.rejected.len(), NetworkState::REJECTED_LIMIT);
}

fn any_lease() -> impl Strategy<Value = Lease> {
    (0_u32..6, 22_u8..=26, 1_i64..1000).prop_map(|(third, len, revision)| {
        let net = ipnet::Ipv4Net::new([10, 100, u8::try_from(third).unwrap(), 0].into(), len).unwrap().trunc();
        lease(&format!("{}-{len}", net.addr()), revision)
    })
}

proptest! {
    #[test]
    fn what_holds_is_disjoint_and_independent_of_the_order(mut leases in prop::collection::vec(any_lease(), 0..12)) {
        leases.sort_by_key(|lease| lease.subnets);
        leases.dedup_by_key(|lease| lease.subnets);
        let forward = state(&leases);
        leases.reverse();
        let backward = state(&leases);
        let config = config();
        prop_assert_eq!(forward.resolve(&config), backward.resolve(&config));
        let resolution = forward.resolve(&config);
        prop_assert_eq!(resolution.leases.len() + resolution.refused.len(), leases.len());
        for (index, a) in resolution.leases.iter().enumerate() {
            for b in &resolution.leases[index + 1..] {
                let (a, b) = (a.subnets.v4().unwrap(), b.subnets.v4().unwrap());
                prop_assert!(!a.contains(&b) && !b.contains(&a));
            }
        }
    }
}
