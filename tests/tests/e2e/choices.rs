//! The choices of an operator, and what a host does when it cannot have one.

use std::net::IpAddr;

use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::netns::Namespace;
use flatnet_tests::suite::Test;
use flatnet_tests::{oracle, pinger};

use nix::sys::signal::Signal;

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("a_subnet_that_is_asked_for_is_leased_or_refused", asked_for).on_backend("vxlan"),
        Test::new("the_last_subnet_is_found_and_the_next_host_waits_for_one", exhaustion).on_backend("vxlan"),
        Test::new("peers_on_the_same_link_get_direct_routes_when_the_network_says_so", direct_routing)
            .on_backend("vxlan"),
        Test::new("a_host_gw_peer_off_the_link_is_unreachable_and_the_others_are_not", off_link),
        Test::new("packets_pass_where_iptables_drops_everything::nft", || dropping("iptables-nft")).on_backend("vxlan"),
        Test::new("packets_pass_where_iptables_drops_everything::legacy", || dropping("iptables-legacy"))
            .on_backend("vxlan"),
        Test::new("a_host_is_known_by_its_own_address_not_by_one_that_floats", floating).on_backend("vxlan"),
        Test::new("a_host_that_routers_reach_at_an_address_of_its_loopback_joins", routed).on_backend("vxlan"),
        Test::new("flags_come_from_file_environment_and_command_line_in_that_order", layers),
    ]
}

fn asked_for() {
    let lab = Lab::new(&Shape::vxlan(2));
    let mut first = lab.agent(1).with(&["--subnet", "10.100.77.0/24"]);
    first.start();
    first.wait_converged(0);
    assert_eq!(lab.etcd.subnets()[0].0, "10.100.77.0-24");
    for (subnet, code) in [("10.100.77.0/24", 6), ("10.101.0.0/24", 3), ("10.100.78.0/25", 3)] {
        let ran = lab.agent(2).with(&["--subnet", subnet]).run();
        assert_eq!(ran.code, code, "{subnet}: {}", ran.stderr);
        assert!(ran.stderr.contains(subnet) && ran.stderr.contains("hint:"), "{}", ran.stderr);
        assert_eq!(lab.etcd.subnets().len(), 1);
    }
}

fn exhaustion() {
    let lab = Lab::without_network(&Shape::vxlan(3));
    // Four subnets, of which the first is not handed out; one more is taken by hand.
    lab.etcd.put("/coreos.com/network/config", r#"{"Network":"10.100.0.0/22","Backend":{"Type":"vxlan"}}"#, None);
    lab.etcd.put(
        "/coreos.com/network/subnets/10.100.2.0-24",
        r#"{"PublicIP":"192.168.33.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"4e:f4:0c:52:b7:8d"}}"#,
        None,
    );
    let first = lab.join(1);
    first.wait_converged(1);
    let second = lab.join(2);
    second.wait_converged(2);
    let mut third = lab.agent(3);
    third.start();
    let problem = third.wait_for_problem("subnets-exhausted");
    assert!(problem["message"].as_str().unwrap().contains("10.100.0.0/22"), "{problem}");
    assert_eq!(third.status().unwrap()["state"], "starting");
    assert_eq!(first.command(&["leave", "--purge"]).code, 0);
    third.wait_converged(2);
}

fn direct_routing() {
    let lab = Lab::without_network(&Shape::vxlan(2));
    let config = |direct: bool| {
        format!(r#"{{"Network":"10.100.0.0/16","Backend":{{"Type":"vxlan","VNI":1,"DirectRouting":{direct}}}}}"#)
    };
    lab.etcd.put("/coreos.com/network/config", &config(true), None);
    let agents = lab.join_all();
    agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    assert!(oracle::fdb(&agents[0].host, "flat.1").is_empty(), "no tunnel to a peer on the link");
    let peer = agents[1].subnet().gateways().next().unwrap().trunc().to_string();
    assert_eq!(oracle::own_routes(&agents[0].host)[&peer]["gateway"], "192.168.33.12");
    // And back through the tunnel, in place: nobody loses a packet for more than the change takes.
    lab.etcd.put("/coreos.com/network/config", &config(false), None);
    flatnet_tests::wait::wait_until("the route goes through the tunnel", flatnet_tests::wait::SOON, || {
        let routes = oracle::own_routes(&agents[0].host);
        if routes[&peer]["dev"] == "flat.1" { Ok(()) } else { Err(format!("{:?}", routes[&peer])) }
    });
    agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    pinger::assert_all_pairs(&lab, &agents);
}

fn off_link() {
    let lab = Lab::new(&Shape { backend: "host-gw", ..Shape::vxlan(2) });
    let agents = lab.join_all();
    agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    lab.attach_all(&agents);
    let value = r#"{"PublicIP":"172.16.5.5","PublicIPv6":null,"BackendType":"host-gw","BackendData":null}"#;
    lab.etcd.put("/coreos.com/network/subnets/10.100.250.0-24", value, None);
    let status = agents[0].wait_for_status("the peer off the link", |status| {
        let peers = status["networks"][0]["peers"].as_array().cloned().unwrap_or_default();
        peers.iter().any(|peer| peer["public_ip"] == "172.16.5.5" && peer["state"] == "unreachable")
    });
    assert_eq!(status["state"], "degraded", "{status}");
    assert_eq!(oracle::own_routes(&agents[0].host)["10.100.250.0/24"]["type"], "unreachable");
    pinger::assert_all_pairs(&lab, &agents);
}

fn dropping(program: &str) {
    let lab = Lab::new(&Shape::vxlan(2));
    let host = lab.host(1);
    host.ok(&format!("{program} -P FORWARD DROP"));
    host.ok(&format!("{program} -P INPUT DROP"));
    // What else the host needs is its owner's business: here, etcd.
    host.ok(&format!("{program} -A INPUT -p tcp --sport 2379 -j ACCEPT"));
    host.ok(&format!("{program} -A INPUT -p icmp -j ACCEPT"));
    host.ok(&format!("{program} -A INPUT -i lo -j ACCEPT"));
    let agents = lab.join_all();
    agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    let listed = host.ok(&format!("{program} -S"));
    assert!(listed.contains("flatnet"), "our rule is at the head: {listed}");
    // The tunnel's port is open to peers' tunnel packets, and to nothing else.
    let let_in = || {
        let listed = host.ok(&format!("{program} -vnxL INPUT"));
        let rule = listed.lines().find(|line| line.contains("flatnet:default:tunnel")).map(str::to_owned);
        let rule = rule.unwrap_or_else(|| panic!("{listed}"));
        rule.split_whitespace().next().and_then(|packets| packets.parse::<u64>().ok()).unwrap()
    };
    let before = let_in();
    assert!(before > 0, "peers' packets came in by our rule");
    let junk = format!("for n in 1 2 3; do echo $n >/dev/udp/{}/8472; done", lab.topology.host(1).v4);
    assert_eq!(lab.host(2).run(&["bash", "-c", &junk]).code, 0);
    pinger::assert_reaches(&lab.host(2), IpAddr::V4(lab.topology.host(1).v4));
    assert_eq!(let_in(), before, "what is no tunnel's was let in");
    pinger::assert_all_pairs(&lab, &agents);
    assert!(let_in() > before, "what peers send goes on coming in");
    // With a container in it the bridge would stay, and status would say so.
    host.ok("ip link del c1");
    let ran = agents[0].command(&["leave", "--purge"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let listed = host.ok(&format!("{program} -S"));
    assert!(!listed.contains("flatnet") && listed.contains("-P FORWARD DROP"), "theirs stays, ours goes: {listed}");
}

fn published(lab: &Lab) -> Vec<String> {
    lab.etcd.subnets().iter().map(|(_, value)| value["PublicIP"].as_str().unwrap_or_default().to_owned()).collect()
}

fn floating() {
    let lab = Lab::new(&Shape::vxlan(1));
    let host = lab.host(1);
    // keepalived gives this address to the machine that serves the store just now; here the store is behind it by a
    // translation.
    host.ok("ip addr add 192.168.33.200/32 dev eth0");
    for rule in ["add table ip vip", "add chain ip vip out { type nat hook output priority -100 ; }"] {
        host.ok(&format!("nft {rule}"));
    }
    host.ok("nft add rule ip vip out ip daddr 192.168.33.200 tcp dport 2379 dnat to 192.168.33.10:2379");
    host.ok("nft add chain ip vip back { type nat hook postrouting priority 100 ; }");
    host.ok("nft add rule ip vip back ip daddr 192.168.33.10 tcp dport 2379 masquerade");
    let mut agent = lab.agent(1);
    agent.arguments[1] = "http://192.168.33.200:2379".to_owned();
    agent.start();
    agent.wait_converged(0);
    assert_eq!(published(&lab), ["192.168.33.11"]);
    let link = oracle::link(&agent.host, "flat.1").unwrap();
    assert_eq!(link["linkinfo"]["info_data"]["local"], "192.168.33.11");
}

/// A routed host, as with BGP down to the host: the uplink has no address.
fn routed() {
    let lab = Lab::new(&Shape::vxlan(2));
    let host = lab.host(1);
    host.ok("ip addr flush dev eth0");
    host.ok("ip addr add 10.255.0.1/32 dev lo");
    host.ok("ip route add 192.168.33.0/24 dev eth0 src 10.255.0.1");
    host.ok("ip route add default via 192.168.33.1 dev eth0 src 10.255.0.1");
    for neighbour in [lab.host(2), lab.underlay(), Namespace(lab.topology.store().namespace)] {
        let device = if neighbour == lab.underlay() { "br0" } else { "eth0" };
        neighbour.ok(&format!("ip route add 10.255.0.1/32 dev {device}"));
    }
    let second = lab.join(2);
    let mut first = lab.agent(1).with(&["--bridge", "flbr0"]);
    let flags: [&[&str]; 4] =
        [&[], &["--iface", "lo"], &["--iface", "10.255.0.1"], &["--iface", "eth0", "--public-ip", "10.255.0.1"]];
    for extra in flags {
        let mut agent = first.with(extra);
        agent.start();
        agent.wait_converged(1);
        second.wait_converged(1);
        assert!(published(&lab).contains(&"10.255.0.1".to_owned()), "{extra:?}: {:?}", published(&lab));
        let link = oracle::link(&agent.host, "flat.1").unwrap();
        assert_eq!(link["mtu"], 1450, "{extra:?}: what fits by the way out");
        agent.end(Signal::SIGTERM);
        agent.arguments.truncate(agent.arguments.len() - extra.len());
        first = agent;
    }
    first.start();
    first.wait_converged(1);
    let agents = [first, second];
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
}

fn layers() {
    let lab = Lab::new(&Shape { backend: "host-gw", ..Shape::vxlan(1) });
    let file = lab.directory.join("agent.toml");
    std::fs::write(&file, "node-name = \"from-file\"\nlease-ttl = \"10m\"\n").unwrap();
    let file = file.display().to_string();
    let name =
        |agent: &flatnet_tests::agent::Agent| agent.status().unwrap()["node"]["name"].as_str().unwrap().to_owned();
    let mut agent = lab.agent(1);
    // The harness names every node; this test must not.
    agent.arguments.retain(|argument| !argument.starts_with("--node-name"));
    let mut agent = agent.with(&["--config", &file]);
    agent.start();
    agent.wait_converged(0);
    assert_eq!(name(&agent), "from-file");
    agent.end(Signal::SIGTERM);
    agent.environment.push(("FLATNET_NODE_NAME".to_owned(), "from-environment".to_owned()));
    agent.start();
    agent.wait_converged(0);
    assert_eq!(name(&agent), "from-environment");
    agent.end(Signal::SIGTERM);
    let mut agent = agent.with(&["--node-name", "from-flag"]);
    agent.start();
    agent.wait_converged(0);
    assert_eq!(name(&agent), "from-flag");
}
