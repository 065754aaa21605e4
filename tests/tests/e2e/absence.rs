//! `leave --purge` leaves no trace of ours, and all of what is not ours: full dumps before and after are equal.

use flatnet_tests::lab::{Lab, Shape, wire};
use flatnet_tests::suite::Test;
use flatnet_tests::{oracle, pinger};

use flatnet_lab::command_line::CommandLine;

use crate::for_each_shape;

pub fn tests() -> Vec<Test> {
    let mut tests = for_each_shape(2, "leave_purge_leaves_no_trace", leave_purge_leaves_no_trace);
    tests.extend(for_each_shape(2, "purge_without_a_running_agent_leaves_no_trace", purge_without_an_agent));
    tests.push(Test::new("a_bridge_with_a_container_in_it_stays_until_that_is_gone", used_bridge).on_backend("vxlan"));
    tests.push(
        Test::new("leave_without_purge_keeps_the_datapath", leave_without_purge_keeps_the_datapath).on_backend("vxlan"),
    );
    tests
}

/// Objects of somebody else's, beside which ours live.
fn foreign_objects(host: &str) -> Vec<CommandLine> {
    [
        format!("ip -n {host} link add other0 type bridge"),
        format!("ip -n {host} addr add 172.20.0.1/24 dev other0"),
        format!("ip -n {host} link set other0 up"),
        format!("ip -n {host} route add 172.21.0.0/24 via 172.20.0.9 dev other0 onlink"),
        format!("ip -n {host} neigh add 172.20.0.9 lladdr 02:00:00:00:00:09 dev other0 nud permanent"),
        format!("ip netns exec {host} nft add table inet other"),
        format!("ip netns exec {host} nft add chain inet other keep"),
    ]
    .iter()
    .map(|line| CommandLine::words(line))
    .collect()
}

fn leave_purge_leaves_no_trace(shape: &Shape) {
    let lab = Lab::new(shape);
    let host = lab.host(1);
    wire(&foreign_objects(&host.0));
    let before = oracle::everything(&host);
    let mut agents = lab.join_all();
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    assert!(!oracle::own_routes(&host).is_empty());
    host.ok("ip link del c1");
    let agent = &mut agents[0];
    let ran = agent.command(&["leave", "--purge"]);
    assert_eq!(ran.code, 0, "{}{}\n{}", ran.stdout, ran.stderr, agent.log());
    assert_eq!(agent.wait_for_end(flatnet_tests::wait::SOON), 0, "{}", agent.log());
    oracle::assert_same(&before, &oracle::everything(&host));
    assert_eq!(lab.etcd.subnets().len(), 1, "the lease is given back");
    assert!(!agent.run_dir.exists() || std::fs::read_dir(&agent.run_dir).unwrap().next().is_none(), "run directory");
    assert!(!agent.state_dir.exists(), "state directory");
    agents[1].wait_converged(0);
}

fn purge_without_an_agent(shape: &Shape) {
    let lab = Lab::new(shape);
    let host = lab.host(1);
    wire(&foreign_objects(&host.0));
    let before = oracle::everything(&host);
    let mut agents = lab.join_all();
    let agent = &mut agents[0];
    agent.end(nix::sys::signal::Signal::SIGKILL);
    assert!(!oracle::own_routes(&host).is_empty());
    let state_dir = format!("--state-dir={}", agent.state_dir.display());
    let ran = agent.command(&["leave", "--purge", &state_dir]);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    oracle::assert_same(&before, &oracle::everything(&host));
}

/// A bridge in use stays when the operator chooses to have none any more, and on a purge, until nothing is plugged into
/// it.
fn used_bridge() {
    let lab = Lab::new(&Shape::vxlan(2));
    let mut agents: Vec<_> = (1..=2).map(|number| lab.agent(number).with(&["--bridge", "flbr0"])).collect();
    agents.iter_mut().for_each(flatnet_tests::agent::Agent::start);
    agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    let host = lab.host(1);
    let is_there = || oracle::link(&host, "flbr0").is_some();

    agents[0].end(nix::sys::signal::Signal::SIGTERM);
    let mut without = lab.agent(1);
    without.start();
    let problem = without.wait_for_problem("bridge-in-use");
    assert!(problem.to_string().contains("plugged into it: c1"), "{problem}");
    without.wait_converged(1);
    pinger::assert_all_pairs(&lab, &agents);

    let ran = without.command(&["leave", "--purge"]);
    assert_ne!(ran.code, 0, "{}", ran.stdout);
    assert!(ran.stderr.contains("flbr0 stays: plugged into it: c1"), "{}", ran.stderr);
    assert_eq!(without.wait_for_end(flatnet_tests::wait::SOON), 0, "{}", without.log());
    assert!(is_there() && oracle::link(&host, "flat.1").is_none());

    // Once nothing is in it any more it goes.
    host.ok("ip link del c1");
    let state_dir = format!("--state-dir={}", without.state_dir.display());
    let ran = without.command(&["leave", "--purge", &state_dir]);
    assert_eq!((ran.code, is_there()), (0, false), "{}", ran.stderr);
}

fn leave_without_purge_keeps_the_datapath() {
    let lab = Lab::new(&Shape::vxlan(2));
    let mut agents = lab.join_all();
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    let routes = oracle::own_routes(&lab.host(1));
    let ran = agents[0].command(&["leave"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(agents[0].wait_for_end(flatnet_tests::wait::SOON), 0);
    assert_eq!(oracle::own_routes(&lab.host(1)), routes);
    assert_eq!(lab.etcd.subnets().len(), 1, "the lease is given back");
}
