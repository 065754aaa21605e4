//! A control plane instead of an etcd: joined by token over TLS, killed, wiped, and managed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flatnet_tests::agent::{Agent, program};
use flatnet_tests::control_plane::ControlPlane;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::netns::run;
use flatnet_tests::pinger::{self, Pinger};
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, pause, wait_until};
use nix::sys::signal::Signal;

/// The network of these tests, created by the server.
const INIT: &[&str] = &["--init=10.100.0.0/16"];
/// The time traffic is watched while something is away, and once it is back.
const WHILE: Duration = Duration::from_secs(2);

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("hosts_join_a_control_plane_by_token_and_all_pairs_ping", join_by_token).on_backend("vxlan"),
        Test::new("a_control_plane_killed_under_traffic_loses_no_packet", killed_under_traffic).on_backend("vxlan"),
        Test::new("a_wiped_control_plane_renumbers_nobody", wiped).on_backend("vxlan"),
        Test::new("an_older_backup_put_back_renumbers_nobody", put_back).on_backend("vxlan"),
        Test::new("a_control_plane_killed_amid_writes_loses_nothing_acknowledged", killed_amid_writes),
        Test::new("agents_move_to_another_replica_and_lose_nothing", replicas).on_backend("vxlan"),
        Test::new("a_revoked_node_is_gone_from_every_peer", revoked).on_backend("vxlan"),
        Test::new("an_administrator_manages_networks_from_elsewhere", administrator),
        Test::new("a_range_that_hosts_use_themselves_is_refused", hosts_own_routes).on_backend("vxlan"),
        Test::new("a_control_plane_moves_to_an_etcd_and_renumbers_nobody", migrated).on_backend("vxlan"),
        Test::new("the_lab_runs_on_an_etcd_too", lab_on_etcd).on_backend("vxlan"),
        Test::new("a_hundred_hosts_join_at_once_and_ping_round_a_ring", hundred).on_backend("vxlan"),
    ]
}

fn subnets(agents: &[Agent]) -> Vec<String> {
    agents.iter().map(|agent| format!("{:?}", agent.subnet())).collect()
}

fn join_by_token() {
    let lab = Lab::without_network(&Shape::vxlan(3));
    let server = ControlPlane::start(&lab, INIT);
    assert_eq!(server.printed().lines().count(), 1, "exactly one line: {}", server.printed());
    let agents = server.join_all(&lab);
    let token = &server.join_arguments()[3];
    let (_, secret) = token.split_once('.').unwrap();
    for agent in &agents {
        let processes = processes_with(&agent.state_dir.display().to_string());
        assert!(!processes.is_empty(), "host{} runs an agent", agent.number);
        let showing = processes.iter().any(|shown| shown.contains(secret));
        assert!(!showing, "host{}: the token it was started with is for everybody to see", agent.number);
    }
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    for log in agents.iter().map(Agent::log).chain([server.log()]) {
        assert!(!log.contains(secret), "the token's secret is in a log");
    }
    let nodes = server.command(&["node", "ls"]);
    assert_eq!((nodes.code, nodes.stdout.matches(" present ").count()), (0, 3), "{}", nodes.stdout);
    let status = server.command(&["status"]);
    assert_eq!(status.code, 0, "{}{}", status.stdout, status.stderr);
    assert!(status.stdout.starts_with("ready\n"), "{}", status.stdout);

    let mut agents = agents;
    let left = agents.remove(0);
    assert_eq!(left.command(&["leave"]).code, 0);
    for agent in &agents {
        agent.wait_converged(1);
    }
    drop(left);
    joined_by_token_file(&lab, &server, token, secret);
}

/// Returns the arguments and the environment of each process that has `text` among its arguments.
fn processes_with(text: &str) -> Vec<String> {
    let shown = |entry: std::fs::DirEntry| {
        let read = |file: &str| std::fs::read(entry.path().join(file)).ok();
        let arguments = String::from_utf8_lossy(&read("cmdline")?).into_owned();
        let environment = read("environ").unwrap_or_default();
        arguments.contains(text).then(|| arguments + &String::from_utf8_lossy(&environment))
    };
    std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).filter_map(shown).collect()
}

/// A host that takes its token out of a file shows it to nobody who can list processes.
fn joined_by_token_file(lab: &Lab, server: &ControlPlane, token: &str, secret: &str) {
    let arguments = server.join_arguments();
    let file = lab.directory.join("token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let directory = lab.directory.join("anew");
    let file = format!("--token-file={}", file.display());
    let mut agent = Agent::new(1, lab.host(1), &arguments[1], &directory).with(&[&file, &arguments[4], &arguments[5]]);
    agent.start();
    agent.wait_converged(2);
    let seen = processes_with(&file);
    assert!(!seen.is_empty() && seen.iter().all(|line| !line.contains(secret)), "{seen:?}");
    assert!(!agent.log().contains(secret));
    assert_eq!(agent.command(&["leave"]).code, 0);
}

fn hundred() {
    const HOSTS: u8 = 100;
    /// The time for all of it: the other tests run beside it; alone it takes a few seconds.
    const ALL: Duration = Duration::from_secs(120);
    let lab = Lab::without_network(&Shape::vxlan(HOSTS));
    let server = ControlPlane::start(&lab, INIT);
    let mut agents: Vec<Agent> = (1..=HOSTS).map(|number| server.agent(&lab, number)).collect();
    let since = Instant::now();
    agents.iter_mut().for_each(Agent::start);
    let started = since.elapsed();
    for agent in &agents {
        wait_until("it is converged with all the others", ALL, || {
            let status = agent.status().unwrap_or_default();
            let peers = status.pointer("/networks/0/peers").and_then(|peers| peers.as_array()).map_or(0, Vec::len);
            if status["state"] == "converged" && peers == usize::from(HOSTS) - 1 { Ok(()) } else { Err(agent.log()) }
        });
    }
    let converged = since.elapsed();
    assert_eq!(subnets(&agents).into_iter().collect::<BTreeSet<_>>().len(), usize::from(HOSTS), "a subnet twice");
    lab.attach_all(&agents);
    for (from, to) in agents.iter().zip(agents.iter().cycle().skip(1)) {
        for address in to.subnet().container_addresses() {
            pinger::assert_reaches(&lab.container(from.number), address);
        }
    }
    println!(
        "figure: {HOSTS} hosts at one control plane: processes started in {} ms, all converged with all after {} ms",
        started.as_millis(),
        converged.as_millis()
    );
}

fn killed_under_traffic() {
    let lab = Lab::without_network(&Shape::vxlan(2));
    let mut server = ControlPlane::start(&lab, INIT);
    let agents = server.join_all(&lab);
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    let before = subnets(&agents);
    let to = agents[1].subnet().container_addresses().next().unwrap();
    let stream = Pinger::start(&lab, &lab.container(1), to);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        server.end(signal);
        for agent in &agents {
            agent.wait_for_problem("store-unreachable");
        }
        pause(WHILE);
        server.run();
        for agent in &agents {
            agent.wait_converged(1);
        }
    }
    pause(WHILE);
    let losses = stream.stop();
    assert!(losses.sent > 300, "{losses:?}");
    assert!(losses.lost.is_empty(), "{losses:?}\n{}", agents[0].log());
    println!("figure: a control plane killed twice under traffic: {} packets, 0 lost", losses.sent);
    assert_eq!(subnets(&agents), before);
}

fn wiped() {
    let lab = Lab::without_network(&Shape::vxlan(2));
    let mut server = ControlPlane::start(&lab, INIT);
    let mut agents = server.join_all(&lab);
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    let before = subnets(&agents);
    let to = agents[1].subnet().container_addresses().next().unwrap();
    let stream = Pinger::start(&lab, &lab.container(1), to);

    // The store alone is lost: nodes put network and leases back, with the certificates they have.
    server.end(Signal::SIGKILL);
    server.flags.clear();
    server.remove("store.redb");
    server.run();
    let holds = |server: &ControlPlane, agents: &[Agent]| {
        wait_until("both nodes hold their leases again", SOON * 2, || {
            let nodes = server.command(&["node", "ls"]).stdout;
            let logs = || agents.iter().map(Agent::log).chain([server.log()]).collect::<Vec<_>>().join("\n");
            if nodes.matches("default:").count() == 2 { Ok(()) } else { Err(format!("{nodes}\n{}", logs())) }
        });
    };
    holds(&server, &agents);
    for agent in &agents {
        agent.wait_converged(1);
    }
    assert_eq!(subnets(&agents), before);

    // Everything is lost, the authority too: hosts join the new server with what it prints, and keep what they have. It
    // never saw a network, so it is told of it as the first time.
    server.end(Signal::SIGKILL);
    server.remove("");
    server.flags = INIT.iter().map(|flag| (*flag).to_owned()).collect();
    server.run();
    for agent in &mut agents {
        agent.end(Signal::SIGTERM);
        *agent = server.agent(&lab, agent.number);
        agent.start();
    }
    holds(&server, &agents);
    for agent in &agents {
        agent.wait_converged(1);
    }
    assert_eq!(subnets(&agents), before);
    let losses = stream.stop();
    assert!(losses.lost.is_empty(), "{losses:?}\n{}", agents[0].log());
    println!("figure: a control plane wiped twice under traffic: {} packets, 0 lost, nobody renumbered", losses.sent);
}

fn put_back() {
    let lab = Lab::without_network(&Shape::vxlan(3));
    let mut server = ControlPlane::start(&lab, INIT);
    let mut agents: Vec<Agent> = (1..=2).map(|number| server.agent(&lab, number)).collect();
    agents.iter_mut().for_each(Agent::start);
    for agent in &agents {
        agent.wait_converged(1);
    }
    let backup = server.file("../backup.redb").display().to_string();
    assert_eq!(server.command(&["backup", &backup]).code, 0);
    // What the backup does not know: another host, and a network.
    let mut late = server.agent(&lab, 3);
    late.start();
    agents.push(late);
    for agent in &agents {
        agent.wait_converged(2);
    }
    lab.attach_all(&agents);
    let before = subnets(&agents);
    let to = agents[2].subnet().container_addresses().next().unwrap();
    let stream = Pinger::start(&lab, &lab.container(1), to);

    server.end(Signal::SIGTERM);
    let restored = server.command(&["restore", &backup]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    server.run();
    wait_until("all three hold their leases", SOON * 2, || {
        let nodes = server.command(&["node", "ls"]).stdout;
        if nodes.matches("default:").count() == 3 { Ok(()) } else { Err(format!("{nodes}\n{}", agents[2].log())) }
    });
    for agent in &agents {
        agent.wait_converged(2);
    }
    assert_eq!(subnets(&agents), before);
    let losses = stream.stop();
    assert!(losses.lost.is_empty(), "{losses:?}\n{}", agents[0].log());
    println!("figure: an older backup put back under traffic: {} packets, 0 lost, nobody renumbered", losses.sent);
}

fn killed_amid_writes() {
    /// The time each server writes before it is killed, in milliseconds; one for each kill.
    const LIVES: [u64; 6] = [150, 400, 220, 310, 180, 500];
    let lab = Lab::without_network(&Shape::vxlan(1));
    let mut server = ControlPlane::start(&lab, &[]);
    let mut acknowledged: Vec<String> = Vec::new();
    for (life, millis) in (0u8..).zip(LIVES) {
        let run = server.commands();
        let stop = Arc::new(AtomicBool::new(false));
        let writer = Arc::clone(&stop);
        let writing = std::thread::spawn(move || {
            let mut done = Vec::new();
            for number in 0u8..=255 {
                if writer.load(Ordering::Relaxed) {
                    break;
                }
                let (name, cidr) = (format!("n{life}-{number}"), format!("10.{}.{number}.0/24", 100 + life));
                let made = run(&["network", "create", &name, "--cidr", &cidr, "--subnet-len", "28"]);
                if made.code == 0 {
                    done.push(name);
                }
            }
            done
        });
        pause(Duration::from_millis(millis));
        server.end(Signal::SIGKILL);
        stop.store(true, Ordering::Relaxed);
        acknowledged.extend(writing.join().unwrap());
        server.run();
        let listed = server.command(&["network", "ls"]);
        assert_eq!(listed.code, 0, "{}", listed.stderr);
        let there: BTreeSet<&str> = listed.stdout.lines().filter_map(|line| line.split_whitespace().next()).collect();
        let lost: Vec<&String> = acknowledged.iter().filter(|name| !there.contains(name.as_str())).collect();
        assert!(lost.is_empty(), "acknowledged and gone: {lost:?}\n{}", listed.stdout);
    }
    assert!(acknowledged.len() >= LIVES.len(), "too little was written to say anything: {acknowledged:?}");
    println!("figure: killed {} times amid writes: {} networks acknowledged, 0 lost", LIVES.len(), acknowledged.len());
}

fn replicas() {
    let lab = Lab::without_network(&Shape::vxlan(3));
    let etcd = format!("--endpoints={}", lab.topology.endpoint());
    let mut first = ControlPlane::start(&lab, &["--store=etcd", &etcd, INIT[0]]);
    let mut second = first.replica(&lab);
    let other = second.join_arguments()[1].clone();
    let agent = |number| first.agent(&lab, number).with(&[other.as_str()]);
    let mut agents: Vec<Agent> = (1..=3).map(agent).collect();
    agents[..2].iter_mut().for_each(Agent::start);
    for agent in &agents[..2] {
        agent.wait_converged(1);
    }
    lab.attach_all(&agents[..2]);
    let before = subnets(&agents[..2]);
    let to = agents[1].subnet().container_addresses().next().unwrap();
    let stream = Pinger::start(&lab, &lab.container(1), to);

    // The server that all use goes, without a word. A host that comes now finds the other one, and all hear of it.
    first.end(Signal::SIGKILL);
    let began = std::time::Instant::now();
    agents[2].start();
    for agent in &agents {
        agent.wait_converged(2);
    }
    println!("figure: a replica killed: a newcomer known to all after {} ms", began.elapsed().as_millis());
    first.run();
    // And back again, while a host leaves.
    second.end(Signal::SIGKILL);
    let left = agents.pop().unwrap();
    wait_until("the third host leaves", SOON, || {
        let ran = left.command(&["leave"]);
        if ran.code == 0 { Ok(()) } else { Err(ran.stderr) }
    });
    for agent in &agents {
        agent.wait_converged(1);
    }
    assert_eq!(subnets(&agents), before);
    let losses = stream.stop();
    assert!(losses.lost.is_empty(), "{losses:?}\n{}", agents[0].log());
    second.run();
    let nodes = second.command(&["node", "ls"]).stdout;
    assert_eq!(nodes.matches("default:").count(), 2, "{nodes}");
}

fn revoked() {
    let lab = Lab::without_network(&Shape::vxlan(3));
    let server = ControlPlane::start(&lab, INIT);
    let agents = server.join_all(&lab);
    let bad = agents[2].status().unwrap()["node"]["id"].as_str().unwrap().to_owned();
    let ran = server.command(&["node", "revoke", &bad]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for agent in &agents[..2] {
        agent.wait_converged(1);
    }
    let problem = agents[2].wait_for_problem("store-refuses");
    assert!(problem["message"].as_str().unwrap().contains("revoked"), "{problem}");
    assert!(server.command(&["node", "ls"]).stdout.contains(" revoked "));
}

fn administrator() {
    let lab = Lab::without_network(&Shape::vxlan(2));
    let server = ControlPlane::start(&lab, &[]);
    let credentials = lab.directory.join("ops.pem").display().to_string();
    assert_eq!(server.command(&["admin", "create", "ops", "--output", &credentials]).code, 0);
    let endpoint = server.join_arguments()[1].clone();
    let agent_program = program().display().to_string();
    let network = |arguments: &[&str], credentials: Option<&str>| {
        let mut argv = vec![agent_program.as_str(), "network"];
        argv.extend(arguments);
        argv.extend(["--endpoint", endpoint.as_str()]);
        argv.extend(credentials.iter().flat_map(|file| ["--credentials", file]));
        run(&mut lab.host(1).command(&argv))
    };
    let create = ["create", "blue", "--cidr", "10.60.0.0/16"];
    assert_eq!(network(&create, None).code, 4, "nobody without credentials");
    let made = network(&create, Some(&credentials));
    assert_eq!(made.code, 0, "{}", made.stderr);
    assert_eq!(network(&create, Some(&credentials)).code, 6, "it exists");
    let overlapping = network(&["create", "red", "--cidr", "10.60.1.0/24"], Some(&credentials));
    assert_eq!(overlapping.code, 6, "{}", overlapping.stderr);
    let listed = network(&["ls", "--json"], Some(&credentials));
    assert!(listed.stdout.contains("10.60.0.0/16"), "{}{}", listed.stdout, listed.stderr);
    let peer = [
        "peer",
        "add",
        "blue",
        "--subnet",
        "10.60.9.0/24",
        "--public-ip",
        "192.168.33.99",
        "--mac",
        "02:00:00:00:00:09",
    ];
    assert_eq!(network(&peer, Some(&credentials)).code, 0);
    assert_eq!(network(&["peer", "rm", "blue", "--subnet", "10.60.9.0/24"], Some(&credentials)).code, 0);
    assert_eq!(network(&["inspect", "blue"], Some(&credentials)).code, 0);
    assert_eq!(network(&["rm", "blue"], Some(&credentials)).code, 0);
    assert_eq!(network(&["inspect", "blue"], Some(&credentials)).code, 9);
}

fn hosts_own_routes() {
    let lab = Lab::without_network(&Shape::vxlan(2));
    let etcd = lab.topology.endpoint();
    let server = ControlPlane::start(&lab, &["--store=etcd", &format!("--endpoints={etcd}"), INIT[0]]);
    let mut agents = server.join_all(&lab);
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    let records = || lab.etcd.list("/flatnet/nodes/").into_iter().map(|(_, record)| record).collect::<Vec<_>>();
    let say = |what: &str, count: usize| {
        wait_until("hosts say what they use", SOON, || {
            let records = records();
            let saying = records.iter().filter(|record| record.contains(what)).count();
            if saying == count { Ok(()) } else { Err(format!("{what}: {records:?}")) }
        });
    };
    let create = |name: &str, cidr: &str, more: &[&str]| {
        let arguments: Vec<&str> = ["network", "create", name, "--cidr", cidr].iter().chain(more).copied().collect();
        server.command(&arguments)
    };
    // The underlay, and nothing of the overlay: neither routes to peers nor the containers' bridge.
    say("192.168.33.0/24", 2);
    assert!(!records().concat().contains("10.100."), "{:?}", records());
    let refused = create("wide", "192.168.32.0/20", &[]);
    assert_eq!(refused.code, 6, "{}{}", refused.stdout, refused.stderr);

    lab.host(2).ok("ip route add 10.60.7.0/24 via 192.168.33.1");
    lab.host(2).ok("ip route add blackhole 10.61.0.0/16");
    say("10.60.7.0/24", 1);
    let refused = create("blue", "10.60.0.0/16", &[]);
    assert_eq!(refused.code, 6, "{}{}", refused.stdout, refused.stderr);
    for told in ["host2", "10.60.7.0/24", "--force"] {
        assert!(refused.stderr.contains(told), "{told}: {}", refused.stderr);
    }
    // A command that writes etcd directly is refused the same.
    let directly = agents[0].command(&["network", "create", "blue", "--cidr", "10.60.0.0/16", "--endpoint", &etcd]);
    assert_eq!(directly.code, 6, "{}", directly.stderr);
    assert!(directly.stderr.contains("host2") && directly.stderr.contains("--force"), "{}", directly.stderr);
    assert_eq!(create("red", "10.61.0.0/16", &[]).code, 0, "where nothing is sent nobody is cut off");
    assert_eq!(create("grey", "10.60.0.0/17", &["--force"]).code, 0);
    assert_eq!(server.command(&["network", "rm", "grey"]).code, 0);

    lab.host(2).ok("ip route del 10.60.7.0/24");
    say("10.60.7.0/24", 0);
    assert_eq!(create("blue", "10.60.0.0/16", &[]).code, 0);
    // When the host leaves, what it published goes too.
    assert_eq!(agents[1].command(&["leave"]).code, 0);
    agents[1].wait_for_end(SOON);
    say("192.168.33.0/24", 1);
}

fn migrated() {
    let lab = Lab::without_network(&Shape::vxlan(2));
    let mut server = ControlPlane::start(&lab, INIT);
    let agents = server.join_all(&lab);
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    let before = subnets(&agents);
    let to = agents[1].subnet().container_addresses().next().unwrap();
    let stream = Pinger::start(&lab, &lab.container(1), to);

    let backup = server.file("../backup.redb").display().to_string();
    assert_eq!(server.command(&["backup", &backup]).code, 0, "while it runs");
    server.end(Signal::SIGTERM);
    let from = server.data_dir().display().to_string();
    let etcd = lab.topology.endpoint();
    let program = flatnet_tests::control_plane::find_program().unwrap().display().to_string();
    let moved = run(&mut lab.host(1).command(&[program.as_str(), "migrate", "--from", &from, "--to", &etcd]));
    assert_eq!(moved.code, 0, "{}", moved.stderr);
    server.flags = vec!["--store=etcd".to_owned(), format!("--endpoints={etcd}")];
    server.run();
    for agent in &agents {
        agent.wait_converged(1);
    }
    wait_until("both hold their leases in etcd", SOON, || {
        let leases = lab.etcd.subnets();
        if leases.len() == 2 { Ok(()) } else { Err(format!("{leases:?}")) }
    });
    assert_eq!(subnets(&agents), before);
    let losses = stream.stop();
    assert!(losses.lost.is_empty(), "{losses:?}\n{}", agents[0].log());
}

fn lab_on_etcd() {
    let mut command = std::process::Command::new(program());
    command.args(["lab", "demo", "--hosts", "2", "--store", "etcd"]).stdin(std::process::Stdio::null());
    let ran = run(&mut command);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("all 2 pairs reachable"), "{}", ran.stdout);
}
