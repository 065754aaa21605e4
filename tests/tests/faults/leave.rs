//! `leave` and `leave --purge` in every state an agent can be in: no trace of ours is left, and everything that is not
//! ours.

use std::collections::BTreeMap;

use flatnet_tests::agent::Agent;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::oracle;
use flatnet_tests::suite::Test;
use flatnet_tests::wait::SOON;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::scene::{agent, figure, shell};

/// A state: its name, how the lab gets there, and whether the network exists.
struct State {
    name: &'static str,
    network: bool,
    reach: fn(&mut Lab, &mut Agent),
}

const STATES: [State; 6] = [
    State {
        name: "starting_without_config",
        network: false,
        reach: |_, agent| drop(agent.wait_for_problem("no-config")),
    },
    State { name: "converged", network: true, reach: |_, agent| drop(agent.wait_converged(1)) },
    State {
        name: "degraded_with_the_store_away",
        network: true,
        reach: |lab, agent| {
            agent.wait_converged(1);
            lab.etcd.end(Signal::SIGKILL);
            agent.wait_for_problem("store-unreachable");
        },
    },
    State {
        name: "its_lease_taken",
        network: true,
        reach: |lab, agent| {
            agent.wait_converged(1);
            let (key, _) =
                lab.etcd.subnets().into_iter().find(|(_, value)| value["Flatnet"]["Name"] == "host1").unwrap();
            let thief = json!({ "PublicIP": "192.168.33.77", "BackendType": "vxlan",
                "BackendData": { "VNI": 1, "VtepMAC": "02:00:00:00:00:77" },
                "Flatnet": { "Node": "77777777777777777777777777777777", "Name": "thief", "Nonce": "77777777777777777777777777777777" } });
            lab.etcd.put(&format!("/coreos.com/network/subnets/{key}"), &thief.to_string(), None);
            agent.wait_for_problem("subnet-lost");
        },
    },
    State {
        name: "its_device_just_deleted",
        network: true,
        reach: |_, agent| {
            agent.wait_converged(1);
            agent.host.ok("ip link del flat.1");
        },
    },
    State {
        name: "no_agent_running",
        network: true,
        reach: |_, agent| {
            agent.wait_converged(1);
            agent.end(Signal::SIGKILL);
        },
    },
];

pub fn tests() -> Vec<Test> {
    STATES
        .iter()
        .map(|state| {
            Test::new(format!("leave_and_purge_leave_no_trace::{}", state.name), move || leave(state))
                .on_backend("vxlan")
        })
        .collect()
}

/// Returns everything on a host. The kernel's ways show in it: a firewall's tables once looked at stay named, empty.
fn everything(host: &flatnet_tests::netns::Namespace) -> BTreeMap<String, String> {
    oracle::everything(host)
}

fn leave(state: &State) {
    let shape = Shape::vxlan(2);
    let mut lab = if state.network { Lab::new(&shape) } else { Lab::without_network(&shape) };
    let host = lab.host(1);
    // Things of somebody else's, also where ours will be: a chain that drops gets a rule of ours at its head.
    shell(
        &host,
        "ip link add other0 type bridge; ip addr add 172.20.0.1/24 dev other0; ip link set other0 up; \
         ip route add 172.21.0.0/24 via 172.20.0.9 dev other0 onlink proto 99; nft add table inet other; \
         iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -s 172.20.0.0/24 -j ACCEPT",
    );
    let before = everything(&host);
    let mut peer = agent(&lab, 2, &[]);
    if state.network {
        peer.start();
        peer.wait_converged(0);
    }
    // Left first without, then with --purge; then once more, when there is nothing any more.
    let mut agent = agent(&lab, 1, &[]);
    agent.start();
    (state.reach)(&mut lab, &mut agent);
    let running = state.name != "no_agent_running";
    let state_dir = format!("--state-dir={}", agent.state_dir.display());
    let plain = agent.command(&["leave", &state_dir]);
    if running {
        assert_eq!(agent.wait_for_end(SOON), 0, "{}", agent.log());
        if state.network {
            let device = oracle::link(&host, "flat.1").is_some();
            assert!(device || state.name == "its_device_just_deleted", "leave without --purge keeps the datapath");
        }
    } else {
        assert_ne!(plain.code, 0, "without an agent only --purge does something");
    }
    let purged = agent.command(&["leave", "--purge", &state_dir]);
    assert_eq!(purged.code, 0, "{}{}", purged.stdout, purged.stderr);
    oracle::assert_same(&before, &everything(&host));
    let again = agent.command(&["leave", "--purge", &state_dir]);
    assert_eq!(again.code, 0, "a second time: {}{}", again.stdout, again.stderr);
    oracle::assert_same(&before, &everything(&host));

    // And with --purge at once, by the agent itself.
    let mut codes = vec![plain.code, purged.code, again.code];
    if running {
        if state.name == "degraded_with_the_store_away" {
            lab.etcd.start_again();
            // Nobody could give these back. Otherwise this host, purged and so another node now, would have to wait for
            // them.
            assert_eq!(lab.etcd.ctl(&["del", "--prefix", "/flatnet/nodes/"]).code, 0);
            for (key, value) in lab.etcd.subnets() {
                if value["Flatnet"]["Name"] == "host1" {
                    lab.etcd.delete(&format!("/coreos.com/network/subnets/{key}"));
                }
            }
        }
        if state.name == "its_lease_taken" {
            for (key, value) in lab.etcd.subnets() {
                if value["Flatnet"]["Name"] == "thief" {
                    lab.etcd.delete(&format!("/coreos.com/network/subnets/{key}"));
                }
            }
        }
        agent.start();
        (state.reach)(&mut lab, &mut agent);
        let purged = agent.command(&["leave", "--purge", &state_dir]);
        codes.push(purged.code);
        assert_eq!(agent.wait_for_end(SOON), 0, "{}", agent.log());
        oracle::assert_same(&before, &everything(&host));
        let away = state.name == "degraded_with_the_store_away";
        assert!(purged.code == 0 || away, "{}{}", purged.stdout, purged.stderr);
        if away {
            assert!(purged.stderr.contains("lease"), "that the lease stays is said: {}", purged.stderr);
        }
    }
    if state.network && running && state.name != "degraded_with_the_store_away" {
        let ours: Vec<_> =
            lab.etcd.subnets().into_iter().filter(|(_, value)| value["Flatnet"]["Name"] == "host1").collect();
        assert!(ours.is_empty(), "the lease is given back: {ours:?}");
    }
    let files = |path: &std::path::Path| -> Vec<_> {
        std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    assert_eq!(
        [files(&agent.run_dir), files(&agent.state_dir)].concat(),
        Vec::<std::path::PathBuf>::new(),
        "files stay"
    );
    figure(
        &format!("leave, leave --purge: {}", state.name.replace('_', " ")),
        format!("full dumps before and after are equal; exit codes {codes:?}"),
    );
}
