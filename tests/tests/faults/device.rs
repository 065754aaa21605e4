//! The tunnel's device or the underlay's goes away, or down and up.

use std::time::Instant;

use flatnet_tests::Families;
use flatnet_tests::lab::Shape;
use flatnet_tests::netns::run;
use flatnet_tests::suite::Test;
use flatnet_tests::wait::pause;

use crate::scene::{SECOND, Scene, assert_exact, drift, figure, metric, ms, settled, shell, until_exact};

pub fn tests() -> Vec<Test> {
    let dual = Shape { hosts: 2, backend: "vxlan", overlay: Families::Dual, underlay: Families::Dual };
    let test = |name: &'static str, shape: Shape, row: &'static str, script: &'static str| {
        let backend = shape.backend;
        Test::new(name, move || repaired(&shape, row, script)).on_backend(backend)
    };
    vec![
        test("a_deleted_tunnel_device_comes_back", Shape::vxlan(2), "device deleted (vxlan)", "ip link del flat.1"),
        test(
            "a_deleted_tunnel_device_comes_back_on_ipv6",
            dual.clone(),
            "device deleted (vxlan, both families)",
            "ip link del flat.1; ip link del flat6.1",
        ),
        test(
            "a_tunnel_device_set_down_and_up_works_again",
            dual.clone(),
            "device down + up (vxlan, both families)",
            "ip link set flat.1 down; ip link set flat6.1 down; ip link set flat.1 up; ip link set flat6.1 up",
        ),
        test(
            "a_tunnel_device_set_down_comes_up_again",
            Shape::vxlan(2),
            "device down (vxlan)",
            "ip link set flat.1 down",
        ),
        test("a_deleted_gre_device_comes_back", gre(), "device deleted (gre)", "ip link del flatgre0"),
        test("a_gre_device_set_down_comes_up_again", gre(), "device down (gre)", "ip link set flatgre0 down"),
        test(
            "all_routes_through_a_gre_device_come_back",
            gre(),
            "our routes flushed (gre)",
            "ip route flush dev flatgre0 proto 91",
        ),
        test(
            "a_deleted_wireguard_device_comes_back",
            wireguard(),
            "device deleted (wireguard)",
            "ip link del flatwg.51820",
        ),
        test(
            "a_wireguard_device_set_down_comes_up_again",
            wireguard(),
            "device down (wireguard)",
            "ip link set flatwg.51820 down",
        ),
        test(
            "deleted_gre_devices_of_both_families_come_back",
            Shape { backend: "gre", ..dual.clone() },
            "device deleted (gre, both families)",
            "ip link del flatgre0; ip link del flat6gre",
        ),
        test(
            "deleted_wireguard_devices_of_both_families_come_back",
            Shape { backend: "wireguard", ..dual.clone() },
            "device deleted (wireguard, both families)",
            "ip link del flatwg.51820; ip link del flatwg.51821",
        ),
        test(
            "an_underlay_nic_set_down_and_up_works_again_under_gre",
            gre(),
            "underlay NIC down + up (gre)",
            UNDERLAY_DOWN_UP,
        ),
        test(
            "an_underlay_nic_set_down_and_up_works_again_under_wireguard",
            wireguard(),
            "underlay NIC down + up (wireguard)",
            UNDERLAY_DOWN_UP,
        ),
        Test::new("a_wireguard_peer_that_somebody_removed_comes_back", removed_peer).on_backend("wireguard"),
        test(
            "an_underlay_nic_set_down_and_up_works_again",
            Shape::vxlan(2),
            "underlay NIC down + up (vxlan)",
            UNDERLAY_DOWN_UP,
        ),
        test(
            "an_underlay_nic_set_down_and_up_works_again_without_tunnels",
            Shape { backend: "host-gw", ..Shape::vxlan(2) },
            "underlay NIC down + up (host-gw)",
            UNDERLAY_DOWN_UP,
        ),
        test(
            "a_deleted_bridge_comes_back_with_the_containers_in_it",
            Shape::vxlan(2),
            "our bridge deleted",
            "ip link del flbr0",
        ),
    ]
}

fn gre() -> Shape {
    Shape { backend: "gre", ..Shape::vxlan(2) }
}

fn wireguard() -> Shape {
    Shape { backend: "wireguard", ..Shape::vxlan(2) }
}

/// A removed peer. No notification tells of it: the agent finds out by looking.
fn removed_peer() {
    let scene = Scene::new(&wireguard());
    let peers = || {
        let argv = ["wg", "show", "flatwg.51820", "allowed-ips"].map(str::to_owned).into();
        run(&mut scene.agents[0].on_host(argv)).stdout
    };
    let (before, repaired) = (peers(), drift(&scene.lab.host(1), "wireguard_peer"));
    let key = before.split_whitespace().next().unwrap();
    let stream = scene.stream();
    let since = Instant::now();
    let argv = ["wg", "set", "flatwg.51820", "peer", key, "remove"].map(str::to_owned).into();
    assert_eq!(run(&mut scene.agents[0].on_host(argv)).code, 0);
    // The agent may have looked before we do: that it was away is what the drift counter says.
    let counted = || drift(&scene.lab.host(1), "wireguard_peer") - repaired;
    let took = loop {
        if peers() == before && counted() > 0 {
            break since.elapsed();
        }
        assert!(since.elapsed() < SECOND * 5, "{}\n{}", peers(), scene.agents[0].log());
        pause(SECOND / 50);
    };
    pause(SECOND);
    let losses = stream.stop();
    let counted = counted();
    figure(
        "peer removed with wg set (wireguard)",
        format!(
            "back after {}, {} of {} pings lost, {counted} peers counted as drift",
            ms(took),
            losses.lost.len(),
            losses.sent
        ),
    );
    assert!(took <= SECOND, "back only after {took:?}");
    assert_eq!(counted, 1);
    assert!(losses.lost.len() <= 110, "{losses:?}");
}

/// The default route goes with the link for good; the host's network manager brings it back.
const UNDERLAY_DOWN_UP: &str =
    "ip link set eth0 down; ip link set eth0 up; ip route replace default via 192.168.33.1 dev eth0";

fn repaired(shape: &Shape, row: &str, script: &str) {
    let scene = Scene::new(shape);
    let host = scene.lab.host(1);
    let before = settled(&host);
    // Repairs of every kind count: of a device that is up again before anybody looked, only what went with it is
    // missing.
    let repairs = || metric(&host, "flatnet_drift_repairs_total", &[]);
    let repaired = repairs();
    let stream = scene.stream();
    pause(SECOND / 2);
    let since = Instant::now();
    shell(&host, script);
    let took = until_exact(row, &host, &before, since);
    pause(SECOND);
    let losses = stream.stop();
    assert_exact(&host, &before);
    let counted = repairs() - repaired;
    figure(
        row,
        format!(
            "exact after {}, {} of {} pings lost, {counted} objects counted as drift",
            ms(took),
            losses.lost.len(),
            losses.sent
        ),
    );
    assert!(took <= SECOND, "{row}: exact only after {took:?}");
    assert!(losses.lost.len() <= 100, "{row}: {losses:?}");
    if !script.contains("eth0") {
        assert!(counted > 0, "{row}: not counted as drift");
    }
}
