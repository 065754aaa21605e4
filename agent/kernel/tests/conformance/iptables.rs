//! Our rules at the head of other people's iptables chains, both variants and families; `iptables -S` is the witness.

use std::collections::{BTreeMap, BTreeSet};

use flatnet_core::facts::DroppingChain;
use flatnet_core::object::{IptablesChain, IptablesKey, IptablesRule, IptablesVariant};
use flatnet_core::op::{Action, Object, Op, OpOutcome};
use flatnet_kernel::{Kernel, NetlinkKernel, Questions};
use flatnet_model::IpFamily;

use crate::firewall::{apply, dump, run};
use crate::world::shell;

const TABLES: [(IptablesVariant, IpFamily, &str); 4] = [
    (IptablesVariant::Nft, IpFamily::V4, "iptables-nft"),
    (IptablesVariant::Nft, IpFamily::V6, "ip6tables-nft"),
    (IptablesVariant::Legacy, IpFamily::V4, "iptables-legacy"),
    (IptablesVariant::Legacy, IpFamily::V6, "ip6tables-legacy"),
];

/// Gives the test its own lock: iptables-legacy's is in a directory that root outside may own.
fn own_lock() {
    shell("mount -t tmpfs tmpfs /run");
}

fn rules(variant: IptablesVariant, family: IpFamily) -> Vec<(IptablesKey, IptablesRule)> {
    let network = if family == IpFamily::V4 { "10.100.0.0/16" } else { "fd00::/48" };
    let rule = |chain, comment: &str, matches: String| {
        let key = IptablesKey { variant, family, chain, comment: comment.to_owned() };
        (key, IptablesRule { matches: matches.split(' ').map(str::to_owned).collect() })
    };
    vec![
        rule(IptablesChain::Forward, "flatnet:a-b_c", format!("-s {network} -d {network}")),
        rule(
            IptablesChain::Forward,
            "flatnet:a-b_c:back",
            format!("-d {network} -m conntrack --ctstate RELATED,ESTABLISHED"),
        ),
        rule(
            IptablesChain::Input,
            "flatnet:a-b_c:tunnel",
            "-p udp -m udp --dport 8472 -m mark --mark 0x1000/0x1000".to_owned(),
        ),
    ]
}

fn ops(action: Action, rules: &[(IptablesKey, IptablesRule)]) -> Vec<Op> {
    let op =
        |(key, rule): &(IptablesKey, IptablesRule)| Op { action, object: Object::Iptables(key.clone(), rule.clone()) };
    rules.iter().map(op).collect()
}

async fn all_done(kernel: &NetlinkKernel, ops: &[Op]) {
    let outcomes = kernel.apply(ops).await;
    assert!(outcomes.iter().all(|outcome| *outcome == OpOutcome::Done), "{outcomes:?}");
}

async fn found(kernel: &NetlinkKernel) -> BTreeMap<IptablesKey, IptablesRule> {
    dump(kernel).await.state.iptables
}

async fn dropping(kernel: &NetlinkKernel) -> BTreeSet<DroppingChain> {
    kernel.facts(&Questions::host([])).await.unwrap().host.dropping_chains
}

#[test]
fn looking_makes_no_table() {
    run("iptables::looking_makes_no_table", async |kernel| {
        own_lock();
        assert_eq!(dropping(&kernel).await, BTreeSet::new());
        assert_eq!(found(&kernel).await, BTreeMap::new());
        assert_eq!(shell("nft list tables"), "");
        assert_eq!(shell("cat /proc/self/net/ip_tables_names /proc/self/net/ip6_tables_names 2>/dev/null; true"), "");
    });
}

#[test]
fn a_chain_drops_by_policy_or_by_a_rule_and_ours_do_not_count() {
    run("iptables::a_chain_drops_by_policy_or_by_a_rule_and_ours_do_not_count", async |kernel| {
        own_lock();
        for (variant, family, program) in TABLES {
            let is = |chain| BTreeSet::from([DroppingChain { variant, family, chain }]);
            shell(&format!("{program} -P FORWARD DROP"));
            assert_eq!(dropping(&kernel).await, is(IptablesChain::Forward), "{program}");
            all_done(&kernel, &ops(Action::Create, &rules(variant, family))).await;
            // A policy changes neither the number of rules nor the table's size.
            shell(&format!("{program} -P FORWARD ACCEPT"));
            assert_eq!(dropping(&kernel).await, BTreeSet::new(), "{program}");
            shell(&format!("{program} -N theirs; {program} -A INPUT -j theirs; {program} -A theirs -p icmp -j DROP"));
            assert_eq!(dropping(&kernel).await, is(IptablesChain::Input), "{program}");
            shell(&format!("{program} -F; {program} -X"));
            assert_eq!(dropping(&kernel).await, BTreeSet::new(), "{program}");
        }
    });
}

#[test]
fn rules_stand_at_the_head_are_seen_when_they_do_not_and_go_alone() {
    run("iptables::rules_stand_at_the_head_are_seen_when_they_do_not_and_go_alone", async |kernel| {
        own_lock();
        for (variant, family, program) in TABLES {
            shell(&format!("{program} -P FORWARD DROP; {program} -A FORWARD -i eth0 -j DROP; {program} -P INPUT DROP"));
            let before = shell(&format!("{program} -S"));
            let wanted = rules(variant, family);
            let expected: BTreeMap<_, _> = wanted.iter().cloned().collect();
            let create = ops(Action::Create, &wanted);
            for _ in 0..2 {
                all_done(&kernel, &create).await;
                assert_eq!(found(&kernel).await, expected, "{program}: {}", shell(&format!("{program} -S")));
                let forward = shell(&format!("{program} -S FORWARD"));
                let lines: Vec<&str> = forward.lines().collect();
                assert_eq!(lines.len(), 4, "each once, at the head: {forward}");
                assert!(lines[1].contains("flatnet:") && lines[2].contains("flatnet:"), "{forward}");
            }
            for disturb in [
                "-I FORWARD 1 -i eth1 -j DROP",
                "-I FORWARD 1 -p udp -j REJECT",
                "-A INPUT -p udp -m udp --dport 8472 -m mark --mark 0x1000/0x1000 -m comment --comment flatnet:a-b_c:tunnel -j ACCEPT",
                "-F FORWARD",
            ] {
                shell(&format!("{program} {disturb}"));
                let seen = found(&kernel).await;
                assert_ne!(seen, expected, "{program} {disturb}");
                // Rules that are there but not in force must be seen too, or nobody would ever remove them.
                assert_eq!(seen.len(), if disturb == "-F FORWARD" { 1 } else { 3 }, "{program} {disturb}");
                all_done(&kernel, &ops(Action::Replace, &wanted)).await;
                assert_eq!(found(&kernel).await, expected, "{program} {disturb}");
                if let Some(theirs) = disturb.strip_prefix("-I FORWARD 1 ") {
                    shell(&format!("{program} -D FORWARD {theirs}"));
                }
            }
            shell(&format!("{program} -A FORWARD -i eth0 -j DROP"));
            for _ in 0..2 {
                all_done(&kernel, &ops(Action::Delete, &wanted)).await;
            }
            assert_eq!(shell(&format!("{program} -S")), before, "theirs is as it was");
            shell(&format!("{program} -P FORWARD ACCEPT; {program} -P INPUT ACCEPT; {program} -F"));
        }
    });
}

#[test]
fn one_rule_that_is_refused_does_not_take_the_others_along() {
    run("iptables::one_rule_that_is_refused_does_not_take_the_others_along", async |kernel| {
        own_lock();
        for (variant, family, program) in TABLES {
            let mut wanted = rules(variant, family);
            wanted[1].1.matches = vec!["--no-such-match".to_owned()];
            let outcomes = kernel.apply(&ops(Action::Create, &wanted)).await;
            assert_eq!((&outcomes[0], &outcomes[2]), (&OpOutcome::Done, &OpOutcome::Done), "{program}");
            let OpOutcome::Failed(error) = &outcomes[1] else { panic!("{program}: {outcomes:?}") };
            assert!(error.reason.contains("no-such-match"), "iptables' own words: {error}");
            assert_eq!(found(&kernel).await.len(), 2);
            shell(&format!("{program} -F"));
        }
    });
}

#[test]
fn a_missing_program_is_named_with_its_package() {
    run("iptables::a_missing_program_is_named_with_its_package", async |kernel| {
        own_lock();
        shell("iptables-nft -P FORWARD DROP; iptables-legacy -A INPUT -p icmp -j ACCEPT");
        // In this test's own mount namespace.
        shell("mount -t tmpfs tmpfs /usr/sbin; mount -t tmpfs tmpfs /usr/local/sbin");
        let guessed = dropping(&kernel).await;
        let chain = |variant, chain| DroppingChain { variant, family: IpFamily::V4, chain };
        assert!(guessed.contains(&chain(IptablesVariant::Nft, IptablesChain::Forward)), "{guessed:?}");
        assert!(guessed.contains(&chain(IptablesVariant::Legacy, IptablesChain::Input)), "{guessed:?}");
        for variant in [IptablesVariant::Nft, IptablesVariant::Legacy] {
            let outcomes = kernel.apply(&ops(Action::Create, &rules(variant, IpFamily::V4)[..1])).await;
            let [OpOutcome::Failed(error)] = outcomes.as_slice() else { panic!("{outcomes:?}") };
            assert!(error.reason.contains("install the package iptables"), "{error}");
        }
        let outcomes = kernel.apply(&[crate::firewall::swap()]).await;
        let [OpOutcome::Failed(error)] = outcomes.as_slice() else { panic!("{outcomes:?}") };
        assert!(error.reason.contains("install the package nftables"), "{error}");
    });
}

#[test]
fn a_network_with_the_longest_name_loads() {
    run("iptables::a_network_with_the_longest_name_loads", async |kernel| {
        own_lock();
        let (ruleset, elements) = crate::firewall::wanted_named(&format!("9{}-", "n_-".repeat(20)));
        apply(&kernel, Op { action: Action::Create, object: Object::Ruleset { ruleset: ruleset.clone(), elements } })
            .await;
        assert_eq!(dump(&kernel).await.state.ruleset, Some(ruleset));
    });
}
