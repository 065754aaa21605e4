//! A live network gets another backend: every pair goes on speaking, also with a host that follows late, and the old
//! devices go.

use std::time::{Duration, Instant};

use flatnet_tests::Families;
use flatnet_tests::agent::Agent;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::oracle;
use flatnet_tests::pinger::{self, Pinger};
use flatnet_tests::suite::{Need, Test};
use flatnet_tests::wait::{SOON, pause, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The pings of each stream in a second, which is how many may be lost where a second may be.
const SECOND: usize = 100;

pub fn tests() -> Vec<Test> {
    let test = |name: &str, body: fn()| Test::new(name, body).needing(Need::Gre).needing(Need::Wireguard);
    vec![
        test("a_live_network_changes_its_backend_and_options::ipv4", || changed(Families::V4)),
        test("a_live_network_changes_its_backend_and_options::ipv6", || changed(Families::V6)),
        test("a_live_network_changes_its_backend_and_options::dual_stack", || changed(Families::Dual)),
        test("a_live_wireguard_network_changes_its_port", port),
        test("a_host_that_does_not_follow_is_reached_as_before", lagging),
        test("a_backend_that_one_host_cannot_have_takes_nobody_from_it_nor_one_that_joins", impossible),
    ]
}

fn shape(families: Families) -> Shape {
    Shape { hosts: 3, backend: "vxlan", overlay: families, underlay: families }
}

fn update(agent: &Agent, options: &[&str]) {
    let ran = agent.command(&[&["network", "update", "default"], options].concat());
    assert_eq!(ran.code, 0, "{options:?}: {}{}", ran.stdout, ran.stderr);
}

/// Returns the backend that each lease says it receives by, and the number of other ways it has.
fn published(lab: &Lab) -> Vec<(String, usize)> {
    let said = |lease: &serde_json::Value| {
        let besides = lease["Flatnet"]["Besides"].as_array().map_or(0, Vec::len);
        (lease["BackendType"].as_str().unwrap_or_default().to_owned(), besides)
    };
    lab.etcd.subnets().iter().map(|(_, lease)| said(lease)).collect()
}

/// Waits until every host has followed to `backend` and let go of the one before, so that only `devices` are left.
fn wait_followed(lab: &Lab, agents: &[Agent], backend: &str, devices: &[&str]) {
    wait_until("every host has followed", SOON, || {
        let said = published(lab);
        let all = said.iter().all(|said| *said == (backend.to_owned(), 0));
        if all { Ok(()) } else { Err(format!("{said:?}\n{}", agents[0].log())) }
    });
    for agent in agents {
        agent.wait_converged(agents.len() - 1);
        wait_until("the old device is gone", SOON, || {
            let tunnels = oracle::own_links(&agent.host).into_iter().filter(|name| name.starts_with("flat"));
            let mut tunnels: Vec<String> = tunnels.filter(|name| name.contains(['.', 'g'])).collect();
            tunnels.sort_unstable();
            if tunnels == devices { Ok(()) } else { Err(format!("host{}: {tunnels:?}", agent.number)) }
        });
    }
}

/// Starts a stream of pings from every container to every other, in each family.
fn streams(lab: &Lab, agents: &[Agent]) -> Vec<(String, Pinger)> {
    let mut streams = Vec::new();
    for from in agents {
        for to in agents.iter().filter(|to| to.number != from.number) {
            for address in to.subnet().container_addresses() {
                let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                let name = format!("c{}>c{}, {family}", from.number, to.number);
                streams.push((name, Pinger::start(lab, &lab.container(from.number), address)));
            }
        }
    }
    streams
}

/// Ends the streams; returns the most that one lost, and by how many pings that is.
fn most_lost(streams: Vec<(String, Pinger)>) -> (String, usize, u64) {
    let losses = streams.into_iter().map(|(name, stream)| (name, stream.stop()));
    let lost = losses.map(|(name, losses)| (name, losses.lost.len(), losses.sent));
    lost.max_by_key(|(_, lost, _)| *lost).unwrap()
}

fn changed(families: Families) {
    let lab = Lab::new(&shape(families));
    let agents = lab.join_all();
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    // The devices that stand for each family, sorted.
    let pick = |v4: &'static str, v6: &'static str| {
        let mut devices = match families {
            Families::V4 => vec![v4],
            Families::V6 => vec![v6],
            Families::Dual => vec![v4, v6],
        };
        devices.sort_unstable();
        devices
    };
    let steps: [(&[&str], &str, Vec<&str>); 7] = [
        (&["--backend", "gre", "--key", "5"], "gre", pick("flatgre5", "flat6gre")),
        (&["--key", "9"], "gre", pick("flatgre9", "flat6gre")),
        (&["--backend", "wireguard"], "wireguard", pick("flatwg.51820", "flatwg.51821")),
        (&["--backend", "host-gw"], "host-gw", vec![]),
        (&["--backend", "vxlan", "--vni", "7"], "vxlan", pick("flat.7", "flat6.7")),
        (&["--vni", "9"], "vxlan", pick("flat.9", "flat6.9")),
        (&["--mtu", "1400"], "vxlan", pick("flat.9", "flat6.9")),
    ];
    for (options, backend, devices) in steps {
        let lost = lost_by(&lab, &agents, options, backend, &devices);
        assert!(lost <= SECOND, "{options:?}\n{}", agents[0].log());
    }
}

/// Does the update, waits until every host has followed, and returns how many pings the worst stream lost.
fn lost_by(lab: &Lab, agents: &[Agent], options: &[&str], backend: &str, devices: &[&str]) -> usize {
    let streams = streams(lab, agents);
    let count = streams.len();
    pause(Duration::from_millis(300));
    let since = Instant::now();
    update(&agents[0], options);
    wait_followed(lab, agents, backend, devices);
    let took = since.elapsed();
    // The loss of a pair that comes together late is counted too.
    pinger::assert_all_pairs(lab, agents);
    pause(Duration::from_millis(300));
    let (stream, lost, sent) = most_lost(streams);
    println!(
        "figure: backend change, {count} streams, {}: the worst ({stream}) lost {lost} of {sent} at 100/s; all hosts had followed after {} ms",
        options.join(" "),
        took.as_millis()
    );
    lost
}

/// Changes the port: one key at two ports would be one peer that keeps moving, so the new port takes the old one's
/// place, host by host.
fn port() {
    let lab = Lab::new(&Shape { backend: "wireguard", ..shape(Families::V4) });
    let agents = lab.join_all();
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    for (port, device) in [("51900", "flatwg.51900"), ("51910", "flatwg.51910")] {
        let lost = lost_by(&lab, &agents, &["--port", port], "wireguard", &[device]);
        assert!(lost <= SECOND, "{port}\n{}", agents[0].log());
    }
}

fn signal(agent: &Agent, signal: Signal) {
    kill(Pid::from_raw(agent.pid().unwrap().try_into().unwrap()), signal).unwrap();
}

fn lagging() {
    let lab = Lab::new(&shape(Families::V4));
    let mut agents = lab.join_all();
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    signal(&agents[2], Signal::SIGSTOP);
    let streams = streams(&lab, &agents);
    update(&agents[0], &["--backend", "wireguard"]);
    wait_until("two hosts have followed", SOON, || {
        let said = published(&lab);
        let followed = said.iter().filter(|said| **said == ("wireguard".to_owned(), 1)).count();
        if followed == 2 { Ok(()) } else { Err(format!("{said:?}\n{}", agents[0].log())) }
    });
    pause(Duration::from_secs(1));
    let (stream, lost, sent) = most_lost(streams);
    println!(
        "figure: backend change, one of three stopped: the worst stream ({stream}) lost {lost} of {sent} at 100/s"
    );
    assert!(lost <= SECOND, "{stream} lost {lost} of {sent}");
    pinger::assert_all_pairs(&lab, &agents);
    // What was before is known after a restart too.
    agents[0].end(Signal::SIGKILL);
    agents[0].start();
    agents[0].wait_converged(2);
    pinger::assert_all_pairs(&lab, &agents);
    assert!(oracle::link(&agents[0].host, "flat.1").is_some());
    signal(&agents[2], Signal::SIGCONT);
    wait_followed(&lab, &agents, "wireguard", &["flatwg.51820"]);
    pinger::assert_all_pairs(&lab, &agents);
}

fn impossible() {
    let lab = Lab::new(&Shape { hosts: 4, ..shape(Families::V4) });
    let mut agents: Vec<Agent> = (1..=3).map(|number| lab.join(number)).collect();
    lab.attach_all(&agents);
    // The port of the tunnel is somebody else's on one host.
    lab.host(3).ok("ip link add holder type vxlan id 999 dstport 51820");
    lab.host(3).ok("ip link set holder up");
    update(&agents[0], &["--backend", "wireguard"]);
    agents[2].wait_for_problem("kernel-refused");
    wait_until("two hosts have followed", SOON, || {
        let said = published(&lab);
        let followed = said.iter().filter(|said| **said == ("wireguard".to_owned(), 1)).count();
        if followed == 2 { Ok(()) } else { Err(format!("{said:?}\n{}", agents[0].log())) }
    });
    pinger::assert_all_pairs(&lab, &agents);
    // A host that joins amid the change has the network's earlier backend from its configuration.
    agents.push(lab.join(4));
    agents[3].wait_converged(3);
    lab.attach_all(&agents[3..]);
    pinger::assert_all_pairs(&lab, &agents);
    assert!(oracle::link(&agents[3].host, "flat.1").is_some());
    lab.host(3).ok("ip link del holder");
    wait_followed(&lab, &agents, "wireguard", &["flatwg.51820"]);
    pinger::assert_all_pairs(&lab, &agents);
}
