//! The firewall as nft(8) and iptables(8) see it. Packets are the end-to-end tests' business.

use std::collections::BTreeSet;
use std::path::Path;

use flatnet_core::firewall::{FirewallNetwork, FirewallTunnel, ruleset};
use flatnet_core::object::{Dump, ObjectKey, PeerSource, Ruleset, SetName, TunnelId};
use flatnet_core::op::{Action, Object, Op, OpOutcome};
use flatnet_kernel::{Kernel, NetlinkKernel, Scope};
use flatnet_model::{IpFamily, NetworkName, Vni};
use serde_json::Value;

use crate::world::{in_namespace, name, shell};

pub fn set(family: IpFamily) -> SetName {
    let prefix_len = if family == IpFamily::V4 { 24 } else { 64 };
    SetName { tunnel: TunnelId::Vxlan(Vni::new(1).unwrap()), family, prefix_len }
}

pub fn source(outer: &str, inner: &str) -> PeerSource {
    let outer: std::net::IpAddr = outer.parse().unwrap();
    PeerSource { set: set(IpFamily::of(outer)), outer, inner: inner.parse().unwrap() }
}

/// Returns the table and elements of a dual-stack network with one peer in each family.
pub fn wanted() -> (Ruleset, Vec<PeerSource>) {
    wanted_named(NetworkName::DEFAULT)
}

/// Returns the table and elements of such a network with the name `network`.
pub fn wanted_named(network: &str) -> (Ruleset, Vec<PeerSource>) {
    let (ruleset, elements) = ruleset(&[self::network(network)], name("eth0"));
    (ruleset, elements.into_iter().collect())
}

/// Returns such a network with the name `network`.
pub fn network(network: &str) -> FirewallNetwork {
    let tunnel = |family, device| {
        let SetName { tunnel: id, prefix_len, .. } = set(family);
        FirewallTunnel { id, family, prefix_lens: [prefix_len].into(), port: 8472, device: name(device) }
    };
    FirewallNetwork {
        encrypted: Vec::new(),
        clear_to: Vec::new(),
        direct: Default::default(),
        exposed_to: Default::default(),
        reachable_from: Vec::new(),
        name: network.parse().unwrap(),
        cidrs: vec!["10.100.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()],
        own: vec!["10.100.4.0/24".parse().unwrap(), "fd00:0:0:4::/64".parse().unwrap()],
        masquerade: true,
        tunnels: vec![tunnel(IpFamily::V4, "flat.1"), tunnel(IpFamily::V6, "flat6.1")],
        peers: BTreeSet::from([source("192.168.33.12", "10.100.5.0/24"), source("fd33::12", "fd00:0:0:5::/64")]),
    }
}

fn scope() -> Scope {
    Scope::default().with_sets([set(IpFamily::V4), set(IpFamily::V6)])
}

pub fn swap() -> Op {
    let (ruleset, elements) = wanted();
    Op { action: Action::Create, object: Object::Ruleset { ruleset, elements } }
}

pub fn run(test: &str, body: impl AsyncFnOnce(NetlinkKernel)) {
    in_namespace(test, || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async { body(NetlinkKernel::new().unwrap()).await });
    });
}

pub async fn apply(kernel: &NetlinkKernel, op: Op) {
    assert_eq!(kernel.apply(std::slice::from_ref(&op)).await, [OpOutcome::Done], "{:?} {}", op.action, op.object);
}

pub async fn dump(kernel: &NetlinkKernel) -> Dump {
    kernel.dump(&scope()).await.unwrap()
}

/// Returns the number of elements that nft(8) lists in a set.
pub fn listed(family: IpFamily) -> usize {
    listed_in(Ruleset::TABLE, family)
}

/// Returns the number of elements that nft(8) lists in a set of `table`.
pub fn listed_in(table: &str, family: IpFamily) -> usize {
    let listing: Value =
        serde_json::from_str(&shell(&format!("nft -j list set inet {table} {}", set(family)))).unwrap();
    let set = listing["nftables"].as_array().unwrap().iter().find_map(|object| object.get("set")).unwrap();
    set.get("elem").and_then(Value::as_array).map_or(0, Vec::len)
}

#[test]
fn a_swap_is_whole_and_touches_no_other_table() {
    run("firewall::a_swap_is_whole_and_touches_no_other_table", async |kernel| {
        shell("nft add table inet theirs; nft add chain inet theirs c; nft add rule inet theirs c counter drop");
        let theirs = shell("nft list table inet theirs");
        assert_eq!(dump(&kernel).await.state.ruleset, None);
        for _ in 0..2 {
            apply(&kernel, swap()).await;
            let (ruleset, elements) = wanted();
            let state = dump(&kernel).await.state;
            assert_eq!(state.ruleset.as_ref(), Some(&ruleset), "what is dumped is what was loaded");
            assert_eq!(state.peer_sources.into_iter().collect::<Vec<_>>(), elements);
            assert_eq!((listed(IpFamily::V4), listed(IpFamily::V6)), (1, 1));
        }
        let Op { object, .. } = swap();
        apply(&kernel, Op { action: Action::Delete, object: object.clone() }).await;
        assert_eq!(shell("nft list tables").trim(), "table inet theirs");
        assert_eq!(shell("nft list table inet theirs"), theirs);
        apply(&kernel, Op { action: Action::Delete, object }).await;
    });
}

#[test]
fn elements_come_and_go_one_by_one() {
    run("firewall::elements_come_and_go_one_by_one", async |kernel| {
        apply(&kernel, swap()).await;
        for added in [source("192.168.33.13", "10.100.6.0/24"), source("fd33::13", "fd00:0:0:6::/64")] {
            apply(&kernel, Op { action: Action::Create, object: Object::PeerSource(added) }).await;
            assert_eq!(listed(added.set.family), 2);
            assert!(dump(&kernel).await.state.peer_sources.contains(&added));
            let gone = Op { action: Action::Delete, object: Object::PeerSource(added) };
            apply(&kernel, gone.clone()).await;
            assert_eq!(listed(added.set.family), 1);
            apply(&kernel, gone).await;
        }
        let (ruleset, elements) = wanted();
        let state = dump(&kernel).await.state;
        assert_eq!(state.ruleset, Some(ruleset), "elements are no drift of the table");
        assert_eq!(state.peer_sources.len(), elements.len());
    });
}

#[test]
fn whatever_somebody_changes_in_the_table_is_seen() {
    run("firewall::whatever_somebody_changes_in_the_table_is_seen", async |kernel| {
        let (ruleset, _) = wanted();
        for change in [
            "nft flush ruleset",
            "nft flush chain inet flatnet guard",
            "nft add rule inet flatnet forward accept",
            "nft insert rule inet flatnet guard accept",
            "nft add chain inet flatnet extra",
            "nft add chain inet flatnet guard '{ policy drop; }'",
        ] {
            apply(&kernel, swap()).await;
            assert_eq!(dump(&kernel).await.state.ruleset.as_ref(), Some(&ruleset));
            shell(change);
            let found = dump(&kernel).await.state;
            assert_eq!(found.ruleset, None, "{change}");
            // After a flush there may be the held copy.
            assert!(found.is_altered(&ObjectKey::Ruleset) || change == "nft flush ruleset", "{change}");
        }
        apply(&kernel, swap()).await;
        shell("nft flush set inet flatnet peers4_1_24");
        assert!(dump(&kernel).await.state.peer_sources.iter().all(|source| source.set.family == IpFamily::V6));
    });
}

#[test]
fn what_is_loaded_is_remembered_over_a_restart() {
    run("firewall::what_is_loaded_is_remembered_over_a_restart", async |first| {
        shell("mount -t tmpfs tmpfs /run");
        let file = Path::new("/run/ruleset").to_owned();
        drop(first);
        let first = NetlinkKernel::with_memory(Some(file.clone())).unwrap();
        apply(&first, swap()).await;
        drop(first);
        let (ruleset, _) = wanted();
        let again = NetlinkKernel::with_memory(Some(file.clone())).unwrap();
        assert_eq!(dump(&again).await.state.ruleset.as_ref(), Some(&ruleset), "nothing to swap");
        // A file that lies, or was cut short, costs a swap and nothing else.
        for content in ["", "flatnet-ruleset 1 00\nflush ruleset\n", "garbage \u{0} garbage"] {
            std::fs::write(&file, content).unwrap();
            let astray = NetlinkKernel::with_memory(Some(file.clone())).unwrap();
            assert_ne!(dump(&astray).await.state.ruleset.as_ref(), Some(&ruleset), "{content:?}");
            apply(&astray, swap()).await;
            assert_eq!(dump(&astray).await.state.ruleset.as_ref(), Some(&ruleset));
        }
    });
}

/// The check of nft before a lease is taken: this nft can read the table, and one that cannot is named with its
/// version.
#[test]
fn what_nft_cannot_read_is_known_before_and_names_its_version() {
    run("firewall::what_nft_cannot_read_is_known_before_and_names_its_version", async |kernel| {
        for families in [&IpFamily::BOTH[..], &[IpFamily::V4], &[IpFamily::V6]] {
            kernel.check_firewall(families).await.unwrap();
        }
        assert_eq!(shell("nft list tables"), "", "looking changes nothing");
        for (words, by_kernel) in [
            ("/dev/stdin:5:3-8: Error: syntax error, unexpected string", false),
            ("/dev/stdin:5:3-8: Error: Could not process rule: No such file or directory", true),
        ] {
            // In this test's own mount namespace.
            let older = format!(
                "mount -t tmpfs none /run; printf '#!/bin/sh\\n[ \"$1\" != --version ] || {{ echo \"nftables v0.9.3 (Topsy)\"; exit 0; }}\\n\
                 echo \"{words}\" >&2; exit 1\\n' > /run/nft; chmod +x /run/nft; mount --bind /run/nft $(command -v nft)"
            );
            shell(&older);
            let refused = kernel.check_firewall(&IpFamily::BOTH).await.unwrap_err();
            assert_eq!((refused.version.as_str(), refused.by_kernel), ("0.9.3", by_kernel));
            assert!(refused.to_string().contains("nft 0.9.3"), "{refused}");
            shell("umount $(command -v nft)");
        }
    });
}
