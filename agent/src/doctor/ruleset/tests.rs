use super::*;

/// Returns a real listing: firewalld-like chains, iptables-nft's, and Docker's rule.
fn rules() -> Rules {
    Rules::new(&serde_json::from_str(include_str!("fixture.json")).unwrap())
}

fn packet(hook: &'static str, iif: &str, source: &str, target: &str) -> Packet {
    let (source, target) = (source.parse().unwrap(), target.parse().unwrap());
    Packet { what: String::new(), hook, iif: iif.to_owned(), oif: String::new(), source, target, udp_port: None }
}

fn tunnel(port: u16) -> Packet {
    Packet { udp_port: Some(port), ..packet("input", "eth0", "192.0.2.2", "192.0.2.1") }
}

#[test]
fn a_chain_that_drops_by_policy_is_named_unless_a_rule_lets_the_packet_in() {
    let dropped = Fate::Dropped("table inet firewalld, chain filter_INPUT (its policy)".to_owned());
    assert_eq!(rules().fate(&tunnel(8472)), Some(dropped));
    assert_eq!(rules().fate(&tunnel(4789)), None);
}

#[test]
fn jumps_are_followed_and_interface_wildcards_understood() {
    let other = packet("forward", "eth1", "10.100.8.2", "10.100.7.2");
    let dropped = Fate::Dropped("table inet firewalld, chain guarded (a rule)".to_owned());
    assert_eq!(rules().fate(&other), Some(dropped));
    let ours = packet("forward", "flat.1", "10.100.8.2", "10.100.7.2");
    let perhaps = Fate::PerhapsDropped("table inet firewalld, chain filter_FORWARD (a rule)".to_owned());
    assert_eq!(rules().fate(&ours), Some(perhaps), "its source may be in the set @bad");
}

#[test]
fn our_own_table_and_iptables_chains_are_not_judged_here() {
    let rules = rules();
    let known = |table: &str| rules.chains.keys().any(|key| key.1 == table);
    assert!(known("flatnet") && known("filter"));
    let away = packet("forward", "docker0", "172.17.0.2", "198.51.100.1");
    let fate = rules.fate(&away);
    assert!(!format!("{fate:?}").contains("flatnet") && !format!("{fate:?}").contains("ip filter"), "{fate:?}");
}

#[test]
fn dockers_rule_against_direct_routing_is_found_for_our_subnet_only() {
    let found = rules().direct_routing_drops(&["10.100.7.0/24".parse().unwrap()]);
    assert_eq!(found, ["table ip raw, chain PREROUTING (a rule for 10.100.7.2/32)"]);
    assert!(rules().direct_routing_drops(&["10.100.8.0/24".parse().unwrap()]).is_empty());
}

#[test]
fn chains_that_jump_in_a_circle_and_listings_of_anything_end() {
    let rule = |chain: &str, target: &str| serde_json::json!({"rule": {"family": "inet", "table": "t", "chain": chain, "expr": [{"jump": {"target": target}}]}});
    let base = serde_json::json!({"chain": {"family": "inet", "table": "t", "name": "a", "hook": "input"}});
    let circle = serde_json::json!({"nftables": [base, rule("a", "b"), rule("b", "a")]});
    assert_eq!(Rules::new(&circle).fate(&tunnel(8472)), None);
    for hostile in ["null", "[]", r#"{"nftables": 7}"#, r#"{"nftables": [{"rule": {"expr": [7]}}, {"chain": []}]}"#] {
        assert_eq!(Rules::new(&serde_json::from_str(hostile).unwrap()).fate(&tunnel(1)), None);
    }
}
