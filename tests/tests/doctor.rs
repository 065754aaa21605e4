//! `agent doctor` names what somebody broke, in namespaces of its own: `cargo test -p flatnet-tests --test doctor`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "this is test code: a failed assumption fails the test, with its message"
)]

use std::process::ExitCode;

use flatnet_tests::Families;
use flatnet_tests::agent::Agent;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::suite::{self, Test};
use flatnet_tests::wait::{SOON, wait_until};
use serde_json::Value;

fn main() -> ExitCode {
    suite::main(vec![
        Test::new("a_healthy_host_passes_every_check_that_the_machine_itself_passes", healthy).on_backend("vxlan"),
        Test::new("each_injected_fault_is_named", faults).on_backend("vxlan"),
        Test::new("packets_that_go_astray_are_said_with_the_reason", astray).on_backend("vxlan"),
        Test::new("without_an_agent_doctor_says_so_and_still_looks", without_an_agent).on_backend("vxlan"),
    ])
}

/// Runs doctor; returns its exit code and what it found, as a list of checks.
fn examine(agent: &Agent) -> (u8, Vec<Value>) {
    let state_dir = format!("--state-dir={}", agent.state_dir.display());
    let ran = agent.command(&["doctor", "--json", &state_dir]);
    let checks = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic_with(&ran.stdout, &ran.stderr, &error));
    (ran.code, checks)
}

#[expect(clippy::panic, reason = "this is test code")]
fn panic_with(stdout: &str, stderr: &str, error: &serde_json::Error) -> Vec<Value> {
    panic!("{error}\n{stdout}\n{stderr}")
}

/// Returns the verdict and cause of the check `name`, which is not ok.
fn found(checks: &[Value], name: &str) -> Option<(String, String)> {
    let check = checks.iter().find(|check| check["name"] == name && check["verdict"] != "ok")?;
    Some((check["verdict"].as_str()?.to_owned(), check["cause"].as_str()?.to_owned()))
}

fn healthy() {
    let lab = Lab::new(&Shape::vxlan(2));
    let agents = lab.join_all();
    let (code, checks) = examine(&agents[0]);
    // Of the machine, not of the host in the lab.
    let machine = ["disk", "resolvers", "iptables", "modules", "network-managers", "neighbour-limits", "rp-filter"];
    let bad: Vec<&Value> = checks
        .iter()
        .filter(|check| check["verdict"] != "ok" && !machine.contains(&check["name"].as_str().unwrap()))
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
    let failed = checks.iter().any(|check| check["verdict"] == "failure");
    assert_eq!(code, if failed { 8 } else { 0 });
    for check in &checks {
        let keys: Vec<&String> = check.as_object().unwrap().keys().collect();
        assert_eq!(keys.len(), 4, "{check}");
        assert!(check["verdict"] == "ok" || !check["hint"].as_str().unwrap().is_empty(), "{check}");
    }
}

/// A fault: its name, the commands that bring it about, the check that must report it, and a word of its cause.
type Fault = (&'static str, &'static [&'static str], &'static str, &'static str);

/// The faults, in this order: each stays while the next is added. `SUBNET2`, `UNDERLAY` and `ENVFILE` stand for the
/// host's own.
const FAULTS: [Fault; 10] = [
    (
        "a foreign nftables table that drops tunnel packets",
        &[
            "nft add table inet lockdown",
            "nft add chain inet lockdown incoming { type filter hook input priority 0 ; policy accept ; }",
            "nft add rule inet lockdown incoming udp dport 8000-9000 drop",
        ],
        "nft-drops",
        "table inet lockdown, chain incoming",
    ),
    (
        "Docker's rule against direct routing",
        &["iptables-nft -t raw -A PREROUTING -d SUBNET2 ! -i docker0 -j DROP"],
        "docker-direct-routing",
        "table ip raw, chain PREROUTING",
    ),
    (
        "a device that flanneld left",
        &["ip link add flannel.7 type vxlan id 7 dstport 8477 local UNDERLAY"],
        "flannel",
        "flannel.7",
    ),
    (
        "a foreign VXLAN device on our port",
        &["ip link add vx9 type vxlan id 9 dstport 8472 local UNDERLAY"],
        "vxlan-clash",
        "vx9",
    ),
    (
        "a LAN inside the network",
        &["ip link add lan0 type bridge", "ip link set lan0 up", "ip route add 10.100.199.0/28 dev lan0"],
        "lan-overlap",
        "10.100.199.0/28 by lan0",
    ),
    ("strict reverse path filtering", &["sysctl -qw net.ipv4.conf.all.rp_filter=1"], "rp-filter", "flat.1"),
    ("an env file that says another MTU", &["sed -i s/^FLANNEL_MTU=.*/FLANNEL_MTU=9000/ ENVFILE"], "mtu", "MTU 9000"),
    ("garbage in the store", &["PUT-GARBAGE"], "agent-problem", "[key-rejected]"),
    ("a lost store", &["STOP-STORE"], "agent-problem", "[store-unreachable]"),
    ("an agent that was ended", &["STOP-AGENT"], "agent", "no agent answers"),
];

fn faults() {
    let mut lab = Lab::new(&Shape::vxlan(2));
    let mut agents = lab.join_all();
    let mut agent = agents.remove(0);
    for fault in FAULTS {
        inject(&mut lab, &mut agent, fault);
        let (what, _, name, word) = fault;
        wait_until(&format!("doctor names {what}"), SOON, || {
            if name == "mtu" {
                // The agent repairs it at its next look.
                inject(&mut lab, &mut agent, fault);
            }
            let (code, checks) = examine(&agent);
            let all: Vec<&Value> = checks.iter().filter(|check| check["name"] == name).collect();
            let named = all
                .iter()
                .any(|check| check["verdict"] != "ok" && check["cause"].as_str().unwrap_or_default().contains(word));
            let failure = checks.iter().any(|check| check["verdict"] == "failure");
            assert_eq!(code, if failure { 8 } else { 0 });
            if named { Ok(()) } else { Err(format!("{all:#?}")) }
        });
    }
}

fn inject(lab: &mut Lab, agent: &mut Agent, (what, commands, ..): Fault) {
    for command in commands {
        match *command {
            "PUT-GARBAGE" => lab.etcd.put("/coreos.com/network/subnets/10.100.9.0-24", "{", None),
            "STOP-STORE" => lab.etcd.end_if_running(),
            "STOP-AGENT" => drop(agent.end(nix::sys::signal::Signal::SIGKILL)),
            line => {
                let subnet = agent.status().expect("the agent answers").pointer("/networks/0/subnet").unwrap().clone();
                let line = line
                    .replace("SUBNET2", &subnet.as_str().unwrap().replace(".0/24", ".2/32"))
                    .replace("UNDERLAY", &lab.topology.host(1).v4.to_string())
                    .replace("ENVFILE", &agent.env_file().display().to_string());
                let words: Vec<&str> = line.split(' ').collect();
                let ran = agent.host.run(&words);
                assert_eq!(ran.code, 0, "{what}: {line}: {}", ran.stderr);
            }
        }
    }
}

/// A peer whose packets come from another address than it publishes, and another tool's rule that takes packets before
/// our routes.
fn astray() {
    let lab = Lab::new(&Shape { overlay: Families::Dual, underlay: Families::Dual, ..Shape::vxlan(2) });
    let agents = lab.join_all();
    agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    let host = |number: usize, line: &str| agents[number].host.run(&line.split(' ').collect::<Vec<_>>());
    let said = |code: &str, word: &str| {
        let has = |status: &Value| {
            let problems = status["problems"].as_array().cloned().unwrap_or_default();
            problems.iter().any(|problem| {
                problem["code"] == code && problem["message"].as_str().is_some_and(|message| message.contains(word))
            })
        };
        agents[0].wait_for_status(code, has)
    };
    for line in [
        "nft add table ip shift",
        "nft add chain ip shift out { type nat hook postrouting priority 100 ; }",
        "nft add rule ip shift out udp dport 8472 snat to 192.168.33.200",
    ] {
        assert_eq!(host(1, line).code, 0, "{line}");
    }
    let subnet = agents[0].status().unwrap().pointer("/networks/0/subnet").unwrap().as_str().unwrap().to_owned();
    let own = subnet.split('/').next().unwrap();
    assert_ne!(host(1, &format!("ping -c 6 -i 0.2 -W 1 {own}")).code, 0, "its packets come from a stranger's address");
    let status = said("packets-dropped", "network default: dropped");
    let poser = "came from 192.168.33.200 by eth0, it publishes 192.168.33.12";
    let claimed = "network default: in the last 60 s dropped ";
    let named = said("source-mismatch", poser).to_string();
    assert!(named.contains(claimed) && named.contains("claimed to be from host2 ("), "{named}");
    assert_eq!(status["state"], "converged", "a stranger can bring it about: {status}");
    let (code, checks) = examine(&agents[0]);
    let (verdict, cause) = found(&checks, "dropped-packets").unwrap();
    assert!(verdict == "warning" && cause.contains(poser), "{cause}");
    assert_eq!(code, 0, "a stranger must not bring about a failure: {checks:?}");

    for line in ["ip route add blackhole 10.0.0.0/8 table 52", "ip rule add prio 5270 lookup 52"] {
        assert_eq!(host(0, line).code, 0, "{line}");
    }
    let status = said("peer-detour", "rule 5270 and table 52");
    assert_eq!(status["state"], "degraded");
    let (verdict, cause) = found(&examine(&agents[0]).1, "peer-routes").unwrap();
    assert!(verdict == "failure" && cause.contains("are dropped, because of rule 5270 and table 52"), "{cause}");
    // By a device, as an exit node or a subnet router does.
    for line in ["ip link add tun0 type bridge", "ip link set tun0 up", "ip route replace 10.0.0.0/8 dev tun0 table 52"]
    {
        let ran = host(0, line);
        assert_eq!(ran.code, 0, "{line}: {}", ran.stderr);
    }
    said("peer-detour", "leave by tun0, because of rule 5270 and table 52");
    assert_eq!(host(0, "ip rule del prio 5270").code, 0);
    agents[0].wait_for_status("the way is ours again", |status| status["state"] == "converged");
    assert_eq!(found(&examine(&agents[0]).1, "peer-routes"), None);
}

fn without_an_agent() {
    let lab = Lab::new(&Shape::vxlan(1));
    let agent = lab.agent(1);
    let (code, checks) = examine(&agent);
    assert_eq!(code, 8);
    assert!(found(&checks, "agent").unwrap().1.contains("no agent answers"));
    let forward = found(&checks, "ip-forward").expect("a new namespace does not forward");
    assert_eq!(forward.0, "failure");
    std::fs::create_dir_all(&agent.state_dir).unwrap();
    std::fs::write(agent.state_dir.join("left"), "").unwrap();
    let (_, checks) = examine(&agent);
    assert!(found(&checks, "agent").unwrap().1.contains("this node left"), "{checks:#?}");
}
