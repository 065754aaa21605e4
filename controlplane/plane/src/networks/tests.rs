use std::time::Duration;

use flatnet_model::keys::FLANNEL_PREFIX;
use flatnet_model::{BackendData, BackendKind};

use super::*;
use crate::store::memory::{Fault, MemoryStore};

fn name(text: &str) -> NetworkName {
    text.parse().unwrap()
}

fn spec(cidr: &str) -> NetworkSpec {
    NetworkSpec { cidr: Some(cidr.parse().unwrap()), ..NetworkSpec::default() }
}

async fn make(store: &MemoryStore, network: &str, spec: &NetworkSpec) -> Result<NetworkInfo, NetworkError> {
    create(store, FLANNEL_PREFIX, &name(network), spec, Force::No).await
}

fn text(info: &NetworkInfo) -> &str {
    std::str::from_utf8(&info.config_value).unwrap()
}

async fn host(store: &MemoryStore, network: &str, subnet: &str) {
    let lease = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    let key = NetworkKeys::new(&name(network), FLANNEL_PREFIX).lease(&subnet.parse().unwrap());
    store.put(key, r#"{"PublicIP":"192.168.33.1","BackendType":"host-gw"}"#, Some(lease));
}

/// Adds a host that is there, and publishes what it uses itself.
fn present(store: &MemoryStore, number: u128, more: &str) {
    let record = format!(r#"{{"version":1,"name":"host{number}","nonce":"{number:032x}"{more}}}"#);
    store.put(flatnet_model::keys::presence(flatnet_model::NodeId::new(number)), record, None);
}

fn peer() -> Publication {
    Publication {
        public_ip: Some([192, 168, 33, 77].into()),
        public_ipv6: None,
        backend: BackendKind::HostGw,
        data: BackendData::None,
        data_v6: BackendData::None,
        besides: Vec::new(),
    }
}

#[tokio::test]
async fn what_is_created_names_its_type_and_a_vni_of_its_own() {
    let store = MemoryStore::new();
    let first = make(&store, "default", &spec("10.100.0.0/16")).await.unwrap();
    assert_eq!(text(&first), r#"{"Network":"10.100.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan","VNI":1}}"#);
    assert!(store.dump().contains_key(b"/coreos.com/network/config".as_slice()));
    assert!(text(&make(&store, "blue", &spec("10.101.0.0/16")).await.unwrap()).contains(r#""VNI":4097"#));
    assert!(text(&make(&store, "red", &spec("10.102.0.0/16")).await.unwrap()).contains(r#""VNI":4098"#));
    let listed = list(&store, FLANNEL_PREFIX).await.unwrap();
    assert_eq!(listed.iter().map(|info| info.keys.network().as_str()).collect::<Vec<_>>(), ["default", "blue", "red"]);
}

#[tokio::test]
async fn gre_networks_have_a_key_each_and_the_default_one_none() {
    let store = MemoryStore::new();
    let gre = |cidr, key| NetworkSpec { backend: Some("gre".into()), key, ..spec(cidr) };
    let first = make(&store, "default", &gre("10.100.0.0/16", None)).await.unwrap();
    assert_eq!(text(&first), r#"{"Network":"10.100.0.0/16","SubnetLen":24,"Backend":{"Type":"gre","Key":0}}"#);
    assert!(text(&make(&store, "blue", &gre("10.101.0.0/16", None)).await.unwrap()).contains(r#""Key":4097"#));
    assert!(text(&make(&store, "red", &gre("10.102.0.0/16", None)).await.unwrap()).contains(r#""Key":4098"#));
    for key in [0, 4097] {
        let error = make(&store, "green", &gre("10.103.0.0/16", Some(key))).await.unwrap_err();
        assert!(matches!(error, NetworkError::KeyInUse { key: taken, .. } if taken == key), "{error}");
    }
    // A VNI and a key are different things: the same number is no clash.
    let vxlan = NetworkSpec { vni: Some(4097), ..spec("10.104.0.0/16") };
    assert!(make(&store, "grey", &vxlan).await.is_ok());
    let with_vni = NetworkSpec { vni: Some(9), ..gre("10.105.0.0/16", None) };
    let error = make(&store, "pink", &with_vni).await.unwrap_err();
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "Backend.VNI means nothing for gre");
    let to_gre = NetworkSpec { backend: Some("gre".into()), ..NetworkSpec::default() };
    let moved = update(&store, FLANNEL_PREFIX, &name("grey"), &to_gre, Force::No).await.unwrap();
    assert!(text(&moved).contains(r#""Backend":{"Type":"gre","Key":4099}"#));
}

#[tokio::test]
async fn a_range_that_hosts_use_themselves_is_refused_by_their_names_unless_forced() {
    let store = MemoryStore::new();
    // Presences of an earlier release; with nothing that clashes; with a route; with a resolver; with both families.
    present(&store, 1, "");
    present(&store, 2, r#","routes":["192.168.33.0/24","0.0.0.0/0"],"resolvers":["127.0.0.53"]"#);
    present(&store, 3, r#","routes":["192.168.33.0/24","10.20.30.0/24"]"#);
    present(&store, 4, r#","resolvers":["10.20.0.2"]"#);
    present(&store, 5, r#","routes":["10.21.0.0/16","fd00:20::/32"]"#);
    store.put("/flatnet/nodes/not-a-node", "garbage", None);
    let error = make(&store, "blue", &spec("10.20.0.0/16")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "network blue: 10.20.0.0/16: 2 hosts use a part of it themselves: \
         host3 (00000000000000000000000000000003) has a route to 10.20.30.0/24, \
         host4 (00000000000000000000000000000004) asks the resolver 10.20.0.2"
    );
    let six = NetworkSpec { cidr6: Some("fd00:20:1::/48".parse().unwrap()), ..NetworkSpec::default() };
    let error = make(&store, "blue", &six).await.unwrap_err().to_string();
    assert!(error.contains("host5") && error.contains("fd00:20::/32"), "{error}");
    let written = store.dump();
    assert!(!written.keys().any(|key| key.starts_with(b"/flatnet/networks/")), "nothing was written");
    make(&store, "red", &spec("10.22.0.0/16")).await.unwrap();
    create(&store, FLANNEL_PREFIX, &name("blue"), &spec("10.20.0.0/16"), Force::Yes).await.unwrap();
}

#[tokio::test]
async fn a_change_answers_only_for_the_range_it_brings() {
    let store = MemoryStore::new();
    make(&store, "blue", &spec("10.20.0.0/16")).await.unwrap();
    // Hosts may use what they like in the range that is there already: the change does not answer for that.
    present(&store, 1, r#","routes":["10.20.30.0/24","10.0.0.0/8","10.40.0.0/24"]"#);
    let mtu = NetworkSpec { mtu: Some(1400), ..NetworkSpec::default() };
    update(&store, FLANNEL_PREFIX, &name("blue"), &mtu, Force::No).await.unwrap();
    let change = |cidr: &str, force| {
        let (store, spec) = (store.clone(), spec(cidr));
        async move { update(&store, FLANNEL_PREFIX, &name("blue"), &spec, force).await }
    };
    assert!(change("10.20.0.0/15", Force::No).await.is_ok(), "what overlaps already is no news");
    present(&store, 2, r#","routes":["10.40.0.0/24"]"#);
    let error = change("10.40.0.0/16", Force::No).await.unwrap_err();
    assert!(matches!(&error, NetworkError::UsedByHosts { hosts, .. } if hosts.len() == 1), "{error}");
    change("10.40.0.0/16", Force::Yes).await.unwrap();
}

#[tokio::test]
async fn hosts_may_use_what_a_network_does_not_hand_out() {
    let store = MemoryStore::new();
    present(&store, 1, r#","routes":["10.240.0.0/24"],"endpoints":["10.241.0.9"],"resolvers":["10.9.255.253"]"#);
    present(&store, 2, r#","routes":["fd00:20:0:f000::/64"]"#);
    let bounds = |min: &str, max: &str| NetworkSpec {
        cidr: Some("10.0.0.0/8".parse().unwrap()),
        subnet_len: Some(20),
        subnet_min: Some(min.parse().unwrap()),
        subnet_max: Some(max.parse().unwrap()),
        ..NetworkSpec::default()
    };
    for (min, max, by) in [
        ("10.9.240.0", "10.99.0.0", "host1"),
        ("10.10.0.0", "10.240.0.0", "host1"),
        ("10.10.0.0", "10.255.240.0", "host1"),
        ("10.241.0.0", "10.241.0.0", "host1"),
    ] {
        let error = make(&store, "default", &bounds(min, max)).await.unwrap_err().to_string();
        assert!(error.contains(by) && error.contains("10.0.0.0/8"), "{min} to {max}: {error}");
    }
    make(&store, "default", &bounds("10.10.0.0", "10.99.0.0")).await.unwrap();
    let change = |spec: NetworkSpec| {
        let store = store.clone();
        async move { update(&store, FLANNEL_PREFIX, &name("default"), &spec, Force::No).await }
    };
    let to = |max: &str| NetworkSpec { subnet_max: Some(max.parse().unwrap()), ..NetworkSpec::default() };
    change(to("10.239.240.0")).await.unwrap();
    let error = change(to("10.240.0.0")).await.unwrap_err();
    assert!(matches!(&error, NetworkError::UsedByHosts { hosts, .. } if hosts.len() == 1), "{error}");
    // Narrower, then as wide as before: the addresses that hosts use beside it are in nobody's way.
    change(NetworkSpec { cidr: Some("10.0.0.0/9".parse().unwrap()), ..bounds("10.10.0.0", "10.99.0.0") })
        .await
        .unwrap();
    change(bounds("10.10.0.0", "10.99.0.0")).await.unwrap();
    let six = |max: &str| NetworkSpec {
        cidr6: Some("fd00:20::/48".parse().unwrap()),
        subnet_max: Some(max.parse().unwrap()),
        ..NetworkSpec::default()
    };
    let error = change(six("fd00:20:0:f000::")).await.unwrap_err().to_string();
    assert!(error.contains("host2"), "{error}");
    change(six("fd00:20:0:efff::")).await.unwrap();
}

#[tokio::test]
async fn a_clash_is_refused_by_name() {
    let store = MemoryStore::new();
    make(&store, "default", &spec("10.100.0.0/16")).await.unwrap();
    let error = |result: Result<NetworkInfo, NetworkError>| result.unwrap_err().to_string();
    assert_eq!(error(make(&store, "default", &spec("10.9.0.0/16")).await), "network default exists already");
    assert_eq!(
        error(make(&store, "blue", &spec("10.0.0.0/8")).await),
        "network blue: 10.0.0.0/8 overlaps 10.100.0.0/16 of network default"
    );
    let same_vni = NetworkSpec { vni: Some(1), ..spec("10.101.0.0/16") };
    assert_eq!(error(make(&store, "blue", &same_vni).await), "network blue: VNI 1 is in use by network default");
    for (bad, says) in [
        (NetworkSpec::default(), "needs an IPv4 or an IPv6 range"),
        (spec("10.101.3.0/16"), "10.101.0.0/16 is meant"),
        (spec("10.101.0.0/30"), "too small"),
        (NetworkSpec { vni: Some(0), ..spec("10.101.0.0/16") }, "VNI 0"),
        (NetworkSpec { mtu: Some(10), ..spec("10.101.0.0/16") }, "MTU"),
        (NetworkSpec { backend: Some("udp".into()), ..spec("10.101.0.0/16") }, "udp is not supported"),
        (
            NetworkSpec { backend: Some("host-gw".into()), vni: Some(9), ..spec("10.101.0.0/16") },
            "VNI means nothing for host-gw",
        ),
        (NetworkSpec { backend_json: Some("[".into()), ..spec("10.101.0.0/16") }, "not a JSON object"),
        (NetworkSpec { subnet_len: Some(17), ..spec("10.101.0.0/16") }, "SubnetLen 17"),
    ] {
        let error = make(&store, "blue", &bad).await.unwrap_err();
        let text = std::error::Error::source(&error).unwrap().to_string();
        assert!(text.contains(says), "{text}");
    }
    assert_eq!(list(&store, FLANNEL_PREFIX).await.unwrap().len(), 1);
}

#[tokio::test]
async fn both_families_and_options_are_written() {
    let store = MemoryStore::new();
    let full = NetworkSpec {
        cidr6: Some("fd00::/48".parse().unwrap()),
        subnet_min: Some("10.100.16.0".parse().unwrap()),
        port: Some(4789),
        direct_routing: Some(true),
        backend_json: Some(r#"{"x":1}"#.into()),
        ..spec("10.100.0.0/16")
    };
    let info = make(&store, "default", &full).await.unwrap();
    assert_eq!(
        text(&info),
        r#"{"EnableIPv6":true,"Network":"10.100.0.0/16","SubnetLen":24,"SubnetMin":"10.100.16.0","IPv6Network":"fd00::/48","IPv6SubnetLen":64,"Backend":{"Type":"vxlan","VNI":1,"Port":4789,"DirectRouting":true,"x":1}}"#
    );
    let v6 = NetworkSpec { cidr6: Some("fd01::/48".parse().unwrap()), subnet_len: Some(80), ..NetworkSpec::default() };
    assert!(
        text(&make(&store, "six", &v6).await.unwrap())
            .starts_with(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd01::/48","IPv6SubnetLen":80"#)
    );
}

#[tokio::test]
async fn an_update_keeps_what_it_does_not_name_and_strands_nobody_unasked() {
    let store = MemoryStore::new();
    store.put("/coreos.com/network/config", r#"{"Network":"10.100.0.0/16","EnableNFTables":true}"#, None);
    host(&store, "default", "10.100.200.0-24").await;
    let change = |spec: NetworkSpec, force| {
        let store = store.clone();
        async move { update(&store, FLANNEL_PREFIX, &NetworkName::default_network(), &spec, force).await }
    };
    let info = change(NetworkSpec { port: Some(4789), ..NetworkSpec::default() }, Force::No).await.unwrap();
    assert_eq!(
        text(&info),
        r#"{"Network":"10.100.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan","VNI":1,"Port":4789},"EnableNFTables":true}"#
    );
    let revision = store.revision();
    change(NetworkSpec { port: Some(4789), ..NetworkSpec::default() }, Force::No).await.unwrap();
    assert_eq!(store.revision(), revision, "nothing to change, nothing written");
    let error = change(spec("10.100.0.0/17"), Force::No).await.unwrap_err();
    assert!(matches!(&error, NetworkError::Strands { leases, .. } if leases == &["10.100.200.0-24"]), "{error}");
    change(spec("10.100.0.0/17"), Force::Yes).await.unwrap();
    let missing = update(&store, FLANNEL_PREFIX, &name("blue"), &NetworkSpec::default(), Force::No).await;
    assert!(matches!(missing, Err(NetworkError::NotFound(_))));
}

#[tokio::test]
async fn another_backend_leaves_the_earlier_one_on_record_while_leases_name_it() {
    let store = MemoryStore::new();
    make(&store, "blue", &NetworkSpec { backend: Some("host-gw".to_owned()), ..spec("10.101.0.0/16") }).await.unwrap();
    let change = async |spec: NetworkSpec| {
        let info = update(&store, FLANNEL_PREFIX, &name("blue"), &spec, Force::No).await.unwrap();
        info.config.unwrap().before.iter().map(|backend| backend.kind().to_string()).collect::<Vec<_>>()
    };
    let backend = |kind: &str| NetworkSpec { backend: Some(kind.to_owned()), ..NetworkSpec::default() };
    // Nobody to wait for.
    assert!(change(backend("vxlan")).await.is_empty());
    assert!(change(backend("host-gw")).await.is_empty());
    host(&store, "blue", "10.101.1.0-24").await;
    assert_eq!(change(NetworkSpec { vni: Some(4097), ..backend("vxlan") }).await, ["host-gw"]);
    assert_eq!(change(backend("gre")).await, ["host-gw"], "no lease names vxlan");
    assert_eq!(change(NetworkSpec { mtu: Some(1400), ..NetworkSpec::default() }).await, ["host-gw"]);
    assert!(change(backend("host-gw")).await.is_empty(), "it is the configured one again");
}

#[tokio::test]
async fn no_other_network_is_given_what_an_earlier_backend_still_uses() {
    let store = MemoryStore::new();
    make(&store, "blue", &spec("10.101.0.0/16")).await.unwrap();
    let key = NetworkKeys::new(&name("blue"), FLANNEL_PREFIX).lease(&"10.101.1.0-24".parse().unwrap());
    let lease =
        r#"{"PublicIP":"192.168.33.1","BackendType":"vxlan","BackendData":{"VNI":4097,"VtepMAC":"02:00:00:00:00:01"}}"#;
    store.put(key.clone(), lease, None);
    let gre = NetworkSpec { backend: Some("gre".to_owned()), ..NetworkSpec::default() };
    update(&store, FLANNEL_PREFIX, &name("blue"), &gre, Force::No).await.unwrap();
    assert!(text(&make(&store, "red", &spec("10.102.0.0/16")).await.unwrap()).contains(r#""VNI":4098"#));
    // Once no lease names it, an update without options makes the network forget it, and the number is free.
    store.delete(key);
    let none = NetworkSpec::default();
    assert!(
        update(&store, FLANNEL_PREFIX, &name("blue"), &none, Force::No)
            .await
            .unwrap()
            .config
            .unwrap()
            .before
            .is_empty()
    );
    assert!(text(&make(&store, "green", &spec("10.103.0.0/16")).await.unwrap()).contains(r#""VNI":4097"#));
}

#[tokio::test]
async fn a_network_with_hosts_is_removed_only_by_force_and_then_wholly() {
    let store = MemoryStore::new();
    make(&store, "default", &spec("10.100.0.0/16")).await.unwrap();
    make(&store, "blue", &spec("10.101.0.0/16")).await.unwrap();
    let before = store.dump().len();
    add_peer(&store, FLANNEL_PREFIX, &name("blue"), "10.101.9.0-24".parse().unwrap(), &peer()).await.unwrap();
    for host_number in 1..=250 {
        host(&store, "blue", &format!("10.101.{host_number}.0-24").replace(".9.0", ".0.0")).await;
    }
    let error = remove(&store, FLANNEL_PREFIX, &name("blue"), Force::No).await.unwrap_err();
    assert!(matches!(&error, NetworkError::InUse { leases, .. } if leases.len() == 250), "{error}");
    assert!(error.to_string().len() < 300);
    remove(&store, FLANNEL_PREFIX, &name("blue"), Force::Yes).await.unwrap();
    assert_eq!(store.dump().len(), before - 1);
    assert!(matches!(remove(&store, FLANNEL_PREFIX, &name("blue"), Force::Yes).await, Err(NetworkError::NotFound(_))));
    remove(&store, FLANNEL_PREFIX, &name("default"), Force::No).await.unwrap();
    assert_eq!(store.dump().len(), 1, "only the catalog is left");
}

#[tokio::test]
async fn a_permanent_peer_comes_and_goes_and_a_hosts_lease_is_safe_from_it() {
    let store = MemoryStore::new();
    make(&store, "default", &NetworkSpec { backend: Some("host-gw".into()), ..spec("10.100.0.0/16") }).await.unwrap();
    host(&store, "default", "10.100.1.0-24").await;
    let before = store.dump().len();
    let default = NetworkName::default_network();
    let add = |subnet: &str| {
        let (store, subnet) = (store.clone(), subnet.parse().unwrap());
        async move { add_peer(&store, FLANNEL_PREFIX, &NetworkName::default_network(), subnet, &peer()).await }
    };
    let lease = add("10.100.2.0-24").await.unwrap();
    assert!(is_permanent(&lease));
    assert_eq!(add("10.100.2.0-24").await.unwrap(), lease, "asked again it is the same");
    assert!(matches!(add("10.100.1.0-25").await, Err(NetworkError::PeerOverlap { .. })));
    assert!(matches!(add("10.200.1.0-24").await, Err(NetworkError::PeerOutside { .. })));
    let rm = |subnet: &str| {
        let (store, default, subnet) = (store.clone(), default.clone(), subnet.parse().unwrap());
        async move { remove_peer(&store, FLANNEL_PREFIX, &default, subnet).await }
    };
    assert!(matches!(rm("10.100.1.0-24").await, Err(NetworkError::NoSuchPeer { .. })));
    rm("10.100.2.0-24").await.unwrap();
    assert_eq!(store.dump().len(), before);
}

#[tokio::test]
async fn two_at_once_never_get_one_vni_and_a_lost_answer_is_no_failure() {
    let store = MemoryStore::new();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..5_u8 {
        let client = store.client();
        client.fault_next([
            // Three reads of networks, one of hosts, the write.
            Fault::None,
            Fault::None,
            Fault::None,
            Fault::None,
            if number == 0 { Fault::LoseReply } else { Fault::None },
        ]);
        tasks.spawn(async move {
            create(
                &client,
                FLANNEL_PREFIX,
                &name(&format!("n{number}")),
                &spec(&format!("10.{number}.0.0/16")),
                Force::No,
            )
            .await
        });
    }
    for result in tasks.join_all().await {
        result.unwrap();
    }
    let values: BTreeSet<String> = list(&store, FLANNEL_PREFIX)
        .await
        .unwrap()
        .iter()
        .map(|info| text(info).rsplit_once("VNI").unwrap().1.to_owned())
        .collect();
    assert_eq!(values.len(), 5);
}
