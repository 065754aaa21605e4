//! Packets that our own rules dropped. Counters, as they are read, become what was dropped lately, the reasons, and
//! totals.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use flatnet_model::NetworkName;

use crate::problem::{Problem, ProblemCode};

/// The time for which a drop counts as recent: a few looks, and long enough for somebody who tries again to see it.
pub(crate) const LATE_WINDOW: Duration = Duration::from_secs(60);
/// The number of packets in that time from which drops are a problem. Whoever cannot reach somebody tries more than
/// once; a stray packet is one or two.
pub(crate) const MANY: u64 = 3;

/// The counter of one rule of ours that drops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropCount {
    /// The table that the rule is in.
    pub table: &'static str,
    /// The chain that the rule is in.
    pub chain: String,
    /// The rule's comment: the network, a colon, and the reason, or the reason alone. Empty if it has none.
    pub comment: String,
    /// Packets dropped since the rule was loaded.
    pub packets: u64,
}

/// The reason why packets were dropped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reason {
    /// The network concerned; empty if it may be any.
    pub network: String,
    /// The reason in the rule's own words.
    pub text: String,
    /// The chain that dropped them.
    pub chain: String,
}

impl Reason {
    /// Reads the reason from a rule's comment. A network counts as one only if it is joined.
    #[must_use]
    pub fn of(count: &DropCount, networks: &[NetworkName]) -> Self {
        let chain = count.chain.clone();
        let (network, text) = match count.comment.split_once(": ") {
            Some((name, text)) if networks.iter().any(|network| network.as_str() == name) => (name, text),
            _ if count.comment.is_empty() => ("", chain.as_str()),
            _ => ("", count.comment.as_str()),
        };
        Self { network: network.to_owned(), text: text.to_owned(), chain }
    }

    /// Returns advice on where to look.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        if self.chain.starts_with("tunnel_") || self.chain.starts_with("gre") || self.chain == "guard" {
            "either a stranger sends, or a peer's packets come from another address than it publishes: compare the sources \
             (`tcpdump -ni UNDERLAY udp port PORT`) with `agent peers`; on that peer --public-ip or --iface, or no translation \
             between them"
        } else if self.chain == "origin" || self.chain.starts_with("forged_") {
            "tunnel packets came in by another interface than the way back to their source: a container that forges, or routes \
             that differ by direction: `ip route get SOURCE`"
        } else if self.chain.starts_with("encrypted") {
            "packets of an encrypted network took another way than its tunnel: look for routes and rules into the network \
             (`ip rule`, `agent doctor`)"
        } else {
            "our rules refuse them; the reason says whose: `nft list table inet flatnet` shows rule and counter"
        }
    }
}

/// The packets dropped for one reason.
#[derive(Clone, Debug, Default)]
struct Tally {
    total: u64,
    late: VecDeque<(Duration, u64)>,
}

/// Counters over time.
#[derive(Clone, Debug, Default)]
pub struct DropLog {
    last: Option<BTreeMap<(&'static str, String, String), u64>>,
    tallies: BTreeMap<Reason, Tally>,
}

impl DropLog {
    /// Records the counters at `now`, a clock that never goes back. What the first look finds was dropped before, so it
    /// is not counted.
    pub fn observe(&mut self, now: Duration, counts: &[DropCount], networks: &[NetworkName]) {
        let mut seen: BTreeMap<_, u64> = BTreeMap::new();
        let mut grown: BTreeMap<Reason, u64> = BTreeMap::new();
        for count in counts {
            // Rules of one comment in one chain count together.
            let key = (count.table, count.chain.clone(), count.comment.clone());
            *seen.entry(key).or_default() += count.packets;
            grown.entry(Reason::of(count, networks)).or_default();
        }
        for ((table, chain, comment), packets) in &seen {
            let before = self
                .last
                .as_ref()
                .map(|last| last.get(&(*table, chain.clone(), comment.clone())).copied().unwrap_or_default());
            let new = match before {
                None => 0,
                // The table was swapped: it counts anew.
                Some(before) if *packets < before => *packets,
                Some(before) => packets - before,
            };
            let count = DropCount { table, chain: chain.clone(), comment: comment.clone(), packets: *packets };
            *grown.entry(Reason::of(&count, networks)).or_default() += new;
        }
        for (reason, new) in grown {
            let tally = self.tallies.entry(reason).or_default();
            tally.total += new;
            if new > 0 {
                tally.late.push_back((now, new));
            }
        }
        for tally in self.tallies.values_mut() {
            tally.late.retain(|(when, _)| now.saturating_sub(*when) < LATE_WINDOW);
        }
        self.last = Some(seen);
    }

    /// Returns true if `counts` have grown since they were last observed. If they never were, any packet counts as
    /// growth.
    #[must_use]
    pub fn has_grown(&self, counts: &[DropCount]) -> bool {
        let Some(last) = &self.last else { return counts.iter().any(|count| count.packets > 0) };
        let mut now: BTreeMap<_, u64> = BTreeMap::new();
        for count in counts {
            *now.entry((count.table, count.chain.clone(), count.comment.clone())).or_default() += count.packets;
        }
        now.iter().any(|(key, packets)| *packets != last.get(key).copied().unwrap_or_default())
    }

    /// Returns the packets since the first look, by reason.
    pub fn totals(&self) -> impl Iterator<Item = (&Reason, u64)> {
        self.tallies.iter().map(|(reason, tally)| (reason, tally.total))
    }

    /// Returns the packets dropped lately, as of the last look, as problems; stray packets are left out.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let problem = |(reason, tally): (&Reason, &Tally)| {
            let packets: u64 = tally.late.iter().map(|(_, packets)| packets).sum();
            let network =
                if reason.network.is_empty() { String::new() } else { format!("network {}: ", reason.network) };
            (packets >= MANY).then(|| {
                let message = format!(
                    "{network}dropped {packets} packets in the last {} s: {}",
                    LATE_WINDOW.as_secs(),
                    reason.text
                );
                Problem::new(ProblemCode::PacketsDropped, message, reason.hint(), &reason.chain)
            })
        };
        self.tallies.iter().filter_map(problem).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(table: &'static str, comment: &str, packets: u64) -> DropCount {
        DropCount { table, chain: "tunnel_8472_1".to_owned(), comment: comment.to_owned(), packets }
    }

    fn names() -> Vec<NetworkName> {
        vec![NetworkName::default_network()]
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_reason_is_the_networks_only_if_that_is_joined() {
        let of = |comment| Reason::of(&count("flatnet", comment, 0), &names());
        assert_eq!(
            (of("default: not a peer").network.as_str(), of("default: not a peer").text.as_str()),
            ("default", "not a peer")
        );
        assert_eq!(of("no route leads back: a forged source").text, "no route leads back: a forged source");
        assert_eq!(of("").text, "tunnel_8472_1");
    }

    #[test]
    fn what_was_dropped_is_said_while_it_is_late_and_counted_for_ever() {
        let mut log = DropLog::default();
        let mut look = |now, first, second| {
            let counts =
                [count("flatnet", "default: not a peer", first), count("flatnet_held", "default: not a peer", second)];
            log.observe(secs(now), &counts, &names());
            let total: u64 = log.totals().map(|(_, total)| total).sum();
            (log.problems().into_iter().map(|problem| problem.message).collect::<Vec<_>>(), total)
        };
        assert_eq!(look(0, 100, 0), (vec![], 0), "of the run before");
        assert_eq!(look(10, 102, 0), (vec![], 2), "stray");
        let (said, total) = look(20, 104, 2);
        assert_eq!(said, ["network default: dropped 6 packets in the last 60 s: not a peer"]);
        assert_eq!(total, 6);
        // The table is swapped and counts from 0.
        assert_eq!(look(30, 1, 2).1, 7);
        assert_eq!(look(95, 1, 2), (vec![], 7));
    }

    #[test]
    fn a_counter_that_moved_since_the_last_look_has_grown() {
        let mut log = DropLog::default();
        let counts = |packets| [count("flatnet", "default: not a peer", packets)];
        assert!(!log.has_grown(&counts(0)) && log.has_grown(&counts(3)), "before the first look");
        log.observe(secs(0), &counts(3), &names());
        assert!(!log.has_grown(&counts(3)) && log.has_grown(&counts(4)));
        assert!(log.has_grown(&counts(1)), "the table was swapped, and dropped one since");
    }
}
