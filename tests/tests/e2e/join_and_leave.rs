//! Networks joined and left while the agent runs: a further one is up at once, and the others notice nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use flatnet_lab::command_line::CommandLine;
use flatnet_lab::subnet_env::SubnetEnv;
use flatnet_tests::agent::Agent;
use flatnet_tests::lab::{Lab, Shape, wire};
use flatnet_tests::netns::{Namespace, run};
use flatnet_tests::oracle;
use flatnet_tests::pinger::{Pinger, assert_does_not_reach, assert_reaches};
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

/// The longest that joining may take. On a quiet machine it is some tens of milliseconds; this is the bound that a hang
/// breaks where test programs share few cores, with the start and the end of the command. The figure is printed.
const UP_WITHIN: Duration = Duration::from_secs(2);
const BLUE: &str = "/flatnet/networks/blue/config";

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("a_network_is_joined_and_left_while_another_carries_packets", join_and_leave).on_backend("vxlan"),
        Test::new("joining_what_cannot_be_joined_says_why_and_changes_nothing", refusals).on_backend("vxlan"),
    ]
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Returns the names of the networks that `agent status` lists.
fn networks(agent: &Agent) -> Vec<String> {
    let status = agent.status().unwrap();
    status["networks"].as_array().unwrap().iter().map(|network| network["name"].as_str().unwrap().to_owned()).collect()
}

/// Gives the agent's host a container in `blue`, on a cable of its own.
fn container_in_blue(agent: &Agent) -> (Namespace, IpAddr) {
    let text = std::fs::read_to_string(agent.run_dir.join("blue.env")).unwrap();
    let subnet = SubnetEnv::parse(&text).unwrap();
    let (gateway, address) = (subnet.v4.unwrap(), subnet.container_addresses().next().unwrap());
    let (host, name) = (&agent.host.0, format!("{}blue", agent.host.0));
    wire(
        &[
            format!("ip netns add {name}"),
            format!("ip -n {name} link set lo up"),
            format!("ip -n {host} link add vblue type veth peer name eth0 netns {name}"),
            format!("ip -n {host} addr add {gateway} dev vblue"),
            format!("ip -n {host} link set vblue up"),
            format!("ip -n {name} addr add {address}/24 dev eth0"),
            format!("ip -n {name} link set eth0 up"),
            format!("ip -n {name} route add default via {}", gateway.addr()),
        ]
        .map(|line| CommandLine::words(&line)),
    );
    (Namespace(name), address)
}

/// Returns the routes of ours on the host that lie in the network `blue`.
fn routes_in_blue(agent: &Agent) -> Vec<String> {
    let all = agent.host.ok("ip route show proto 91");
    all.lines().filter(|line| line.contains("10.200.")).map(str::to_owned).collect()
}

/// Returns how long joining took inside the agent, in milliseconds, as it logged it first.
fn elapsed(agent: &Agent) -> Option<f64> {
    let log = agent.log();
    let after = log.split("elapsed_ms=").nth(1)?;
    after.split_whitespace().next()?.parse().ok()
}

fn join_and_leave() {
    let lab = Lab::new(&Shape::vxlan(2));
    lab.etcd.put(BLUE, r#"{"Network":"10.200.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#, None);
    let mut agents = lab.join_all();
    lab.attach_all(&agents);
    let to = agents[1].subnet().container_addresses().next().unwrap();
    let stream = Pinger::start(&lab, &lab.container(1), to);

    let mut took = Vec::new();
    for agent in &agents {
        let began = Instant::now();
        let ran = agent.command(&["network", "join", "blue", "--json"]);
        took.push(began.elapsed());
        assert_eq!(ran.code, 0, "{}\n{}", ran.stderr, agent.log());
        let joined = json(&ran.stdout);
        assert_eq!((&joined["name"], &joined["device"]), (&"blue".into(), &"flat.2".into()), "{joined}");
        let again = agent.command(&["network", "join", "blue"]);
        assert_eq!(again.code, 0, "joining what is joined changes nothing: {}", again.stderr);
    }
    let inside: Vec<f64> = agents.iter().filter_map(elapsed).collect();
    println!(
        "figure: a joined network is up after {inside:.1?} ms in the agent, {took:.1?} with the command's start and end"
    );
    assert_eq!(inside.len(), agents.len(), "{}", agents[0].log());
    assert!(took.iter().all(|took| *took < UP_WITHIN), "{took:?}");
    let containers: BTreeMap<u8, _> = agents.iter().map(|agent| (agent.number, container_in_blue(agent))).collect();
    assert_reaches(&containers[&1].0, containers[&2].1);
    assert_reaches(&containers[&2].0, containers[&1].1);
    assert_does_not_reach(&lab.container(1), containers[&2].1);

    // A restart remembers it, and its subnet.
    let before = std::fs::read_to_string(agents[1].run_dir.join("blue.env")).unwrap();
    assert_eq!(agents[1].end(Signal::SIGTERM), 0);
    agents[1].start();
    agents[1].wait_converged(1);
    assert_eq!(networks(&agents[1]), ["default", "blue"]);
    assert_eq!(std::fs::read_to_string(agents[1].run_dir.join("blue.env")).unwrap(), before);
    assert_reaches(&containers[&1].0, containers[&2].1);

    // It is left on one host, and nothing of it stays there.
    let began = Instant::now();
    let ran = agents[0].command(&["network", "leave", "blue"]);
    println!("figure: leaving a network took {:?}, with the start and the end of the command", began.elapsed());
    assert_eq!(ran.code, 0, "{}\n{}", ran.stderr, agents[0].log());
    assert!(oracle::link(&agents[0].host, "flat.2").is_none());
    assert_eq!(routes_in_blue(&agents[0]), Vec::<String>::new());
    let rules = agents[0].host.ok("nft list table inet flatnet");
    assert!(!rules.contains("10.200."), "{rules}");
    wait_until("the env file is gone", SOON, || match agents[0].run_dir.join("blue.env").exists() {
        false => Ok(()),
        true => Err(agents[0].log()),
    });
    let leases = lab.etcd.list("/flatnet/networks/blue/subnets/");
    assert_eq!(leases.len(), 1, "one host's lease is given back: {leases:?}");
    agents[1].wait_for_status("no peer in blue", |status| status["networks"][1]["peers"] == Value::Array(Vec::new()));
    assert!(oracle::link(&agents[1].host, "flat.2").is_some(), "the other host stays in it");
    assert_eq!(networks(&agents[0]), ["default"]);

    // A network that the command line names stays left too, until it is joined again.
    assert_eq!(agents[0].command(&["network", "leave", "blue"]).code, 9, "it is not joined any more");
    let losses = stream.stop();
    println!(
        "figure: {} pings in the other network meanwhile, {} lost, slowest {:?}",
        losses.sent,
        losses.lost.len(),
        losses.slowest
    );
    // Where the second agent was restarted, its datapath went on.
    assert_eq!(losses.lost, Vec::<u64>::new(), "of {} pings", losses.sent);
    // Its container's gateway has the address of a subnet that is given back.
    agents[0].host.ok("ip link del vblue");
    named_network(&mut agents[0]);
    for (namespace, _) in containers.values() {
        let _ = run(std::process::Command::new("ip").args(["netns", "del", &namespace.0]));
    }
}

/// Leaves a network that the command line names, and joins it again.
fn named_network(agent: &mut Agent) {
    assert_eq!(agent.end(Signal::SIGTERM), 0);
    agent.arguments.extend(["--network=default", "--network=blue"].map(str::to_owned));
    agent.start();
    agent.wait_for_status("both networks", |status| {
        status["state"] == "converged" && status["networks"][1]["device"] == "flat.2"
    });
    let ran = agent.command(&["network", "leave", "blue", "--purge"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("agent network join blue"), "{}", ran.stderr);
    assert!(!agent.state_dir.join("blue.snapshot").exists());
    assert_eq!(agent.end(Signal::SIGTERM), 0);
    agent.start();
    agent.wait_for_status("one network", |status| status["state"] == "converged");
    assert_eq!(networks(agent), ["default"], "what was said last holds");
    let ran = agent.command(&["network", "join", "blue", "--subnet", "10.200.7.0/24"]);
    assert_eq!((ran.code, ran.stderr.contains("command line")), (3, true), "{}", ran.stderr);
    assert_eq!(agent.command(&["network", "join", "blue"]).code, 0);
    assert_eq!(networks(agent), ["default", "blue"]);
}

fn refusals() {
    let lab = Lab::new(&Shape::vxlan(1));
    lab.etcd.put(BLUE, r#"{"Network":"10.200.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#, None);
    // The range of the underlay: a host cannot have it.
    lab.etcd.put(
        "/flatnet/networks/red/config",
        r#"{"Network":"192.168.0.0/16","Backend":{"Type":"vxlan","VNI":3}}"#,
        None,
    );
    let agent = lab.join(1);
    agent.wait_converged(0);
    for (arguments, code, says) in [
        (&["join", "green"][..], 9, "agent network create green"),
        (&["join", "blue", "--subnet", "10.99.7.0/24"], 3, "10.99.7.0/24"),
        (&["join", "Blue"], 2, "Blue"),
        (&["leave", "blue"], 9, "agent status"),
    ] {
        let ran = agent.command(&[&["network"], arguments].concat());
        assert_eq!(ran.code, code, "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{arguments:?}: {}", ran.stderr);
        assert_eq!(networks(&agent), ["default"], "{arguments:?}");
    }
    assert!(!agent.state_dir.join("networks").exists(), "nothing is remembered");
    // What may pass is waited for, and said.
    let ran = agent.command(&["network", "join", "red"]);
    assert_eq!(ran.code, 8, "{}\n{}", ran.stderr, agent.log());
    assert!(ran.stderr.contains("192.168."), "{}", ran.stderr);
    assert_eq!(networks(&agent), ["default", "red"]);
    lab.etcd.put(
        "/flatnet/networks/red/config",
        r#"{"Network":"10.201.0.0/16","Backend":{"Type":"vxlan","VNI":3}}"#,
        None,
    );
    agent.wait_for_status("red is up", |status| status["networks"][1]["device"] == "flat.3");
    assert_eq!(agent.command(&["network", "leave", "red", "--purge"]).code, 0);
    agent.wait_converged(0);
}
