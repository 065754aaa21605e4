//! 10⁵ generated packets from a stranger and from a peer that lies, beside a peer's ping stream.

use std::time::{Duration, Instant};

use flatnet_model::IpFamily;
use flatnet_tests::Families;
use flatnet_tests::pinger::{Pinger, assert_all_pairs};
use flatnet_tests::suite::Test;
use flatnet_tests::wait::pause;

use crate::counter::Counter;
use crate::field::{FRIEND, Field, LIAR, PORT, STRANGER, VICTIM, received, tunnel};
use crate::generate::{Aim, Random, allowed};
use crate::packet::{MAGIC, udp_ip};
use crate::sender::Sender;

/// The number of attacks, half of them a family; one in five of them is several packets.
const ATTACKS: u32 = 100_000;
/// The packets between pauses, so few that the queue of the wire (`net.core.netdev_max_backlog`, 1,000 packets) is
/// never the one that drops: what is measured is the guard.
pub const BURST: u32 = 32;
pub const PAUSE: Duration = Duration::from_millis(4);

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("no_hostile_frame_comes_out_and_a_peers_traffic_does_not_suffer", flood).on_backend("vxlan"),
        Test::new("a_forged_peer_can_pose_as_that_peers_containers_only", forged_peer).on_backend("vxlan"),
    ]
}

fn flood() {
    let field = Field::new(Families::Dual);
    assert_all_pairs(&field.lab, &field.agents);
    let (container, friend) = (field.lab.container(VICTIM), field.lab.container(FRIEND));
    let host = field.host(VICTIM);
    let before = IpFamily::BOTH.map(|family| received(&host, tunnel(family)));
    let counters = [
        Counter::start(&host, &["eth0"]),
        Counter::start(&container, &[]),
        Counter::start(&field.host(FRIEND), &["eth0"]),
    ];
    let pingers = IpFamily::BOTH.map(|family| Pinger::start(&field.lab, &friend, field.container(VICTIM, family)));
    let senders = [STRANGER, LIAR].map(|number| (number, Sender::new(&field.host(number))));
    let aims = IpFamily::BOTH.map(|family| Aim::new(&field, family));
    let mut random = Random(0x5eed_0000_0000_0001);
    let (began, mut packets, mut refused) = (Instant::now(), 0u64, 0u64);
    for number in 0..ATTACKS {
        let aim = &aims[usize::from(number % 2 == 1)];
        let attack = aim.attack(&mut random);
        let (_, sender) = senders.iter().find(|(by, _)| *by == attack.by).unwrap();
        for packet in &attack.packets {
            packets += 1;
            refused += u64::from(!sender.send(aim.victim, packet));
        }
        if number % BURST == BURST - 1 {
            pause(PAUSE);
        }
    }
    let took = began.elapsed();
    let losses = pingers.map(Pinger::stop);
    eprintln!(
        "hostile frames: {ATTACKS} attacks in {packets} packets ({refused} not sent by the attacker's own kernel) in \
         {:.1} s; pings beside: {} sent, {} lost",
        took.as_secs_f32(),
        losses[0].sent + losses[1].sent,
        losses[0].lost.len() + losses[1].lost.len(),
    );
    for counter in &counters {
        counter.assert_none("of the generated packets");
    }
    for losses in &losses {
        assert!(losses.lost.is_empty(), "a peer's pings suffered: {losses:?}");
    }
    assert!(refused * 10 < packets, "{refused} of {packets} packets never left");
    // Nothing escaped the packet socket: it saw exactly as many pings as the devices received by the kernel's own
    // count.
    for (family, before) in IpFamily::BOTH.into_iter().zip(before) {
        let seen = counters[0].seen(tunnel(family));
        assert_eq!(seen, received(&host, tunnel(family)) - before, "{}", tunnel(family));
        assert!(seen > 100, "{} had no pings: {seen}", tunnel(family));
    }
    // What was judged was these packets: the guard has dropped most of them.
    let table = host.ok("nft list table inet flatnet");
    let dropped: u64 = table
        .lines()
        .filter(|line| line.contains("not a peer sending from its own subnet"))
        .filter_map(|line| line.split("packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok())
        .sum();
    eprintln!("hostile frames: {dropped} dropped by the guard, the others before it or by the device");
    assert!(dropped > u64::from(ATTACKS) / 4, "{table}");
    // And the counters do count: a frame within the liar's lease arrives.
    for (family, aim) in IpFamily::BOTH.into_iter().zip(&aims) {
        let packet = udp_ip(field.outer(LIAR, family), aim.victim, 9, PORT, &allowed(&field, VICTIM, LIAR, family));
        assert!(senders[1].1.send(aim.victim, &packet));
        assert!(!counters[1].arrivals().is_empty(), "an allowed frame over {family} did not arrive");
    }
}

/// A forged peer. Plain VXLAN has no authentication: a sender that can put a peer's address on the wire is that peer,
/// as docs/security.md says. This shows both that it is so and how far it goes.
fn forged_peer() {
    let field = Field::new(Families::V4);
    assert_all_pairs(&field.lab, &field.agents);
    let family = IpFamily::V4;
    let counter = Counter::start(&field.lab.container(VICTIM), &[]);
    let sender = Sender::new(&field.host(STRANGER));
    let victim = field.outer(VICTIM, family);
    let send = |from: u8, lease_of: u8| {
        let payload = allowed(&field, VICTIM, lease_of, family);
        let packet = udp_ip(field.outer(from, family), victim, 9, PORT, &payload);
        assert!(sender.send(victim, &packet));
    };
    for _ in 0..100 {
        send(FRIEND, LIAR);
        send(LIAR, FRIEND);
        send(STRANGER, FRIEND);
    }
    counter.assert_none("from a peer's forged address, outside that peer's lease");
    for _ in 0..100 {
        send(FRIEND, FRIEND);
    }
    let arrived = counter.arrivals();
    assert_eq!(arrived.len(), 100, "a forged peer inside its lease is that peer");
    assert!(arrived.iter().all(|arrival| arrival.frame.windows(MAGIC.len()).any(|window| window == MAGIC)));
    eprintln!("forged outer source: 0 of 300 outside the forged peer's lease, {} of 100 inside it", arrived.len());
}
