//! Anything that turns up on a host, or in the network's configuration, leaves alone what runs.

use flatnet_tests::agent::Agent;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, wait_until};
use flatnet_tests::{oracle, pinger};
use nix::sys::signal::Signal;

const CONFIG: &str = "/coreos.com/network/config";

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("what_turns_up_takes_nothing_away_that_runs", nothing_is_taken_away).on_backend("vxlan"),
        Test::new("hosts_live_in_what_a_network_does_not_hand_out", beside_hosts).on_backend("vxlan"),
    ]
}

/// Returns the host's devices, the destinations of its routes, and its tables.
fn has(agent: &Agent) -> (Vec<String>, Vec<String>, Vec<String>) {
    let routes = oracle::own_routes(&agent.host).into_keys().collect();
    (oracle::own_links(&agent.host), routes, oracle::tables(&agent.host))
}

fn env(agent: &Agent) -> String {
    std::fs::read_to_string(agent.env_file()).unwrap()
}

fn nothing_is_taken_away() {
    let lab = Lab::new(&Shape::vxlan(2));
    let mut agents = lab.join_all();
    agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    let before = has(&agents[0]);

    let address = |action: &str, address: &str| {
        let ran = agents[0].host.run(&["ip", "address", action, address, "dev", "lo"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    };
    address("add", "10.100.150.6/32");
    agents[0].wait_for_problem("network-covers-host");
    assert_eq!(has(&agents[0]), before, "an address inside the network takes nothing down");
    pinger::assert_all_pairs(&lab, &agents);
    address("del", "10.100.150.6/32");
    agents[0].wait_converged(1);

    // An address of a host is announced, and no network is laid over it.
    address("add", "10.7.0.9/32");
    wait_until("host1 says that it has 10.7.0.9", SOON, || {
        let said = lab.etcd.list("/flatnet/nodes/");
        if said.iter().any(|(_, value)| value.contains("10.7.0.9/32")) { Ok(()) } else { Err(format!("{said:?}")) }
    });
    let good = lab.etcd.list(CONFIG);
    for arguments in [["update", "default", "--cidr", "10.0.0.0/8"], ["create", "blue", "--cidr", "10.7.0.0/16"]] {
        let ran = agents[0].command(&[&["network"][..], &arguments].concat());
        assert_eq!(ran.code, 6, "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("10.7.0.9") && ran.stderr.contains("hint:"), "{}", ran.stderr);
    }
    assert_eq!(lab.etcd.list(CONFIG), good, "a refused command writes nothing");

    // Somebody writes it all the same: the host keeps what it has, reports it, and reads the correction.
    lab.etcd.put(CONFIG, r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#, None);
    let problem = agents[0].wait_for_problem("network-covers-host");
    assert!(problem.to_string().contains("stays in force"), "{problem}");
    assert_eq!(has(&agents[0]), before);
    assert!(agents[0].log().contains("stays in force"), "{}", agents[0].log());
    pinger::assert_all_pairs(&lab, &agents);
    agents[0].end(Signal::SIGTERM);
    agents[0].start();
    agents[0].wait_for_problem("network-covers-host");
    assert_eq!(has(&agents[0]), before, "an agent that starts with it goes on with what is in force");
    pinger::assert_all_pairs(&lab, &agents);
    lab.etcd.put(CONFIG, &good[0].1, None);
    agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    assert_eq!(has(&agents[0]), before);
    pinger::assert_all_pairs(&lab, &agents);
}

/// A network beside hosts: flannel's example, whose range also has the hosts and the store.
fn beside_hosts() {
    let bounded = r#"{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0","Backend":{"Type":"vxlan"}}"#;
    let lab = Lab::on(&Shape::vxlan(2), [10, 240, 0]);
    lab.etcd.put(CONFIG, bounded, None);
    let mut agents = lab.join_all();
    agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    let address = |text: &str| text.parse().unwrap();
    for host in [lab.host(1), lab.host(2)] {
        for there in ["10.240.0.1", "10.240.0.10", "10.240.0.11", "10.240.0.12"] {
            pinger::assert_reaches(&host, address(there));
        }
    }
    // Containers see hosts as they see everybody outside: with their own host's address, so that answers find back.
    pinger::assert_reaches(&lab.container(1), address("10.240.0.1"));
    pinger::assert_reaches(&lab.container(1), address("10.240.0.12"));
    let leads = |to: &str| {
        let ran = agents[0].host.run(&["ip", "route", "get", to]);
        format!("{}{}", ran.stdout, ran.stderr)
    };
    for unknown in ["10.10.0.0", "10.50.7.9", "10.99.15.255"] {
        let leased = agents.iter().any(|agent| agent.subnet().gateways().any(|net| net.contains(&address(unknown))));
        assert!(leased || leads(unknown).contains("No route to host"), "{unknown}: {}", leads(unknown));
    }
    for outside in ["10.200.0.1", "10.9.255.255", "10.99.16.0"] {
        assert!(leads(outside).contains("via 10.240.0.1 dev eth0"), "{outside}: {}", leads(outside));
    }
    assert!(env(&agents[0]).contains("FLANNEL_NETWORK=10.0.0.0/8\n"), "as flannel says it: {}", env(&agents[0]));

    // What is handed out grows and shrinks around hosts, not over them.
    let config = lab.etcd.list(CONFIG);
    let update = |more: &[&str]| agents[0].command(&[&["network", "update", "default"], more].concat());
    let ran = update(&["--subnet-max", "10.240.0.0"]);
    assert_eq!(ran.code, 6, "{}", ran.stderr);
    assert!(ran.stderr.contains("10.240.0.") && ran.stderr.contains("hint:"), "{}", ran.stderr);
    assert_eq!(lab.etcd.list(CONFIG), config, "a refused command writes nothing");
    for range in ["10.0.0.0/9", "10.0.0.0/8"] {
        let ran = update(&["--cidr", range, "--subnet-min", "10.10.0.0", "--subnet-max", "10.127.240.0"]);
        assert_eq!(ran.code, 0, "{range}: {}", ran.stderr);
        wait_until(&format!("{range} is in force"), SOON, || {
            let (routes, env) = (oracle::own_routes(&agents[0].host), env(&agents[0]));
            let is_refused = routes.contains_key("10.64.0.0/10") && !routes.contains_key("10.99.0.0/20");
            let is_there = is_refused && env.contains(&format!("FLANNEL_NETWORK={range}\n"));
            if is_there { Ok(()) } else { Err(format!("{env}{routes:?}")) }
        });
        agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    }
    pinger::assert_all_pairs(&lab, &agents);
    assert_eq!(update(&["--cidr", "10.0.0.0/9"]).code, 0);
    let ran = update(&["--cidr", "10.0.0.0/8"]);
    assert_eq!(ran.code, 6, "without bounds: {}", ran.stderr);

    // An earlier release refused the whole range.
    agents[0].end(Signal::SIGTERM);
    agents[0].host.ok("ip route add unreachable 10.0.0.0/8 proto 91 metric 91000");
    agents[0].start();
    agents[0].wait_converged(1);
    wait_until("its route goes", SOON, || {
        let routes = oracle::own_routes(&agents[0].host);
        if routes.contains_key("10.0.0.0/8") { Err(format!("{routes:?}")) } else { Ok(()) }
    });
    pinger::assert_all_pairs(&lab, &agents);
}
