//! What turns up on a host, or in the network's configuration, takes nothing away that runs.

use flatnet_tests::agent::Agent;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, wait_until};
use flatnet_tests::{oracle, pinger};
use nix::sys::signal::Signal;

const CONFIG: &str = "/coreos.com/network/config";

pub fn tests() -> Vec<Test> {
    vec![Test::new("what_turns_up_takes_nothing_away_that_runs", nothing_is_taken_away).on_backend("vxlan")]
}

/// Devices, where routes lead, tables.
fn has(agent: &Agent) -> (Vec<String>, Vec<String>, Vec<String>) {
    let routes = oracle::own_routes(&agent.host).into_keys().collect();
    (oracle::own_links(&agent.host), routes, oracle::tables(&agent.host))
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

    // Whoever writes it all the same: the host keeps what it has, says so, and reads the correction.
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
