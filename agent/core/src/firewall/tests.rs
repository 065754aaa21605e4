use flatnet_model::Vni;

use super::*;
use crate::facts::DroppingChain;
use crate::object::{IptablesChain, IptablesVariant, TunnelId};

fn set(vni: u32, family: IpFamily) -> SetName {
    let prefix_len = if family == IpFamily::V4 { 24 } else { 64 };
    SetName { tunnel: TunnelId::Vxlan(Vni::new(vni).unwrap()), family, prefix_len }
}

fn device(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

fn prefixes(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn peer(set: SetName, outer: &str, inner: &str) -> PeerSource {
    PeerSource { set, outer: outer.parse().unwrap(), inner: inner.parse().unwrap() }
}

/// Returns a network with both families through tunnels.
fn dual() -> FirewallNetwork {
    let tunnel = |family, name| {
        let SetName { tunnel: id, prefix_len, .. } = set(1, family);
        FirewallTunnel { id, family, prefix_lens: [prefix_len].into(), port: 8472, device: device(name) }
    };
    FirewallNetwork {
        encrypted: Vec::new(),
        clear_to: Vec::new(),
        direct: BTreeSet::new(),
        exposed_to: BTreeSet::new(),
        reachable_from: Vec::new(),
        name: NetworkName::default_network(),
        cidrs: prefixes(&["10.100.0.0/16", "fd00::/48"]),
        own: prefixes(&["10.100.4.0/24", "fd00:0:0:4::/64"]),
        masquerade: true,
        tunnels: vec![tunnel(IpFamily::V4, "flat.1"), tunnel(IpFamily::V6, "flat6.1")],
        peers: BTreeSet::from([
            peer(set(1, IpFamily::V4), "192.168.33.12", "10.100.5.0/24"),
            peer(set(1, IpFamily::V6), "fd33::12", "fd00:0:0:5::/64"),
        ]),
    }
}

/// Returns a network with IPv4 by direct routes, and with neither masquerading nor a subnet yet.
fn direct() -> FirewallNetwork {
    let sets = [24, 25, 32].map(|length| SetName::direct(IpFamily::V4, length));
    FirewallNetwork {
        encrypted: Vec::new(),
        clear_to: Vec::new(),
        name: "blue".parse().unwrap(),
        cidrs: prefixes(&["10.200.0.0/16"]),
        own: Vec::new(),
        masquerade: false,
        tunnels: Vec::new(),
        direct: sets.into(),
        exposed_to: BTreeSet::new(),
        reachable_from: Vec::new(),
        peers: BTreeSet::from([PeerSource::direct("10.200.7.0/24".parse().unwrap())]),
    }
}

fn rules(
    networks: &[FirewallNetwork],
    variant: IptablesVariant,
    family: IpFamily,
    chain: IptablesChain,
) -> Vec<String> {
    let dropping = BTreeSet::from([DroppingChain { variant, family, chain }]);
    iptables(networks, &dropping)
        .iter()
        .inspect(|(key, _)| assert_eq!((key.variant, key.family, key.chain), (variant, family, chain)))
        .map(|(key, rule)| format!("{} {}", key.comment, rule.matches.join(" ")))
        .collect()
}

/// The whole table as a person would load it. A change here is a change of what hosts let through.
#[test]
fn the_table_reads_as_recorded() {
    let body = ruleset(&[dual(), direct()], device("eth0")).0.body;
    let recorded = include_str!("tests/table.nft");
    assert!(body == recorded, "tests/table.nft says:\n{recorded}\nbut now it is:\n{body}");
}

/// Returns a network with both families in one WireGuard tunnel.
fn encrypted() -> FirewallNetwork {
    let families = IpFamily::BOTH.into();
    FirewallNetwork {
        tunnels: Vec::new(),
        peers: BTreeSet::new(),
        encrypted: vec![EncryptedTunnel { device: device("flatwg.51820"), port: 51820, families }],
        clear_to: Vec::new(),
        direct: BTreeSet::new(),
        exposed_to: BTreeSet::new(),
        reachable_from: Vec::new(),
        ..dual()
    }
}

#[test]
fn the_table_of_an_encrypted_network_reads_as_recorded() {
    let body = ruleset(&[encrypted(), direct()], device("eth0")).0.body;
    let recorded = include_str!("tests/encrypted.nft");
    assert!(body == recorded, "tests/encrypted.nft says:\n{recorded}\nbut now it is:\n{body}");
}

#[test]
fn wireguard_packets_pass_an_input_chain_that_drops_in_both_families() {
    for family in IpFamily::BOTH {
        let rules = rules(&[encrypted()], IptablesVariant::Nft, family, IptablesChain::Input);
        assert_eq!(rules, ["flatnet:default:tunnel -p udp -m udp --dport 51820"]);
    }
}

#[test]
fn without_a_network_there_is_no_table() {
    assert_eq!(ruleset(&[], device("eth0")), (Ruleset { body: String::new() }, BTreeSet::new()));
}

#[test]
fn an_element_that_its_set_could_not_hold_is_left_out() {
    let mut network = dual();
    let good = network.peers.clone();
    network.peers.extend([
        peer(set(1, IpFamily::V4), "fd33::13", "10.100.6.0/24"),
        peer(set(1, IpFamily::V4), "192.168.33.13", "fd00:0:0:6::/64"),
        peer(set(2, IpFamily::V4), "192.168.33.14", "10.100.7.0/24"),
    ]);
    assert_eq!(ruleset(&[network], device("eth0")).1, good);
}

#[test]
fn peers_do_not_change_the_text() {
    let mut more = dual();
    more.peers.clear();
    assert_eq!(ruleset(&[more], device("eth0")).0, ruleset(&[dual()], device("eth0")).0);
}

#[test]
fn prefixes_that_overlap_are_merged_because_nft_refuses_them() {
    let overlapping = prefixes(&["10.1.2.3/16", "10.1.0.0/17", "10.0.0.0/16", "fd00::/48", "192.0.2.0/24"]);
    assert_eq!(ranges(&overlapping, IpFamily::V4).unwrap(), "{ 10.0.0.0/15, 192.0.2.0/24 }");
    assert_eq!(ranges(&overlapping, IpFamily::V6).unwrap(), "fd00::/48");
    assert_eq!(ranges(&prefixes(&["10.0.0.0/8"]), IpFamily::V6), None);
}

#[test]
fn one_range_of_addresses_is_no_set_because_that_is_empty_for_a_moment_of_every_swap() {
    let handed_out = ["10.100.40.0/21", "10.100.48.0/20", "10.100.64.0/18", "10.100.128.0/18", "10.100.192.0/21"];
    assert_eq!(ranges(&prefixes(&handed_out), IpFamily::V4).unwrap(), "10.100.40.0-10.100.199.255");
    let to_the_end = ["fd00:0:0:1::/64", "fd00:0:0:2::/63"];
    assert_eq!(ranges(&prefixes(&to_the_end), IpFamily::V6).unwrap(), "fd00:0:0:1::-fd00::3:ffff:ffff:ffff:ffff");
    let apart = ["10.0.0.0/24", "10.0.2.0/24"];
    assert_eq!(ranges(&prefixes(&apart), IpFamily::V4).unwrap(), "{ 10.0.0.0/24, 10.0.2.0/24 }");
    assert_eq!(ranges(&prefixes(&["128.0.0.0/1", "255.255.255.0/24"]), IpFamily::V4).unwrap(), "128.0.0.0/1");
}

#[test]
fn every_comment_fits_what_the_kernel_keeps() {
    /// The longest comment in bytes: nft refuses a longer one (`NFTNL_UDATA_COMMENT_MAXLEN`), and with it the whole
    /// table.
    const LONGEST: usize = 128;
    let mut network = dual();
    network.name = "n".repeat(63).parse().unwrap();
    let body = ruleset(&[network, direct()], device("eth0")).0.body;
    let comments: Vec<&str> = body.split("comment \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(comments.len() > 5, "{body}");
    for comment in comments {
        assert!(comment.len() <= LONGEST, "{} bytes: {comment}", comment.len());
    }
}

#[test]
fn a_chain_that_cannot_drop_needs_no_rule() {
    assert_eq!(iptables(&[dual(), direct()], &BTreeSet::new()), Default::default());
}

#[test]
fn a_forward_chain_that_drops_needs_the_network_and_the_way_out_and_back() {
    for variant in [IptablesVariant::Nft, IptablesVariant::Legacy] {
        assert_eq!(
            rules(&[dual(), direct()], variant, IpFamily::V4, IptablesChain::Forward),
            [
                "flatnet:blue -s 10.200.0.0/16 -d 10.200.0.0/16",
                "flatnet:default -s 10.100.0.0/16 -d 10.100.0.0/16",
                "flatnet:default:back -d 10.100.4.0/24 -m conntrack --ctstate RELATED,ESTABLISHED",
                "flatnet:default:out -s 10.100.4.0/24",
            ]
        );
        assert_eq!(
            rules(&[dual(), direct()], variant, IpFamily::V6, IptablesChain::Forward),
            [
                "flatnet:default -s fd00::/48 -d fd00::/48",
                "flatnet:default:back -d fd00:0:0:4::/64 -m conntrack --ctstate RELATED,ESTABLISHED",
                "flatnet:default:out -s fd00:0:0:4::/64",
            ]
        );
    }
}

#[test]
fn an_input_chain_that_drops_needs_the_tunnel_port_of_that_family_only() {
    let mut network = dual();
    network.tunnels.truncate(1);
    let of = |family| rules(&[network.clone(), direct()], IptablesVariant::Nft, family, IptablesChain::Input);
    assert_eq!(of(IpFamily::V4), ["flatnet:default:tunnel -p udp -m udp --dport 8472 -m mark --mark 0x1000/0x1000"]);
    assert_eq!(of(IpFamily::V6), [""; 0]);
}

#[test]
fn two_rules_of_one_purpose_are_told_apart() {
    let mut network = direct();
    network.own = prefixes(&["10.200.1.0/24", "10.200.3.0/24"]);
    let rules = rules(&[network], IptablesVariant::Nft, IpFamily::V4, IptablesChain::Forward);
    assert!(rules.contains(&"flatnet:blue:out -s 10.200.1.0/24".to_owned()), "{rules:?}");
    assert!(rules.contains(&"flatnet:blue:out.1 -s 10.200.3.0/24".to_owned()), "{rules:?}");
}

#[test]
fn whom_the_user_names_may_open_connections_and_nobody_else() {
    let mut network = dual();
    network.exposed_to = [device("eth2")].into();
    network.reachable_from = prefixes(&["192.168.1.0/24", "fd01::/64"]);
    let body = ruleset(std::slice::from_ref(&network), device("eth0")).0.body;
    let opening = body.split("chain opening4_default {").nth(1).unwrap().split("\n\t}").next().unwrap();
    assert_eq!(
        opening.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>(),
        [
            "ct status dnat return comment \"default: published ports\"",
            "iifname { \"eth2\" } return",
            "ip saddr 192.168.1.0/24 return",
            "counter drop comment \"default: opened from outside, and nobody said that it may be (--expose)\"",
        ]
    );
    for (family, range, all) in
        [(IpFamily::V4, "192.168.1.0/24", "10.100.0.0/16"), (IpFamily::V6, "fd01::/64", "fd00::/48")]
    {
        let rules = rules(std::slice::from_ref(&network), IptablesVariant::Nft, family, IptablesChain::Forward);
        for rule in [
            format!("flatnet:default:exposed -s {range} -d {all}"),
            format!("flatnet:default:exposed.1 -d {all} -i eth2"),
            format!("flatnet:default:exposed.2 -s {all} -m conntrack --ctstate RELATED,ESTABLISHED"),
        ] {
            assert!(rules.contains(&rule), "{rule} is not in {rules:#?}");
        }
    }
}

#[test]
fn containers_do_not_reach_the_store_wherever_it_is() {
    let host = FirewallHost {
        uplinks: [device("eth1")].into(),
        addresses: ["192.168.33.11".parse().unwrap()].into(),
        store: ["192.168.33.10:2379", "192.168.33.9:2379", "[fd33::10]:7443", "192.168.33.11:2380", "127.0.0.1:2381"]
            .map(|endpoint| endpoint.parse().unwrap())
            .into(),
        ..device("eth0").into()
    };
    let body = ruleset(&[dual()], host).0.body;
    let lines = |chain: &str| -> Vec<&str> {
        let text = body.split(&format!("chain {chain} {{\n")).nth(1).unwrap().split("\n\t}").next().unwrap();
        text.lines().map(str::trim).filter(|line| line.contains("reach the store")).collect()
    };
    let guests = "iifname != { \"lo\", \"eth0\", \"eth1\" }";
    let drop = "counter drop comment \"containers do not reach the store (--containers-reach-store)\"";
    let elsewhere = [
        format!("{guests} ip daddr 192.168.33.9-192.168.33.10 tcp dport 2379 {drop}"),
        format!("{guests} ip6 daddr fd33::10/128 tcp dport 7443 {drop}"),
    ];
    let here = [2380, 2381].map(|port| format!("{guests} fib daddr type local tcp dport {port} {drop}"));
    assert_eq!(lines("forward"), elsewhere);
    assert_eq!(lines("local"), here);
    assert_eq!(lines("arrival"), [elsewhere, here].concat());
}
