//! Agents on real hosts, each with its own kernel.

use flatnet_tests::suite::Test;
use flatnet_tests::vm::VmLab;

pub fn tests() -> Vec<Test> {
    vec![Test::new("three_hosts_join_over_vxlan_and_their_containers_reach_each_other", vxlan).in_vms()]
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
