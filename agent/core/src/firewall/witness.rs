//! Sets that remember the sources of packets that our rules drop. The kernel fills them by itself, on the way to a drop
//! and nowhere else.
//!
//! A rule that remembers is never the one that drops. If a set is full, or there is no memory for an element, the
//! kernel ends that rule and goes on with the next (`nft_dynset_eval`: `NFT_BREAK`). If the drop stood in the same
//! rule, many sources would open the guard. Packets that cannot be remembered are dropped and counted all the same.
//!
//! There is one set per chain and family, so that noise about one network does not hide what others do to another. Its
//! contents are the kernel's, not ours: they are no drift, and go with a swap.

use std::fmt;

use flatnet_model::IpFamily;

use super::{Text, ip};

/// The number of sources that one set remembers. A misconfigured peer is one, and a few of them are a few. Made-up
/// sources would fill a set of any size, and then the agent says that there are others. An element takes some 150 bytes
/// of the kernel's memory, and 16 for each processor.
const SIZE: usize = 64;

/// The time for which a source is remembered after its last packet. Somebody who is called at night looks within that
/// time, and the space that made-up sources take up is soon free again.
const SOURCE_TTL: &str = "10m";

/// A set of the sources whose packets `chain` drops: interface, source, and in a tunnel the inner source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WitnessSet {
    /// The family of the addresses.
    pub family: IpFamily,
    /// The chain that drops.
    pub chain: String,
}

impl WitnessSet {
    /// The number of sources that each set remembers.
    pub const SIZE: usize = SIZE;

    /// Reads a set's name as [`fmt::Display`] writes it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (family, chain) = match (name.strip_prefix("seen4_"), name.strip_prefix("seen6_")) {
            (Some(chain), _) => (IpFamily::V4, chain),
            (None, Some(chain)) => (IpFamily::V6, chain),
            (None, None) => return None,
        };
        Some(Self { family, chain: chain.to_owned() })
    }
}

impl fmt::Display for WitnessSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.family {
            IpFamily::V4 => write!(f, "seen4_{}", self.chain),
            IpFamily::V6 => write!(f, "seen6_{}", self.chain),
        }
    }
}

impl Text {
    /// Returns a rule for `chain` that remembers the sources of packets that `matching` matches. It is to stand before
    /// the rule that drops them. `inner` is the place of the inner source in the packet, and has the same length in all
    /// rules of one chain.
    pub(super) fn witness(&mut self, chain: &str, family: IpFamily, matching: &str, inner: Option<&str>) -> String {
        let set = WitnessSet { family, chain: chain.to_owned() };
        let key = match inner {
            Some(inner) => format!("iifname . {} saddr . {inner}", ip(family)),
            None => format!("iifname . {} saddr", ip(family)),
        };
        let gap = if matching.is_empty() { "" } else { " " };
        let rule = format!("{matching}{gap}update @{set} {{ {key} counter }}");
        self.witnesses.entry(set).or_insert(key);
        rule
    }

    /// Returns the body: the sets that rules fill, then everything else.
    pub(super) fn finish(mut self) -> String {
        let body = std::mem::take(&mut self.body);
        for (set, key) in std::mem::take(&mut self.witnesses) {
            let lines = [
                format!("typeof {key}"),
                format!("size {SIZE}"),
                "flags dynamic,timeout".to_owned(),
                format!("timeout {SOURCE_TTL}"),
            ];
            self.block(&format!("set {set}"), &lines);
        }
        self.body + &body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that every rule that remembers stands before a drop and decides nothing itself, because a full set ends
    /// the rule in which it stands.
    #[test]
    fn what_remembers_is_never_what_drops() {
        for table in
            [include_str!("tests/table.nft"), include_str!("tests/encrypted.nft"), include_str!("gre/tests/table.nft")]
        {
            let lines: Vec<&str> = table.lines().map(str::trim).collect();
            let remembers = |line: &&str| line.contains("update @seen");
            let mut found = 0;
            for (at, line) in lines.iter().enumerate().filter(|(_, line)| remembers(line)) {
                found += 1;
                assert!(line.ends_with(" counter }"), "{line}");
                let next = lines[at..].iter().find(|line| !remembers(line)).unwrap();
                assert!(next.contains("counter drop comment"), "{line} is followed by {next}");
            }
            assert!(found > 5, "{table}");
        }
    }

    #[test]
    fn a_sets_name_reads_back() {
        for family in IpFamily::BOTH {
            let set = WitnessSet { family, chain: "tunnel_8472_1".to_owned() };
            assert_eq!(WitnessSet::parse(&set.to_string()), Some(set));
        }
        assert_eq!(WitnessSet::parse("peers4_1_24"), None);
    }
}
