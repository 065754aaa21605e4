//! Agents on real hosts, each with its own kernel.

use flatnet_tests::suite::Test;
use flatnet_tests::vm::VmLab;
use flatnet_tests::wait::{SOON, wait_until};

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("three_hosts_join_over_vxlan_and_their_containers_reach_each_other", vxlan).in_vms(),
        Test::new("a_flushed_ruleset_leaves_the_held_copy_of_every_chain_that_filters", flushed).in_vms(),
    ]
}

fn vxlan() {
    let lab = VmLab::up(3);
    lab.start_etcd(1);
    lab.configure(
        r#"{"Network":"10.100.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:100::/56","Backend":{"Type":"vxlan"}}"#,
    );
    let capture = lab.capture("udp port 8472");
    lab.join_all(&[]);
    lab.attach_all();
    lab.assert_all_pairs();
    let seen = capture.stop();
    assert!(seen.contains("OTV") || seen.contains("VXLAN"), "no tunnel packets: {seen}");
    // A foreign tool: the routes are there, through the tunnel and marked.
    let routes = lab.vm(2).json("ip -j route show proto 91");
    let tunnelled = routes.as_array().unwrap().iter().filter(|route| route["dev"] == "flat.1").count();
    assert_eq!(tunnelled, 2, "{routes}");
}

/// A script that prints the name of each chain of the held copy; it fails at the first whose rules are not the
/// original's.
const COMPARE: &str = r#"
    rules() { nft -s list chain inet $1 $2 | grep -v 'flags owner\|comment "flatnet\|type filter hook' | tail -n +2; }
    for chain in $(nft list table inet flatnet_held | sed -n 's/^\tchain \(.*\) {/\1/p'); do
        rules flatnet $chain > /tmp/original && rules flatnet_held $chain | sed '/^$/d' > /tmp/copy &&
            diff /tmp/original /tmp/copy && echo $chain || exit 1
    done
"#;

/// A flush on Debian's kernel, which lists and takes intervals its own way: every chain that filters is in the copy,
/// also after a flush, and the copy goes with the agent.
fn flushed() {
    let lab = VmLab::up(2);
    lab.start_etcd(1);
    let endpoint = lab.endpoint();
    for network in [
        "default --cidr 10.100.0.0/16 --cidr6 fd00:100::/56 --backend vxlan",
        "green --cidr 10.101.0.0/16 --backend gre --key 7",
        "white --cidr 10.102.0.0/16 --backend wireguard",
    ] {
        lab.vm(1).ok(&format!("agent network create {network} --endpoint {endpoint}"));
    }
    lab.join_all(&["--network", "default", "--network", "green", "--network", "white"]);
    lab.attach_all();
    let host = lab.vm(1);
    let before = host.ok(COMPARE);
    for wanted in ["guard", "origin", "forward", "arrival", "encrypted_out", "gre4"] {
        assert!(before.lines().any(|chain| chain == wanted), "{wanted}: {before}");
    }
    assert!(!before.contains("nat_") && !before.contains("postrouting"), "{before}");
    let flush = "nft flush ruleset; nft list tables; ! nft delete table inet flatnet_held 2>/dev/null";
    assert!(host.ok(flush).contains("table inet flatnet_held"), "the copy went too");
    lab.assert_all_pairs();
    wait_until("the table is back, and copied", SOON, || {
        let ran = host.sh(COMPARE);
        if ran.rc == 0 && ran.output == before { Ok(()) } else { Err(ran.output) }
    });
    host.end("agent", "KILL");
    assert!(!host.ok("nft list tables").contains("flatnet_held"), "the copy outlived its owner");
}
