use flatnet_model::{EtcdLease, InstanceNonce, NetworkName, NodeId};
use proptest::prelude::*;

use super::*;

fn keys() -> NetworkKeys {
    NetworkKeys::new(&NetworkName::default_network(), "/coreos.com/network")
}

fn kv(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.into(), value: value.into(), create_revision: 3, mod_revision: 4, lease: Some(EtcdLease(5)) }
}

fn read(value: &str) -> Result<Lease, InvalidLease> {
    decode_lease("10.0.40.0-24".parse().unwrap(), &kv("", value))
}

/// Values that flanneld v0.28 was seen to write.
const SEEN: [&str; 6] = [
    r#"{"PublicIP":"192.168.33.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"4e:f4:0c:52:b7:8d"}}"#,
    r#"{"PublicIP":"192.168.33.1","PublicIPv6":"fd00:33::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"4e:f4:0c:52:b7:8d"},"BackendV6Data":{"VNI":1,"VtepMAC":"4e:f4:0c:52:b7:8e"}}"#,
    r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00:33::1","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"4e:f4:0c:52:b7:8e"}}"#,
    r#"{"PublicIP":"192.168.33.1","PublicIPv6":null,"BackendType":"host-gw"}"#,
    r#"{"PublicIP":"192.168.33.1","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk8=","Port":51820}}"#,
    r#"{"PublicIP":"192.168.33.1","PublicIPv6":"fd00:33::1","BackendType":"wireguard","BackendData":{"PublicKey":"DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk8="},"BackendV6Data":{"PublicKey":"DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk8=","Port":51821}}"#,
];

#[test]
fn flannels_values_round_trip_byte_for_byte() {
    for value in SEEN {
        let lease = read(value).unwrap();
        assert_eq!(String::from_utf8(encode_lease(&lease.publication(), None)).unwrap(), value);
    }
}

#[test]
fn our_owner_is_the_last_field() {
    let owner = Owner { node: NodeId::new(1), name: "host \"1\"".into(), nonce: InstanceNonce::new(2) };
    let text = String::from_utf8(encode_lease(&read(SEEN[0]).unwrap().publication(), Some(&owner))).unwrap();
    let ours = r#","Flatnet":{"Node":"00000000000000000000000000000001","Name":"host \"1\"","Nonce":"00000000000000000000000000000002","Version":1}}"#;
    assert_eq!(text, format!("{}{ours}", SEEN[0].strip_suffix('}').unwrap()));
    assert_eq!(read(&text).unwrap().owner, Some(owner));
}

#[test]
fn a_reservation_without_a_type_is_a_lease_without_one() {
    let lease = read(r#"{"PublicIP":"192.0.2.7"}"#).unwrap();
    assert_eq!((lease.backend.as_str(), lease.data, lease.owner), ("", BackendData::None, None));
}

#[test]
fn the_data_of_another_backend_is_not_read() {
    assert!(
        read(r#"{"PublicIP":"192.0.2.7","BackendType":"ipsec","BackendData":{"PublicKey":"x","Port":51820}}"#).is_ok()
    );
}

#[test]
fn what_is_wrong_is_said_by_field() {
    let vxlan = |data: &str| format!(r#"{{"PublicIP":"192.0.2.7","BackendType":"vxlan","BackendData":{data}}}"#);
    let wireguard = |data: &str| vxlan(data).replace("vxlan", "wireguard");
    let ip = |ip: &str| format!(r#"{{"PublicIP":"{ip}","BackendType":"host-gw"}}"#);
    for (value, says) in [
        ("{}".to_owned(), "PublicIP is missing"),
        (ip("0.0.0.0"), "PublicIP 0.0.0.0"),
        (ip("127.0.0.1"), "PublicIP 127.0.0.1"),
        (ip("224.0.0.1"), "PublicIP 224.0.0.1"),
        (ip("255.255.255.255"), "PublicIP 255.255.255.255"),
        (ip("fd00::1"), "PublicIP"),
        (r#"{"PublicIPv6":"fe80::1"}"#.to_owned(), "PublicIPv6 fe80::1"),
        (r#"{"PublicIPv6":"ff02::1"}"#.to_owned(), "PublicIPv6 ff02::1"),
        (vxlan("null"), "BackendData is missing"),
        (vxlan("[]"), "BackendData is not a JSON object"),
        (vxlan(r#"{"VNI":1}"#), "VtepMAC is missing"),
        (vxlan(r#"{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}"#), "VtepMAC 01:00:5e:00:00:01"),
        (vxlan(r#"{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}"#), "VtepMAC"),
        (vxlan(r#"{"VNI":1.5,"VtepMAC":"4e:f4:0c:52:b7:8d"}"#), "BackendData.VNI 1.5"),
        (vxlan(r#"{"VNI":-1,"VtepMAC":"4e:f4:0c:52:b7:8d"}"#), "BackendData.VNI -1"),
        (wireguard("null"), "BackendData is missing"),
        (wireguard("{}"), "PublicKey is missing"),
        (wireguard(r#"{"PublicKey":"DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk=="}"#), "BackendData.PublicKey"),
        (wireguard(r#"{"PublicKey":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}"#), "BackendData.PublicKey"),
        (wireguard(r#"{"PublicKey":"DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk8=","Port":65536}"#), "Port 65536"),
        (r#"{"PublicIP":"192.0.2.7","Flatnet":{"Node":"../x"}}"#.to_owned(), "Flatnet.Node"),
        (format!(r#"{{"PublicIP":"192.0.2.7","x":"{}"}}"#, "x".repeat(20_000)), "more than the 16384"),
    ] {
        let error = read(&value).unwrap_err().to_string();
        assert!(error.contains(says) && error.len() < 300, "{value}: {error}");
    }
}

#[test]
fn an_event_is_a_change_of_this_network_or_nothing() {
    let change = |key: &str, value: &str| decode_change(&keys(), &WatchEvent::Put(kv(key, value)));
    assert!(matches!(change("/coreos.com/network/config", "{"), Some(Change::Config(ConfigState::Invalid(_)))));
    assert!(matches!(change("/coreos.com/network/subnets/10.0.40.0-24", SEEN[0]), Some(Change::Lease(_))));
    for key in ["../../config", "10.0.40.0", "", "10.0.40.0-24/x", &"9".repeat(10_000)] {
        let change = change(&format!("/coreos.com/network/subnets/{key}"), SEEN[0]);
        assert!(
            matches!(&change, Some(Change::Rejected { key, reason }) if key.len() < 300 && reason.len() < 300),
            "{change:?}"
        );
    }
    assert_eq!(change("/coreos.com/network/other", SEEN[0]), None);
    assert_eq!(change("/coreos.com/networks/config", SEEN[0]), None);
    let gone = |key: &str| decode_change(&keys(), &WatchEvent::Delete { key: key.into(), revision: 1 });
    assert_eq!(gone("/coreos.com/network/config"), Some(Change::Config(ConfigState::Missing)));
    assert_eq!(
        gone("/coreos.com/network/subnets/10.0.40.0-24"),
        Some(Change::LeaseGone("10.0.40.0-24".parse().unwrap()))
    );
    assert!(matches!(gone("/coreos.com/network/subnets/x"), Some(Change::RejectedGone { .. })));
}

#[test]
fn a_gre_lease_names_its_key_and_one_made_by_hand_need_not() {
    let key = |value: &str| read(value).map(|lease| lease.data).map_err(|error| error.to_string());
    let value = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"gre","BackendData":{"Key":5}}"#;
    assert_eq!(key(value), Ok(BackendData::Gre { key: GreKey::new(5) }));
    assert_eq!(key(r#"{"PublicIP":"192.0.2.1","BackendType":"gre"}"#), Ok(BackendData::None));
    assert!(key(r#"{"PublicIP":"192.0.2.1","BackendType":"gre","BackendData":{"Key":-1}}"#).is_err());
    let publication = Publication {
        public_ip: Some([192, 0, 2, 1].into()),
        public_ipv6: None,
        backend: BackendKind::Gre,
        data: BackendData::Gre { key: GreKey::new(5) },
        data_v6: BackendData::None,
        besides: Vec::new(),
    };
    assert_eq!(String::from_utf8(encode_lease(&publication, None)).unwrap(), value);
}

#[test]
fn what_a_node_receives_by_besides_is_read_bounded_and_invisible_to_flannel() {
    const OURS: &str = r#""Node":"000000000000000000000000000000ab","Name":"a","Nonce":"000000000000000000000000000000cd","Version":1"#;
    let value = |besides: &str| {
        format!(
            r#"{{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw","Flatnet":{{{OURS},"Besides":{besides}}}}}"#
        )
    };
    let vxlan = r#"{"BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"4e:f4:0c:52:b7:8d"},"Used":false}"#;
    let gre = r#"{"BackendType":"gre","BackendData":{"Key":5},"Used":true}"#;
    let both = value(&format!("[{vxlan},{gre}]"));
    let lease = read(&both).unwrap();
    assert_eq!(lease.backend, BackendKind::HostGw);
    let said: Vec<(&str, bool)> = lease.besides.iter().map(|way| (way.backend.as_str(), way.used)).collect();
    assert_eq!(said, [("vxlan", false), ("gre", true)]);
    assert_eq!(String::from_utf8(encode_lease(&lease.publication(), lease.owner.as_ref())).unwrap(), both);
    // A backend of a later version is no reason to lose the peer.
    assert!(read(&value(r#"[{"BackendType":"quic","Used":true}]"#)).unwrap().besides.is_empty());
    for bad in [
        format!("[{vxlan},{vxlan},{vxlan},{vxlan}]"),
        r#"[{"BackendType":"vxlan","Used":true}]"#.to_owned(),
        r#"[{"BackendType":"wireguard","BackendData":{"PublicKey":"c2hvcnQ="}}]"#.to_owned(),
        "[7]".to_owned(),
        "{}".to_owned(),
    ] {
        assert!(read(&value(&bad)).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn every_publication_reads_back_as_written(ip: u32, ip6 in prop::option::of(any::<u64>()), mac: [u8; 6], vni in prop::option::of(1_u32..=Vni::MAX), v6_data: bool, name in "[a-z\"\\\\é.]{0,40}", ids: (u128, u128)) {
        let public_ip = Some(Ipv4Addr::from_bits(ip)).filter(|ip| is_usable_v4(*ip)).unwrap_or(Ipv4Addr::new(192, 0, 2, 1));
        let data = BackendData::Vxlan { vni: vni.map(|vni| Vni::new(vni).unwrap()), mac: Mac::local(mac) };
        let publication = Publication {
            public_ip: Some(public_ip),
            public_ipv6: ip6.map(|low| Ipv6Addr::from_bits(0xfd00_u128 << 112 | u128::from(low))),
            backend: BackendKind::Vxlan,
            data_v6: if v6_data { data.clone() } else { BackendData::None },
            besides: Vec::new(),
            data,
        };
        let owner = Owner { node: NodeId::new(ids.0), name, nonce: InstanceNonce::new(ids.1) };
        let bytes = encode_lease(&publication, Some(&owner));
        let lease = decode_lease("10.0.40.0-24".parse().unwrap(), &KeyValue { value: bytes, ..kv("", "") }).unwrap();
        prop_assert_eq!(lease.publication(), publication);
        prop_assert_eq!(lease.owner, Some(owner));
    }

    #[test]
    fn garbage_never_panics(key in prop::collection::vec(any::<u8>(), 0..60), value in prop::collection::vec(any::<u8>(), 0..200)) {
        let key = [keys().subnets().as_bytes(), &key].concat();
        let _ = decode_change(&keys(), &WatchEvent::Put(KeyValue { key, value, ..kv("", "") }));
    }
}
