use crate::firewall::{FirewallNetwork, FirewallTunnel, ruleset};
use crate::object::SetName;
use flatnet_model::{IfName, IpFamily, NetworkName, Vni};

fn network(name: &str, vni: u32, cidr: &str) -> FirewallNetwork {
    let set = SetName { vni: Vni::new(vni).unwrap(), family: IpFamily::V4 };
    let device = IfName::new(&format!("flat.{vni}")).unwrap();
    FirewallNetwork {
        encrypted: Vec::new(),
        name: name.parse::<NetworkName>().unwrap(),
        cidrs: vec![cidr.parse().unwrap()],
        own: Vec::new(),
        masquerade: true,
        tunnels: vec![FirewallTunnel { set, port: 8472, device }],
        peers: Default::default(),
    }
}

fn body(networks: &[FirewallNetwork]) -> String {
    ruleset(networks, IfName::new("eth0").unwrap()).0.body
}

/// The rules of a chain.
fn chain<'a>(body: &'a str, name: &str) -> Vec<&'a str> {
    let lines = body.lines().skip_while(|line| line.trim() != format!("chain {name} {{")).skip(1);
    lines.take_while(|line| line.trim() != "}").map(str::trim).collect()
}

#[test]
fn tunnel_packets_that_do_not_come_by_the_underlay_must_come_from_where_their_source_is() {
    let body = body(&[network("default", 1, "10.100.0.0/16"), network("blue", 2, "10.200.0.0/16")]);
    let rules = chain(&body, "origin");
    // Once for a port, however many networks use it.
    assert_eq!(rules.len(), 2, "{body}");
    assert!(rules[1].starts_with("udp dport 8472 iifname != \"eth0\" fib saddr . iif oif missing counter drop"));
}

#[test]
fn what_passes_through_with_our_vni_is_judged_before_anything_is_accepted() {
    let body = body(&[network("default", 1, "10.100.0.0/16"), network("blue", 2, "10.200.0.0/16")]);
    let rules = chain(&body, "forward");
    for vni in [1, 2] {
        let judged = rules.iter().position(|rule| rule.contains(&format!("goto tunnel_8472_{vni} "))).unwrap();
        let accepted = rules.iter().position(|rule| rule.ends_with("accept")).unwrap();
        assert!(judged < accepted, "{rules:#?}");
        // Containers may run tunnels of their own inside either network.
        assert!(rules[judged].starts_with("ip daddr != { 10.100.0.0/16, 10.200.0.0/16 } udp dport 8472 @th,96,24"));
        assert!(chain(&body, &format!("tunnel_8472_{vni}")).last().unwrap().starts_with("counter drop"));
    }
    assert!(
        rules.iter().any(|rule| rule.starts_with("meta nfproto ipv6 udp dport 8472 @th,96,24 1 goto")),
        "{rules:#?}"
    );
}

#[test]
fn a_network_without_a_tunnel_needs_neither() {
    let mut direct = network("default", 1, "10.100.0.0/16");
    direct.tunnels.clear();
    let body = body(&[direct]);
    assert!(!body.contains("chain origin") && !body.contains("dport"), "{body}");
}
