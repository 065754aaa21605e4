//! The underlay's address, MTU or interface changes under a running agent.

use std::time::{Duration, Instant};

use flatnet_tests::lab::Shape;
use flatnet_tests::oracle;
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, pause, wait_until};
use serde_json::Value;

use crate::scene::{SECOND, Scene, figure, ms, shell};

/// The time until a connection to the store whose own address is gone is given up, and another made.
const RECONNECTED: Duration = Duration::from_secs(6);

pub fn tests() -> Vec<Test> {
    let mut tests = vec![Test::new("a_smaller_underlay_mtu_is_followed", mtu).on_backend("vxlan")];
    for backend in ["vxlan", "host-gw", "gre", "wireguard"] {
        let shape = Shape { backend, ..Shape::vxlan(2) };
        let other = shape.clone();
        let name = format!("another_underlay_address_keeps_the_subnet::{}", backend.replace('-', "_"));
        tests.push(
            Test::new(name, move || {
                moved(&shape, &format!("underlay address changed ({backend})"), "192.168.33.111",
                    "ip addr add 192.168.33.111/24 dev eth0; ip addr del 192.168.33.11/24 dev eth0; ip addr replace 192.168.33.111/24 dev eth0; ip route replace default via 192.168.33.1 dev eth0");
            })
            .on_backend(backend),
        );
        let name = format!("a_default_route_by_another_nic_keeps_the_subnet::{}", backend.replace('-', "_"));
        tests.push(
            Test::new(name, move || {
                moved(&other, &format!("default route moved to another NIC ({backend})"), "192.168.33.211",
                    "ip addr add 192.168.33.211/24 dev eth1; ip link set eth0 down; ip route replace default via 192.168.33.1 dev eth1");
            })
            .on_backend(backend),
        );
    }
    tests
}

fn moved(shape: &Shape, row: &str, address: &str, script: &str) {
    let scene = Scene::new(shape);
    let (one, two) = (scene.lab.host(1), scene.lab.host(2));
    let underlay = scene.lab.underlay();
    underlay.ok(&format!("ip link add second1 type veth peer name eth1 netns {}", one.0));
    underlay.ok("ip link set second1 master br0 up");
    // There are two cards on one link, and the second would answer for the first one's address. Without a tunnel,
    // packets of peers are believed on the underlay's card only.
    shell(&one, "echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore");
    one.ok("ip link set eth1 up");
    pause(SECOND);
    scene.agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    let subnet = scene.agents[0].subnet();
    let peer_route = subnet.v4.unwrap().trunc().to_string();
    let stream = scene.stream();
    let since = Instant::now();
    shell(&one, script);
    let vxlan = shape.backend == "vxlan";
    let followed = wait_until(&format!("{row}: the peer follows"), SOON, || {
        let there = match shape.backend {
            "vxlan" => oracle::fdb(&two, "flat.1").values().any(|at| at == address),
            "host-gw" => oracle::own_routes(&two).get(&peer_route).is_some_and(|route| route["gateway"] == address),
            _ => {
                let status = scene.agents[1].status().unwrap_or_default();
                status["networks"][0]["peers"][0]["public_ip"] == address
            }
        };
        if there { Ok(since.elapsed()) } else { Err(scene.agents[0].log()) }
    });
    scene.agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    flatnet_tests::pinger::assert_all_pairs(&scene.lab, &scene.agents);
    let converged = since.elapsed();
    pause(SECOND / 2);
    let losses = stream.stop();
    let leases = scene.lab.etcd.subnets();
    figure(
        row,
        format!(
            "peers follow after {}, all converged and pinging after {}, subnet kept, {} of {} pings lost",
            ms(followed),
            ms(converged),
            losses.lost.len(),
            losses.sent
        ),
    );
    assert_eq!(scene.agents[0].subnet(), subnet, "the subnet is kept");
    assert_eq!(leases.len(), 2, "{leases:?}");
    assert!(leases.iter().any(|(_, value)| value["PublicIP"] == address), "{leases:?}");
    if vxlan {
        let link = oracle::link(&one, "flat.1").unwrap();
        assert_eq!(link["linkinfo"]["info_data"]["local"], Value::from(address));
        assert_eq!(oracle::fdb(&two, "flat.1").len(), 1, "the old entry is gone");
    }
    assert!(followed <= RECONNECTED, "{followed:?}");
}

fn mtu() {
    let scene = Scene::new(&Shape::vxlan(2));
    let host = scene.lab.host(1);
    let stream = scene.stream();
    let mut took = Vec::new();
    for (underlay, overlay) in [(1400, 1350), (1500, 1450)] {
        let since = Instant::now();
        host.ok(&format!("ip link set eth0 mtu {underlay}"));
        took.push(wait_until("the device and subnet.env follow", SOON, || {
            let device = oracle::link(&host, "flat.1").map(|link| link["mtu"].clone());
            let file = scene.agents[0].subnet().mtu;
            let right = device == Some(Value::from(overlay)) && file == overlay;
            if right { Ok(since.elapsed()) } else { Err(format!("{device:?} {file}")) }
        }));
    }
    let losses = stream.stop();
    figure(
        "underlay MTU changed",
        format!(
            "device and subnet.env follow after {} and, back, {}; {} of {} pings lost",
            ms(took[0]),
            ms(took[1]),
            losses.lost.len(),
            losses.sent
        ),
    );
    assert!(took.iter().all(|took| *took <= SECOND), "{took:?}");
    assert!(losses.lost.is_empty(), "{losses:?}");
}
