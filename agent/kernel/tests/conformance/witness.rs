//! The sets in which the kernel remembers the sources of dropped packets. They are read, are no drift, and are no way
//! around a drop.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use flatnet_core::claims::{Sighting, are_cut};
use flatnet_core::firewall::WitnessSet;
use flatnet_core::object::Ruleset;
use flatnet_core::op::{Action, Object};
use flatnet_kernel::{Kernel, Questions, Scope};
use flatnet_model::IpFamily;
use futures::StreamExt;

use crate::firewall::{apply, dump, run, swap, wanted};
use crate::world::{Subject, op, shell, wakes_within};

const CHAIN: &str = "tunnel_8472_1";

async fn seen(world: &Subject) -> Vec<Sighting> {
    let asked = Questions { sightings: true, ..Questions::default() };
    match world {
        Subject::Fake(kernel) => kernel.facts(&asked).await.unwrap().sightings,
        Subject::Linux(kernel) => kernel.facts(&asked).await.unwrap().sightings,
    }
}

fn dropped_packets() -> Questions {
    Questions { drops: true, sightings: true, ..Questions::default() }
}

async fn ruleset_of(world: &Subject) -> Option<Ruleset> {
    let dump = match world {
        Subject::Fake(kernel) => kernel.dump(&Scope::default()).await,
        Subject::Linux(kernel) => kernel.dump(&Scope::default()).await,
    };
    dump.unwrap().state.ruleset
}

pub async fn what_the_kernel_remembers_of_senders_is_told_and_is_no_drift(world: &Subject) {
    let (ruleset, elements) = wanted();
    let swap = || op(Action::Change, Object::Ruleset { ruleset: ruleset.clone(), elements: elements.clone() });
    world.done(&[swap()]).await;
    assert_eq!(seen(world).await, []);
    let sighting = |chain: &str, outer: Option<&str>, inner: &str| Sighting {
        table: Ruleset::TABLE,
        chain: chain.to_owned(),
        interface: "eth9".to_owned(),
        outer: outer.map(|outer| outer.parse().unwrap()),
        inner: inner.parse().unwrap(),
        packets: 7,
    };
    for (sighting, key) in [
        (sighting(CHAIN, Some("192.0.2.66"), "10.100.5.7"), "192.0.2.66 . 0x0a640507"),
        (sighting("forged_8472_1", Some("fd33::66"), "fd00:0:0:5::7"), "fd33::66 . 0xfd000000000000050000000000000007"),
        (sighting("arrival4_default", None, "10.100.5.7"), "10.100.5.7"),
        (sighting("arrival6_default", None, "fd00:0:0:5::7"), "fd00:0:0:5::7"),
    ] {
        world.done(&[swap()]).await;
        let set = WitnessSet { family: IpFamily::of(sighting.inner), chain: sighting.chain.clone() };
        world.behind(
            |fake| assert!(fake.sight(sighting.clone())),
            &format!("nft 'add element inet flatnet {set} {{ \"eth9\" . {key} counter packets 7 bytes 700 }}'"),
        );
        assert_eq!(seen(world).await, [sighting]);
        assert_eq!(ruleset_of(world).await.as_ref(), Some(&ruleset), "no drift");
    }
    world.done(&[swap()]).await;
    assert_eq!(seen(world).await, [], "a swap forgets");
    world.behind(|fake| fake.sight(sighting("theirs", None, "10.100.5.7")), "true");
    assert_eq!(seen(world).await, []);
}

/// Returns a VXLAN packet of our VNI with an inner packet from `source`.
fn tunnelled(source: IpAddr) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0, 0, 0, 1, 0];
    packet.extend([2; 12]);
    match source {
        IpAddr::V4(source) => {
            packet.extend([8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0]);
            packet.extend(source.octets());
            packet.extend([10, 100, 4, 7]);
        }
        IpAddr::V6(source) => {
            packet.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 17, 64]);
            packet.extend(source.octets());
            packet.extend([0xfd; 16]);
        }
    }
    packet
}

/// Real packets come from more sources than a set has room for. Each is dropped, the first ones are named, nothing
/// looks like somebody else's change, and the held copy stays.
#[test]
fn a_full_set_drops_what_it_cannot_remember() {
    const SOURCES: u32 = 100;
    run("witness::a_full_set_drops_what_it_cannot_remember", async |kernel| {
        shell("ip link set lo up");
        apply(&kernel, swap()).await;
        dump(&kernel).await;
        let handles = || {
            let listed = ["flatnet", "flatnet_held"]
                .map(|table| format!("nft -a list table inet {table} 2>/dev/null | head -1"));
            listed.map(|command| shell(&command))
        };
        let before = handles();
        let mut wakes = kernel.events().unwrap().boxed();
        while wakes_within(&mut wakes, 100).await {}
        for family in IpFamily::BOTH {
            let (to, own): (IpAddr, &dyn Fn(u32) -> IpAddr) = match family {
                IpFamily::V4 => (Ipv4Addr::LOCALHOST.into(), &|n| Ipv4Addr::from_bits(0x0a64_0500 + n).into()),
                IpFamily::V6 => {
                    (Ipv6Addr::LOCALHOST.into(), &|n| Ipv6Addr::from_bits((0xfd << 120) + u128::from(n)).into())
                }
            };
            let heard = UdpSocket::bind((to, 8472)).unwrap();
            heard.set_nonblocking(true).unwrap();
            let sender = UdpSocket::bind((to, 0)).unwrap();
            let dropped = async || -> u64 {
                let counts = kernel.facts(&dropped_packets()).await.unwrap().drops;
                counts.iter().filter(|count| count.chain == CHAIN).map(|count| count.packets).sum()
            };
            let already = dropped().await;
            for round in 1..=2 {
                for n in 0..SOURCES {
                    sender.send_to(&tunnelled(own(n)), (to, 8472)).unwrap();
                }
                assert_eq!(dropped().await - already, u64::from(SOURCES * round), "{family}");
            }
            assert!(heard.recv(&mut [0; 128]).is_err(), "a packet came through a full set over {family}");
            let all = kernel.facts(&dropped_packets()).await.unwrap().sightings;
            let of_family: Vec<&Sighting> = all.iter().filter(|seen| IpFamily::of(seen.inner) == family).collect();
            assert_eq!(of_family.len(), WitnessSet::SIZE);
            assert!(are_cut(&all));
            let named: BTreeSet<IpAddr> = of_family.iter().map(|seen| seen.inner).collect();
            assert_eq!(named, (0..SOURCES).map(own).take(WitnessSet::SIZE).collect());
            for seen in of_family {
                let found = (seen.table, seen.chain.as_str(), seen.interface.as_str(), seen.outer, seen.packets);
                assert_eq!(found, (Ruleset::TABLE, CHAIN, "lo", Some(to), 2));
            }
        }
        assert!(!wakes_within(&mut wakes, 300).await, "nobody is told of what a packet does");
        let (ruleset, elements) = wanted();
        let state = dump(&kernel).await.state;
        assert_eq!(state.ruleset.as_ref(), Some(&ruleset), "no drift");
        assert_eq!(state.peer_sources.into_iter().collect::<Vec<_>>(), elements);
        kernel.apply(&[]).await;
        assert_eq!(handles(), before, "neither table was made anew");
    });
}

/// While the table is gone, the held copy drops, and remembers.
#[test]
fn the_held_copy_remembers_while_the_table_is_away() {
    run("witness::the_held_copy_remembers_while_the_table_is_away", async |kernel| {
        shell("ip link set lo up");
        apply(&kernel, swap()).await;
        if shell("nft list tables").lines().count() < 2 {
            eprintln!("SKIPPED: this kernel has no owners of nftables tables");
            return;
        }
        shell("nft flush ruleset");
        let heard = UdpSocket::bind("127.0.0.1:8472").unwrap();
        heard.set_nonblocking(true).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for n in 0..100 {
            sender.send_to(&tunnelled(Ipv4Addr::from_bits(0x0a64_0500 + n).into()), "127.0.0.1:8472").unwrap();
        }
        assert!(heard.recv(&mut [0; 128]).is_err());
        let seen = kernel.facts(&dropped_packets()).await.unwrap().sightings;
        assert_eq!(seen.len(), WitnessSet::SIZE);
        assert!(seen.iter().all(|seen| (seen.table, seen.packets) == (Ruleset::HELD, 1)), "{seen:?}");
    });
}
