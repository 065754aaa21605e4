//! Set elements at scale, and when the kernel refuses some of them; nft(8) is the witness.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use flatnet_core::firewall::ruleset;
use flatnet_core::object::PeerSource;
use flatnet_core::op::{Action, Object, Op, OpOutcome};
use flatnet_kernel::{Kernel, NetlinkKernel, Scope, Wake};
use flatnet_model::IpFamily;
use futures::StreamExt;
use ipnet::IpNet;

use crate::firewall::{apply, dump, listed, network, run, set, source, swap, wanted};
use crate::world::{name, shell};

/// Returns the `n`th of many peers.
pub fn peer(family: IpFamily, n: u32) -> PeerSource {
    let (outer, inner): (IpAddr, IpNet) = match family {
        IpFamily::V4 => (
            Ipv4Addr::from(0xac10_0000 + n).into(),
            IpNet::new(Ipv4Addr::from(0x0a80_0000 + (n << 8)).into(), 24).unwrap(),
        ),
        IpFamily::V6 => (
            Ipv6Addr::from((0xfd33_u128 << 112) + u128::from(n)).into(),
            IpNet::new(Ipv6Addr::from((0xfd00_u128 << 112) + (u128::from(n + 100) << 64)).into(), 64).unwrap(),
        ),
    };
    PeerSource { set: set(family), outer, inner }
}

pub fn ops(action: Action, sources: impl IntoIterator<Item = PeerSource>) -> Vec<Op> {
    sources.into_iter().map(|source| Op { action, object: Object::PeerSource(source) }).collect()
}

fn errno(outcome: &OpOutcome) -> Option<i32> {
    match outcome {
        OpOutcome::Failed(error) => error.errno,
        OpOutcome::Done | OpOutcome::Skipped => None,
    }
}

async fn sources(kernel: &NetlinkKernel) -> BTreeSet<PeerSource> {
    dump(kernel).await.state.peer_sources
}

#[test]
fn what_the_kernel_refuses_does_not_take_the_rest_along() {
    run("elements::what_the_kernel_refuses_does_not_take_the_rest_along", async |kernel| {
        const EEXIST: i32 = 17;
        apply(&kernel, swap()).await;
        let present = source("192.168.33.12", "10.100.5.0/24");
        // These are more than are tried at once when it must be found out which is refused.
        let mut create: Vec<PeerSource> = (0..300).map(|n| peer(IpFamily::V4, n)).collect();
        create.insert(150, present);
        create.extend((0..300).map(|n| peer(IpFamily::V6, n)));
        let outcomes = kernel.apply(&ops(Action::Create, create.clone())).await;
        for (source, outcome) in std::iter::zip(&create, &outcomes) {
            assert_eq!(errno(outcome), (*source == present).then_some(EEXIST), "{source:?}");
            assert_eq!(*outcome == OpOutcome::Done, *source != present, "{source:?}");
        }
        assert_eq!((listed(IpFamily::V4), listed(IpFamily::V6)), (301, 301));
        // An element that is gone already is deleted just as well, and one that was not to be deleted stays.
        shell("nft delete element inet flatnet peers4_1_24 '{ 172.16.0.7 . 0x0a800700 }'");
        let outcomes = kernel.apply(&ops(Action::Delete, create)).await;
        assert!(outcomes.iter().all(|outcome| *outcome == OpOutcome::Done), "{outcomes:?}");
        assert_eq!((listed(IpFamily::V4), listed(IpFamily::V6)), (0, 1));
    });
}

#[test]
fn what_comes_without_a_tunnel_is_told_by_its_subnet_alone() {
    run("elements::what_comes_without_a_tunnel_is_told_by_its_subnet_alone", async |kernel| {
        let subnets = ["10.100.5.0/24", "10.100.6.128/25", "fd00:0:0:5::/64"];
        let [first, second, third] = subnets.map(|subnet| PeerSource::direct(subnet.parse().unwrap()));
        let mut network = network("default");
        network.direct = [first, second, third].map(|source| source.set).into();
        network.peers = [first].into();
        let (ruleset, elements) = ruleset(&[network], name("eth0"));
        let scope = Scope::default().with_sets(ruleset.sets());
        let elements: Vec<PeerSource> = elements.into_iter().collect();
        let swap = Object::Ruleset { ruleset: ruleset.clone(), elements };
        apply(&kernel, Op { action: Action::Create, object: swap }).await;
        let outcomes = kernel.apply(&ops(Action::Create, [second, third])).await;
        assert!(outcomes.iter().all(|outcome| *outcome == OpOutcome::Done), "{outcomes:?}");
        let state = kernel.dump(&scope).await.unwrap().state;
        assert_eq!(state.peer_sources, [first, second, third].into());
        assert_eq!(state.ruleset, Some(ruleset));
        for (source, listed) in [(first, "{ 10.100.5.0 }"), (second, "{ 10.100.6.128 }"), (third, "{ fd00:0:0:5:: }")] {
            for table in ["flatnet", "flatnet_held"] {
                let text = shell(&format!("nft list set inet {table} {}", source.set));
                assert!(text.contains(listed), "{text}");
            }
        }
        let outcomes = kernel.apply(&ops(Action::Delete, [first, third])).await;
        assert!(outcomes.iter().all(|outcome| *outcome == OpOutcome::Done), "{outcomes:?}");
        assert_eq!(kernel.dump(&scope).await.unwrap().state.peer_sources, [second].into());
    });
}

#[test]
fn without_the_table_every_element_is_refused() {
    run("elements::without_the_table_every_element_is_refused", async |kernel| {
        const ENOENT: i32 = 2;
        let outcomes = kernel.apply(&ops(Action::Create, (0..3).map(|n| peer(IpFamily::V4, n)))).await;
        assert!(outcomes.iter().all(|outcome| errno(outcome) == Some(ENOENT)), "{outcomes:?}");
        let outcomes = kernel.apply(&ops(Action::Delete, (0..3).map(|n| peer(IpFamily::V4, n)))).await;
        assert!(outcomes.iter().all(|outcome| *outcome == OpOutcome::Done), "{outcomes:?}");
    });
}

#[test]
fn an_element_that_no_packet_can_match_is_drift_of_the_table() {
    run("elements::an_element_that_no_packet_can_match_is_drift_of_the_table", async |kernel| {
        let (ruleset, _) = wanted();
        apply(&kernel, swap()).await;
        let before = sources(&kernel).await;
        // These have host bits below the set's prefix length.
        for odd in [
            "peers4_1_24 { 192.168.33.77 . 0x0a640001 }",
            "peers6_1_64 { fd33::77 . 0xfd000000000000060000000000000001 }",
        ] {
            shell(&format!("nft add element inet flatnet '{odd}'"));
            let found = dump(&kernel).await.state;
            assert_ne!(found.ruleset.as_ref(), Some(&ruleset), "{odd}");
            apply(&kernel, swap()).await;
            let found = dump(&kernel).await.state;
            assert_eq!((found.ruleset.as_ref(), &found.peer_sources), (Some(&ruleset), &before), "{odd}");
        }
        // One more peer is a peer: the diff tells whether it is wanted.
        for (element, read) in [
            ("peers4_1_24 { 192.168.33.78 . 0x0a640100 }", source("192.168.33.78", "10.100.1.0/24")),
            ("peers6_1_64 { fd33::80 . 0xfd000000000000070000000000000000 }", source("fd33::80", "fd00:0:0:7::/64")),
        ] {
            shell(&format!("nft add element inet flatnet '{element}'"));
            let found = dump(&kernel).await.state;
            assert_eq!(found.ruleset.as_ref(), Some(&ruleset), "{element}");
            assert!(found.peer_sources.contains(&read), "{element}: {:?}", found.peer_sources);
        }
    });
}

#[test]
fn eight_thousand_peers_are_swapped_read_and_changed_one_by_one() {
    run("elements::eight_thousand_peers_are_swapped_read_and_changed_one_by_one", async |kernel| {
        for (family, count) in [IpFamily::V4, IpFamily::V6].into_iter().flat_map(|f| [(f, 100), (f, 8_000)]) {
            let elements: Vec<PeerSource> = (0..count).map(|n| peer(family, n)).collect();
            let whole = Op {
                action: Action::Replace,
                object: Object::Ruleset { ruleset: wanted().0, elements: elements.clone() },
            };
            let swapped = median(async || apply(&kernel, whole.clone()).await).await;
            until_listed(&kernel, elements.len()).await;
            let read = median(async || assert_eq!(sources(&kernel).await.len(), elements.len())).await;
            let extra = peer(family, count);
            let mut single = Vec::new();
            for _ in 0..21 {
                let since = Instant::now();
                assert_eq!(kernel.apply(&ops(Action::Create, [extra])).await, [OpOutcome::Done]);
                single.push(since.elapsed());
                assert_eq!(kernel.apply(&ops(Action::Delete, [extra])).await, [OpOutcome::Done]);
            }
            single.sort();
            let process = median(async || {
                let key = elements[0];
                let (outer, inner) = (key.outer, hexadecimal(key.inner.network()));
                shell(&format!("nft add element inet flatnet {} '{{ {outer} . {inner} }}'", set(family)));
            })
            .await;
            assert_eq!(listed(family), elements.len());
            // All of them go in one apply, as when a store is seen for the first time.
            apply(&kernel, swap()).await;
            let since = Instant::now();
            let outcomes = kernel.apply(&ops(Action::Create, elements)).await;
            let added = since.elapsed();
            assert!(outcomes.iter().all(|outcome| *outcome == OpOutcome::Done));
            println!(
                "{family}, {count} elements: swap {swapped:?}, dump {read:?}, all over netlink {added:?}, \
                 one more {:?}, one by the nft process {process:?}",
                single[single.len() / 2]
            );
        }
    });
}

/// Waits until the set lists `count` elements, several times over. The kernel enlarges its hash table in the background
/// (lib/rhashtable.c), and a dump that runs meanwhile misses some without a word (net/netfilter/nf_tables_api.c goes on
/// by their number).
pub async fn until_listed(kernel: &NetlinkKernel, count: usize) {
    let mut whole = 0;
    for _ in 0..100 {
        whole = if sources(kernel).await.len() == count { whole + 1 } else { 0 };
        if whole == 5 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{count} elements are not listed");
}

fn hexadecimal(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{:#x}", u32::from(address)),
        IpAddr::V6(address) => format!("{:#x}", u128::from(address)),
    }
}

async fn median(mut work: impl AsyncFnMut()) -> Duration {
    let mut times = Vec::new();
    for _ in 0..5 {
        let since = Instant::now();
        work().await;
        times.push(since.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

#[test]
fn a_changed_ruleset_wakes_and_a_quiet_one_does_not() {
    run("elements::a_changed_ruleset_wakes_and_a_quiet_one_does_not", async |kernel| {
        /// Time without wakes that counts as quiet: longer than the older tables' poll.
        const QUIET: Duration = Duration::from_millis(1_200);
        let mut wakes = kernel.events().unwrap();
        // Opening the socket may itself cause a wake; after that it is quiet.
        let mut next = async |limit| tokio::time::timeout(limit, wakes.next()).await.ok().flatten();
        while next(QUIET).await.is_some() {}
        for change in ["nft add table inet theirs", "nft delete table inet theirs", "iptables-legacy -P FORWARD DROP"] {
            shell(change);
            assert_eq!(next(Duration::from_secs(5)).await, Some(Wake::Firewall), "{change}");
            while next(QUIET).await.is_some() {}
        }
        let busy = || nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
        let before = busy();
        assert_eq!(next(Duration::from_secs(5)).await, None, "nothing changed");
        let after = busy();
        println!(
            "five idle seconds: {} µs user, {} µs system",
            after.user_time().tv_usec() + 1_000_000 * after.user_time().tv_sec()
                - before.user_time().tv_usec()
                - 1_000_000 * before.user_time().tv_sec(),
            after.system_time().tv_usec() + 1_000_000 * after.system_time().tv_sec()
                - before.system_time().tv_usec()
                - 1_000_000 * before.system_time().tv_sec()
        );
    });
}
