//! `agent network …` against a real etcd, by endpoint and through the running agent.

use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::suite::Test;
use flatnet_tests::{oracle, pinger};
use serde_json::Value;

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("networks_are_created_listed_changed_and_removed", life_of_a_network),
        Test::new("a_network_that_clashes_is_refused_and_nothing_is_written", clashes),
        Test::new("a_permanent_peer_is_programmed_and_forgotten", permanent_peer).on_backend("vxlan"),
        Test::new("commands_on_networks_use_the_running_agents_store", through_the_agent).on_backend("vxlan"),
    ]
}

fn life_of_a_network() {
    let lab = Lab::without_network(&Shape::vxlan(1));
    let agent = lab.agent(1);
    let endpoint = lab.topology.endpoint();
    let network = |arguments: &[&str]| {
        let mut all = vec!["network"];
        all.extend(arguments);
        all.extend(["--endpoint", &endpoint]);
        agent.command(&all)
    };
    assert_eq!(network(&["create", "default", "--cidr", "10.100.0.0/16"]).code, 0);
    assert_eq!(network(&["create", "blue", "--cidr", "10.20.0.0/16", "--subnet-len", "26", "--port", "4789"]).code, 0);
    // What a flanneld would read: type and VNI are always there.
    let config = lab.etcd.list("/coreos.com/network/config");
    let default: Value = serde_json::from_str(&config[0].1).unwrap();
    assert_eq!(default["Network"], "10.100.0.0/16");
    assert_eq!(default["Backend"]["Type"], "vxlan");
    assert_eq!(default["Backend"]["VNI"], 1);

    let listed = network(&["ls", "--json"]);
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(listed[0]["name"], "default");
    assert_eq!(listed[1]["name"], "blue");
    assert_eq!(listed[1]["port"], 4789);
    assert_eq!(listed[1]["subnet_len"], 26);
    assert_ne!(listed[1]["vni"], listed[0]["vni"], "each network has a VNI of its own");

    assert_eq!(network(&["update", "blue", "--mtu", "1400", "--direct-routing"]).code, 0);
    let config = lab.etcd.list("/flatnet/networks/blue/config");
    let blue: Value = serde_json::from_str(&config[0].1).unwrap();
    assert_eq!((&blue["Backend"]["MTU"], &blue["Backend"]["DirectRouting"]), (&1400.into(), &true.into()));
    assert_eq!(blue["Backend"]["Port"], 4789, "what is not named stays");

    let inspected = network(&["inspect", "blue"]);
    assert!(inspected.stdout.contains("10.20.0.0/16"), "{}", inspected.stdout);
    assert_eq!(network(&["rm", "blue"]).code, 0);
    assert_eq!(network(&["inspect", "blue"]).code, 9);
    assert_eq!(network(&["rm", "blue"]).code, 9);
    assert!(lab.etcd.list("/flatnet/networks/").is_empty());
}

fn clashes() {
    let lab = Lab::new(&Shape::vxlan(1));
    let agent = lab.agent(1);
    let before = lab.etcd.list("/");
    let endpoint = lab.topology.endpoint();
    for (arguments, code, says) in [
        (&["create", "default", "--cidr", "10.30.0.0/16"][..], 6, "exists"),
        (&["create", "blue", "--cidr", "10.100.128.0/17"], 6, "overlaps"),
        (&["create", "blue", "--cidr", "10.30.0.0/16", "--vni", "1"], 6, "VNI 1"),
        (&["create", "blue", "--cidr", "10.30.0.0/16", "--vni", "16777216"], 2, "16777215"),
        (&["create", "blue", "--cidr", "10.30.0.0/16", "--port", "0"], 2, "--port"),
        (&["create", "blue", "--cidr", "10.30.0.0/16", "--port", "53"], 2, "1024"),
        (&["create", "blue", "--cidr", "10.30.0.0/16", "--mtu", "10"], 2, "--mtu"),
        (&["create", "blue", "--cidr", "10.30.0.0/30"], 3, "too small"),
        (&["create", "blue", "--cidr", "224.0.0.0/8"], 3, "multicast"),
        (&["create", "blue", "--cidr", "168.0.0.0/6"], 3, "link-local"),
        (&["update", "default", "--cidr", "0.0.0.0/1"], 3, "0.0.0.0/8"),
        (&["create", "blue", "--cidr", "10.30.0.0/16", "--subnet-len", "31"], 3, "SubnetLen"),
        (&["create", "blue", "--cidr", "10.30.0.0/16", "--subnet-min", "10.31.0.0"], 3, "SubnetMin"),
        (&["create", "blue", "--cidr", "10.30.0.0/16", "--backend", "carrier-pigeon"], 3, "carrier-pigeon"),
        (&["create", "Blue", "--cidr", "10.30.0.0/16"], 2, "Blue"),
        (&["create", "blue"], 3, "blue"),
        (&["update", "blue", "--mtu", "1400"], 9, "blue"),
    ] {
        let mut all = vec!["network"];
        all.extend(arguments);
        all.extend(["--endpoint", &endpoint]);
        let ran = agent.command(&all);
        assert_eq!(ran.code, code, "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{arguments:?}: {}", ran.stderr);
    }
    assert_eq!(lab.etcd.list("/"), before, "a refused command writes nothing");
    // Nobody is there at that port.
    let ran = agent.command(&["network", "ls", "--endpoint", "http://192.168.33.10:9"]);
    assert_eq!(ran.code, 5, "{}", ran.stderr);
    assert!(ran.stderr.contains("192.168.33.10:9") && ran.stderr.contains("hint:"), "{}", ran.stderr);
}

fn permanent_peer() {
    const MAC: &str = "4e:f4:0c:52:b7:8d";
    let lab = Lab::new(&Shape::vxlan(1));
    let agent = lab.join(1);
    agent.wait_converged(0);
    let add = ["network", "peer", "add", "default", "--subnet", "10.100.200.0/24", "--public-ip", "192.168.33.99"];
    let without_mac = agent.command(&add);
    assert_eq!(without_mac.code, 2, "{}", without_mac.stderr);
    assert!(without_mac.stderr.contains("--mac"), "{}", without_mac.stderr);
    let added = agent.command(&[&add[..], &["--mac", MAC]].concat());
    assert_eq!(added.code, 0, "{}", added.stderr);
    agent.wait_converged(1);
    assert_eq!(oracle::fdb(&agent.host, "flat.1").get(MAC).map(String::as_str), Some("192.168.33.99"));
    let ran = agent.command(&["network", "peer", "rm", "default", "--subnet", "10.100.200.0/24"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    agent.wait_converged(0);
    assert!(oracle::fdb(&agent.host, "flat.1").is_empty());
    // A host's lease is not a permanent peer.
    let own = agent.subnet().gateways().next().unwrap().trunc().to_string();
    let ran = agent.command(&["network", "peer", "rm", "default", "--subnet", &own]);
    assert_eq!(ran.code, 9, "{}", ran.stderr);
    agent.wait_converged(0);
}

fn through_the_agent() {
    let lab = Lab::new(&Shape::vxlan(2));
    let agents = lab.join_all();
    agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    lab.attach_all(&agents);
    let ran = agents[0].command(&["network", "inspect", "default", "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let inspected: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(inspected["leases"].as_array().unwrap().len(), 2);
    let ran = agents[0].command(&["network", "rm", "default"]);
    assert_eq!(ran.code, 6, "hosts hold leases: {}", ran.stderr);
    // A live network's option changes on every host, without a restart.
    assert_eq!(agents[0].command(&["network", "update", "default", "--mtu", "1300"]).code, 0);
    for agent in &agents {
        agent.wait_for_status("the new MTU", |status| status["networks"][0]["mtu"] == 1300);
        agent.wait_converged(1);
        assert_eq!(oracle::link(&agent.host, "flat.1").unwrap()["mtu"], 1300);
    }
    pinger::assert_all_pairs(&lab, &agents);
}
