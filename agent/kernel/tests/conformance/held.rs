//! The held copy of the guard as nft(8) sees it: what it has, when it follows, and when it goes.

use std::path::Path;

use flatnet_core::firewall::{EncryptedTunnel, FirewallNetwork, FirewallTunnel, ruleset};
use flatnet_core::object::{ObjectKey, PeerSource, Ruleset, SetName, TunnelId};
use flatnet_core::op::{Action, Object, Op, OpOutcome};
use flatnet_kernel::{Kernel, NetlinkKernel};
use flatnet_model::{GreKey, IpFamily};

use crate::elements::{ops, peer};
use crate::firewall::{apply, dump, listed_in, run, set, source, swap, wanted};
use crate::world::{name, shell};

const HELD: &str = "nft -s list table inet flatnet_held";

/// Returns true if the kernel has tables of one owner (Linux 5.12). Without them there is no copy and nothing to be
/// tested.
fn owners() -> bool {
    let release = shell("uname -r");
    let mut numbers = release.split(['.', '-']).map_while(|number| number.trim().parse::<u32>().ok());
    let has = (numbers.next(), numbers.next()) >= (Some(5), Some(12));
    if !has {
        eprintln!("SKIPPED: Linux {release} has no owners of nftables tables");
    }
    has
}

/// Returns the sets and chains of a listing, sorted, without hooks and without chains that translate.
fn parts(listing: &str) -> Vec<String> {
    let own = ["table ", "flags owner", "comment \"flatnet's", "type filter hook "];
    let lines = listing.lines().filter(|line| *line != "}" && !own.iter().any(|own| line.trim().starts_with(own)));
    let blocks = lines.collect::<Vec<_>>().join("\n");
    let translates = |block: &&str| ["chain nat_", "chain postrouting "].iter().any(|nat| block.starts_with(nat));
    let parts = blocks.split("\n\n").map(str::trim).filter(|block| !block.is_empty() && !translates(block));
    let mut parts: Vec<String> = parts.map(str::to_owned).collect();
    parts.sort();
    parts
}

fn assert_copied() {
    let (table, held) = (shell("nft -s list table inet flatnet"), shell(HELD));
    assert_eq!(parts(&held), parts(&table), "{held}");
    assert!(!held.contains("type nat"), "{held}");
}

/// Makes one network of every backend, so that the table has every chain there is.
fn everything() -> Op {
    let sets = [TunnelId::Gre(GreKey::new(7)), set(IpFamily::V4).tunnel];
    let tunnel =
        |id, family| FirewallTunnel { id, family, prefix_lens: [24, 25].into(), port: 8472, device: name("flat.1") };
    let network = |text: &str, octet: u8| FirewallNetwork {
        encrypted: Vec::new(),
        clear_to: Vec::new(),
        direct: Default::default(),
        exposed_to: Default::default(),
        reachable_from: Vec::new(),
        name: text.parse().unwrap(),
        cidrs: vec![format!("10.{octet}.0.0/16").parse().unwrap(), format!("fd00:{octet}::/48").parse().unwrap()],
        own: vec![format!("10.{octet}.4.0/24").parse().unwrap(), format!("fd00:{octet}:0:4::/64").parse().unwrap()],
        masquerade: true,
        tunnels: Vec::new(),
        peers: Default::default(),
    };
    let peers = sets.map(|tunnel| PeerSource {
        set: SetName { tunnel, family: IpFamily::V4, prefix_len: 24 },
        outer: "192.168.33.12".parse().unwrap(),
        inner: "10.101.5.0/24".parse().unwrap(),
    });
    let tunnels = sets.map(|id| tunnel(id, IpFamily::V4));
    let tunnelled = FirewallNetwork { tunnels: tunnels.into(), peers: peers.into(), ..network("red", 101) };
    let wireguard = EncryptedTunnel { device: name("flatwg.51820"), port: 51820, families: IpFamily::BOTH.into() };
    let encrypted = FirewallNetwork {
        encrypted: vec![wireguard],
        clear_to: vec!["10.102.9.0/24".parse().unwrap()],
        ..network("blue", 102)
    };
    let (ruleset, elements) = ruleset(&[tunnelled, encrypted], name("eth0"));
    Op { action: Action::Change, object: Object::Ruleset { ruleset, elements: elements.into_iter().collect() } }
}

fn handle() -> String {
    shell("nft -a list table inet flatnet_held | head -1")
}

#[test]
fn a_swap_holds_a_copy_of_all_that_filters_and_of_no_more() {
    run("held::a_swap_holds_a_copy_of_all_that_filters_and_of_no_more", async |kernel| {
        if !owners() {
            return;
        }
        for op in [swap(), everything(), everything(), swap()] {
            apply(&kernel, op).await;
            assert_copied();
        }
        apply(&kernel, everything()).await;
        let held = shell(HELD);
        for chain in
            ["guard", "origin", "forward", "arrival", "arrival4_red", "encrypted_out", "gre4", "from_wireguard_51820"]
        {
            assert!(held.contains(&format!("chain {chain} ")), "{chain}: {held}");
        }
        // The priority is one later than the table's own, so that the table counts what both would drop.
        assert!(held.contains("hook input priority -119;"), "{held}");
        assert!(held.contains("10.102.9.0/24"), "{held}");
    });
}

#[test]
fn nobody_else_takes_the_copy_away() {
    run("held::nobody_else_takes_the_copy_away", async |kernel| {
        if !owners() {
            return;
        }
        apply(&kernel, swap()).await;
        let held = shell(HELD);
        shell("nft flush ruleset");
        for refused in
            ["delete table inet flatnet_held", "flush chain inet flatnet_held guard", "flush table inet flatnet_held"]
        {
            shell(&format!("! nft {refused} 2>/dev/null"));
        }
        assert_eq!(shell("nft list tables").trim(), "table inet flatnet_held");
        assert_eq!(shell(HELD), held);
        // This is what the agent does next.
        assert_eq!(dump(&kernel).await.state.ruleset, None);
        apply(&kernel, swap()).await;
        assert_copied();
        assert_eq!(shell("nft list tables"), "table inet flatnet\ntable inet flatnet_held\n");
    });
}

#[test]
fn elements_come_and_go_in_both_tables() {
    run("held::elements_come_and_go_in_both_tables", async |kernel| {
        if !owners() {
            return;
        }
        apply(&kernel, swap()).await;
        let many: Vec<PeerSource> = (0..300).map(|n| peer(IpFamily::V4, n)).collect();
        let both = |family| [Ruleset::TABLE, Ruleset::HELD].map(|table| listed_in(table, family));
        for (action, left) in [(Action::Create, 301), (Action::Create, 301), (Action::Delete, 1), (Action::Delete, 1)] {
            kernel.apply(&ops(action, many.clone())).await;
            assert_eq!(both(IpFamily::V4), [left, left], "{action:?}");
            assert_copied();
        }
        // If an element is gone from the table alone, or is there already, that is no failure of the copy's.
        shell("nft flush set inet flatnet peers4_1_24");
        let present = source("192.168.33.12", "10.100.5.0/24");
        assert_eq!(kernel.apply(&ops(Action::Create, [present])).await, [OpOutcome::Done]);
        assert_copied();
        // Somebody else's element is the table's until the agent deletes it; the copy never drops what the table takes.
        shell("nft add element inet flatnet peers4_1_24 '{ 192.168.33.78 . 0x0a640100 }'");
        dump(&kernel).await;
        kernel.apply(&[]).await;
        assert_eq!(both(IpFamily::V4), [2, 2]);
        let added = source("192.168.33.78", "10.100.1.0/24");
        assert_eq!(kernel.apply(&ops(Action::Delete, [added])).await, [OpOutcome::Done]);
        assert_eq!(both(IpFamily::V4), [1, 1]);
    });
}

#[test]
fn the_copy_goes_with_the_table_and_with_its_owner() {
    run("held::the_copy_goes_with_the_table_and_with_its_owner", async |kernel| {
        if !owners() {
            return;
        }
        apply(&kernel, swap()).await;
        assert_copied();
        apply(&kernel, Op { action: Action::Delete, ..swap() }).await;
        assert_eq!(shell("nft list tables"), "");
        // The table is gone because of somebody else, and none is wanted any more.
        apply(&kernel, swap()).await;
        shell("nft flush ruleset");
        let found = dump(&kernel).await.state;
        assert!(found.ruleset.is_none() && found.is_altered(&ObjectKey::Ruleset), "what is left is the guard's");
        apply(&kernel, Op { action: Action::Delete, ..swap() }).await;
        assert_eq!(shell("nft list tables"), "");
        assert!(!dump(&kernel).await.state.has(&ObjectKey::Ruleset));
        apply(&kernel, swap()).await;
        drop(kernel);
        assert_eq!(shell("nft list tables").trim(), "table inet flatnet");
    });
}

#[test]
fn an_agent_that_starts_again_holds_the_table_that_it_finds_and_leaves_it_at_that() {
    run("held::an_agent_that_starts_again_holds_the_table_that_it_finds_and_leaves_it_at_that", async |first| {
        if !owners() {
            return;
        }
        shell("mount -t tmpfs tmpfs /run");
        drop(first);
        let open = || NetlinkKernel::with_memory(Some(Path::new("/run/ruleset").to_owned())).unwrap();
        let first = open();
        apply(&first, swap()).await;
        drop(first);
        let again = open();
        // Looking alone changes nothing: a command that only looks must not hold anything.
        dump(&again).await;
        assert_eq!(shell("nft list tables").trim(), "table inet flatnet");
        again.apply(&[]).await;
        assert_copied();
        let made = handle();
        for _ in 0..3 {
            dump(&again).await;
            again.apply(&[]).await;
        }
        assert_eq!(handle(), made, "made once");
        // While the table is away, or another, the copy stays as it is.
        shell("nft flush ruleset");
        dump(&again).await;
        again.apply(&[]).await;
        assert_eq!(handle(), made);
    });
}

#[test]
fn a_name_that_is_taken_costs_the_copy_and_nothing_else() {
    run("held::a_name_that_is_taken_costs_the_copy_and_nothing_else", async |kernel| {
        if !owners() {
            return;
        }
        // A plain table, as a saved ruleset that is loaded again leaves it, is replaced.
        shell("nft add table inet flatnet_held; nft add chain inet flatnet_held leftover");
        apply(&kernel, swap()).await;
        assert_copied();
        // A table of another process is not replaced.
        let other = NetlinkKernel::new().unwrap();
        apply(&other, everything()).await;
        let added = peer(IpFamily::V4, 1);
        let added = PeerSource { set: SetName { prefix_len: 25, ..added.set }, ..added };
        let added = PeerSource { inner: "10.101.5.128/25".parse().unwrap(), ..added };
        assert_eq!(other.apply(&ops(Action::Create, [added])).await, [OpOutcome::Done]);
        drop(kernel);
        assert_eq!(shell("nft list tables").trim(), "table inet flatnet");
        apply(&other, swap()).await;
        assert_copied();
    });
}

/// In a user namespace the socket takes some 5,000 elements at once, so the copy is made in parts.
#[test]
fn eight_thousand_peers_are_held() {
    run("held::eight_thousand_peers_are_held", async |kernel| {
        if !owners() {
            return;
        }
        for family in IpFamily::BOTH {
            let elements: Vec<PeerSource> = (0..8_000).map(|n| peer(family, n)).collect();
            let object = Object::Ruleset { ruleset: wanted().0, elements };
            for _ in 0..2 {
                let since = std::time::Instant::now();
                apply(&kernel, Op { action: Action::Replace, object: object.clone() }).await;
                println!("{family}: 8,000 peers swapped and held in {:?}", since.elapsed());
                crate::elements::until_listed(&kernel, 8_000).await;
                // The kernel may be enlarging the set while it lists it.
                let whole = (0..100).any(|_| listed_in(Ruleset::HELD, family) == 8_000);
                assert!(whole, "{}", listed_in(Ruleset::HELD, family));
            }
        }
    });
}
