//! Our rules at the head of the chains INPUT and FORWARD of iptables, in both variants and both families.
//!
//! `iptables -S` is run only when the kernel's table changed: asking the kernel for that costs microseconds, a process
//! costs milliseconds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io;

use flatnet_core::facts::DroppingChain;
use flatnet_core::object::{IptablesChain, IptablesKey, IptablesRule, IptablesVariant};
use flatnet_model::IpFamily;

use super::legacy;
use super::listing::{Listing, OurRule};
use crate::nft::netfilter::Netfilter;
use crate::nft::table::{self, Digest};
use crate::nft::wire::Family;
use crate::program::{ProgramError, run};

/// iptables' table, in both variants.
const TABLE: &str = "filter";
/// Seconds to wait for the xtables lock, which every other user of iptables takes too.
const LOCK_TIMEOUT_SECS: &str = "5";
/// The number of times a change is tried, because somebody may change the chain meanwhile.
const TRIES: usize = 3;

/// One of the four tables `filter`.
pub(super) type Which = (IptablesVariant, IpFamily);

/// All four tables.
const ALL: [Which; 4] = [
    (IptablesVariant::Nft, IpFamily::V4),
    (IptablesVariant::Nft, IpFamily::V6),
    (IptablesVariant::Legacy, IpFamily::V4),
    (IptablesVariant::Legacy, IpFamily::V6),
];

/// The result of one look at a table, without listing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Look {
    digest: Digest,
    /// The listing as far as it is known without the program.
    unlisted: Listing,
}

/// The listings, each with the digest at which it was made.
#[derive(Debug, Default)]
pub(super) struct Cache {
    listings: BTreeMap<Which, (Digest, Listing)>,
}

impl Cache {
    /// Brings the listings up to date with `looks`.
    pub(super) async fn refresh(&mut self, looks: &BTreeMap<Which, Look>) -> io::Result<()> {
        self.listings.retain(|which, (digest, _)| looks.get(which).is_some_and(|look| look.digest == *digest));
        for (which, look) in looks {
            if self.listings.contains_key(which) {
                continue;
            }
            let listing = match list(*which).await {
                Ok(listing) => listing,
                // Nothing can be programmed then; the operation that tries says so.
                Err(ProgramError::Missing { .. }) => look.unlisted.clone(),
                Err(error) => return Err(io::Error::other(error)),
            };
            self.listings.insert(*which, (look.digest, listing));
        }
        Ok(())
    }

    /// Returns the chains that can drop.
    pub(super) fn dropping(&self) -> BTreeSet<DroppingChain> {
        let mut dropping = BTreeSet::new();
        for ((variant, family), (_, listing)) in &self.listings {
            for chain in [IptablesChain::Input, IptablesChain::Forward] {
                if listing.can_drop(chain) {
                    dropping.insert(DroppingChain { variant: *variant, family: *family, chain });
                }
            }
        }
        dropping
    }

    /// Returns our rules.
    pub(super) fn rules(&self) -> BTreeMap<IptablesKey, IptablesRule> {
        let mut rules = BTreeMap::new();
        for ((variant, family), (_, listing)) in &self.listings {
            for ((chain, comment), rule) in listing.specifications() {
                rules.insert(IptablesKey { variant: *variant, family: *family, chain, comment }, rule);
            }
        }
        rules
    }
}

/// Returns the tables that there are, and how they look now.
pub(super) fn look(netfilter: &mut Netfilter) -> io::Result<BTreeMap<Which, Look>> {
    let mut looks = BTreeMap::new();
    for which in ALL {
        let found = match which {
            (IptablesVariant::Nft, family) => look_nft(netfilter, family)?,
            (IptablesVariant::Legacy, family) => look_legacy(family)?,
        };
        if let Some(found) = found {
            looks.insert(which, found);
        }
    }
    Ok(looks)
}

fn look_nft(netfilter: &mut Netfilter, family: IpFamily) -> io::Result<Option<Look>> {
    let family = match family {
        IpFamily::V4 => Family::V4,
        IpFamily::V6 => Family::V6,
    };
    let Some(digest) = table::digest(netfilter, family, TABLE)? else { return Ok(None) };
    let chains = table::base_chains(netfilter, family, TABLE)?;
    let unlisted = Listing::unlisted(chains.into_iter().filter(|chain| chain.drops).map(|chain| chain.name));
    Ok(Some(Look { digest, unlisted }))
}

fn look_legacy(family: IpFamily) -> io::Result<Option<Look>> {
    let Some(found) = legacy::fingerprint(family)? else { return Ok(None) };
    // Policies are not read here. If there are rules and the program is missing, both chains have to be taken for
    // dropping.
    let chains = [IptablesChain::Input, IptablesChain::Forward].map(|chain| chain.as_str().to_owned());
    let unlisted = Listing::unlisted(chains.into_iter().filter(|_| found.has_rules));
    Ok(Some(Look { digest: found.digest, unlisted }))
}

/// The wanted state of one rule of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) chain: IptablesChain,
    pub(super) comment: String,
    /// The rule; `None`: there shall be none.
    pub(super) rule: Option<IptablesRule>,
}

/// Changes our rules of one table, all at once. Every rule that carries their comments goes, and the new rules come to
/// the head.
pub(super) async fn change(which: Which, wanted: &[Wanted]) -> Result<(), ProgramError> {
    let mut result = Ok(());
    for _ in 0..TRIES {
        // The present rules are read anew: a rule that is to go must be named exactly, once for each time it is there.
        let present = list(which).await?.ours();
        let input = restore_input(&present, wanted);
        result = run_variant(which, "-restore", &["-w", LOCK_TIMEOUT_SECS, "-n"], &input).await.map(drop);
        if !matches!(result, Err(ProgramError::Refused { .. })) {
            break;
        }
    }
    result
}

fn restore_input(present: &[OurRule], wanted: &[Wanted]) -> String {
    let mut input = format!("*{TABLE}\n");
    // Writing to a String cannot fail.
    for old in present {
        if wanted.iter().any(|new| new.chain == old.chain && new.comment == old.comment) {
            let _ = writeln!(input, "-D {} {}", old.chain.as_str(), quoted(&old.words));
        }
    }
    for new in wanted {
        if let Some(rule) = &new.rule {
            let (chain, matches) = (new.chain.as_str(), quoted(&rule.matches));
            let _ = writeln!(input, "-I {chain} 1 {matches} -m comment --comment \"{}\" -j ACCEPT", new.comment);
        }
    }
    input.push_str("COMMIT\n");
    input
}

fn quoted(words: &[String]) -> String {
    let plain = |word: &str| word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./:,!".contains(&byte));
    let quote = |word: &String| match word.is_empty() || !plain(word) {
        true => format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"")),
        false => word.clone(),
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

async fn list(which: Which) -> Result<Listing, ProgramError> {
    let wait: &[&str] = match which.0 {
        IptablesVariant::Nft => &["-S"],
        IptablesVariant::Legacy => &["-w", LOCK_TIMEOUT_SECS, "-S"],
    };
    run_variant(which, "", wait, "").await.map(|text| Listing::parse(&text))
}

/// Runs the variant's own program, such as `iptables-nft-restore`. Where only plain `iptables` is installed, that is
/// run, if it says that it is of this variant.
async fn run_variant(
    (variant, family): Which,
    suffix: &str,
    arguments: &[&str],
    input: &str,
) -> Result<String, ProgramError> {
    let plain = match family {
        IpFamily::V4 => "iptables",
        IpFamily::V6 => "ip6tables",
    };
    let (name, says) = match variant {
        IptablesVariant::Nft => ("nft", "(nf_tables)"),
        IptablesVariant::Legacy => ("legacy", "(legacy)"),
    };
    let missing = match run(&format!("{plain}-{name}{suffix}"), "iptables", arguments, input).await {
        Err(missing @ ProgramError::Missing { .. }) => missing,
        other => return other,
    };
    match run(plain, "iptables", &["-V"], "").await {
        Ok(version) if version.contains(says) => run(&format!("{plain}{suffix}"), "iptables", arguments, input).await,
        _ => Err(missing),
    }
}
