//! The kernel's GRE, on Debian's kernel: meshes, hosts set up by hand beside them, strangers, user space beside the
//! kernel.

#[path = "gre/by_hand.rs"]
mod by_hand;
#[path = "gre/faults.rs"]
mod faults;
#[path = "gre/networks.rs"]
mod networks;

use std::net::IpAddr;
use std::time::Duration;

use flatnet_tests::suite::Test;
use flatnet_tests::vm::{Vm, VmLab};
use flatnet_tests::wait::pause;

use self::by_hand::{Forger, HandMade};
use crate::pings;

/// The device of the network without a key.
const DEVICE: &str = "flatgre0";
/// Machines with an agent; the one after them is set up by hand.
const AGENTS: [u8; 3] = [1, 2, 3];
const BY_HAND: u8 = 4;
/// The pings that may be lost while the kernel takes over. Between the removal of the device in user space and the last
/// route into the kernel's, nothing is carried. This is a pass of the reconciler, a few milliseconds on a real machine
/// and up to 700 in an emulated one beside others (seen: 3 to 14 pings, at 20 a second).
const TAKEOVER_LOST: u64 = 40;

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("the_kernels_gre_carries_a_mesh_with_a_host_made_by_hand_and_no_strangers", mesh).in_vms(),
        Test::new("gre_networks_of_both_families_are_told_apart_by_key_also_over_ipv6", networks::two_by_key).in_vms(),
        Test::new("a_host_without_gre_modules_is_a_peer_and_the_kernel_takes_over_when_they_turn_up", mixed).in_vms(),
    ]
}

fn container(vm: &Vm) -> IpAddr {
    vm.subnet().container_addresses().next().unwrap()
}

fn datapath(vm: &Vm) -> String {
    vm.json("agent status --json")["networks"][0]["datapath"].as_str().unwrap_or_default().to_owned()
}

fn mesh() {
    let lab = VmLab::up(4);
    lab.start_etcd(1);
    lab.configure(r#"{"Network":"10.100.0.0/16","Backend":{"Type":"gre"}}"#);
    let capture = lab.capture("ip proto 47");
    lab.join_some(&AGENTS, &["--no-userspace"]);
    lab.each_of(&AGENTS, Vm::attach);
    lab.assert_pairs_of(&AGENTS);
    let seen = capture.stop();
    assert!(seen.contains("192.168.33.11 > 192.168.33.12") && seen.contains("GREv0"), "{seen}");
    // A foreign tool: one device of the kernel's, and a permanent neighbour for each peer.
    assert_eq!(datapath(lab.vm(1)), "kernel");
    let link = lab.vm(1).json(&format!("ip -j -d link show {DEVICE}"));
    assert_eq!((&link[0]["linkinfo"]["info_kind"], &link[0]["mtu"]), (&"gre".into(), &1476.into()), "{link}");
    let neighbours = lab.vm(1).ok(&format!("ip neigh show dev {DEVICE} nud permanent"));
    assert!(neighbours.contains("192.168.33.12") && neighbours.contains("192.168.33.13"), "{neighbours}");

    faults::all(&lab);
    lab.vm(1).ok("agent doctor");

    // The cookbook's host, before anybody has named it, and after.
    let hand_made = HandMade::up(lab.vm(BY_HAND), &AGENTS.map(|number| lab.vm(number)));
    let stranger = Forger::new(lab.vm(BY_HAND), lab.vm(2));
    stranger.assert_refused(hand_made.address(), container(lab.vm(2)));
    let endpoint = lab.endpoint();
    lab.vm(1).ok(&format!(
        "agent network peer add default --subnet {} --public-ip {} --endpoint {endpoint}",
        hand_made.subnet(),
        lab.vm(BY_HAND).address()
    ));
    lab.each_of(&AGENTS, |vm| drop(vm.wait_converged(3)));
    for number in AGENTS {
        lab.vm(number).assert_container_reaches(hand_made.address());
        lab.vm(BY_HAND).assert_container_reaches(container(lab.vm(number)));
    }
    // A peer lies about who is inside: all the while the agent is killed and comes back.
    let liar = Forger::new(lab.vm(BY_HAND), lab.vm(2));
    liar.assert_refused_while(container(lab.vm(3)), container(lab.vm(2)), || {
        lab.vm(2).end("agent", "KILL");
        lab.vm(2).join(&endpoint, &["--no-userspace"]);
        lab.vm(2).wait_converged(3);
    });
    let left = lab.vm(2).ok("agent leave --purge; ip -o link show | grep -c flatgre; nft list tables; true");
    assert!(left.lines().any(|line| line == "0") && !left.contains("inet flatnet"), "{left}");
}

/// The script that keeps the kernel from GRE until it is taken back, and the one that takes it back.
const WITHOUT_MODULES: &str = "printf 'install ip_gre /bin/false\ninstall ip6_gre /bin/false\n' > /etc/modprobe.d/no-gre.conf; \
                               modprobe -r ip_gre ip6_gre; [ ! -e /sys/module/ip_gre ] && [ ! -e /sys/module/ip6_gre ]";
const MODULES_TURN_UP: &str =
    "rm /etc/modprobe.d/no-gre.conf; modprobe -a ip_gre ip6_gre; ip link add nudge type bridge";

fn mixed() {
    let lab = VmLab::up(2);
    lab.start_etcd(1);
    lab.configure(
        r#"{"Network":"10.100.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:100::/56","Backend":{"Type":"gre"}}"#,
    );
    lab.vm(2).ok(WITHOUT_MODULES);
    lab.join_all(&[]);
    lab.attach_all();
    lab.assert_all_pairs();
    assert_eq!((datapath(lab.vm(1)), datapath(lab.vm(2))), ("kernel".to_owned(), "userspace".to_owned()));
    assert_eq!(kinds(lab.vm(1)), ["gre", "ip6gre"]);
    assert_eq!(kinds(lab.vm(2)), ["tun", "tun"]);

    // The modules turn up: the kernel takes over, under pings.
    let (one, two) = (container(lab.vm(1)), container(lab.vm(2)));
    pings::start(lab.vm(1), "to2", two);
    pings::start(lab.vm(2), "to1", one);
    lab.vm(2).ok(MODULES_TURN_UP);
    is_carried_by(lab.vm(2), "kernel");
    pause(Duration::from_secs(1));
    let ends = [(1, "to2"), (2, "to1")].map(|(vm, name)| pings::end(lab.vm(vm), name));
    println!("figure: GRE, the module turns up and the kernel takes over: (sent, lost, slowest ms) {ends:?}");
    lab.assert_all_pairs();
    assert_eq!(kinds(lab.vm(2)), ["gre", "ip6gre"]);
    for (sent, lost, _) in ends {
        assert!(sent > 20 && lost <= TAKEOVER_LOST, "{lost} of {sent} pings lost in the takeover");
    }

    // They vanish, which the kernel allows only while there is no such device: the agent stands in again.
    lab.vm(2).ok(&format!(
        "kill -STOP $(cat /run/agent.pid); ip link del {DEVICE}; ip link del flat6gre; {WITHOUT_MODULES}; gone=$?; \
         kill -CONT $(cat /run/agent.pid); exit $gone"
    ));
    is_carried_by(lab.vm(2), "userspace");
    lab.assert_all_pairs();
    assert_eq!(kinds(lab.vm(2)), ["tun", "tun"]);
}

fn is_carried_by(vm: &Vm, datapath: &str) {
    vm.wait_for(
        &format!("GRE is carried in {datapath}"),
        &format!("agent status --json | grep -q '\"datapath\": *\"{datapath}\"'"),
    );
    vm.wait_converged(1);
}

/// Returns the kinds of the devices over IPv4 and over IPv6.
fn kinds(vm: &Vm) -> [String; 2] {
    [DEVICE, "flat6gre"].map(|device| {
        let link = vm.json(&format!("ip -j -d link show {device}"));
        link[0]["linkinfo"]["info_kind"].as_str().unwrap_or_default().to_owned()
    })
}
