//! An agent starts on a host that is not as it was: the underlay lacks a family, the network cannot be used, the
//! store's name cannot be resolved. The objects that the agent before it left must stay.

use std::path::Path;
use std::time::{Duration, Instant};

use flatnet_tests::Families;
use flatnet_tests::agent::Agent;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::oracle;
use flatnet_tests::pinger;
use flatnet_tests::suite::Test;
use flatnet_tests::wait::pause;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::scene::{SECOND, Scene, agent, figure, has_problem, ms, picture, settled, shell, until_exact};

/// A name that no resolver knows (RFC 6761).
const STORE: &str = "store.test";

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("an_agent_started_while_a_family_is_missing_takes_nothing_down", family).on_backend("vxlan"),
        Test::new("an_agent_started_on_a_network_it_cannot_use_takes_nothing_down", network).on_backend("vxlan"),
        Test::new("a_store_whose_name_is_known_later_moves_the_underlay", name).on_backend("vxlan"),
    ]
}

/// Returns a host's picture without its own interface, which the test changes.
fn without_underlay(picture: &str) -> String {
    picture.lines().filter(|line| !line.contains("eth0")).map(|line| format!("{line}\n")).collect()
}

fn family() {
    let shape = Shape { overlay: Families::Dual, underlay: Families::Dual, ..Shape::vxlan(2) };
    let mut scene = Scene::new(&shape);
    let host = scene.lab.host(1);
    let before = settled(&host);
    let stream = scene.stream();
    let address = shell(&host, "ip -6 -o addr show dev eth0 scope global | awk '{print $4}'").trim().to_owned();
    assert!(!address.is_empty(), "eth0 has no IPv6 address");
    shell(&host, &format!("ip -6 addr del {address} dev eth0"));
    scene.agents[0].wait_for_problem("underlay-missing");
    scene.agents[0].end(Signal::SIGKILL);
    scene.agents[0].start();
    let since = Instant::now();
    scene.agents[0].wait_for_status("degraded, with the peer programmed", |status| {
        status["state"] == "degraded"
            && has_problem(status, "underlay-missing")
            && peer_states(status) == ["programmed"]
    });
    let said = since.elapsed();
    // Longer than a pass and its check.
    pause(2 * SECOND);
    let now = without_underlay(&picture(&host));
    assert_eq!(now, without_underlay(&before), "the datapath is as it was");
    shell(&host, &format!("ip -6 addr add {address} dev eth0 nodad"));
    let back = Instant::now();
    scene.agents[0].wait_converged(1);
    let converged = back.elapsed();
    pinger::assert_all_pairs(&scene.lab, &scene.agents);
    let losses = stream.stop();
    figure(
        "started while the underlay has no IPv6 address",
        format!(
            "said after {}, kernel untouched, converged {} after the address was back, {} of {} pings lost",
            ms(said),
            ms(converged),
            losses.lost.len(),
            losses.sent
        ),
    );
    assert!(losses.lost.is_empty(), "{losses:?}");
}

fn peer_states(status: &Value) -> Vec<String> {
    let peers = status["networks"][0]["peers"].as_array().cloned().unwrap_or_default();
    peers.iter().map(|peer| peer["state"].as_str().unwrap_or_default().to_owned()).collect()
}

fn network() {
    let shape = Shape::vxlan(2);
    let mut scene = Scene::new(&shape);
    let host = scene.lab.host(1);
    let before = settled(&host);
    let stream = scene.stream();
    let good = shape.config();
    let mut unsupported = good.clone();
    unsupported["Backend"] = serde_json::json!({ "Type": "udp" });
    let mut moved = good.clone();
    moved["Network"] = "10.200.0.0/16".into();
    moved["SubnetMin"] = "10.200.40.0".into();
    moved["SubnetMax"] = "10.200.199.0".into();
    let faults = [
        ("backend-unsupported", unsupported.to_string()),
        ("network-changed", moved.to_string()),
        ("config-invalid", "{ not even JSON".to_owned()),
    ];
    for (code, value) in &faults {
        scene.lab.etcd.put("/coreos.com/network/config", value, None);
        scene.agents[0].wait_for_problem(code);
        until_exact(&format!("{code}, running"), &host, &before, Instant::now());
        scene.agents[0].end(Signal::SIGKILL);
        scene.agents[0].start();
        scene.agents[0].wait_for_status("degraded, with the peer programmed", |status| {
            status["state"] == "degraded" && has_problem(status, code) && peer_states(status) == ["programmed"]
        });
        pause(SECOND);
        until_exact(&format!("{code}, started anew"), &host, &before, Instant::now());
    }
    scene.lab.etcd.put("/coreos.com/network/config", &good.to_string(), None);
    scene.agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    until_exact("put right", &host, &before, Instant::now());
    let losses = stream.stop();
    figure(
        "started while its network cannot be used (backend, range, garbage)",
        format!("said by name, kernel untouched, {} of {} pings lost", losses.lost.len(), losses.sent),
    );
    assert!(losses.lost.is_empty(), "{losses:?}");
}

/// Makes an agent that finds the store by [`STORE`], and names in the file `hosts` alone.
fn by_name(lab: &Lab, hosts: &Path) -> Agent {
    let mut agent = agent(lab, 1, &[]);
    agent.arguments[1] = format!("http://{STORE}:2379");
    let program = std::mem::replace(&mut agent.program, "unshare".into());
    let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    let wrapper = ["-m", "sh", "-c", script, &hosts.display().to_string(), &program.display().to_string()];
    agent.arguments.splice(0..0, wrapper.map(str::to_owned));
    agent
}

fn name() {
    let lab = Lab::new(&Shape::vxlan(2));
    let (one, underlay) = (lab.host(1), lab.underlay());
    // The default route leads elsewhere: that is where the underlay is looked for without the store's address.
    underlay.ok(&format!("ip link add second1 type veth peer name eth1 netns {}", one.0));
    underlay.ok("ip link set second1 up");
    shell(
        &one,
        "ip link set eth1 up; ip addr add 192.168.77.11/24 dev eth1; ip route replace default via 192.168.77.1 dev eth1",
    );
    let hosts = lab.directory.join("hosts");
    let unknown = "127.0.0.1 localhost\n";
    let store = lab.topology.endpoint();
    let address = store.trim_start_matches("http://").trim_end_matches(":2379");
    let known = format!("{unknown}{address} {STORE}\n");
    std::fs::write(&hosts, unknown).unwrap();
    let mut first = by_name(&lab, &hosts);
    first.start();
    let mut second = agent(&lab, 2, &[]);
    second.start();
    first.wait_for_status("the store's name is not known", |status| {
        status["state"] == "starting" && has_problem(status, "store-unreachable")
    });
    // In place: the file is mounted elsewhere.
    std::fs::write(&hosts, &known).unwrap();
    let since = Instant::now();
    let mut scene = Scene { agents: vec![first, second], lab };
    for agent in &scene.agents {
        agent.wait_converged(1);
    }
    let converged = since.elapsed();
    let published = |scene: &Scene| -> Vec<String> {
        let leases = scene.lab.etcd.subnets();
        leases.iter().map(|(_, lease)| lease["PublicIP"].as_str().unwrap_or_default().to_owned()).collect()
    };
    flatnet_tests::wait::wait_until("the address towards the store is published", Duration::from_secs(5), || {
        let published = published(&scene);
        if published.iter().any(|ip| ip == "192.168.33.11") { Ok(()) } else { Err(format!("{published:?}")) }
    });
    for agent in &scene.agents {
        agent.wait_converged(1);
    }
    scene.lab.attach_all(&scene.agents);
    pinger::assert_all_pairs(&scene.lab, &scene.agents);
    let before = settled(&one);
    // Started again while nobody knows the name: the way of before is kept.
    let stream = scene.stream();
    scene.agents[0].end(Signal::SIGKILL);
    std::fs::write(&hosts, unknown).unwrap();
    scene.agents[0].start();
    scene.agents[0].wait_for_status("started from its snapshot", |status| {
        status["state"] == "degraded" && peer_states(status) == ["programmed"]
    });
    pause(SECOND);
    until_exact("the store's name is unknown", &one, &before, Instant::now());
    std::fs::write(&hosts, &known).unwrap();
    let since = Instant::now();
    scene.agents[0].wait_converged(1);
    let again = since.elapsed();
    until_exact("the store's name is known again", &one, &before, Instant::now());
    let losses = stream.stop();
    let link = oracle::link(&one, "flat.1").unwrap();
    figure(
        "the store's name not resolved at the start",
        format!(
            "converged {} after the name was known, by the right interface; started again without it: kernel untouched, {} of {} pings lost, converged {} after it was known",
            ms(converged),
            losses.lost.len(),
            losses.sent,
            ms(again)
        ),
    );
    assert_eq!(link["linkinfo"]["info_data"]["local"], Value::from("192.168.33.11"));
    assert!(losses.lost.is_empty(), "{losses:?}");
}
