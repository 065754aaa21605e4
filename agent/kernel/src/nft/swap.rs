//! The whole table in one transaction, by `nft -f -`. The text is what a person would load, and nft's own parser checks
//! it.

use std::fmt::Write;

use flatnet_core::object::{PeerSource, Ruleset, TunnelId};
use ipnet::IpNet;

use crate::program::{ProgramError, run};

/// The part of a swap that went in one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loaded {
    /// The whole swap.
    Whole,
    /// Only the table, with its sets empty. The elements are to follow, and until then the guard drops every tunnel
    /// packet.
    WithoutElements,
}

/// nft's words when the transaction is larger than its socket's send buffer (`EMSGSIZE`). With `CAP_NET_ADMIN` in the
/// first user namespace, the buffer may be as large as nft likes. In another one it has `net.core.wmem_default` (208
/// KiB), which is some 5,000 elements for IPv4 and 2,400 for IPv6.
const TOO_LONG: &str = "Message too long";

/// Replaces our table. Its former contents are gone at the moment when the new ones are there.
pub(super) async fn swap(ruleset: &Ruleset, elements: &[PeerSource]) -> Result<Loaded, ProgramError> {
    match load(ruleset, elements).await {
        Err(ProgramError::Refused { words, .. }) if words.contains(TOO_LONG) && !elements.is_empty() => {
            load(ruleset, &[]).await.map(|()| Loaded::WithoutElements)
        }
        result => result.map(|()| Loaded::Whole),
    }
}

async fn load(ruleset: &Ruleset, elements: &[PeerSource]) -> Result<(), ProgramError> {
    run("nft", "nftables", &["-f", "-"], &text(ruleset, elements)).await.map(drop)
}

/// Checks that nft reads `ruleset` and the kernel accepts it. Nothing is changed.
pub(super) async fn check(ruleset: &Ruleset, elements: &[PeerSource]) -> Result<(), ProgramError> {
    run("nft", "nftables", &["-c", "-f", "-"], &text(ruleset, elements)).await.map(drop)
}

/// Returns nft's version as `nft --version` says it, such as `1.0.6`; `None`: it cannot be read.
pub(super) async fn version() -> Option<String> {
    let said = run("nft", "nftables", &["--version"], "").await.ok()?;
    let word = said.split_whitespace().nth(1)?;
    Some(word.trim_start_matches('v').to_owned())
}

/// Returns the text that `nft -f -` is given.
pub(super) fn text(ruleset: &Ruleset, elements: &[PeerSource]) -> String {
    let table = Ruleset::TABLE;
    // `add` first, because `delete` of a table that is not there would fail the transaction.
    let mut text =
        format!("add table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n{}}}\n", ruleset.body);
    let mut elements: Vec<&PeerSource> = elements.iter().collect();
    elements.sort_unstable();
    elements.dedup();
    for of_one_set in elements.chunk_by(|a, b| a.set == b.set) {
        let Some(first) = of_one_set.first() else { continue };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "add element inet {table} {} {{", first.set);
        for source in of_one_set {
            let _ = match source.set.tunnel {
                TunnelId::Vxlan(_) | TunnelId::Gre(_) => {
                    writeln!(text, "{} . {:#x},", source.outer, number(source.inner))
                }
                TunnelId::Direct => writeln!(text, "{},", source.inner.network()),
            };
        }
        text.push_str("}\n");
    }
    text
}

/// Returns a subnet's address as a number. Raw payload has type `integer`, which nft accepts as numbers only.
fn number(inner: IpNet) -> u128 {
    match inner {
        IpNet::V4(inner) => u128::from(u32::from(inner.network())),
        IpNet::V6(inner) => u128::from(inner.network()),
    }
}
