//! Who sent what a rule of ours drops: sets that the kernel fills by itself, on the way to a drop and nowhere else.
//!
//! A rule that remembers is never the one that drops. Where a set is full, or the memory for an element is not to be had,
//! the kernel ends that rule and goes on with the next (`nft_dynset_eval`: `NFT_BREAK`): were the drop behind it in one rule,
//! many sources would open the guard. What cannot be remembered is dropped and counted all the same.
//!
//! A set is a chain's and a family's, so that nobody's noise hides what others do to another network. What is in it is the
//! kernel's, not ours: it is no drift, and goes with a swap.

use std::fmt;

use flatnet_model::IpFamily;

use super::{Text, ip};

/// Sources that one set remembers. A misconfigured peer is one, a few of them a few; whoever makes up sources would fill any
/// number, and it is said that there are others. An element is some 150 bytes of the kernel's and 16 for each processor.
const SIZE: usize = 64;

/// How long a source is remembered after its last packet. Somebody who is called at night looks within that time; and what
/// made-up sources take up is free again soon.
const TIMEOUT: &str = "10m";

/// A set of who sent what `chain` drops: interface, source, and in a tunnel the source inside.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WitnessSet {
    /// Of the addresses.
    pub family: IpFamily,
    /// The chain that drops.
    pub chain: String,
}

impl WitnessSet {
    /// How many sources each of them remembers.
    pub const SIZE: usize = SIZE;

    /// What [`fmt::Display`] writes.
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
    /// A rule for `chain` that remembers whose packets `matching` matches, to stand before the one that drops them. `inner`:
    /// where in the packet the source inside is; all of one chain are as long.
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

    /// The body: the sets that rules fill, then everything else.
    pub(super) fn finish(mut self) -> String {
        let body = std::mem::take(&mut self.body);
        for (set, key) in std::mem::take(&mut self.witnesses) {
            let lines = [
                format!("typeof {key}"),
                format!("size {SIZE}"),
                "flags dynamic,timeout".to_owned(),
                format!("timeout {TIMEOUT}"),
            ];
            self.block(&format!("set {set}"), &lines);
        }
        self.body + &body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every rule that remembers stands before a drop, and decides nothing itself: a full set ends the rule it is asked in.
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
