//! Firewalls flushed, reloaded and set to drop by other programs.

use std::time::Instant;

use flatnet_tests::lab::Shape;
use flatnet_tests::pinger;
use flatnet_tests::suite::Test;
use flatnet_tests::wait::pause;

use crate::scene::{SECOND, Scene, assert_exact, drift, figure, ms, settled, shell, until_exact};

pub fn tests() -> Vec<Test> {
    let mut tests = vec![
        Test::new("nft_flush_ruleset_is_repaired", nft_flush).on_backend("vxlan"),
        Test::new("a_firewalld_like_reload_is_repaired", firewalld_reload).on_backend("vxlan"),
    ];
    for variant in ["iptables-nft", "iptables-legacy"] {
        let name = format!("our_rule_stays_at_the_head_of_a_chain_that_drops::{}", variant.replace('-', "_"));
        tests.push(Test::new(name, move || iptables(variant)).on_backend("vxlan"));
    }
    tests
}

fn nft_flush() {
    let scene = Scene::new(&Shape::vxlan(2));
    let host = scene.lab.host(1);
    let before = settled(&host);
    let counted = drift(&host, "ruleset");
    let stream = scene.stream();
    let since = Instant::now();
    shell(&host, "nft flush ruleset");
    let took = until_exact("nft flush ruleset", &host, &before, since);
    pause(SECOND / 2);
    let losses = stream.stop();
    let counted = drift(&host, "ruleset") - counted;
    figure(
        "nft flush ruleset",
        format!(
            "exact after {}, drift ruleset +{counted}, {} of {} pings lost",
            ms(took),
            losses.lost.len(),
            losses.sent
        ),
    );
    assert!(took <= SECOND && counted > 0 && losses.lost.is_empty(), "{took:?} {counted} {losses:?}");
    assert_exact(&host, &before);
}

/// A reload as `firewall-cmd --complete-reload` does it where firewalld flushes all: everything goes, its own tables
/// come back.
fn firewalld_reload() {
    let scene = Scene::new(&Shape::vxlan(2));
    let host = scene.lab.host(1);
    let rules = "table inet firewalld {
        chain filter_INPUT { type filter hook input priority 10; policy accept; ct state established,related accept; }
        chain filter_FORWARD { type filter hook forward priority 10; policy accept; ct state established,related accept; }
    }";
    shell(&host, &format!("printf '%s\\n' '{rules}' > /run/{}.nft; nft -f /run/{}.nft", host.0, host.0));
    let before = settled(&host);
    let counted = drift(&host, "ruleset");
    let stream = scene.stream();
    let since = Instant::now();
    shell(&host, &format!("(echo flush ruleset; cat /run/{0}.nft) | nft -f -; rm /run/{0}.nft", host.0));
    // Tables are listed in the order they were made; ours comes after theirs now.
    let sorted = |text: &str| {
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        lines.join("\n")
    };
    let took = loop {
        let now = crate::scene::picture(&host);
        let took = since.elapsed();
        if sorted(&now) == sorted(&before) {
            break took;
        }
        assert!(took < flatnet_tests::wait::SOON, "{}", crate::scene::differences(&before, &now));
    };
    let losses = stream.stop();
    let counted = drift(&host, "ruleset") - counted;
    figure(
        "firewalld-like reload",
        format!(
            "exact after {}, drift ruleset +{counted}, {} of {} pings lost",
            ms(took),
            losses.lost.len(),
            losses.sent
        ),
    );
    assert!(took <= SECOND && counted > 0 && losses.lost.is_empty(), "{took:?} {counted} {losses:?}");
}

fn iptables(variant: &str) {
    let scene = Scene::new(&Shape::vxlan(2));
    let host = scene.lab.host(1);
    let address = scene.agents[1].subnet().container_addresses().next().unwrap();
    let since = Instant::now();
    shell(
        &host,
        &format!(
            "{variant} -P FORWARD DROP; {variant} -P INPUT DROP; {variant} -A INPUT -s 192.168.33.10 -j ACCEPT; {variant} -A INPUT -i lo -j ACCEPT"
        ),
    );
    let from = scene.lab.container(1);
    let opened = loop {
        if from.run(&["ping", "-n", "-c", "1", "-W", "0.1", &address.to_string()]).code == 0 {
            break since.elapsed();
        }
        assert!(
            since.elapsed() < flatnet_tests::wait::SOON,
            "{variant}: pings are still dropped; {}",
            scene.agents[0].log()
        );
    };
    figure(&format!("{variant} -P FORWARD DROP, -P INPUT DROP"), format!("pings pass again after {}", ms(opened)));
    pinger::assert_all_pairs(&scene.lab, &scene.agents);
    let before = settled(&host);
    let mut late = Vec::new();
    for (what, script) in [
        ("head rule of FORWARD deleted", "IPT -D FORWARD 1"),
        (
            "all rules flushed (-F), policy DROP",
            "IPT -F; IPT -A INPUT -s 192.168.33.10 -j ACCEPT; IPT -A INPUT -i lo -j ACCEPT",
        ),
    ] {
        let counted = drift(&host, "iptables");
        let stream = scene.stream();
        let since = Instant::now();
        shell(&host, &script.replace("IPT", variant));
        let took = until_exact(what, &host, &before, since);
        pause(SECOND / 2);
        let losses = stream.stop();
        let counted = drift(&host, "iptables") - counted;
        figure(
            &format!("{variant}: {what}"),
            format!(
                "exact after {}, drift iptables +{counted}, {} of {} pings lost",
                ms(took),
                losses.lost.len(),
                losses.sent
            ),
        );
        if took > SECOND || counted == 0 {
            late.push(format!("{what}: {took:?}, drift +{counted}"));
        }
    }
    // Somebody's drop is put before our rule: a head that is no head any more.
    let since = Instant::now();
    shell(&host, &format!("{variant} -I FORWARD 1 -j DROP"));
    let took = loop {
        if from.run(&["ping", "-n", "-c", "1", "-W", "0.1", &address.to_string()]).code == 0 {
            break since.elapsed();
        }
        assert!(since.elapsed() < flatnet_tests::wait::SOON, "{variant}: a drop before our rule stays before it");
    };
    figure(&format!("{variant}: a DROP inserted before our rule"), format!("pings pass again after {}", ms(took)));
    shell(&host, &format!("{variant} -D FORWARD -j DROP"));
    let took = until_exact("the drop is gone", &host, &before, Instant::now());
    figure(&format!("{variant}: and taken away"), format!("exact after {}", ms(took)));
    assert!(late.is_empty(), "{late:?}");
    assert_exact(&host, &before);
}
