//! The kernel's WireGuard, on Debian's kernel: it is only set up by the agent, and so does not end with it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use flatnet_tests::suite::Test;
use flatnet_tests::vm::{Capture, Vm, VmLab};
use flatnet_tests::wait::{pause, wait_until};

use crate::pings;

/// The tunnel's device, from its default port.
const DEVICE: &str = "flatwg.51820";

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("the_kernels_wireguard_carries_a_mesh_and_its_keys_change_without_loss", mesh).in_vms(),
        Test::new("a_restarted_agent_finds_the_kernels_sessions_alive", restart).in_vms(),
        Test::new("a_host_without_the_module_and_one_with_it_are_peers", mixed).in_vms(),
    ]
}

/// The filter for packets between the machines that are a tunnel's, or should have been in one.
const TUNNEL_OR_CLEAR: &str = "net 10.100.0.0/16 or ip6 net fd00:100::/56 or udp port 51820";
/// The seconds after which a session is renewed by its user (`REKEY_AFTER_TIME`, WireGuard §6.1), less what clocks
/// round.
const RENEWED_AFTER_SECS: u64 = 118;
/// The pings that may be lost, at 20 a second, until there is a session anew. Without one nothing is carried: until the
/// device is there again, and for one handshake. The handshake is not left to the other end, which would notice after
/// 15 s (`KEEPALIVE_TIMEOUT` and `REKEY_TIMEOUT`).
const ANEW_LOST: u64 = 80;
/// The time within which a kernel whose module turned up carries what the agent carried.
const TAKEN_OVER: Duration = Duration::from_secs(90);

fn up(machines: u8) -> VmLab {
    let lab = VmLab::up(machines);
    lab.start_etcd(1);
    lab.configure(
        r#"{"Network":"10.100.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:100::/56","Backend":{"Type":"wireguard"}}"#,
    );
    lab
}

fn container(vm: &Vm) -> IpAddr {
    vm.subnet().container_addresses().next().unwrap()
}

fn mesh() {
    let lab = up(3);
    let capture = lab.capture(TUNNEL_OR_CLEAR);
    lab.join_all(&["--no-userspace"]);
    lab.attach_all();
    lab.assert_all_pairs();
    let status = lab.vm(1).json("agent status --json");
    assert_eq!(status["networks"][0]["datapath"], "kernel", "{status}");
    let kind = lab.vm(1).json(&format!("ip -j -d link show {DEVICE}"));
    assert_eq!(kind[0]["linkinfo"]["info_kind"], "wireguard", "{kind}");
    assert_eq!(lab.vm(2).ok(&format!("wg show {DEVICE} latest-handshakes")).lines().count(), 2);
    lab.vm(1).ok("agent doctor");
    let (one, two, three) = (container(lab.vm(1)), container(lab.vm(2)), container(lab.vm(3)));
    pings::start(lab.vm(1), "to2", two);
    pings::start(lab.vm(2), "to1", one);
    pings::start(lab.vm(3), "to1", one);
    pings::start(lab.vm(2), "to3", three);
    pause(Duration::from_secs(1));
    let before = lab.vm(1).ok(&format!("wg show {DEVICE} public-key"));
    let key = lab.vm(1).ok("agent rotate-key");
    assert_ne!(key, before);
    assert_eq!(lab.vm(1).ok(&format!("wg show {DEVICE} public-key")), key);
    for peer in [2, 3] {
        lab.vm(peer).wait_for("the new key is known", &format!("wg show {DEVICE} peers | grep -qxF '{}'", key.trim()));
        assert!(!lab.vm(peer).ok(&format!("wg show {DEVICE} peers")).contains(before.trim()));
    }
    pause(Duration::from_secs(2));
    let ends =
        [(1, "to2"), (2, "to1"), (3, "to1"), (2, "to3")].map(|(vm, name)| (vm, name, pings::end(lab.vm(vm), name)));
    // What packets wait for is the new key's way through the store: in an emulated machine that alone takes this long.
    let write = lab.vm(1).ok("began=$(date +%s%N); ETCDCTL_API=3 etcdctl put /scale 1 >/dev/null; \
                              echo $((($(date +%s%N) - began) / 1000000))");
    println!(
        "figure: wireguard (kernel), rotate-key under pings: (sent, lost, slowest ms) {ends:?}; a write to the store takes {} ms \
         in this machine",
        write.trim()
    );
    for (vm, name, (sent, lost, _)) in ends {
        assert!(sent > 50, "host{vm} {name}: {sent}");
        assert_eq!(lost, 0, "host{vm} {name}");
    }
    assert_nothing_in_clear(capture);
}

/// Asserts that the capture has packets of the tunnel, and none with an address of the network.
fn assert_nothing_in_clear(capture: Capture) {
    let seen = capture.stop();
    assert!(seen.contains("51820"), "no tunnel packets: the capture is no proof");
    let clear: Vec<&str> =
        seen.lines().filter(|line| line.contains("10.100.") || line.contains("fd00:100:")).take(5).collect();
    assert!(clear.is_empty(), "in clear: {clear:?}");
}

fn restart() {
    let lab = up(2);
    lab.join_all(&[]);
    lab.attach_all();
    lab.assert_all_pairs();
    let two = container(lab.vm(2));
    let handshake = handshake(lab.vm(1));
    // Whatever is done from here on, also to an address that nobody has.
    let capture = lab.capture(TUNNEL_OR_CLEAR);
    lab.vm(1).start("unknown", "ip netns exec c1 ping -n -i 0.2 -W 1 10.100.255.77");
    pings::start(lab.vm(1), "to2", two);
    for signal in ["TERM", "KILL"] {
        lab.vm(1).end("agent", signal);
        pause(Duration::from_secs(1));
        let endpoint = lab.endpoint();
        lab.vm(1).join(&endpoint, &[]);
        lab.vm(1).wait_converged(1);
    }
    let (sent, lost, slowest) = pings::end(lab.vm(1), "to2");
    println!(
        "figure: wireguard (kernel), SIGTERM and SIGKILL + start: {lost} of {sent} pings lost, slowest {slowest} ms"
    );
    assert_eq!(lost, 0);
    let now = self::handshake(lab.vm(1));
    assert!(now == handshake || now >= handshake + RENEWED_AFTER_SECS, "the session of {handshake} was lost: {now}");
    // Somebody deletes the device, while only the other end has something to say.
    let one = container(lab.vm(1));
    pings::start(lab.vm(2), "to1", one);
    lab.vm(1).ok(&format!("ip link del {DEVICE}"));
    lab.vm(1).wait_for("the device is back", &format!("ip link show {DEVICE}"));
    lab.vm(1).wait_converged(1);
    lab.vm(2).assert_container_reaches(one);
    let (sent, lost, _) = pings::end(lab.vm(2), "to1");
    println!("figure: wireguard (kernel), device deleted: {lost} of {sent} pings lost");
    assert!(lost <= ANEW_LOST, "{lost} of {sent} pings lost");
    // Somebody takes a peer out: it is put back.
    lab.vm(1).ok(&format!("wg set {DEVICE} peer $(wg show {DEVICE} peers) remove"));
    lab.vm(1).wait_for("the peer is back", &format!("[ $(wg show {DEVICE} peers | wc -l) = 1 ]"));
    lab.vm(1).assert_container_reaches(two);
    clock_set_back(&lab, one, two);
    let left = lab.vm(1).ok("ip link del c1; agent leave --purge && ip -o link show | grep -c flatwg || true");
    assert_eq!(left.trim(), "0");
    lab.vm(1).end("unknown", "INT");
    assert_nothing_in_clear(capture);
}

/// A clock set back: peers take the host's handshakes for replayed ones, but under another key it has no past.
fn clock_set_back(lab: &VmLab, one: IpAddr, two: IpAddr) {
    let before = lab.vm(1).ok(&format!("wg show {DEVICE} public-key"));
    let since = Instant::now();
    lab.vm(1).ok("date -s @$(($(date +%s) - 86400))");
    lab.vm(1).wait_for("another key", &format!("[ \"$(wg show {DEVICE} public-key)\" != '{}' ]", before.trim()));
    let changed = since.elapsed();
    let key = lab.vm(1).ok(&format!("wg show {DEVICE} public-key"));
    lab.vm(2).wait_for("the new key is known", &format!("wg show {DEVICE} peers | grep -qxF '{}'", key.trim()));
    lab.vm(1).assert_container_reaches(two);
    lab.vm(2).assert_container_reaches(one);
    // A handshake that this host begins itself: the other end has forgotten the session.
    lab.vm(2).ok(&format!("ip link set {DEVICE} down && ip link set {DEVICE} up"));
    lab.vm(2).wait_converged(1);
    lab.vm(1).assert_container_reaches(two);
    println!(
        "figure: wireguard (kernel), the clock is set back by a day: a new key after {:.1} s, reached both ways after {:.1} s",
        changed.as_secs_f64(),
        since.elapsed().as_secs_f64()
    );
}

/// Returns when the newest session began, in seconds since 1970.
fn handshake(vm: &Vm) -> u64 {
    let said = vm.ok(&format!("wg show {DEVICE} latest-handshakes"));
    said.split_whitespace().nth(1).and_then(|secs| secs.parse().ok()).unwrap_or_else(|| panic!("{said}"))
}

fn mixed() {
    let lab = up(2);
    lab.vm(2).ok("modprobe -r wireguard; echo 'install wireguard /bin/false' > /etc/modprobe.d/no-wireguard.conf");
    lab.join_all(&[]);
    lab.attach_all();
    lab.assert_all_pairs();
    let datapath = |vm: &Vm| vm.json("agent status --json")["networks"][0]["datapath"].as_str().unwrap().to_owned();
    assert_eq!((datapath(lab.vm(1)), datapath(lab.vm(2))), ("kernel".to_owned(), "userspace".to_owned()));
    // The module turns up: the kernel takes over, under pings.
    pings::start(lab.vm(1), "to2", container(lab.vm(2)));
    lab.vm(2).ok("rm /etc/modprobe.d/no-wireguard.conf; modprobe wireguard; ip link add nudge type bridge");
    // Not before peers listen to the kernel's handshakes: 30 s after the last one of the agent's own.
    let carried = "agent status --json | grep -q '\"datapath\": *\"kernel\"'";
    wait_until("the kernel carries it", TAKEN_OVER, || match lab.vm(2).sh(carried).rc {
        0 => Ok(()),
        _ => Err("the agent does".to_owned()),
    });
    lab.vm(2).wait_converged(1);
    lab.assert_all_pairs();
    let (sent, lost, slowest) = pings::end(lab.vm(1), "to2");
    println!(
        "figure: wireguard, the module turns up and the kernel takes over: {lost} of {sent} pings lost, slowest {slowest} ms"
    );
    assert!(lost <= ANEW_LOST, "{lost} of {sent} pings lost");

    // It vanishes, and its devices with it: the agent stands in again.
    lab.vm(2).ok("echo 'install wireguard /bin/false' > /etc/modprobe.d/no-wireguard.conf; modprobe -r wireguard; \
         [ ! -e /sys/module/wireguard ]");
    lab.vm(2).wait_for("the agent carries it", "agent status --json | grep -q '\"datapath\": *\"userspace\"'");
    lab.vm(2).wait_converged(1);
    lab.assert_all_pairs();
}
