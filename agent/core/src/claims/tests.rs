use super::*;

fn holder(node: &str, subnet: &str, published: &str) -> Holder {
    Holder {
        network: "default".to_owned(),
        node: node.to_owned(),
        subnet: subnet.parse().unwrap(),
        published: published.parse().ok(),
        is_here: false,
    }
}

fn holders() -> Vec<Holder> {
    vec![
        holder("host2", "10.100.32.0/20", "192.168.1.12"),
        holder("", "10.100.48.0/20", "192.168.1.13"),
        holder("host2", "fd00:0:0:2::/64", "fd33::12"),
        Holder { is_here: true, ..holder("", "10.100.16.0/20", "192.168.1.11") },
    ]
}

fn sighting(chain: &str, outer: &str, inner: &str, packets: u64) -> Sighting {
    Sighting {
        table: "flatnet",
        chain: chain.to_owned(),
        interface: "eth0".to_owned(),
        outer: outer.parse().ok(),
        inner: inner.parse().unwrap(),
        packets,
    }
}

fn said(sighting: &Sighting) -> String {
    Claim::of(sighting, &holders()).text(sighting.packets)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn a_claim_names_the_peer_where_it_came_from_and_what_the_peer_publishes() {
    for (sighting, text) in [
        (
            sighting("tunnel_8472_1", "192.168.1.66", "10.100.33.7", 7),
            "7 packets that claimed to be from host2 (10.100.32.0/20): came from 192.168.1.66 by eth0, it publishes 192.168.1.12",
        ),
        (
            sighting("gre6", "fd33::66", "fd00:0:0:2::7", 1),
            "1 packet that claimed to be from host2 (fd00:0:0:2::/64): came from fd33::66 by eth0, it publishes fd33::12",
        ),
        (
            sighting("gre4_0", "192.168.1.66", "10.100.48.7", 3),
            "3 packets that claimed to be from the peer of 10.100.48.0/20: came from 192.168.1.66 by eth0, it publishes 192.168.1.13",
        ),
        (
            sighting("tunnel_8472_1", "192.168.1.66", "10.9.9.9", 3),
            "3 packets that claimed to be from an address that no lease holds: came from 192.168.1.66 by eth0",
        ),
        (
            sighting("tunnel_8472_1", "192.168.1.66", "10.100.16.9", 3),
            "3 packets that claimed to be from this host's own subnet (10.100.16.0/20): came from 192.168.1.66 by eth0",
        ),
        (
            sighting("forged_8472_1", "192.168.1.12", "10.100.32.7", 3),
            "3 packets that claimed to be from host2 (10.100.32.0/20): came from 192.168.1.12 in by eth0, where no route leads back to \
             that address",
        ),
        (
            sighting("arrival4_default", "", "10.100.32.7", 3),
            "3 packets that claimed to be from host2 (10.100.32.0/20): came in by eth0, which is not the way of such a source",
        ),
    ] {
        assert_eq!(said(&sighting), text);
    }
}

/// Names come from the store, and an interface's name from whoever made it.
#[test]
fn nothing_hostile_is_said_or_counted_as_it_is() {
    for hostile in text::HOSTILE {
        let holders = [holder(hostile, "10.100.32.0/20", "192.168.1.12")];
        for chain in ["tunnel_8472_1", "forged_8472_1", "arrival4_default"] {
            let mut sighting = sighting(chain, "192.168.1.66", "10.100.32.7", 3);
            sighting.interface = hostile.to_owned();
            let claim = Claim::of(&sighting, &holders);
            for text in [claim.text(3), claim.hint(), claim.label()] {
                assert!(text.chars().all(text::is_shown), "{text:?}");
            }
        }
    }
}

#[test]
fn a_peer_that_was_none_when_its_packets_came_is_not_accused() {
    let early = sighting("tunnel_8472_1", "192.168.1.12", "10.100.32.7", 50);
    assert_eq!(claims(std::slice::from_ref(&early), &holders()), []);
    let mut log = ClaimLog::default();
    log.pass(secs(0));
    log.observe(secs(10), &[early], &holders());
    assert_eq!((log.problems(), log.news(secs(10)), log.totals().count()), (vec![], vec![], 0));
}

#[test]
fn what_came_lately_is_a_note_and_counted_for_ever() {
    let mut log = ClaimLog::default();
    let mut look = |now, packets| {
        log.observe(secs(now), &[sighting("tunnel_8472_1", "192.168.1.66", "10.100.33.7", packets)], &holders());
        let problems: Vec<String> = log.problems().into_iter().map(|problem| problem.message).collect();
        let total: u64 = log.totals().map(|(.., packets)| packets).sum();
        (problems, total)
    };
    assert_eq!(look(0, 100), (vec![], 0), "of the run before");
    assert_eq!(look(10, 102), (vec![], 2), "stray");
    let message = "network default: in the last 60 s dropped 7 packets that claimed to be from host2 (10.100.32.0/20): came from \
                   192.168.1.66 by eth0, it publishes 192.168.1.12";
    assert_eq!(look(20, 107), (vec![message.to_owned()], 7));
    assert_eq!(look(85, 1), (vec![], 8), "forgotten by the kernel, and back");
    let labels: Vec<_> = log.totals().map(|(network, flaw, peer, _)| (network, flaw.as_str(), peer)).collect();
    assert_eq!(labels, [("default", "address", "host2")]);
    log.pass(secs(300));
    assert!(log.late.is_empty());
}

#[test]
fn a_problem_is_a_note_with_something_to_do() {
    let mut log = ClaimLog::default();
    log.pass(secs(0));
    log.observe(secs(10), &[sighting("tunnel_8472_1", "192.168.1.66", "10.100.33.7", 9)], &holders());
    let problems = log.problems();
    let [problem] = problems.as_slice() else { panic!("{problems:?}") };
    assert!(problem.code.is_note() && problem.object == "10.100.32.0/20", "{problem:?}");
    for word in ["--public-ip", "NAT", "host2", "ip neigh show 192.168.1.66"] {
        assert!(problem.hint.contains(word), "{}", problem.hint);
    }
}

/// A stranger makes up sources, outer and inner.
#[test]
fn made_up_sources_do_not_grow_what_is_kept_said_or_counted() {
    let mut log = ClaimLog::default();
    log.pass(secs(0));
    let holders: Vec<Holder> =
        (0..=255).flat_map(|a| (0..4).map(move |b| holder("", &format!("10.{b}.{a}.0/24"), "192.0.2.1"))).collect();
    let mut said = 0;
    for round in 1..=100u32 {
        let sighting = |n: u32| {
            let bits = round * 64 + n;
            let inner = std::net::Ipv4Addr::from_bits(0x0a00_0000 + bits * 40 % 0x4_0000);
            let outer = std::net::Ipv4Addr::from_bits(0xc633_0000 + bits);
            sighting("tunnel_8472_1", &outer.to_string(), &inner.to_string(), 5)
        };
        let all: Vec<Sighting> = (0..64).map(sighting).collect();
        let now = secs(u64::from(round) * 10);
        log.observe(now, &all, &holders);
        said += log.news(now).len();
        let problems = log.problems();
        assert_eq!(problems.len(), 4);
        assert!(problems[3].message.ends_with("others likewise, and more than are remembered"), "{problems:?}");
        assert!(log.late.len() <= 64 * 6 + 1, "{}", log.late.len());
    }
    assert_eq!(said, 16 + 1, "in one hour; and once that there are more");
    assert!((256..=256 + 3).contains(&log.totals().count()), "{}", log.totals().count());
    let others: u64 = log.totals().filter(|(_, _, peer, _)| *peer == "others").map(|(.., packets)| packets).sum();
    let all: u64 = log.totals().map(|(.., packets)| packets).sum();
    assert!(others > 0 && all == 100 * 64 * 5, "{others} of {all}");
}

#[test]
fn a_claim_is_news_once_and_from_elsewhere_again() {
    let mut log = ClaimLog::default();
    log.pass(secs(0));
    let mut look = |now, outer, packets| {
        log.observe(secs(now), &[sighting("tunnel_8472_1", outer, "10.100.33.7", packets)], &holders());
        log.news(secs(now)).len()
    };
    assert_eq!(look(10, "192.168.1.66", 2), 0, "stray");
    assert_eq!(look(20, "192.168.1.66", 5), 1);
    assert_eq!(look(30, "192.168.1.66", 9), 0);
    assert_eq!(look(40, "192.168.1.67", 9), 1);
    assert_eq!(look(400, "192.168.1.66", 9), 0);
}

/// A claim that names a peer is one that can be mended; anybody can make up any number of sources that nobody holds.
#[test]
fn those_that_name_a_peer_are_shown_before_those_that_name_nobody() {
    let mut log = ClaimLog::default();
    log.pass(secs(0));
    let mut all: Vec<Sighting> =
        (1..20).map(|n| sighting("tunnel_8472_1", &format!("192.0.2.{n}"), "10.9.9.9", 1000)).collect();
    all.push(sighting("tunnel_8472_1", "192.168.1.66", "10.100.33.7", 3));
    log.observe(secs(10), &all, &holders());
    let problems = log.problems();
    assert!(problems[0].message.contains("host2"), "{problems:#?}");
    assert!(problems[3].message.ends_with("; and 16 others likewise"), "{problems:#?}");
}
