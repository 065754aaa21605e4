//! A machine short of something: a clock that jumps, a full disk, no descriptors, no processor time, little memory.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use flatnet_tests::clock::WallClock;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::netns::{Namespace, run};
use flatnet_tests::oracle;
use flatnet_tests::pinger;
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{pause, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::process::{cpu_time, descriptors, memory_kib};
use crate::scene::{SECOND, Scene, agent, assert_exact, figure, has_problem, ms, settled, shell, until_exact};
use crate::store::{put_lease, until_programmed};

/// A day, in seconds.
const DAY: i64 = 86_400;

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("a_clock_that_jumps_a_day_decides_nothing", clock).on_backend("vxlan"),
        Test::new("a_wireguard_host_whose_clock_is_set_back_gets_a_key_without_a_past", wireguard_clock)
            .on_backend("wireguard"),
        Test::new("a_full_disk_is_said_and_stops_nothing", full_disk).on_backend("vxlan"),
        Test::new("running_out_of_descriptors_ends_nothing", descriptors_gone).on_backend("vxlan"),
        Test::new("a_hogged_processor_delays_only", hog).on_backend("vxlan"),
        Test::new("eight_thousand_peers_fit_into_64_mib", memory).on_backend("vxlan"),
    ]
}

/// Makes two hosts that reach each other, the first by its own `clock`.
fn with_clock(lab: Lab, clock: &WallClock, flags: &[&str]) -> Scene {
    let mut agents: Vec<_> = (1..=2).map(|number| agent(&lab, number, flags)).collect();
    agents[0].environment = clock.environment();
    for agent in &mut agents {
        agent.start();
    }
    agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    Scene { agents, lab }
}

fn clock() {
    let lab = Lab::new(&Shape::vxlan(2));
    let clock = WallClock::new(&lab.directory);
    let scene = with_clock(lab, &clock, &["--lease-ttl", "10s"]);
    let (one, two) = (scene.lab.host(1), scene.lab.host(2));
    let before = (settled(&one), settled(&two));
    let created = |lab: &Lab| {
        lab.etcd
            .ctl(&["get", "--prefix", "/coreos.com/network/subnets/", "-w", "json"])
            .stdout
            .split("create_revision\":")
            .skip(1)
            .map(|rest| rest.split(',').next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let leases = created(&scene.lab);
    let stream = scene.stream();
    let mut shown = Vec::new();
    for days in [1_i64, -1, 0] {
        clock.shift(days * DAY);
        // A third more than the lease lives: were the wall clock believed, it would be given up or not kept alive.
        pause(SECOND * 12);
        let status = scene.agents[0].status().unwrap();
        shown.push(status["networks"][0]["lease_expires"].as_str().unwrap_or_default().to_owned());
        assert_eq!(status["state"], "converged", "{status}");
    }
    // The shift reached the agent: what it shows is off by about a day, once forwards, once backwards.
    assert!(shown[0] > shown[2] && shown[1] < shown[2], "the clock did not jump: {shown:?}");
    let losses = stream.stop();
    assert_exact(&one, &before.0);
    assert_exact(&two, &before.1);
    assert_eq!(created(&scene.lab), leases, "no lease was lost and claimed again");
    figure(
        "clock jumps by + 1 day, - 2 days, + 1 day",
        format!(
            "converged all the time, the 10 s lease kept alive, kernel untouched, {} of {} pings lost",
            losses.lost.len(),
            losses.sent
        ),
    );
    assert!(losses.lost.is_empty(), "{losses:?}");
}

/// A host whose clock went back. Peers refuse handshakes that are older than the last they have seen, so until the
/// agent has another key, such a host starts none for a day.
fn wireguard_clock() {
    /// The time for a look, every 5 s, and a rotation.
    const NOTICED: Duration = Duration::from_secs(20);
    let lab = Lab::new(&Shape { backend: "wireguard", ..Shape::vxlan(2) });
    let clock = WallClock::new(&lab.directory);
    clock.shift(DAY);
    let mut scene = with_clock(lab, &clock, &[]);
    let key = |scene: &Scene| fs::read_to_string(scene.agents[0].state_dir.join("wireguard.key")).unwrap();
    let before = key(&scene);
    let stream = scene.stream();
    let since = Instant::now();
    clock.shift(0);
    wait_until("it has another key", NOTICED, || is_another(&key(&scene), &before));
    let noticed = since.elapsed();
    pause(SECOND * 3);
    let losses = stream.stop();
    scene.agents[0].wait_converged(1);

    // Its sessions are gone with its process, and so is what counted on from the old time. What it starts now says what
    // time it is.
    let target = scene.agents[1].subnet().container_addresses().next().unwrap();
    let mut back = Vec::new();
    for days in [0, -1] {
        scene.agents[0].end(Signal::SIGKILL);
        clock.shift(days * DAY);
        let since = Instant::now();
        scene.agents[0].start();
        pinger::assert_reaches(&scene.lab.container(1), target);
        back.push(since.elapsed());
    }
    figure(
        "wireguard (userspace): the clock of a host is set back by a day",
        format!(
            "a new key after {}, {} of {} pings lost; killed and started, peers are reached after {}; set back while it is down: {}",
            ms(noticed),
            losses.lost.len(),
            losses.sent,
            ms(back[0]),
            ms(back[1])
        ),
    );
    // A peer that is sent to by a session it knows nothing of begins one itself after 15 s.
    assert!(back.iter().all(|took| *took < SECOND * 8), "{back:?}\n{}", scene.agents[0].log());
    assert!(losses.lost.len() <= 50, "{losses:?}");
}

fn is_another(now: &str, before: &str) -> Result<(), String> {
    if now == before { Err("it has the same".to_owned()) } else { Ok(()) }
}

/// A file system of its own in the sandbox; unmounted when dropped.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(path: &Path) -> Self {
        fs::create_dir_all(path).unwrap();
        let ran = run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(path));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        Self(path.to_owned())
    }

    /// Fills it to the last byte.
    fn fill(&self) {
        let _ = run(Command::new("dd")
            .args(["if=/dev/zero", "bs=1k"])
            .arg(format!("of={}", self.0.join("fill").display())));
        let mut rest = 0;
        while fs::write(self.0.join(format!("fill{rest}")), [0; 1]).is_ok() && rest < 4096 {
            rest += 1;
        }
    }

    fn empty(&self) {
        for entry in fs::read_dir(&self.0).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("fill") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

fn full_disk() {
    let lab = Lab::new(&Shape::vxlan(2));
    let small = Small::mount(&lab.directory.join("host1/state"));
    let mut agents: Vec<_> = (1..=2).map(|number| agent(&lab, number, &[])).collect();
    agents.iter_mut().for_each(flatnet_tests::agent::Agent::start);
    agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    let mut scene = Scene { agents, lab };
    let host = scene.lab.host(1);
    let stream = scene.stream();
    small.fill();
    let since = Instant::now();
    put_lease(&scene.lab, 250, 98, "02:00:00:00:00:98");
    let seen = until_programmed(&host, 250, 98, "02:00:00:00:00:98", since);
    scene.agents[0].wait_for_problem("snapshot-unwritable");
    let said = since.elapsed();
    // Also an agent that starts on a full disk.
    let before = settled(&host);
    scene.agents[0].end(Signal::SIGKILL);
    scene.agents[0].start();
    scene.agents[0].wait_for_status("both peers on a full disk", |status| {
        status["networks"][0]["peers"].as_array().map_or(0, Vec::len) == 2
    });
    assert_exact(&host, &before);
    small.empty();
    let freed = Instant::now();
    scene.agents[0].wait_converged(2);
    let well = freed.elapsed();
    let losses = stream.stop();
    figure(
        "disk full in the state directory",
        format!(
            "a new lease programmed after {}, said after {}, a start on the full disk keeps everything, converged {} after there is room, {} of {} pings lost",
            ms(seen),
            ms(said),
            ms(well),
            losses.lost.len(),
            losses.sent
        ),
    );
    assert!(losses.lost.is_empty(), "{losses:?}");
    drop(scene);
    drop(small);
}

fn descriptors_gone() {
    let lab = Lab::new(&Shape::vxlan(2));
    let limit = 40;
    let mut agents: Vec<_> = (1..=2).map(|number| agent(&lab, number, &[])).collect();
    let program = agents[0].program.display().to_string();
    // A program that sets the limit and becomes the agent.
    let wrapper = lab.directory.join("limited");
    fs::write(&wrapper, format!("#!/bin/sh\nulimit -n {limit}\nexec {program} \"$@\"\n")).unwrap();
    assert_eq!(run(Command::new("chmod").arg("755").arg(&wrapper)).code, 0);
    agents[0].program = wrapper;
    agents.iter_mut().for_each(flatnet_tests::agent::Agent::start);
    agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    let scene = Scene { agents, lab };
    let host = scene.lab.host(1);
    let pid = scene.agents[0].pid().unwrap();
    let before = settled(&host);
    let idle = descriptors(pid);
    let stream = scene.stream();
    // Connections that ask nothing take every descriptor there is: at the agent's own socket, since its pages take no
    // more connections than a part of them.
    let socket = scene.agents[0].run_dir.join("agent.sock");
    let hogs: Vec<UnixStream> = (0..limit).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    // The agent's own words count: a thread that waits in accept(2) has taken a descriptor that /proc does not show
    // yet, and what the test itself inherited counts too.
    wait_until("no descriptor is left", SECOND * 20, || {
        if scene.agents[0].log().contains("Too many open files") {
            Ok(())
        } else {
            Err(format!("{} of {limit}", descriptors(pid)))
        }
    });
    let cpu = cpu_time(pid);
    let since = Instant::now();
    shell(&host, "ip link del flat.1");
    pause(SECOND * 3);
    let spent = cpu_time(pid) - cpu;
    let watched = since.elapsed();
    let meanwhile = oracle::link(&host, "flat.1").is_some();
    pause(SECOND * 2);
    drop(hogs);
    let freed = Instant::now();
    let took = until_exact("once descriptors are free again", &host, &before, freed);
    scene.agents[0].wait_converged(1);
    let losses = stream.stop();
    let after = descriptors(pid);
    assert_exact(&host, &before);
    figure(
        "descriptor limit",
        format!(
            "{limit} descriptors, all taken: the agent runs on with {} of CPU in {} s, a deleted device {} meanwhile, exact {} after they were free; {idle} open before, {after} after; {} of {} pings lost",
            ms(spent),
            watched.as_secs(),
            if meanwhile { "came back" } else { "did not come back" },
            ms(took),
            losses.lost.len(),
            losses.sent
        ),
    );
    assert!(after <= idle + 2, "descriptors leak: {idle} before, {after} after");
    assert!(spent <= watched / 5, "a busy loop: {spent:?} of {watched:?}");
}

fn hog() {
    let scene = Scene::new(&Shape::vxlan(2));
    let host = scene.lab.host(1);
    let before = settled(&host);
    let owned = scene.lab.etcd.subnets();
    let stream = scene.stream();
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let mut hogs: Vec<Child> = (0..cores * 2)
        .map(|_| Command::new("timeout").args(["6", "sh", "-c", "while :; do :; done"]).spawn().unwrap())
        .collect();
    pause(SECOND);
    let since = Instant::now();
    shell(&host, "ip link del flat.1");
    let took = until_exact("while the processor is hogged", &host, &before, since);
    let since = Instant::now();
    put_lease(&scene.lab, 250, 98, "02:00:00:00:00:98");
    let seen = until_programmed(&host, 250, 98, "02:00:00:00:00:98", since);
    for hog in &mut hogs {
        hog.wait().unwrap();
    }
    scene.agents.iter().for_each(|agent| drop(agent.wait_converged(2)));
    scene.lab.etcd.delete("/coreos.com/network/subnets/10.100.250.0-24");
    scene.agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    let losses = stream.stop();
    assert_exact(&host, &before);
    assert_eq!(scene.lab.etcd.subnets(), owned);
    figure(
        "100 % CPU hog",
        format!(
            "{} busy loops on {cores} cores: a deleted device exact after {}, a new lease programmed after {}, leases kept, {} of {} pings lost",
            cores * 2,
            ms(took),
            ms(seen),
            losses.lost.len(),
            losses.sent
        ),
    );
    assert!(took <= SECOND * 2, "{took:?}");
    assert!(losses.lost.len() <= 100, "{losses:?}");
}

/// The peers of the memory row: as many /28 are in the range for tests between hosts (RFC 2544), where no host has its
/// resolver.
const PEERS: u32 = 8000;
/// etcd's own limit of operations in one transaction.
const PER_TXN: u32 = 125;

fn memory() {
    let lab = Lab::without_network(&Shape::vxlan(2));
    lab.etcd.put(
        "/coreos.com/network/config",
        r#"{"Network":"198.18.0.0/15","SubnetLen":28,"Backend":{"Type":"vxlan"}}"#,
        None,
    );
    let store = Namespace(lab.topology.store().namespace);
    let file = lab.directory.join("txns");
    for first in (0..PEERS).step_by(usize::try_from(PER_TXN).unwrap()) {
        let mut text = String::from("\n");
        for peer in first..first + PER_TXN {
            let value = json!({ "PublicIP": format!("192.168.{}.{}", 64 + peer / 250, peer % 250 + 1), "PublicIPv6": null, "BackendType": "vxlan",
                "BackendData": { "VNI": 1, "VtepMAC": format!("02:00:00:00:{:02x}:{:02x}", peer / 256, peer % 256) } });
            let subnet = Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() + ((peer + 1) << 4));
            text += &format!("put /coreos.com/network/subnets/{subnet}-28 {value}\n");
        }
        text += "\n\n";
        fs::write(&file, text).unwrap();
        let out = shell(
            &store,
            &format!("ETCDCTL_API=3 etcdctl --endpoints {} txn < {}", lab.topology.endpoint(), file.display()),
        );
        assert!(out.contains("SUCCESS"), "{out}");
    }
    // This is anonymous memory, stacks and heaps: what a service manager's MemoryMax would count against it, except for
    // shared pages.
    let mut agent = agent(&lab, 1, &[]);
    let wrapper = lab.directory.join("limited");
    let limit_kib = 64 * 1024;
    fs::write(&wrapper, format!("#!/bin/sh\nulimit -d {limit_kib}\nexec {} \"$@\"\n", agent.program.display()))
        .unwrap();
    assert_eq!(run(Command::new("chmod").arg("755").arg(&wrapper)).code, 0);
    agent.program = wrapper;
    let since = Instant::now();
    agent.start();
    let host = lab.host(1);
    let deadline = Duration::from_secs(40);
    let count = || {
        host.run(&["sh", "-c", "ip -4 route show proto 91 | grep -c '/28'"]).stdout.trim().parse::<u32>().unwrap_or(0)
    };
    let took = wait_until("every peer has its route", deadline, || {
        let routes = count();
        if routes == PEERS { Ok(since.elapsed()) } else { Err(format!("{routes} routes; {}", agent.log())) }
    });
    let pid = agent.pid().unwrap();
    // One more full pass, and the checks of it.
    pause(SECOND * 2);
    shell(&host, "ip link del flat.1");
    let again = Instant::now();
    let repaired = wait_until("every route is there again", deadline, || {
        let routes = count();
        if routes == PEERS { Ok(again.elapsed()) } else { Err(format!("{routes} routes; {}", agent.log())) }
    });
    // Written every five seconds at most.
    pause(SECOND * 6);
    let (data, peak) = (memory_kib(pid, "RssAnon"), memory_kib(pid, "VmHWM"));
    let status = agent.status().unwrap();
    figure(
        "memory limit of 64 MiB at 8,000 peers",
        format!(
            "RLIMIT_DATA 64 MiB: all {PEERS} programmed after {}, again {} after the device was deleted; private memory in use {} MiB, peak resident with the program's own pages {} MiB",
            ms(took),
            ms(repaired),
            data / 1024,
            peak / 1024
        ),
    );
    assert!(!has_problem(&status, "snapshot-unwritable"), "{status}");
    assert!(data <= limit_kib, "{data} KiB");
}
