use proptest::prelude::*;

use super::*;

fn read(value: &str) -> (NetworkConfig, Vec<&'static str>) {
    let (config, warnings) = decode_config(value.as_bytes()).unwrap();
    (config, warnings.iter().map(|warning| warning.code).collect())
}

fn refused(value: &str) -> String {
    decode_config(value.as_bytes()).unwrap_err().to_string()
}

#[test]
fn the_smallest_vxlan_configuration_gets_flannels_defaults() {
    let (config, warnings) = read(r#"{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let pool = config.v4.unwrap();
    assert_eq!(
        (pool.subnet_len(), pool.min().to_string(), pool.max().to_string()),
        (24, "10.100.1.0".into(), "10.100.255.0".into())
    );
    assert_eq!(config.backend, BackendConfig::Vxlan(VxlanConfig::default()));
    assert!(config.v6.is_none() && warnings.is_empty());
}

#[test]
fn a_missing_type_is_vxlan_with_a_warning() {
    for value in [
        r#"{"Network":"10.0.0.0/8"}"#,
        r#"{"Network":"10.0.0.0/8","Backend":{"VNI":9}}"#,
        r#"{"Network":"10.0.0.0/8","Backend":null}"#,
    ] {
        let (config, warnings) = read(value);
        assert_eq!(config.backend.kind(), BackendKind::Vxlan);
        assert_eq!(warnings, ["backend-type-missing"]);
    }
}

#[test]
fn names_are_read_in_any_case_and_unknown_ones_ignored() {
    let (config, _) = read(
        r#"{"network":"10.0.0.0/8","SUBNETLEN":20,"backend":{"type":"vxlan","vni":7,"directRouting":true,"x":[1]},"y":{}}"#,
    );
    assert_eq!(config.v4.unwrap().subnet_len(), 20);
    let BackendConfig::Vxlan(vxlan) = config.backend else { panic!() };
    assert_eq!((vxlan.vni.get(), vxlan.direct_routing), (7, true));
}

#[test]
fn ipv6_only_and_dual_stack_are_read() {
    let (config, _) =
        read(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"host-gw"}}"#);
    assert!(config.v4.is_none() && config.v6.unwrap().subnet_len() == 64);
    let (config, _) = read(
        r#"{"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fd00::/48","IPv6SubnetLen":80,"Backend":{"Type":"host-gw"}}"#,
    );
    assert!(config.v4.is_some() && config.v6.unwrap().subnet_len() == 80);
}

#[test]
fn flannels_wireguard_options_are_read_and_written() {
    let text = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"wireguard","ListenPort":51830,"MTU":1400,"PersistentKeepaliveInterval":25,"Mode":"auto","PSK":"DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk8="}}"#;
    let (config, warnings) = read(text);
    assert_eq!(warnings, [""; 0]);
    let BackendConfig::Wireguard(wireguard) = &config.backend else { panic!("{config:?}") };
    assert_eq!((wireguard.port, wireguard.port_v6, wireguard.keepalive_secs), (51830, 51821, 25));
    assert_eq!((wireguard.mode, wireguard.mtu.map(Mtu::get)), (WireguardMode::Auto, Some(1400)));
    assert!(wireguard.psk.is_some());
    assert_eq!(String::from_utf8(encode_config(&config, Some(text.as_bytes())).unwrap()).unwrap(), text);
    let (config, _) = read(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"wireguard"}}"#);
    assert_eq!(config.backend, BackendConfig::Wireguard(WireguardConfig::default()));
    assert!(!refused(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"wireguard","PSK":"c2VjcmV0"}}"#).contains("c2Vj"));
}

#[test]
fn an_unknown_type_is_kept_by_name() {
    assert_eq!(
        read(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"udp"}}"#).0.backend,
        BackendConfig::Unsupported(BackendKind::Other("udp".into()))
    );
}

#[test]
fn host_bits_are_read_as_flannel_reads_them_and_said() {
    let (config, warnings) = read(r#"{"Network":"10.100.3.0/16","Backend":{"Type":"vxlan"}}"#);
    assert_eq!(config.v4.unwrap().network().to_string(), "10.100.0.0/16");
    assert_eq!(warnings, ["range-has-host-bits"]);
}

#[test]
fn what_is_wrong_is_said_by_field() {
    for (value, says) in [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        (r#"{"Network":NaN}"#, "not JSON"),
        ("{}", "Network is missing"),
        (r#"{"Network":"10.0.0.0"}"#, "Network"),
        (r#"{"Network":"fd00::/48"}"#, "Network"),
        (r#"{"Network":5}"#, "Network 5 is not a string"),
        (r#"{"Network":"10.0.0.0/8","SubnetLen":24.5}"#, "SubnetLen 24.5"),
        (r#"{"Network":"10.0.0.0/8","SubnetLen":-1}"#, "SubnetLen -1"),
        (r#"{"Network":"10.0.0.0/8","SubnetLen":99999999999999999999999}"#, "SubnetLen"),
        (r#"{"Network":"10.0.0.0/8","SubnetLen":31}"#, "SubnetLen 31"),
        (r#"{"Network":"10.0.0.0/29"}"#, "too small"),
        (r#"{"Network":"10.0.0.0/8","SubnetMin":"11.0.0.0"}"#, "SubnetMin 11.0.0.0"),
        (r#"{"Network":"10.0.0.0/8","EnableIPv4":"yes"}"#, "EnableIPv4"),
        (r#"{"Network":"10.0.0.0/8","EnableIPv6":true}"#, "IPv6Network is missing"),
        (r#"{"EnableIPv4":false}"#, "both false"),
        (r#"{"Network":"10.0.0.0/8","network":"10.0.0.0/9"}"#, "Network is given twice"),
        (r#"{"Network":"10.0.0.0/8","Backend":"vxlan"}"#, "Backend is not a JSON object"),
        (r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","VNI":0}}"#, "VNI 0"),
        (r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","VNI":16777216}}"#, "VNI 16777216"),
        (r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","VNI":1e3}}"#, "Backend.VNI"),
        (r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","Port":65536}}"#, "Backend.Port 65536"),
        (r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","MTU":67}}"#, "Backend.MTU"),
        (r#"{"Network":"10.0.0.0/8","Backend":{"Type":"wireguard","ListenPort":0}}"#, "Backend.ListenPort 0"),
        (r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","Port":53}}"#, "Backend.Port 53 is a service's"),
        (r#"{"Network":"10.0.0.0/8","Backend":{"Type":"wireguard","ListenPort":1023}}"#, "1024..=65535"),
        (r#"{"Network":"10.0.0.0/8","Backend":{"Type":"wireguard","ListenPortV6":443}}"#, "Backend.ListenPortV6 443"),
        (r#"{"Network":"10.0.0.0/8","Backend":{"Type":"wireguard","ListenPort":51821}}"#, "both 51821"),
        (r#"{"Network":"10.0.0.0/8","Backend":{"Type":"wireguard","Mode":"both"}}"#, "Backend.Mode \"both\""),
        (r#"{"Network":"10.0.0.0/8","Backend":{"Type":"wireguard","PSK":"c2VjcmV0"}}"#, "Backend.PSK"),
        (
            r#"{"Network":"10.0.0.0/8","Backend":{"Type":"wireguard","PersistentKeepaliveInterval":65536}}"#,
            "Backend.PersistentKeepaliveInterval 65536",
        ),
        (r#"{"Network":"10.0.0.0/8","Backend":{"Type":"gre","Key":4294967296}}"#, "Backend.Key 4294967296"),
        (r#"{"Network":"10.0.0.0/8","Backend":{"Type":"gre","Key":"5"}}"#, "Backend.Key \"5\""),
        (r#"{"Network":"10.0.0.0/8","Backend":{"Type":"gre","MTU":65536}}"#, "Backend.MTU"),
    ] {
        let error = refused(value);
        assert!(error.contains(says), "{value}: {error}");
    }
}

#[test]
fn a_huge_or_deep_value_is_refused_without_being_shown() {
    assert!(refused(&format!("{{\"Network\":\"{}\"}}", "x".repeat(70_000))).len() < 200);
    assert!(refused(&format!("{{\"Network\":\"{}\"}}", "x".repeat(9_000))).len() < 200);
    assert!(refused(&format!("{{\"a\":{}}}", "[".repeat(30_000))).contains("not JSON"));
}

#[test]
fn what_is_written_names_type_and_vni_and_keeps_what_we_do_not_know() {
    let before =
        r#"{"network":"10.0.0.0/8","EnableNFTables":true,"Backend":{"type":"vxlan","GBP":false,"Port":8472},"x":[1]}"#;
    let (config, _) = read(before);
    let after = String::from_utf8(encode_config(&config, Some(before.as_bytes())).unwrap()).unwrap();
    assert_eq!(
        after,
        r#"{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"vxlan","VNI":1,"GBP":false},"EnableNFTables":true,"x":[1]}"#
    );
    assert_eq!(read(&after).0, config);
}

#[test]
fn gre_has_a_key_and_an_mtu_and_neither_is_needed() {
    let gre = |text: &str| match read(text).0.backend {
        BackendConfig::Gre(gre) => (gre.key.get(), gre.mtu.map(Mtu::get)),
        other => panic!("{other:?}"),
    };
    assert_eq!(gre(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"gre"}}"#), (0, None));
    assert_eq!(gre(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"gre","Key":0,"MTU":0}}"#), (0, None));
    let before =
        r#"{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"gre","Key":4294967295,"MTU":1400,"x":1}}"#;
    assert_eq!(gre(before), (u32::MAX, Some(1400)));
    let (config, _) = read(before);
    assert_eq!(String::from_utf8(encode_config(&config, Some(before.as_bytes())).unwrap()).unwrap(), before);
}

#[test]
fn earlier_backends_are_read_and_written_and_those_of_later_versions_left_out() {
    let text = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"host-gw"},"Flatnet":{"Before":[{"Type":"gre","Key":5},{"Type":"vxlan","VNI":7,"Port":4789}],"later":1}}"#;
    let (config, warnings) = read(text);
    assert!(warnings.is_empty());
    assert_eq!(
        config.before.iter().map(BackendConfig::kind).collect::<Vec<_>>(),
        [BackendKind::Gre, BackendKind::Vxlan]
    );
    assert_eq!(String::from_utf8(encode_config(&config, Some(text.as_bytes())).unwrap()).unwrap(), text);
    let none = NetworkConfig { before: Vec::new(), ..config };
    let written = String::from_utf8(encode_config(&none, Some(text.as_bytes())).unwrap()).unwrap();
    assert!(written.ends_with(r#""Flatnet":{"later":1}}"#), "{written}");
    let before = |before: &str| format!(r#"{{"Network":"10.0.0.0/8","Flatnet":{{"Before":{before}}}}}"#);
    assert!(read(&before(r#"[{"Type":"newer"}]"#)).0.before.is_empty());
    assert_eq!(
        refused(&before(r#"[{"VNI":0}]"#)),
        "in Flatnet.Before: Backend.VNI: VNI 0 is not in 1..=16777215 (RFC 7348: 24 bits)"
    );
    assert_eq!(refused(&before("[1]")), "Flatnet.Before has what is no JSON object");
    assert_eq!(refused(&before("[{},{},{},{}]")), "Flatnet.Before has 4 entries, more than the 3 allowed");
}

#[test]
fn who_may_reach_the_network_is_read_and_written_and_kept() {
    let text = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"host-gw"},"Flatnet":{"ReachableFrom":["192.168.1.0/24","fd01::/64"],"later":1}}"#;
    let (config, warnings) = read(text);
    assert!(warnings.is_empty());
    let ranges: Vec<ipnet::IpNet> = ["192.168.1.0/24", "fd01::/64"].map(|range| range.parse().unwrap()).into();
    assert_eq!(config.reachable_from, ranges);
    assert_eq!(String::from_utf8(encode_config(&config, Some(text.as_bytes())).unwrap()).unwrap(), text);
    let none = NetworkConfig { reachable_from: Vec::new(), ..config };
    let written = String::from_utf8(encode_config(&none, Some(text.as_bytes())).unwrap()).unwrap();
    assert!(written.ends_with(r#""Flatnet":{"later":1}}"#), "{written}");
    let from = |ranges: &str| format!(r#"{{"Network":"10.0.0.0/8","Flatnet":{{"ReachableFrom":{ranges}}}}}"#);
    assert_eq!(read(&from(r#"["192.168.1.7"]"#)).0.reachable_from, ["192.168.1.7/32".parse().unwrap()]);
    assert_eq!(read(&from("null")).0.reachable_from, []);
    for (wrong, says) in [
        (
            r#"["192.168.1.7/24"]"#,
            "Flatnet.ReachableFrom \"192.168.1.7/24\" has host bits set; 192.168.1.0/24 is meant",
        ),
        (r#"["here"]"#, "Flatnet.ReachableFrom \"here\" is not a range"),
        ("[1]", "Flatnet.ReachableFrom 1 is not a range"),
        ("7", "Flatnet.ReachableFrom is not an array"),
    ] {
        assert!(refused(&from(wrong)).contains(says), "{}", refused(&from(wrong)));
    }
    let many = format!("[{}]", vec![r#""192.168.1.0/24""#; 65].join(","));
    assert!(refused(&from(&many)).contains("65 entries, more than the 64 allowed"));
}

proptest! {
    #[test]
    fn any_configuration_reads_back_as_written(
        bits: u32, len in 0_u8..=28, subnet in 0_u8..=30, v6: bool, vni in 1_u32..=Vni::MAX, port in 1024_u16.., mtu in prop::option::of(68_u32..=65_535), direct: bool,
    ) {
        let network = Ipv4Net::new(Ipv4Addr::from_bits(bits), len).unwrap().trunc();
        let subnet_len = u64::from(subnet.clamp(len + 2, 30));
        let v4 = Pool::new(network.into(), Some(subnet_len), None, None).unwrap();
        let pool6 = Pool::new("fd00::/40".parse().unwrap(), Some(72), None, Some("fd00:0:1::".parse().unwrap())).unwrap();
        let vxlan = VxlanConfig { vni: Vni::new(vni).unwrap(), port, mtu: mtu.map(|mtu| Mtu::new(mtu).unwrap()), direct_routing: direct };
        let config = NetworkConfig { v4: Some(v4), v6: v6.then_some(pool6), backend: BackendConfig::Vxlan(vxlan), before: Vec::new(), reachable_from: Vec::new() };
        let bytes = encode_config(&config, None).unwrap();
        prop_assert_eq!(decode_in_force(&bytes).unwrap(), (config, vec![]));
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_config(&bytes);
    }
}
