use crate::firewall::{FirewallNetwork, FirewallTunnel, ruleset};
use crate::object::{PeerSource, SetName, TunnelId};
use flatnet_model::{IfName, IpFamily, NetworkName, Vni};

fn network(name: &str, vni: u32, cidr: &str) -> FirewallNetwork {
    let device = IfName::new(&format!("flat.{vni}")).unwrap();
    let (vni, family) = (Vni::new(vni).unwrap(), IpFamily::V4);
    let tunnel = FirewallTunnel { id: TunnelId::Vxlan(vni), family, prefix_lens: [24].into(), port: 8472, device };
    FirewallNetwork {
        encrypted: Vec::new(),
        clear_to: Vec::new(),
        direct: Default::default(),
        exposed_to: Default::default(),
        reachable_from: Vec::new(),
        name: name.parse::<NetworkName>().unwrap(),
        cidrs: vec![cidr.parse().unwrap()],
        own: Vec::new(),
        masquerade: true,
        tunnels: vec![tunnel],
        peers: Default::default(),
    }
}

fn body(networks: &[FirewallNetwork]) -> String {
    ruleset(networks, IfName::new("eth0").unwrap()).0.body
}

/// Returns the rules of a chain.
fn chain<'a>(body: &'a str, name: &str) -> Vec<&'a str> {
    let lines = body.lines().skip_while(|line| line.trim() != format!("chain {name} {{")).skip(1);
    lines.take_while(|line| line.trim() != "}").map(str::trim).collect()
}

#[test]
fn tunnel_packets_that_do_not_come_by_the_underlay_must_come_from_where_their_source_is() {
    let body = body(&[network("default", 1, "10.100.0.0/16"), network("blue", 2, "10.200.0.0/16")]);
    let rules = chain(&body, "origin");
    // Only packets that a peer could have sent: other people's tunnels may come as they like.
    let wrong_side = "udp dport 8472 iifname != \"eth0\" fib saddr . iif oif missing";
    for vni in [1, 2] {
        assert_eq!(rules[vni], format!("{wrong_side} @th,96,24 {vni} goto forged_8472_{vni}"));
        let forged = chain(&body, &format!("forged_8472_{vni}"));
        let [remembered, of_peers] = forged.as_slice() else { panic!("{body}") };
        assert!(of_peers.contains(&format!("@peers4_{vni}_24 counter drop")), "{body}");
        let of_peer = of_peers.split(" counter drop").next().unwrap();
        let key = "{ iifname . ip saddr . @th,336,32 counter }";
        assert_eq!(*remembered, format!("{of_peer} update @seen4_forged_8472_{vni} {key}"));
    }
}

/// With several uplinks a peer's packets may come by another than the way back; a bridge or a veth is no uplink.
#[test]
fn a_peer_may_come_by_another_uplink_than_the_way_back() {
    let name = |text| IfName::new(text).unwrap();
    let uplinks = [name("eth0"), name("eth1"), name("bond0.7")].into();
    let outside = crate::firewall::FirewallHost { uplinks, ..name("eth0").into() };
    let body = ruleset(&[network("default", 1, "10.100.0.0/16")], outside).0.body;
    let rule = "udp dport 8472 iifname != { \"eth0\", \"bond0.7\", \"eth1\" } fib saddr . iif oif missing @th,96,24 1 goto forged_8472_1";
    assert_eq!(chain(&body, "origin")[1], rule);
}

#[test]
fn what_passes_through_with_our_vni_is_marked_before_anything_is_accepted_and_must_not_leave_as_ours() {
    let body = body(&[network("default", 1, "10.100.0.0/16"), network("blue", 2, "10.200.0.0/16")]);
    let rules = chain(&body, "forward");
    for vni in [1, 2] {
        let marked = format!("@th,96,24 {vni} meta mark set meta mark | 0x1000");
        let judged = rules.iter().position(|rule| rule.ends_with(&marked)).unwrap();
        let accepted = rules.iter().position(|rule| rule.ends_with("accept")).unwrap();
        assert!(judged < accepted, "{rules:#?}");
        // Containers may run tunnels of their own inside either network.
        assert!(rules[judged].starts_with("ip daddr != { 10.100.0.0/16, 10.200.0.0/16 } udp dport 8472 @th,96,24"));
        assert!(chain(&body, &format!("tunnel_8472_{vni}")).last().unwrap().starts_with("counter drop"));
    }
    assert!(
        rules.iter().any(|rule| rule.starts_with("meta nfproto ipv6 udp dport 8472 @th,96,24 1 meta mark")),
        "{rules:#?}"
    );
    let posing = chain(&body, "posing");
    assert!(posing[1].starts_with("meta mark & 0x1000 == 0x1000 udp dport 8472 fib saddr type local counter drop"));
    assert_eq!(posing[2], "meta mark & 0x1000 == 0x1000 udp dport 8472 meta mark set meta mark & 0xffffefff");
    assert_eq!(chain(&body, "sent")[1], posing[2], "what is inside may carry the mark");
}

/// Returns true if a rule does nothing but remember: it has no verdict and sets no mark.
fn is_witness(rule: &str) -> bool {
    rule.contains(" update @seen") && rule.ends_with(" counter }") && !rule.contains("mark")
}

/// iptables lets in packets that carry the mark, so the mark must be the guard's own.
#[test]
fn what_the_guard_accepts_is_marked_and_nothing_keeps_or_brings_the_mark() {
    let body = body(&[network("default", 1, "10.100.0.0/16")]);
    let (guard, judged) = (chain(&body, "guard"), chain(&body, "judged"));
    assert_eq!(guard[1], "udp dport 8472 meta mark set meta mark & 0xffffefff", "before anything judges");
    assert_eq!(judged[1], "meta mark & 0x1000 == 0x1000 udp dport 8472 meta mark set meta mark & 0xffffefff");
    for rule in chain(&body, "tunnel_8472_1") {
        let marks = rule.ends_with("@peers4_1_24 meta mark set meta mark | 0x1000 accept");
        assert!(marks || rule.starts_with("counter drop") || is_witness(rule), "{rule}");
    }
}

#[test]
fn a_network_without_a_tunnel_needs_neither() {
    let mut direct = network("default", 1, "10.100.0.0/16");
    direct.tunnels.clear();
    let body = body(&[direct]);
    assert!(!body.contains("chain origin") && !body.contains("dport"), "{body}");
}

#[test]
fn an_inner_source_is_cut_to_the_length_of_its_peers_subnet_and_no_further() {
    let mut mixed = network("default", 1, "10.100.0.0/16");
    mixed.tunnels[0].prefix_lens = [20, 24, 32].into();
    let (ruleset, _) = ruleset(&[mixed], IfName::new("eth0").unwrap());
    let rules = chain(&ruleset.body, "tunnel_8472_1");
    let cut = ["0xfffff000) @peers4_1_20", "0xffffff00) @peers4_1_24", "0xffffffff) @peers4_1_32"];
    for (rule, cut) in rules.iter().zip(cut) {
        assert_eq!(
            *rule,
            format!("@th,224,16 0x0800 ip saddr . (@th,336,32 & {cut} meta mark set meta mark | 0x1000 accept")
        );
    }
    let names: Vec<String> = ruleset.sets().map(|set| set.to_string()).collect();
    assert_eq!(names, ["peers4_1_20", "peers4_1_24", "peers4_1_32"]);
}

#[test]
fn a_sets_name_reads_back_and_others_do_not_pass_for_one() {
    let vni = Vni::new(7).unwrap();
    let sixth = SetName { tunnel: TunnelId::Vxlan(vni), family: IpFamily::V6, prefix_len: 64 };
    assert_eq!(SetName::parse(&sixth.to_string()), Some(sixth));
    for other in ["peers4_1", "peers4_1_33", "peers4_x_24", "peers5_1_24", "peers4_1_24_1", "theirs"] {
        assert_eq!(SetName::parse(other), None, "{other}");
    }
}

#[test]
fn an_element_of_another_length_than_its_sets_is_left_out() {
    let mut network = network("default", 1, "10.100.0.0/16");
    let set = network.tunnels[0].sets().next().unwrap();
    let source = |inner: &str| PeerSource { set, outer: "192.0.2.1".parse().unwrap(), inner: inner.parse().unwrap() };
    network.peers = [source("10.100.1.0/24"), source("10.100.16.0/20")].into();
    let (_, elements) = ruleset(&[network], IfName::new("eth0").unwrap());
    assert_eq!(elements, [source("10.100.1.0/24")].into());
}
