//! The store dies, hangs, forgets its history, is wiped or put back.

use std::time::{Duration, Instant};

use flatnet_tests::agent::Agent;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::netns::Namespace;
use flatnet_tests::oracle;
use flatnet_tests::pinger::{self, Pinger};
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, pause, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::process::cpu_time;
use crate::scene::{SECOND, Scene, agent, assert_exact, figure, has_problem, metric, ms, settled, shell, until_exact};

/// The time etcd stays away: a whole reboot of its machine.
const OUTAGE: Duration = Duration::from_secs(60);

/// The longest time until a new snapshot is on disk: at most its spacing and its wait at the start.
const SNAPSHOT_WRITTEN: Duration = Duration::from_secs(7);

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("etcd_may_be_dead_for_a_minute", etcd_dead).on_backend("vxlan"),
        Test::new("a_compaction_hides_no_change", || compaction(true)).on_backend("vxlan"),
        Test::new("a_compaction_after_a_silent_cut_hides_no_change", || compaction(false)).on_backend("vxlan"),
        Test::new("a_wiped_store_is_filled_again", wiped).on_backend("vxlan"),
        Test::new("an_old_backup_moves_nobody", restored).on_backend("vxlan"),
        Test::new("a_store_that_refuses_is_said", refuses).on_backend("vxlan"),
        Test::new("a_hung_store_is_said_and_costs_nothing", hung).on_backend("vxlan"),
    ]
}

/// Puts a flannel host's lease, as every row needs a new one: 10.100.`octet`.0/24 at 192.168.33.`address`.
pub fn put_lease(lab: &Lab, octet: u8, address: u8, mac: &str) {
    let value = json!({ "PublicIP": format!("192.168.33.{address}"), "PublicIPv6": null, "BackendType": "vxlan",
        "BackendData": { "VNI": 1, "VtepMAC": mac } });
    lab.etcd.put(&format!("/coreos.com/network/subnets/10.100.{octet}.0-24"), &value.to_string(), None);
}

/// Returns the time until the lease of [`put_lease`] is in the kernel as it was put.
pub fn until_programmed(host: &Namespace, octet: u8, address: u8, mac: &str, since: Instant) -> Duration {
    loop {
        let fdb = oracle::fdb(host, "flat.1");
        let route = oracle::own_routes(host).contains_key(&format!("10.100.{octet}.0/24"));
        let took = since.elapsed();
        if route && fdb.get(mac).is_some_and(|at| *at == format!("192.168.33.{address}")) {
            return took;
        }
        assert!(took < SOON, "{}: 10.100.{octet}.0/24 is not programmed: {fdb:?}", host.0);
        pause(Duration::from_millis(10));
    }
}

fn etcd_dead() {
    let lab = Lab::new(&Shape::vxlan(4));
    let mut agents: Vec<Agent> = (1..=3).map(|number| agent(&lab, number, &[])).collect();
    agents.iter_mut().for_each(Agent::start);
    agents.iter().for_each(|agent| drop(agent.wait_converged(2)));
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    pause(SNAPSHOT_WRITTEN);
    let mut scene = Scene { agents, lab };
    let hosts: Vec<Namespace> = (1..=3).map(|number| scene.lab.host(number)).collect();
    let before: Vec<String> = hosts.iter().map(settled).collect();
    let stream = scene.stream();
    let to_third = scene.agents[2].subnet().container_addresses().next().unwrap();
    let third_stream = Pinger::start(&scene.lab, &scene.lab.container(2), to_third);
    let cpu = cpu_time(scene.agents[0].pid().unwrap());
    scene.lab.etcd.end(Signal::SIGKILL);
    let dead = Instant::now();
    scene.agents[0].wait_for_problem("store-unreachable");
    let said = dead.elapsed();
    // An agent that starts meanwhile, as after a crash and as after a reboot without its kernel state.
    scene.agents[2].end(Signal::SIGKILL);
    std::fs::remove_file(scene.agents[2].env_file()).unwrap();
    scene.agents[2].start();
    let since = Instant::now();
    scene.agents[2].subnet();
    let env = since.elapsed();
    scene.agents[2].wait_for_status("degraded with two programmed peers", |status| {
        let peers = status["networks"][0]["peers"].as_array().map_or(0, Vec::len);
        status["state"] == "degraded"
            && peers == 2
            && has_problem(status, "store-connecting") | has_problem(status, "store-unreachable")
    });
    shell(&hosts[2], "ip link del flat.1");
    let repaired = until_exact("repaired from the snapshot", &hosts[2], &before[2], Instant::now());
    pause(OUTAGE.saturating_sub(dead.elapsed()));
    for (host, before) in hosts.iter().zip(&before) {
        until_exact("while etcd is dead", host, before, Instant::now());
    }
    let cpu = cpu_time(scene.agents[0].pid().unwrap()) - cpu;
    scene.lab.etcd.start_again();
    let back = Instant::now();
    put_lease(&scene.lab, 250, 98, "02:00:00:00:00:98");
    let seen: Vec<Duration> =
        hosts.iter().map(|host| until_programmed(host, 250, 98, "02:00:00:00:00:98", back)).collect();
    let mut late = agent(&scene.lab, 4, &[]);
    late.start();
    for agent in scene.agents.iter().chain([&late]) {
        agent.wait_converged(4);
    }
    let (losses, third) = (stream.stop(), third_stream.stop());
    figure(
        &format!("etcd dead for {} s", OUTAGE.as_secs()),
        format!(
            "{} of {} pings lost; degraded said after {}; an agent started meanwhile wrote subnet.env after {} and repaired a deleted device after {} ({} of {} pings lost); a new lease seen {} after etcd was back; CPU of an agent meanwhile {}",
            losses.lost.len(),
            losses.sent,
            ms(said),
            ms(env),
            ms(repaired),
            third.lost.len(),
            third.sent,
            seen.iter().map(|took| ms(*took)).collect::<Vec<_>>().join(", "),
            ms(cpu)
        ),
    );
    assert!(losses.lost.is_empty(), "{losses:?}");
    assert!(seen.iter().all(|took| *took <= SECOND), "{seen:?}");
    assert!(third.lost.len() <= 100, "{third:?}");
    drop(late);
}

/// Host 1 is cut off while a peer's address and Ethernet address change and the history is compacted. With `refused`
/// its connections end at once; else its packets vanish.
fn compaction(refused: bool) {
    let scene = Scene::new(&Shape::vxlan(2));
    put_lease(&scene.lab, 250, 98, "02:00:00:00:00:98");
    put_lease(&scene.lab, 251, 96, "02:00:00:00:00:96");
    scene.agents.iter().for_each(|agent| drop(agent.wait_converged(3)));
    let host = scene.lab.host(1);
    let stream = scene.stream();
    let store = Namespace(scene.lab.topology.store().namespace);
    let verdict = if refused { "reject with tcp reset" } else { "drop" };
    shell(
        &store,
        &[
            "nft add table inet cut",
            "nft add chain inet cut in '{ type filter hook input priority 0; }'",
            "nft add chain inet cut out '{ type filter hook output priority 0; }'",
            &format!("nft add rule inet cut in ip saddr 192.168.33.11 meta l4proto tcp {verdict}"),
            "nft add rule inet cut out ip daddr 192.168.33.11 drop",
        ]
        .join("; "),
    );
    if refused {
        // The answers to what is refused are the resets themselves.
        shell(&store, "nft flush chain inet cut out");
    }
    scene.agents[0].wait_for_problem("store-unreachable");
    let etcd = &scene.lab.etcd;
    put_lease(&scene.lab, 250, 97, "02:00:00:00:00:97");
    etcd.delete("/coreos.com/network/subnets/10.100.251.0-24");
    for number in 0..20 {
        etcd.put("/elsewhere", &number.to_string(), None);
    }
    let status: serde_json::Value =
        serde_json::from_str(&etcd.ctl(&["endpoint", "status", "-w", "json"]).stdout).unwrap();
    let revision = status[0]["Status"]["header"]["revision"].as_u64().unwrap();
    let ran = etcd.ctl(&["compact", &revision.to_string()]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    pause(SECOND);
    shell(&store, "nft delete table inet cut");
    let healed = Instant::now();
    let connected = loop {
        if metric(&host, "flatnet_controlplane_connected", &[]) == 1 {
            break healed.elapsed();
        }
        assert!(healed.elapsed() < SOON, "not connected again: {}", scene.agents[0].log());
    };
    let programmed = until_programmed(&host, 250, 97, "02:00:00:00:00:97", healed);
    let gone = loop {
        if !oracle::own_routes(&host).contains_key("10.100.251.0/24") {
            break healed.elapsed();
        }
        assert!(healed.elapsed() < SOON, "the deleted lease's route stays");
    };
    assert!(!oracle::fdb(&host, "flat.1").contains_key("02:00:00:00:00:98"), "the old entry leaks");
    let losses = stream.stop();
    let how = if refused { "connections reset" } else { "packets dropped silently" };
    figure(
        &format!("compaction while cut off ({how})"),
        format!(
            "connected {} after the cut was healed, a peer's new address and Ethernet address programmed after {}, a deleted lease gone after {}, {} of {} pings lost",
            ms(connected),
            ms(programmed),
            ms(gone),
            losses.lost.len(),
            losses.sent
        ),
    );
    assert!(losses.lost.is_empty(), "{losses:?}");
    let bar = connected + SECOND;
    assert!(programmed <= bar && gone <= bar, "{programmed:?} and {gone:?} after {connected:?}");
    assert!(connected <= if refused { SECOND * 3 / 2 } else { Duration::from_secs(5) }, "{connected:?}");
    scene.agents[0].wait_converged(2);
}

/// Returns the keys of the leases with their owners.
fn owners(lab: &Lab) -> Vec<(String, String)> {
    lab.etcd.subnets().into_iter().map(|(key, value)| (key, value["Flatnet"]["Node"].to_string())).collect()
}

/// Waits until the store has the owners `wanted` again; returns the time since `since`.
fn until_owned(lab: &Lab, wanted: &[(String, String)], since: Instant) -> Duration {
    wait_until("every node has its subnet in the store again", SOON, || {
        let now = owners(lab);
        if now == wanted { Ok(since.elapsed()) } else { Err(format!("{now:?} instead of {wanted:?}")) }
    })
}

fn wiped() {
    let mut scene = Scene::new(&Shape::vxlan(3));
    let hosts: Vec<Namespace> = (1..=3).map(|number| scene.lab.host(number)).collect();
    // As an etcd that has seen some days: its revision is high.
    for number in 0..30 {
        scene.lab.etcd.put("/elsewhere", &number.to_string(), None);
    }
    let before: Vec<String> = hosts.iter().map(settled).collect();
    let wanted = owners(&scene.lab);
    let stream = scene.stream();
    scene.lab.etcd.end(Signal::SIGKILL);
    std::fs::remove_dir_all(scene.lab.directory.join("etcd/data")).unwrap();
    scene.lab.etcd.start_again();
    let since = Instant::now();
    let owned = until_owned(&scene.lab, &wanted, since);
    for agent in &scene.agents {
        agent.wait_for_status("every peer programmed", |status| {
            status["networks"][0]["peers"].as_array().map_or(0, Vec::len) == 2 && !has_problem(status, "no-config")
        });
    }
    for (host, before) in hosts.iter().zip(&before) {
        assert_exact(host, before);
    }
    scene.agents.iter().for_each(|agent| drop(agent.wait_converged(2)));
    let converged = since.elapsed();
    let losses = stream.stop();
    figure(
        "etcd wiped (new data directory)",
        format!(
            "every lease back {} after etcd, converged by {} at the latest, nobody renumbered, {} of {} pings lost",
            ms(owned),
            ms(converged),
            losses.lost.len(),
            losses.sent
        ),
    );
    assert!(losses.lost.is_empty(), "{losses:?}");
    // And the store works: a new host joins.
    put_lease(&scene.lab, 250, 98, "02:00:00:00:00:98");
    until_programmed(&hosts[0], 250, 98, "02:00:00:00:00:98", Instant::now());
}

fn restored() {
    let lab = Lab::new(&Shape::vxlan(3));
    let mut agents: Vec<Agent> = (1..=3).map(|number| agent(&lab, number, &[])).collect();
    agents[0].start();
    agents[0].wait_converged(0);
    let backup = lab.directory.join("backup").display().to_string();
    let ran = lab.etcd.ctl(&["snapshot", "save", &backup]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    // Two hosts that the backup does not know.
    agents[1].start();
    agents[2].start();
    agents.iter().for_each(|agent| drop(agent.wait_converged(2)));
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    for number in 0..30 {
        lab.etcd.put("/elsewhere", &number.to_string(), None);
    }
    let mut scene = Scene { agents, lab };
    let hosts: Vec<Namespace> = (1..=3).map(|number| scene.lab.host(number)).collect();
    let before: Vec<String> = hosts.iter().map(settled).collect();
    let wanted = owners(&scene.lab);
    let stream = scene.stream();
    scene.lab.etcd.end(Signal::SIGKILL);
    let data = scene.lab.directory.join("etcd/data");
    std::fs::remove_dir_all(&data).unwrap();
    let peer = "http://127.0.0.1:2380";
    let ran = Namespace(scene.lab.topology.store().namespace).run(&[
        "env",
        "ETCDCTL_API=3",
        "etcdctl",
        "snapshot",
        "restore",
        &backup,
        "--name=test",
        &format!("--data-dir={}", data.display()),
        &format!("--initial-cluster=test={peer}"),
        &format!("--initial-advertise-peer-urls={peer}"),
    ]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    scene.lab.etcd.start_again();
    let since = Instant::now();
    let owned = until_owned(&scene.lab, &wanted, since);
    for (host, before) in hosts.iter().zip(&before) {
        assert_exact(host, before);
    }
    scene.agents.iter().for_each(|agent| drop(agent.wait_converged(2)));
    let converged = since.elapsed();
    let losses = stream.stop();
    figure(
        "an old backup restored",
        format!(
            "every lease back {} after etcd, converged by {} at the latest, nobody renumbered, {} of {} pings lost",
            ms(owned),
            ms(converged),
            losses.lost.len(),
            losses.sent
        ),
    );
    assert!(losses.lost.is_empty(), "{losses:?}");
    put_lease(&scene.lab, 250, 98, "02:00:00:00:00:98");
    until_programmed(&hosts[0], 250, 98, "02:00:00:00:00:98", Instant::now());
}

/// Returns the message of the problem `code`, once it is there and `accept` takes it.
fn said(agent: &Agent, code: &str, accept: impl Fn(&str) -> bool) -> String {
    let of = |status: &serde_json::Value| {
        let problems = status["problems"].as_array().cloned().unwrap_or_default();
        let messages = problems.iter().filter(|problem| problem["code"] == code);
        messages.filter_map(|problem| problem["message"].as_str().map(str::to_owned)).find(|message| accept(message))
    };
    of(&agent.wait_for_status(code, |status| of(status).is_some())).unwrap()
}

/// A password is changed, a right taken away, the quota reached, under agents whose watches go on as if nothing were.
fn refuses() {
    let lab = Lab::new(&Shape::vxlan(3));
    let password = lab.directory.join("password");
    std::fs::write(&password, "one").unwrap();
    let flags = ["--etcd-username", "fl", "--etcd-password-file", password.to_str().unwrap(), "--lease-ttl", "30s"];
    let mut agents: Vec<Agent> = (1..=2).map(|number| agent(&lab, number, &flags)).collect();
    agents.iter_mut().for_each(Agent::start);
    agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    let mut scene = Scene { agents, lab };
    let host = scene.lab.host(1);
    let ctl = |scene: &Scene, line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let ran = scene.lab.etcd.ctl(&words);
        assert_eq!(ran.code, 0, "{line}: {}", ran.stderr);
    };
    for line in [
        "user add root:secret",
        "user grant-role root root",
        "role add agents",
        "role grant-permission agents readwrite --prefix=true /coreos.com/network/",
        "role grant-permission agents readwrite --prefix=true /flatnet/",
        "user add fl:one",
        "user grant-role fl agents",
        "auth enable",
    ] {
        ctl(&scene, line);
    }
    scene.lab.etcd.user = Some("root:secret".to_owned());

    ctl(&scene, "user delete fl");
    ctl(&scene, "user add fl:two");
    ctl(&scene, "user grant-role fl agents");
    let changed = Instant::now();
    let message = said(&scene.agents[0], "store-refuses", |message| message.contains("authentication failed"));
    let took = changed.elapsed();
    assert!(message.contains("/flatnet/nodes/"), "{message}");
    assert!(took <= Duration::from_secs(7), "said after {took:?}");
    // Longer than a presence lasts: neither that nor a lease needs a password to be kept alive.
    pause(Duration::from_secs(20));
    let status = scene.agents[0].status().unwrap();
    assert_eq!(
        (status["state"].as_str(), status["networks"][0]["peers"].as_array().map(Vec::len)),
        (Some("degraded"), Some(1))
    );
    assert_eq!(scene.lab.etcd.subnets().len(), 2);
    assert!(crate::scene::page(&host, "/readyz").contains(" 200 "), "packets flow");
    assert_eq!(metric(&host, "flatnet_store_channel_ok", &["channel=\"presence\""]), 0);
    let warnings = |agent: &Agent| {
        agent.log().lines().filter(|line| line.contains("WARN") && line.contains("store-refuses")).count()
    };
    assert!((1..=3).contains(&warnings(&scene.agents[0])), "{}", scene.agents[0].log());
    std::fs::write(&password, "two").unwrap();
    scene.agents.iter().for_each(|agent| drop(agent.wait_converged(1)));

    ctl(&scene, "role revoke-permission agents /flatnet/ --prefix=true");
    said(&scene.agents[0], "store-refuses", |message| {
        message.contains("permission denied") && message.contains("/flatnet/")
    });
    let mut late = agent(&scene.lab, 3, &flags);
    late.start();
    said(&late, "store-refuses", |message| message.contains("permission denied") && message.contains("/flatnet/"));
    assert_eq!(late.status().unwrap()["state"], "starting");
    drop(late);
    ctl(&scene, "role grant-permission agents readwrite --prefix=true /flatnet/");
    scene.agents.iter().for_each(|agent| drop(agent.wait_converged(1)));

    // Full: who starts now cannot claim what it held.
    scene.lab.etcd.end(Signal::SIGKILL);
    scene.lab.etcd.flags = vec!["--quota-backend-bytes=1000000".to_owned()];
    scene.lab.etcd.start_again();
    scene.agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    let junk = "x".repeat(100_000);
    let full = (0..64).any(|number| scene.lab.etcd.ctl(&["put", &format!("/junk/{number}"), &junk]).code != 0);
    assert!(full, "the quota is not reached");
    scene.agents[1].end(Signal::SIGKILL);
    wait_until("the lease of an agent that is gone ends", Duration::from_secs(60), || {
        let left = scene.lab.etcd.subnets().len();
        if left == 1 { Ok(()) } else { Err(format!("{left} leases")) }
    });
    scene.agents[1].start();
    said(&scene.agents[1], "store-refuses", |message| message.contains("database space exceeded"));
    said(&scene.agents[1], "lease-unconfirmed", |_| true);
    assert!(crate::scene::page(&scene.lab.host(2), "/readyz").contains(" 503 "), "peers do not send to it");
    assert_ne!(scene.agents[1].status().unwrap()["state"], "converged");
    assert!(scene.agents[1].log().contains("database space exceeded"), "{}", scene.agents[1].log());
    let doctor = scene.agents[1].command(&["doctor"]);
    assert!(doctor.code == 8 && doctor.stdout.contains("store-refuses"), "{}", doctor.stdout);
    figure(
        "a password changed under running agents",
        format!("said after {}, no lease and no presence ended", ms(took)),
    );
}

fn hung() {
    let scene = Scene::new(&Shape::vxlan(2));
    let host = scene.lab.host(1);
    let before = settled(&host);
    let stream = scene.stream();
    scene.lab.etcd.pause();
    let since = Instant::now();
    let cpu = cpu_time(scene.agents[0].pid().unwrap());
    scene.agents[0].wait_for_problem("store-unreachable");
    let said = since.elapsed();
    let watched = Duration::from_secs(12);
    pause(watched.saturating_sub(since.elapsed()));
    let cpu = cpu_time(scene.agents[0].pid().unwrap()) - cpu;
    assert_exact(&host, &before);
    scene.lab.etcd.resume();
    let back = Instant::now();
    put_lease(&scene.lab, 250, 98, "02:00:00:00:00:98");
    let seen = until_programmed(&host, 250, 98, "02:00:00:00:00:98", back);
    let losses = stream.stop();
    figure(
        "the only etcd endpoint hung (SIGSTOP)",
        format!(
            "said after {}, CPU of the agent {} in {} s, a new lease seen {} after SIGCONT, {} of {} pings lost",
            ms(said),
            ms(cpu),
            watched.as_secs(),
            ms(seen),
            losses.lost.len(),
            losses.sent
        ),
    );
    assert!(said <= Duration::from_secs(5), "{said:?}");
    assert!(cpu <= watched / 10, "{cpu:?}");
    assert!(losses.lost.is_empty(), "{losses:?}");
}
