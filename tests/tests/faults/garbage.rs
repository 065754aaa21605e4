//! Garbage under any key: reported by name, skipped, and the rest works. A changed network is refused loudly.

use std::time::Instant;

use flatnet_tests::lab::Shape;
use flatnet_tests::suite::Test;
use flatnet_tests::wait::pause;
use serde_json::json;

use crate::scene::{SECOND, Scene, assert_exact, figure, has_problem, ms, settled, shell, until_exact};
use crate::store::{put_lease, until_programmed};

const SUBNETS: &str = "/coreos.com/network/subnets/";

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("garbage_in_the_store_is_named_and_skipped", garbage).on_backend("vxlan"),
        Test::new("a_changed_network_is_refused_loudly", changed_network).on_backend("vxlan"),
    ]
}

/// Returns keys below the subnets and their values. `half` is half of the network, with an agent's subnet in it.
fn keys(half: &str) -> Vec<(String, String)> {
    let lease = |ip: &str, mac: &str| {
        json!({ "PublicIP": ip, "PublicIPv6": null, "BackendType": "vxlan", "BackendData": { "VNI": 1, "VtepMAC": mac } })
            .to_string()
    };
    let good = lease("192.168.33.90", "02:00:00:00:00:90");
    [
        ("../../../etc/passwd", good.clone()),
        ("10.100.9.0-24/../../x", good.clone()),
        ("10.100.10.0-24", "not JSON".to_owned()),
        ("10.100.11.0-24", r#"{"PublicIP":NaN}"#.to_owned()),
        ("10.100.12.0-24", r#"{"PublicIP":1e999,"BackendType":"vxlan"}"#.to_owned()),
        ("10.100.13.0-24", lease("256.1.1.1", "02:00:00:00:00:91")),
        ("10.100.14.0-24", lease("192.168.33.91", "ff:ff:ff:ff:ff:ff")),
        ("10.100.15.0-24", lease("127.0.0.1", "02:00:00:00:00:92")),
        ("10.100.16.0-24", "[".repeat(50_000)),
        ("10.100.17.0-33", good.clone()),
        ("10.100.18.7-24", good.clone()),
        ("300.1.1.0-24", good.clone()),
        ("", good.clone()),
        ("\u{1b}[31m10.100.19.0-24\u{7}", good.clone()),
        // These keys are where they have no business: the whole network, another one, over others' subnets.
        ("10.100.0.0-16", lease("192.168.33.92", "02:00:00:00:00:93")),
        ("0.0.0.0-0", lease("192.168.33.93", "02:00:00:00:00:94")),
        ("172.16.0.0-24", lease("192.168.33.94", "02:00:00:00:00:95")),
        (half, lease("192.168.33.95", "02:00:00:00:00:96")),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

fn garbage() {
    let scene = Scene::new(&Shape { hosts: 2, ..Shape::vxlan(2) });
    let host = scene.lab.host(1);
    let before = settled(&host);
    let stream = scene.stream();
    let etcd = &scene.lab.etcd;
    let container = scene.agents[1].subnet().container_addresses().next().unwrap().to_string();
    let third: u8 = container.split('.').nth(2).unwrap().parse().unwrap();
    let keys = keys(if third < 128 { "10.100.0.0-17" } else { "10.100.128.0-17" });
    for (key, value) in &keys {
        etcd.put(&format!("{SUBNETS}{key}"), value, None);
    }
    // A megabyte does not fit on a command line.
    let store = flatnet_tests::netns::Namespace(scene.lab.topology.store().namespace);
    shell(
        &store,
        &format!(
            "(printf '{{\"PublicIP\":\"'; head -c 1000000 /dev/zero | tr '\\0' 9; printf '\"}}') | ETCDCTL_API=3 etcdctl --endpoints {} put {SUBNETS}10.100.20.0-24",
            scene.lab.topology.endpoint()
        ),
    );
    // The same subnet twice, in both forms of a key.
    etcd.put(&format!("{SUBNETS}10.100.21.0-24&fd00:100:0:21::-64"), r#"{"PublicIP":"192.168.33.96"}"#, None);
    for key in [
        "/flatnet/claims/default/10.100.30.0-24",
        "/flatnet/nodes/../../x",
        "/flatnet/nodes/zz",
        "/flatnet/catalog",
        "/flatnet/networks/../config",
        "/flatnet/networks/NaN/config",
    ] {
        etcd.put(key, "\u{1}garbage{", None);
    }
    let since = Instant::now();
    // In whatever form: control characters must not reach a terminal.
    scene.agents[0].wait_for_status("every key is named", |status| {
        let problems = status["problems"].to_string();
        let named = |key: &str| problems.contains(key) || problems.contains(&key.replace('-', "/"));
        keys.iter().map(|(key, _)| key).filter(|key| !key.contains('\u{1b}')).all(|key| named(key))
    });
    let said = since.elapsed();
    let said_plainly = scene.agents[0].command(&["status"]).stdout;
    // The rest works: a new lease, the stream.
    put_lease(&scene.lab, 250, 98, "02:00:00:00:00:98");
    let seen = until_programmed(&host, 250, 98, "02:00:00:00:00:98", Instant::now());
    etcd.delete(&format!("{SUBNETS}10.100.250.0-24"));
    until_exact("nothing of the garbage is in the kernel", &host, &before, Instant::now());
    let losses = stream.stop();
    for (key, _) in &keys {
        etcd.delete(&format!("{SUBNETS}{key}"));
    }
    etcd.delete(&format!("{SUBNETS}10.100.20.0-24"));
    etcd.delete(&format!("{SUBNETS}10.100.21.0-24&fd00:100:0:21::-64"));
    scene.agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    assert_exact(&host, &before);
    figure(
        "garbage under store keys",
        format!(
            "{} keys, all reported after {}, a new lease beside them programmed after {}, kernel untouched, {} of {} pings lost",
            keys.len() + 2,
            ms(said),
            ms(seen),
            losses.lost.len(),
            losses.sent
        ),
    );
    assert!(
        !said_plainly.contains('\u{1b}') && !said_plainly.contains('\u{7}'),
        "control characters reach the terminal"
    );
    assert!(losses.lost.is_empty(), "{losses:?}");
}

fn changed_network() {
    let scene = Scene::new(&Shape::vxlan(2));
    let host = scene.lab.host(1);
    let before = settled(&host);
    let stream = scene.stream();
    let since = Instant::now();
    scene.lab.etcd.put("/coreos.com/network/config", r#"{"Network":"10.200.0.0/16","Backend":{"Type":"vxlan"}}"#, None);
    scene.agents[0].wait_for_problem("network-changed");
    let said = since.elapsed();
    pause(SECOND);
    assert_exact(&host, &before);
    scene.lab.etcd.put("/coreos.com/network/config", "{ not even JSON", None);
    scene.agents[0].wait_for_problem("config-invalid");
    assert_exact(&host, &before);
    scene.lab.etcd.delete("/coreos.com/network/config");
    scene.agents[0].wait_for_status("the missing configuration is said", |status| {
        has_problem(status, "no-config") || has_problem(status, "store-suspect")
    });
    assert_exact(&host, &before);
    scene.lab.etcd.put("/coreos.com/network/config", &Shape::vxlan(2).config().to_string(), None);
    scene.agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    let losses = stream.stop();
    assert_exact(&host, &before);
    figure(
        "Network changed, made invalid, deleted, put back",
        format!(
            "refused by name after {}, kernel untouched, {} of {} pings lost",
            ms(said),
            losses.lost.len(),
            losses.sent
        ),
    );
    assert!(losses.lost.is_empty(), "{losses:?}");
}
