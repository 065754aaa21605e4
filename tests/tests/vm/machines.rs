//! Tests of the harness itself: what a test may rely on.

use std::collections::BTreeSet;

use flatnet_tests::suite::Test;
use flatnet_tests::vm::VmLab;

pub fn tests() -> Vec<Test> {
    vec![Test::new("clones_share_neither_random_numbers_nor_names_nor_addresses_and_reach_each_other", clones).in_vms()]
}

fn clones() {
    let lab = VmLab::up(3);
    let all = |script: &str| -> BTreeSet<String> { lab.machines().iter().map(|vm| vm.ok(script)).collect() };
    for script in [
        "cat /proc/sys/kernel/random/uuid",
        "head -c 16 /dev/urandom | od -An -tx1",
        "hostname",
        "cat /sys/class/net/eth0/address",
        "wg genkey",
    ] {
        assert_eq!(all(script).len(), 3, "`{script}` says the same in two machines: {:?}", all(script));
    }
    let here = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let there: u64 = lab.vm(3).ok("date +%s").trim().parse().unwrap();
    assert!(there.abs_diff(here) < 20, "a clone's clock is {there}, ours {here}");

    let capture = lab.capture("icmp or icmp6");
    lab.vm(1).wait_for("host1 reaches host3", "ping -nc 1 -W 2 192.168.33.13");
    lab.vm(1).wait_for("host1 reaches host3 by IPv6", "ping -nc 1 -W 2 fd33::13");
    let seen = capture.stop();
    assert!(seen.contains("192.168.33.11 > 192.168.33.13") && seen.contains("fd33::11 > fd33::13"), "{seen}");

    // What a script leaves running does not hold its answer up, and its code and output are its own.
    lab.vm(2).start("sleeper", "sleep 1000");
    lab.vm(2).end("sleeper", "TERM");
    let ran = lab.vm(2).sh("echo to stdout; echo to stderr >&2; exit 7");
    assert_eq!((ran.rc, ran.output.as_str()), (7, "to stdout\nto stderr\n"));
    let ran = lab.vm(2).sh_within("sleep 1000", std::time::Duration::from_secs(1));
    assert_eq!(ran.rc, 124);
    lab.vm(2).put("/opt/a/file", 0o755, b"#!/bin/sh\necho put\n");
    assert_eq!(lab.vm(2).ok("/opt/a/file"), "put\n");
    // Modules of this kernel are found by name.
    lab.vm(2)
        .ok("ip link add gre9 type gre local 192.168.33.12 remote 192.168.33.13 && ip link add wg9 type wireguard");
}
