//! Leases that go, are taken, or are wanted by many at once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use flatnet_tests::agent::Agent;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::oracle;
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, pause, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::scene::{SECOND, Scene, agent, assert_exact, figure, ms, settled, until_exact};

/// Rounds of the race, and agents in each.
const ROUNDS: usize = 20;
const RACERS: u8 = 10;

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("a_lease_that_went_while_the_agent_was_down_is_pruned", gone_meanwhile).on_backend("vxlan"),
        Test::new("a_deleted_own_lease_is_claimed_again", || own_lease("deleted")).on_backend("vxlan"),
        Test::new("a_revoked_own_lease_is_claimed_again", || own_lease("revoked")).on_backend("vxlan"),
        Test::new("an_expired_own_lease_is_claimed_again", || own_lease("expired")).on_backend("vxlan"),
        Test::new("a_lease_taken_by_another_node_is_said_and_renumbered", taken).on_backend("vxlan"),
        Test::new("ten_agents_at_once_never_share_a_subnet", race).on_backend("vxlan"),
    ]
}

fn gone_meanwhile() {
    let mut scene = Scene::new(&Shape::vxlan(3));
    let host = scene.lab.host(1);
    let gone = scene.agents[2].subnet().v4.unwrap().trunc().to_string();
    scene.agents[0].end(Signal::SIGKILL);
    let leaver = scene.agents.pop().unwrap();
    assert_eq!(leaver.command(&["leave"]).code, 0);
    drop(leaver);
    let stream = scene.stream();
    assert!(oracle::own_routes(&host).contains_key(&gone));
    scene.agents[0].start();
    let since = Instant::now();
    let took = wait_until("the route of a lease that is gone is pruned", SOON, || {
        let stale = oracle::own_routes(&host).contains_key(&gone);
        if stale { Err(scene.agents[0].log()) } else { Ok(since.elapsed()) }
    });
    scene.agents[0].wait_converged(1);
    assert_eq!(oracle::fdb(&host, "flat.1").len(), 1);
    assert_eq!(oracle::neighbours(&host, "flat.1").len(), 1);
    let losses = stream.stop();
    figure(
        "a peer's lease gone while the agent was down",
        format!(
            "pruned {} after the start of the program, {} of {} pings to another peer lost",
            ms(took),
            losses.lost.len(),
            losses.sent
        ),
    );
    assert!(losses.lost.is_empty(), "{losses:?}");
    assert!(took <= SECOND * 2, "{took:?}");
}

/// Returns the key and the etcd lease (hexadecimal) of host 1.
fn own_key(lab: &Lab) -> (String, String) {
    let ours = |(_, value): &(String, Value)| value["Flatnet"]["Name"] == "host1";
    let (key, _) = lab.etcd.subnets().into_iter().find(ours).expect("host1 has a lease");
    let key = format!("/coreos.com/network/subnets/{key}");
    let stored: Value = serde_json::from_str(&lab.etcd.ctl(&["get", &key, "-w", "json"]).stdout).unwrap();
    (key, format!("{:x}", stored["kvs"][0]["lease"].as_u64().unwrap_or_default()))
}

fn own_lease(how: &str) {
    let expired = how == "expired";
    let scene = Scene::with(&Shape::vxlan(2), if expired { &["--lease-ttl", "10s"] } else { &[] });
    let (one, two) = (scene.lab.host(1), scene.lab.host(2));
    let before = (settled(&one), settled(&two));
    let (key, lease) = own_key(&scene.lab);
    let owner = scene.lab.etcd.subnets();
    let stream = scene.stream();
    let paused = scene.agents[0].pid().unwrap();
    let since = match how {
        "deleted" => {
            scene.lab.etcd.delete(&key);
            Instant::now()
        }
        "revoked" => {
            assert_eq!(scene.lab.etcd.ctl(&["lease", "revoke", &lease]).code, 0);
            Instant::now()
        }
        _ => {
            let pid = Pid::from_raw(paused.try_into().unwrap());
            kill(pid, Signal::SIGSTOP).unwrap();
            wait_until("the lease expires", SOON, || {
                let left = scene.lab.etcd.subnets();
                if left.len() == 1 { Ok(()) } else { Err(format!("{left:?}")) }
            });
            kill(pid, Signal::SIGCONT).unwrap();
            Instant::now()
        }
    };
    let names = |leases: &[(String, Value)]| -> Vec<(String, String)> {
        leases.iter().map(|(key, value)| (key.clone(), value["Flatnet"]["Node"].to_string())).collect()
    };
    let claimed = wait_until("the same subnet is claimed by the same node", SOON, || {
        let now = names(&scene.lab.etcd.subnets());
        if now == names(&owner) { Ok(since.elapsed()) } else { Err(format!("{now:?}\n{}", scene.agents[0].log())) }
    });
    let peer = until_exact("the peer", &two, &before.1, since);
    let own = until_exact("the host itself", &one, &before.0, since);
    pause(SECOND / 2);
    let losses = stream.stop();
    figure(
        &format!("own lease {how}"),
        format!(
            "claimed again after {}, the peer exact after {}, the host itself after {}, {} of {} pings lost",
            ms(claimed),
            ms(peer),
            ms(own),
            losses.lost.len(),
            losses.sent
        ),
    );
    assert_exact(&one, &before.0);
    assert_exact(&two, &before.1);
    assert!(claimed <= SECOND && peer <= SECOND, "{claimed:?} {peer:?}");
    scene.agents[0].wait_converged(1);
}

fn taken() {
    let scene = Scene::new(&Shape::vxlan(2));
    let (one, two) = (scene.lab.host(1), scene.lab.host(2));
    let before = settled(&one);
    let subnet = scene.agents[0].subnet();
    let (key, _) = own_key(&scene.lab);
    let thief = json!({ "PublicIP": "192.168.33.77", "PublicIPv6": null, "BackendType": "vxlan",
        "BackendData": { "VNI": 1, "VtepMAC": "02:00:00:00:00:77" },
        "Flatnet": { "Node": "77777777777777777777777777777777", "Name": "thief", "Nonce": "77777777777777777777777777777777" } });
    scene.lab.etcd.put(&key, &thief.to_string(), None);
    let since = Instant::now();
    let problem = scene.agents[0].wait_for_problem("subnet-lost");
    let said = since.elapsed();
    assert!(problem["hint"].as_str().unwrap().contains("leave --renumber"), "{problem}");
    wait_until("the peer follows the store", SOON, || {
        let fdb = oracle::fdb(&two, "flat.1");
        if fdb.contains_key("02:00:00:00:00:77") { Ok(()) } else { Err(format!("{fdb:?}")) }
    });
    pause(SECOND);
    let kept = crate::scene::picture(&one) == before;
    assert!(kept, "the datapath is not kept:\n{}", crate::scene::differences(&before, &crate::scene::picture(&one)));
    assert_eq!(scene.agents[0].subnet(), subnet);
    let ran = scene.agents[0].command(&["leave", "--renumber"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let since = Instant::now();
    let renumbered = wait_until("another subnet", SOON, || {
        let now = scene.agents[0].subnet();
        if now == subnet { Err(scene.agents[0].log()) } else { Ok(since.elapsed()) }
    });
    // The thief is a peer as well.
    scene.agents.iter().for_each(|agent| drop(agent.wait_converged(2)));
    figure(
        "own lease taken by another node",
        format!(
            "said after {}, datapath kept, `leave --renumber` gave another subnet after {}",
            ms(said),
            ms(renumbered)
        ),
    );
    assert!(said <= SECOND, "{said:?}");
}

fn race() {
    let lab = Lab::without_network(&Shape { hosts: RACERS, ..Shape::vxlan(1) });
    let mut slowest = Duration::ZERO;
    for round in 0..ROUNDS {
        // Half of the rounds begin without a network, which all ten create.
        let flags: &[&str] = if round % 2 == 0 { &["--init", "10.100.0.0/20"] } else { &[] };
        if flags.is_empty() {
            lab.etcd.put(
                "/coreos.com/network/config",
                r#"{"Network":"10.100.0.0/20","Backend":{"Type":"vxlan"}}"#,
                None,
            );
        }
        let mut agents: Vec<Agent> = (1..=RACERS)
            .map(|number| {
                let mut agent = agent(&lab, number, flags);
                let state = lab.directory.join(format!("round{round}-{number}"));
                agent
                    .arguments
                    .retain(|argument| !argument.starts_with("--state-dir=") && !argument.starts_with("--run-dir="));
                agent.run_dir = state.join("run");
                agent.state_dir = state.join("state");
                agent.arguments.push(format!("--state-dir={}", agent.state_dir.display()));
                agent.arguments.push(format!("--run-dir={}", agent.run_dir.display()));
                agent
            })
            .collect();
        let since = Instant::now();
        agents.iter_mut().for_each(Agent::start);
        let subnets: Vec<String> = agents.iter().map(|agent| format!("{:?}", agent.subnet().v4)).collect();
        slowest = slowest.max(since.elapsed());
        let different: BTreeSet<&String> = subnets.iter().collect();
        assert_eq!(different.len(), usize::from(RACERS), "round {round}: {subnets:?}");
        let stored = lab.etcd.subnets();
        assert_eq!(stored.len(), usize::from(RACERS), "round {round}: {stored:?}");
        for agent in &mut agents {
            // 128 + SIGKILL: it was running until now.
            assert_eq!(agent.end(Signal::SIGKILL), 137, "round {round}: {}", agent.log());
        }
        assert_eq!(lab.etcd.ctl(&["del", "--prefix", "/"]).code, 0);
    }
    figure(
        "ten agents at once on an empty store",
        format!("{ROUNDS} rounds: all joined, no subnet twice, none ended; the slowest round took {}", ms(slowest)),
    );
}
