//! Generated packets at the tunnels that carry IP packets: GRE, which knows its peers by their addresses, and
//! WireGuard, which knows them by their keys.

use std::time::Duration;

use flatnet_model::IpFamily;
use flatnet_tests::Families;
use flatnet_tests::pinger::{Losses, Pinger, assert_all_pairs};
use flatnet_tests::suite::Test;
use flatnet_tests::wait::pause;

use crate::counter::Counter;
use crate::field::{FRIEND, Field, LIAR, STRANGER, VICTIM};
use crate::generate::{Aim, Attack, Random, within};
use crate::packet::{GRE, MAGIC, gre, ip, udp_ip};
use crate::sender::Sender;

/// Attacks in each test.
const ATTACKS: u32 = 30_000;
/// The packets between pauses: see the flood of VXLAN frames.
const BURST: u32 = 16;
const PAUSE: Duration = Duration::from_millis(4);
/// WireGuard's default port.
const WIREGUARD: u16 = 51820;

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("no_hostile_gre_packet_comes_out", hostile_gre).on_backend("gre"),
        Test::new("no_hostile_packet_comes_out_of_wireguard", hostile_wireguard).on_backend("wireguard"),
    ]
}

/// Sends what `attack` makes, beside a friend's pings; returns the number of packets sent, and the losses of the pings.
fn flood(field: &Field, family: IpFamily, mut attack: impl FnMut(&mut Random) -> Attack) -> (u64, Losses) {
    let pinger = Pinger::start(&field.lab, &field.lab.container(FRIEND), field.container(VICTIM, family));
    let senders = [STRANGER, LIAR].map(|number| (number, Sender::new(&field.host(number))));
    let victim = field.outer(VICTIM, family);
    let mut random = Random(0x5eed_0000_0000_0002);
    let mut sent = 0;
    for number in 0..ATTACKS {
        let attack = attack(&mut random);
        let (_, sender) = senders.iter().find(|(by, _)| *by == attack.by).unwrap();
        sent += u64::try_from(attack.packets.iter().filter(|packet| sender.send(victim, packet)).count()).unwrap();
        if number % BURST == BURST - 1 {
            pause(PAUSE);
        }
    }
    (sent, pinger.stop())
}

/// Asserts that the friend's pings go on. A tunnel carried by a process loses packets that come faster than it gets to
/// run. A machine that is busy otherwise may cost some pings, which is not what this is about.
fn assert_alive(losses: &Losses) {
    assert!(losses.lost.len() * 10 < usize::try_from(losses.sent).unwrap(), "a peer's pings suffered: {losses:?}");
}

fn hostile_gre() {
    for family in IpFamily::BOTH {
        let families = if family == IpFamily::V4 { Families::V4 } else { Families::V6 };
        let field = Field::with("gre", families);
        assert_all_pairs(&field.lab, &field.agents);
        let counters = [
            Counter::start(&field.host(VICTIM), &["eth0"]),
            Counter::start(&field.lab.container(VICTIM), &[]),
            Counter::start(&field.host(FRIEND), &["eth0"]),
        ];
        let aim = Aim::without_ethernet(&field, family);
        let (sent, losses) = flood(&field, family, |random| aim.gre_attack(random));
        eprintln!(
            "hostile GRE over {family}: {ATTACKS} attacks in {sent} packets; pings beside: {} sent, {} lost",
            losses.sent,
            losses.lost.len()
        );
        for counter in &counters {
            counter.assert_none("of the generated GRE packets");
        }
        assert_alive(&losses);
        assert!(sent > u64::from(ATTACKS) * 8 / 10, "only {sent} packets left");
        // The counters do count: what the liar may send arrives.
        let source = within(field.subnet(LIAR, family), &mut Random(7));
        let protocol = if family == IpFamily::V4 { 0x0800 } else { 0x86dd };
        let allowed = udp_ip(source, field.container(VICTIM, family), 1, 2, MAGIC);
        let victim = field.outer(VICTIM, family);
        let packet = ip(field.outer(LIAR, family), victim, GRE, None, &gre(0, protocol, None, &allowed));
        assert!(Sender::new(&field.host(LIAR)).send(victim, &packet));
        assert!(!counters[1].arrivals().is_empty(), "an allowed packet over {family} did not arrive");
    }
}

/// Messages of every type and none, in clear too: only a holder of a peer's key gets anything in.
fn hostile_wireguard() {
    let field = Field::with("wireguard", Families::V4);
    assert_all_pairs(&field.lab, &field.agents);
    let family = IpFamily::V4;
    let counters = [Counter::start(&field.host(VICTIM), &["eth0"]), Counter::start(&field.lab.container(VICTIM), &[])];
    let (container, victim) = (field.container(VICTIM, family), field.outer(VICTIM, family));
    let (liar, stranger) = (field.outer(LIAR, family), field.outer(STRANGER, family));
    let subnets = [FRIEND, LIAR].map(|peer| field.subnet(peer, family));
    let (sent, losses) = flood(&field, family, |random| {
        let (by, outer) = random.pick(&[(STRANGER, stranger), (STRANGER, liar), (LIAR, liar)]);
        let inner = udp_ip(within(random.pick(&subnets), random), container, 1, 2, MAGIC);
        if random.one_in(8) {
            // In clear, as if from the tunnel.
            return Attack { by, packets: vec![inner] };
        }
        // Initiation 148 bytes, response 92, cookie 64, data 32 and more (WireGuard §5.4).
        let (kind, length) =
            random.pick(&[(1, 148), (2, 92), (3, 64), (4, 32 + inner.len()), (4, 32), (0, 40), (9, 80)]);
        let mut message: Vec<u8> = (0..length).map(|_| random.byte()).collect();
        message[..4].copy_from_slice(&[kind, 0, 0, 0]);
        if random.one_in(4) {
            message.truncate(random.below(length));
        }
        if kind == 4 && message.len() >= 16 + inner.len() {
            // Not encrypted at all.
            message[16..16 + inner.len()].copy_from_slice(&inner);
        }
        Attack { by, packets: vec![udp_ip(outer, victim, WIREGUARD, WIREGUARD, &message)] }
    });
    eprintln!(
        "hostile WireGuard: {ATTACKS} attacks in {sent} packets; pings beside: {} sent, {} lost",
        losses.sent,
        losses.lost.len()
    );
    for counter in &counters {
        counter.assert_none("of the generated packets at WireGuard's port");
    }
    assert_alive(&losses);
}
