//! With flannel on other hosts: its leases are programmed, ours are what it expects, packets go both ways.

use std::time::Duration;

use flatnet_tests::flannel::{FlannelHost, MAC};
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, wait_until};
use flatnet_tests::{oracle, pinger};

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("a_flannel_host_and_an_agent_reach_each_other", both_ways).on_backend("vxlan"),
        Test::new("a_lease_without_etcd_lease_is_a_peer_and_never_adopted", reservation).on_backend("vxlan"),
        Test::new("a_hosts_lease_left_by_flanneld_is_adopted", adoption).on_backend("vxlan"),
        Test::new("flannel1_is_replaced_only_when_told", take_over).on_backend("vxlan"),
    ]
}

fn both_ways() {
    let lab = Lab::new(&Shape::vxlan(2));
    let flannel = FlannelHost::new(&lab, 2, 77);
    let lease = lab.etcd.grant(Duration::from_secs(600));
    lab.etcd.put(&flannel.key(), &flannel.lease().to_string(), Some(&lease));
    let agent = lab.join(1);
    agent.wait_converged(1);
    lab.attach(&agent);
    assert_eq!(oracle::fdb(&agent.host, "flat.1").get(MAC).map(String::as_str), Some("192.168.33.12"));
    assert_eq!(oracle::neighbours(&agent.host, "flat.1").get("10.100.77.0").map(String::as_str), Some(MAC));
    let ours = lab.etcd.subnets().into_iter().find(|(key, _)| key != "10.100.77.0-24").expect("the agent's lease");
    assert_eq!(ours.1["BackendType"], "vxlan");
    assert_eq!(ours.1["BackendData"]["VNI"], 1);
    assert_eq!(ours.1["PublicIPv6"], serde_json::Value::Null);
    flannel.program(&ours.0, &ours.1);
    pinger::assert_reaches(&lab.container(1), flannel.container_address());
    let back = agent.subnet().container_addresses().next().unwrap();
    pinger::assert_reaches(&lab.host(2), back);

    // flannel on that host gets another VTEP address, as at each of its restarts before 0.20.
    let mut changed = flannel.lease();
    changed["BackendData"]["VtepMAC"] = "4e:f4:0c:52:b7:00".into();
    lab.etcd.put(&flannel.key(), &changed.to_string(), Some(&lease));
    wait_until("the new VTEP address is programmed and the old one forgotten", SOON, || {
        let fdb = oracle::fdb(&agent.host, "flat.1");
        let right = fdb.len() == 1 && fdb.contains_key("4e:f4:0c:52:b7:00");
        if right { Ok(()) } else { Err(format!("{fdb:?}")) }
    });

    assert_eq!(lab.etcd.ctl(&["lease", "revoke", &lease]).code, 0);
    agent.wait_converged(0);
    assert!(oracle::fdb(&agent.host, "flat.1").is_empty());
    assert!(!oracle::own_routes(&agent.host).contains_key("10.100.77.0/24"));
}

fn reservation() {
    let lab = Lab::new(&Shape::vxlan(1));
    let flannel_like = serde_json::json!({
        "PublicIP": "192.168.33.11", "PublicIPv6": null, "BackendType": "vxlan",
        "BackendData": { "VNI": 1, "VtepMAC": MAC }
    });
    // The lease has the agent's own address, but no etcd lease: it is a reservation, which is not ours to take.
    lab.etcd.put("/coreos.com/network/subnets/10.100.9.0-24", &flannel_like.to_string(), None);
    let agent = lab.join(1);
    let subnet = agent.subnet();
    assert_ne!(subnet.v4.unwrap().to_string(), "10.100.9.1/24");
    let stored = lab.etcd.subnets().into_iter().find(|(key, _)| key == "10.100.9.0-24").unwrap();
    assert_eq!(stored.1, flannel_like, "untouched");
}

fn adoption() {
    let lab = Lab::new(&Shape::vxlan(1));
    let lease = lab.etcd.grant(Duration::from_secs(600));
    let left = serde_json::json!({
        "PublicIP": "192.168.33.11", "PublicIPv6": null, "BackendType": "vxlan",
        "BackendData": { "VNI": 1, "VtepMAC": MAC }
    });
    lab.etcd.put("/coreos.com/network/subnets/10.100.200.0-24", &left.to_string(), Some(&lease));
    let agent = lab.join(1);
    assert_eq!(agent.subnet().v4.unwrap().to_string(), "10.100.200.1/24");
    let leases = lab.etcd.subnets();
    assert_eq!(leases.len(), 1, "{leases:?}");
    assert_ne!(leases[0].1["BackendData"]["VtepMAC"], MAC, "published with the agent's own VTEP");
}

fn take_over() {
    let lab = Lab::new(&Shape::vxlan(2));
    let flannel = FlannelHost::new(&lab, 1, 55);
    let lease = lab.etcd.grant(Duration::from_secs(600));
    lab.etcd.put(&flannel.key(), &flannel.lease().to_string(), Some(&lease));
    let mut agent = lab.join(flannel.number());
    let problem = agent.wait_for_status("a problem that names flannel.1", |status| {
        status["problems"].to_string().contains("flannel.1")
    });
    assert!(problem["problems"].to_string().contains("--take-over"), "{problem}");
    assert!(oracle::link(&agent.host, "flannel.1").is_some(), "not touched without being told");
    agent.end(nix::sys::signal::Signal::SIGTERM);
    agent.arguments.push("--take-over".to_owned());
    agent.start();
    agent.wait_converged(0);
    wait_until("flannel.1 is replaced", SOON, || match oracle::link(&agent.host, "flannel.1") {
        None => Ok(()),
        Some(link) => Err(format!("{link}\n{}", agent.log())),
    });
    assert_eq!(agent.subnet().v4.unwrap().to_string(), "10.100.55.1/24");
}
