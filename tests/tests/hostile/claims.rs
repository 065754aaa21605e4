//! Dropped packets are reported with the peer they claimed to be from: by status, doctor and metrics, with where they
//! came from and what that peer publishes. A sender that makes up sources neither gets past the sets that remember them
//! nor keeps the agent busy.

use std::net::IpAddr;

use flatnet_model::IpFamily;
use flatnet_tests::Families;
use flatnet_tests::agent::Agent;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::netns::Namespace;
use flatnet_tests::pinger::assert_all_pairs;
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, pause, wait_until};
use serde_json::Value;

use crate::counter::Counter;
use crate::field::{FRIEND, Field, PORT, STRANGER, VICTIM, VNI, mac, tunnel};
use crate::flood::{BURST, PAUSE};
use crate::generate::crafted;
use crate::packet::{GRE, MAGIC, gre, ip, udp_ip};
use crate::sender::Sender;

/// The address at which the agents serve their pages.
const HTTP: &str = "127.0.0.1:9192";
/// The number of made-up sources: more than a set remembers (64).
const MADE_UP: u8 = 200;

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("who_poses_as_a_peer_is_named::vxlan", || named("vxlan")).on_backend("vxlan"),
        Test::new("who_poses_as_a_peer_is_named::gre", || named("gre")).on_backend("gre"),
    ]
}

/// Returns the value of the series at the host's `/metrics` that begins with `series`; 0 if there is none.
fn metric(host: &Namespace, series: &str) -> u64 {
    let (address, port) = HTTP.split_once(':').unwrap();
    let script = format!(
        "exec 3<>/dev/tcp/{address}/{port} && printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3 && timeout 5 cat <&3"
    );
    let page = host.run(&["bash", "-c", &script]).stdout;
    assert!(page.contains("flatnet_tasks"), "{page}");
    page.lines()
        .filter(|line| line.starts_with(series))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// Returns the cause of doctor's check of dropped packets, and its hint.
fn examined(agent: &Agent) -> (String, String) {
    let state_dir = format!("--state-dir={}", agent.state_dir.display());
    let checks: Value = serde_json::from_str(&agent.command(&["doctor", "--json", &state_dir]).stdout).unwrap();
    let check = checks.as_array().unwrap().iter().find(|check| check["name"] == "dropped-packets").unwrap();
    (check["cause"].as_str().unwrap().to_owned(), check["hint"].as_str().unwrap().to_owned())
}

fn noted(agent: &Agent, words: &str) -> Value {
    let has = |problem: &Value| {
        problem["code"] == "source-mismatch" && problem["message"].as_str().is_some_and(|text| text.contains(words))
    };
    let status = agent.wait_for_status(words, |status| {
        status["problems"].as_array().is_some_and(|problems| problems.iter().any(has))
    });
    assert_eq!(status["state"], "converged", "a stranger can bring it about: {status}");
    status["problems"].as_array().unwrap().iter().find(|problem| has(problem)).unwrap().clone()
}

fn named(backend: &'static str) {
    let lab = Lab::new(&Shape { hosts: STRANGER, backend, overlay: Families::Dual, underlay: Families::Dual });
    let agents: Vec<Agent> = [VICTIM, FRIEND]
        .map(|number| {
            let mut agent = lab.agent(number).with(&["--bridge", "flbr0", "--http-listen", HTTP]);
            agent.start();
            agent
        })
        .into();
    for agent in &agents {
        agent.wait_converged(1);
    }
    lab.attach_all(&agents);
    let field = Field { agents, lab };
    let (agent, host) = (&field.agents[0], field.host(VICTIM));
    assert_all_pairs(&field.lab, &field.agents);
    // Reverse path filtering would hide a forged source from what is to be shown.
    for setting in ["all", "default", "flbr0", "eth0"] {
        host.ok(&format!("sysctl -qw net.ipv4.conf.{setting}.rp_filter=0"));
    }
    let counter = Counter::start(&field.lab.container(VICTIM), &[]);
    let (stranger, guest) = (Sender::new(&field.host(STRANGER)), Sender::new(&field.lab.container(VICTIM)));
    let swaps = || metric(&host, "flatnet_reconcile_ops_total{kind=\"ruleset\"");
    let drift = || metric(&host, "flatnet_drift_repairs_total");
    let before = (swaps(), drift());
    let tunnelled = |from: IpAddr, source: IpAddr, family: IpFamily| {
        let (victim, container) = (field.outer(VICTIM, family), field.container(VICTIM, family));
        if backend == "gre" {
            let protocol = if family == IpFamily::V4 { 0x0800 } else { 0x86dd };
            return ip(from, victim, GRE, None, &gre(0, protocol, None, &udp_ip(source, container, 1, 2, MAGIC)));
        }
        udp_ip(from, victim, 9, PORT, &crafted(VNI, mac(&host, tunnel(family)), source, container))
    };
    let families = IpFamily::BOTH;
    for (family, packets) in families.into_iter().zip([50u32, 40]) {
        let victim = field.outer(VICTIM, family);
        let (poser, friend) = (field.outer(STRANGER, family), field.outer(FRIEND, family));
        let container = field.container(FRIEND, family);
        let peer = format!("claimed to be from host2 ({})", field.subnet(FRIEND, family).trunc());
        let by_address = format!("{peer}: came from {poser} by eth0, it publishes {friend}");
        let packet = tunnelled(poser, container, family);
        (0..packets).for_each(|_| assert!(stranger.send(victim, &packet)));
        let problem = noted(agent, &by_address);
        assert!(problem["message"].as_str().unwrap().contains(&format!("dropped {packets} packets that")), "{problem}");
        for word in ["--public-ip", "NAT", "a stranger poses as host2"] {
            assert!(problem["hint"].as_str().unwrap().contains(word), "{problem}");
        }
        // A container with the peer's address, and the stranger without a tunnel.
        let packet = tunnelled(friend, container, family);
        let clear = udp_ip(container, field.container(VICTIM, family), 1, 2, MAGIC);
        for _ in 0..5 {
            assert!(guest.send(victim, &packet) && stranger.send(victim, &clear));
        }
        let (cause, hint) = wait_until("doctor names them all", SOON, || {
            let (cause, hint) = examined(agent);
            // It knows one address of a peer.
            let of_address = by_address.split(", it publishes").next().unwrap();
            let whole = if family == IpFamily::V4 { by_address.as_str() } else { of_address };
            let named = [
                whole.to_owned(),
                format!("{peer}: came from {friend} in by flbr0, where no route leads back to that address"),
                format!("{peer}: came in by eth0, which is not the way of such a source"),
            ];
            named.iter().all(|named| cause.contains(named)).then(|| (cause.clone(), hint)).ok_or(cause)
        });
        assert!(hint.contains("--public-ip"), "{cause}: {hint}");
    }
    let expected = 50 + 40;
    let others = 5 * u64::try_from(families.len()).unwrap();
    wait_until("metrics count them", SOON, || {
        let of = |reason: &str| {
            let labels = format!("{{network=\"default\",peer=\"host2\",reason=\"{reason}\"}}");
            metric(&host, &format!("flatnet_source_mismatch_packets_total{labels}"))
        };
        let counted = (of("address"), of("interface"), of("clear"));
        if counted == (expected, others, others) { Ok(()) } else { Err(format!("{counted:?}")) }
    });
    counter.assert_none("from whoever posed as a peer");

    // There are more sources than are remembered. Nothing comes out of any of them, and the report says that some are
    // left out.
    let IpAddr::V4(gateway) = field.subnet(FRIEND, IpFamily::V4).addr() else { unreachable!("of that family") };
    let [a, b, c, _] = gateway.octets();
    let victim = field.outer(VICTIM, IpFamily::V4);
    for round in 0..3u8 {
        for last in 1..=MADE_UP {
            let source = IpAddr::from([a, b, c.wrapping_add(round * 64), last]);
            assert!(stranger.send(victim, &tunnelled(field.outer(STRANGER, IpFamily::V4), source, IpFamily::V4)));
            if u32::from(last) % BURST == 0 {
                pause(PAUSE);
            }
        }
    }
    noted(agent, "more than are remembered");
    assert!(examined(agent).0.ends_with("more than are remembered"));
    counter.assert_none("though the set was full");
    let table = host.ok("nft list table inet flatnet");
    assert_eq!((swaps(), drift()), before, "what the kernel remembers is no drift: {table}");
    let lines = agent.log().lines().filter(|line| line.contains("source-mismatch")).count();
    assert!((1..=17).contains(&lines), "{lines} lines in the log:\n{}", agent.log());
    assert_all_pairs(&field.lab, &field.agents);
    eprintln!("{backend}: three ways to pose as a peer named over each family; {lines} lines in the log");
}
