//! The output of `iptables -S`, read: the chains that can drop, and the rules that are ours and effective.

use std::collections::{BTreeMap, BTreeSet};

use flatnet_core::object::{IptablesChain, IptablesRule};

/// The beginning of every comment of ours.
const OURS: &str = "flatnet:";
/// Targets after which a packet may be gone.
const DROPPING: [&str; 7] = ["DROP", "REJECT", "QUEUE", "NFQUEUE", "TARPIT", "STEAL", "SYNPROXY"];
/// A word in the specification of a rule of ours that is not effective. No rule that is wanted has this word.
const INEFFECTIVE: &str = "!ineffective";

/// The table `filter` of one variant and family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    /// Base chains whose policy is to drop.
    dropping_policies: BTreeSet<String>,
    rules: BTreeMap<String, Vec<Rule>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rule {
    /// The words as printed, without `-A CHAIN`.
    words: Vec<String>,
    comment: Option<String>,
    target: Option<String>,
}

/// A rule of ours that a listing has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OurRule {
    pub(super) chain: IptablesChain,
    pub(super) comment: String,
    /// The words as printed, without `-A CHAIN`.
    pub(super) words: Vec<String>,
}

impl Listing {
    /// Reads the output of `iptables -S`.
    pub(super) fn parse(text: &str) -> Self {
        let mut listing = Self::default();
        for line in text.lines() {
            let mut words = split(line).into_iter();
            match (words.next().as_deref(), words.next()) {
                (Some("-P"), Some(chain)) if words.next().as_deref() == Some("DROP") => {
                    listing.dropping_policies.insert(chain);
                }
                (Some("-N"), Some(chain)) => {
                    listing.rules.entry(chain).or_default();
                }
                (Some("-A"), Some(chain)) => {
                    listing.rules.entry(chain).or_default().push(Rule::new(words.collect()));
                }
                _ => {}
            }
        }
        listing
    }

    /// Makes the listing as far as it is known without the program that could list it.
    pub(super) fn unlisted(dropping_policies: impl IntoIterator<Item = String>) -> Self {
        Self { dropping_policies: dropping_policies.into_iter().collect(), rules: BTreeMap::new() }
    }

    /// Returns true if a packet can be dropped in `chain`: by its policy, a rule, or a rule of a chain it leads to.
    pub(super) fn can_drop(&self, chain: IptablesChain) -> bool {
        self.dropping_policies.contains(chain.as_str()) || self.rules_can_drop(chain.as_str(), &mut BTreeSet::new())
    }

    fn rules_can_drop<'a>(&'a self, chain: &'a str, seen: &mut BTreeSet<&'a str>) -> bool {
        seen.insert(chain) && self.rules.get(chain).into_iter().flatten().any(|rule| self.rule_can_drop(rule, seen))
    }

    fn rule_can_drop<'a>(&'a self, rule: &'a Rule, seen: &mut BTreeSet<&'a str>) -> bool {
        rule.target.as_deref().is_some_and(|target| DROPPING.contains(&target) || self.rules_can_drop(target, seen))
    }

    /// Returns our rules as specifications, by chain and comment. A rule gets a specification that cannot be wanted if
    /// it comes after something that could drop, is there twice, or does not accept.
    pub(super) fn specifications(&self) -> BTreeMap<(IptablesChain, String), IptablesRule> {
        let mut found = BTreeMap::new();
        for chain in [IptablesChain::Input, IptablesChain::Forward] {
            let mut after_a_drop = false;
            for rule in self.rules.get(chain.as_str()).into_iter().flatten() {
                let Some(comment) = rule.ours() else {
                    after_a_drop |= self.rule_can_drop(rule, &mut BTreeSet::new());
                    continue;
                };
                let key = (chain, comment.to_owned());
                let mut matches = rule.matches();
                if after_a_drop || found.contains_key(&key) || rule.target.as_deref() != Some("ACCEPT") {
                    matches.push(INEFFECTIVE.to_owned());
                }
                found.insert(key, IptablesRule { matches });
            }
        }
        found
    }

    /// Returns every rule of ours, in order.
    pub(super) fn ours(&self) -> Vec<OurRule> {
        let mut ours = Vec::new();
        for chain in [IptablesChain::Input, IptablesChain::Forward] {
            for rule in self.rules.get(chain.as_str()).into_iter().flatten() {
                if let Some(comment) = rule.ours() {
                    ours.push(OurRule { chain, comment: comment.to_owned(), words: rule.words.clone() });
                }
            }
        }
        ours
    }
}

impl Rule {
    fn new(words: Vec<String>) -> Self {
        let after = |names: [&str; 2]| {
            let at = words.iter().position(|word| names.contains(&word.as_str()))?;
            words.get(at + 1).cloned()
        };
        Self { comment: after(["--comment", "--comment"]), target: after(["-j", "-g"]), words }
    }

    /// Returns the rule's comment, if that is one of ours.
    fn ours(&self) -> Option<&str> {
        self.comment.as_deref().filter(|comment| comment.starts_with(OURS))
    }

    /// Returns the rule's words without comment and target.
    fn matches(&self) -> Vec<String> {
        let mut matches = Vec::new();
        let mut words = self.words.iter().map(String::as_str).peekable();
        while let Some(word) = words.next() {
            match (word, words.peek()) {
                ("-m", Some(&"comment")) | ("--comment" | "-j" | "-g", _) => {
                    words.next();
                }
                // It is the name if the host has /etc/protocols; we write the number.
                ("-p", Some(&"gre")) => {
                    matches.extend(["-p".to_owned(), "47".to_owned()]);
                    words.next();
                }
                _ => matches.push(word.to_owned()),
            }
        }
        matches
    }
}

/// Splits a line into words. `"…"` holds a word together, and `\` keeps the next character.
fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quoted, mut any) = (String::new(), false, false);
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => word.extend(characters.next()),
            '"' => {
                quoted = !quoted;
                any = true;
            }
            ' ' if !quoted => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            _ => word.push(character),
        }
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests;
