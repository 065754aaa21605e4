//! Packets that must not get through: from unknown addresses inside the network, and from one network in another.

use std::net::IpAddr;

use flatnet_tests::lab::{Lab, Shape, wire};
use flatnet_tests::oracle;
use flatnet_tests::pinger::{assert_does_not_reach, assert_reaches};
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, wait_until};

use flatnet_lab::command_line::CommandLine;

use crate::for_each_shape;

pub fn tests() -> Vec<Test> {
    let mut tests =
        for_each_shape(2, "an_unknown_address_is_refused_and_not_sent_to_the_default_route", unknown_address);
    tests.push(Test::new("two_networks_do_not_forward_to_each_other", two_networks).on_backend("vxlan"));
    tests
}

fn unknown_address(shape: &Shape) {
    let lab = Lab::new(shape);
    let agents = lab.join_all();
    lab.attach_all(&agents);
    // The gateway counts what reaches it although it is meant for the overlay.
    for rule in [
        "add table inet leak",
        "add chain inet leak seen { type filter hook prerouting priority 0 ; }",
        "add rule inet leak seen ip daddr 10.100.0.0/16 counter drop",
        "add rule inet leak seen ip6 daddr fd00:100::/56 counter drop",
    ] {
        lab.underlay().ok(&format!("nft {rule}"));
    }
    let leased: Vec<IpAddr> =
        agents.iter().flat_map(|agent| agent.subnet().container_addresses().collect::<Vec<_>>()).collect();
    // The first subnet of the network that nobody holds, in each family.
    let free = |subnets: [&str; 3]| {
        let of_nobody = |subnet: &ipnet::IpNet| !leased.iter().any(|address| subnet.contains(address));
        subnets.map(|subnet| subnet.parse().unwrap()).into_iter().find(of_nobody).unwrap().hosts().nth(8).unwrap()
    };
    let unknown: Vec<IpAddr> = agents[0]
        .subnet()
        .gateways()
        .map(|gateway| match gateway.addr() {
            IpAddr::V4(_) => free(["10.100.199.0/24", "10.100.198.0/24", "10.100.197.0/24"]),
            IpAddr::V6(_) => free(["fd00:100:0:ff::/64", "fd00:100:0:fe::/64", "fd00:100:0:fd::/64"]),
        })
        .collect();
    for address in unknown {
        for from in [lab.host(1), lab.container(1)] {
            let said = assert_does_not_reach(&from, address);
            let refused = ["Unreachable", "unreachable", "No route to host"].iter().any(|word| said.contains(word));
            assert!(refused, "{} is not refused but dropped: {said}", from.0);
        }
    }
    let counters = lab.underlay().ok("nft list table inet leak");
    assert_eq!(counters.matches("counter packets 0 ").count(), 2, "leaked to the default route: {counters}");
}

fn two_networks() {
    let lab = Lab::without_network(&Shape::vxlan(2));
    lab.etcd.put(
        "/coreos.com/network/config",
        r#"{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan","VNI":1}}"#,
        None,
    );
    lab.etcd.put(
        "/flatnet/networks/blue/config",
        r#"{"Network":"10.200.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#,
        None,
    );
    let mut agents = vec![lab.agent(1), lab.agent(2)];
    for agent in &mut agents {
        agent.arguments.extend(["--network=default", "--network=blue"].map(str::to_owned));
        agent.start();
    }
    let subnet = |agent: &flatnet_tests::agent::Agent, network: &str| {
        let file = if network == "default" { agent.env_file() } else { agent.run_dir.join("blue.env") };
        wait_until(&format!("{} is written", file.display()), SOON, || {
            let text = std::fs::read_to_string(&file).map_err(|error| format!("{error}\n{}", agent.log()))?;
            flatnet_lab::subnet_env::SubnetEnv::parse(&text).ok_or(text)
        })
    };
    // A container of each network on each host, on a cable of its own.
    let mut addresses = std::collections::BTreeMap::new();
    for agent in &agents {
        for network in ["default", "blue"] {
            let found = subnet(agent, network);
            let gateway = found.v4.unwrap();
            let address = found.container_addresses().next().unwrap();
            let (host, name) = (&agent.host.0, format!("{}{network}", agent.host.0));
            let device = format!("v{network}");
            wire(
                &[
                    format!("ip netns add {name}"),
                    format!("ip -n {name} link set lo up"),
                    format!("ip -n {host} link add {device} type veth peer name eth0 netns {name}"),
                    format!("ip -n {host} addr add {gateway} dev {device}"),
                    format!("ip -n {host} link set {device} up"),
                    format!("ip -n {name} addr add {address}/24 dev eth0"),
                    format!("ip -n {name} link set eth0 up"),
                    format!("ip -n {name} route add default via {}", gateway.addr()),
                ]
                .map(|line| CommandLine::words(&line)),
            );
            addresses.insert((agent.number, network), (flatnet_tests::netns::Namespace(name), address));
        }
    }
    let of = |number, network| &addresses[&(number, network)];
    for network in ["default", "blue"] {
        assert_reaches(&of(1, network).0, of(2, network).1);
        assert_reaches(&of(2, network).0, of(1, network).1);
    }
    for (from, to) in [("default", "blue"), ("blue", "default")] {
        assert_does_not_reach(&of(1, from).0, of(2, to).1);
        assert_does_not_reach(&of(1, from).0, of(1, to).1);
    }
    assert!(oracle::link(&lab.host(1), "flat.2").is_some());
    for (namespace, _) in addresses.values() {
        let _ = flatnet_tests::netns::run(std::process::Command::new("ip").args(["netns", "del", &namespace.0]));
    }
}
