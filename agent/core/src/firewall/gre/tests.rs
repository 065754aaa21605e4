use flatnet_model::{IfName, IpFamily, Vni};

use super::*;
use crate::firewall::{FirewallTunnel, ruleset};

fn network(name: &str, family: IpFamily, key: u32, cidr: &str) -> FirewallNetwork {
    let id = TunnelId::Gre(GreKey::new(key));
    let prefix_lens = [if family == IpFamily::V4 { 24 } else { 64 }].into();
    let device = if family == IpFamily::V4 { format!("flatgre{key:x}") } else { "flat6gre".to_owned() };
    FirewallNetwork {
        encrypted: Vec::new(),
        clear_to: Vec::new(),
        direct: Default::default(),
        exposed_to: Default::default(),
        reachable_from: Vec::new(),
        name: name.parse().unwrap(),
        cidrs: vec![cidr.parse().unwrap()],
        own: vec![cidr.parse().unwrap()],
        masquerade: true,
        tunnels: vec![FirewallTunnel { id, family, prefix_lens, port: 0, device: IfName::new(&device).unwrap() }],
        peers: Default::default(),
    }
}

fn both() -> [FirewallNetwork; 4] {
    [
        network("default", IpFamily::V4, 0, "10.100.0.0/16"),
        network("blue", IpFamily::V4, 4097, "10.101.0.0/16"),
        network("six", IpFamily::V6, 0, "fd00:1::/48"),
        network("seven", IpFamily::V6, 7, "fd00:2::/48"),
    ]
}

/// The whole table as a person would load it. A change here is a change of what hosts let through.
#[test]
fn the_table_reads_as_recorded() {
    let body = ruleset(&both(), IfName::new("eth0").unwrap()).0.body;
    let recorded = include_str!("tests/table.nft");
    assert!(body == recorded, "gre/tests/table.nft says:\n{recorded}\nbut now it is:\n{body}");
}

#[test]
fn a_table_without_gre_says_nothing_of_it() {
    let mut vxlan = network("default", IpFamily::V4, 0, "10.100.0.0/16");
    vxlan.tunnels[0].id = TunnelId::Vxlan(Vni::new(1).unwrap());
    vxlan.tunnels[0].device = IfName::new("flat.1").unwrap();
    let body = ruleset(&[vxlan], IfName::new("eth0").unwrap()).0.body;
    assert!(!body.contains("gre"), "{body}");
}

#[test]
fn the_names_of_sets_are_read_back_from_the_table() {
    let (table, _) = ruleset(&both(), IfName::new("eth0").unwrap());
    let wanted: Vec<SetName> =
        both().iter().flat_map(|network| network.tunnels[0].sets().collect::<Vec<_>>()).collect();
    assert_eq!(table.sets().collect::<Vec<_>>(), wanted);
    for bad in ["", "peers4_", "peers5_1_24", "peers4_gre_24", "peers4_gre0", "peers4_0_24", "peers4_gre4294967296_24"]
    {
        assert!(SetName::parse(bad).is_none(), "{bad}");
    }
}

#[test]
fn an_input_chain_that_drops_lets_gre_of_that_family_in() {
    use crate::facts::DroppingChain;
    use crate::object::{IptablesChain, IptablesVariant};
    let chain = DroppingChain { variant: IptablesVariant::Nft, family: IpFamily::V4, chain: IptablesChain::Input };
    let rules = crate::firewall::iptables(&both(), &[chain].into());
    let rules: Vec<String> =
        rules.iter().map(|(key, rule)| format!("{} {}", key.comment, rule.matches.join(" "))).collect();
    assert_eq!(
        rules,
        [
            "flatnet:blue:tunnel -p 47 -m mark --mark 0x1000/0x1000",
            "flatnet:default:tunnel -p 47 -m mark --mark 0x1000/0x1000"
        ]
    );
}
