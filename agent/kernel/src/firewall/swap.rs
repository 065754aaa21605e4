//! The whole table in one transaction, by `nft -f -`: the text is what a person would load, and nft's own parser checks it.

use std::fmt::Write;

use flatnet_core::object::{PeerSource, Ruleset, TunnelId};
use ipnet::IpNet;

use super::program::{ProgramError, run};

/// How much of a swap went in one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loaded {
    /// All of it.
    Whole,
    /// The table, its sets empty: the elements are to follow, and until then the guard drops every tunnel packet.
    WithoutElements,
}

/// What nft says when the transaction is larger than its socket's send buffer (`EMSGSIZE`). It may have as large a buffer
/// as it likes with `CAP_NET_ADMIN` in the first user namespace; in another it has `net.core.wmem_default` (208 KiB), which
/// is some 5,000 elements for IPv4 and 2,400 for IPv6.
const TOO_LONG: &str = "Message too long";

/// Replaces our table; what was in it is gone at the moment when the new one is there.
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

/// Whether nft reads `ruleset`, and the kernel takes it; nothing is changed.
pub(super) async fn check(ruleset: &Ruleset, elements: &[PeerSource]) -> Result<(), ProgramError> {
    run("nft", "nftables", &["-c", "-f", "-"], &text(ruleset, elements)).await.map(drop)
}

/// What `nft --version` says, such as `1.0.6`; `None`: nothing that can be read.
pub(super) async fn version() -> Option<String> {
    let said = run("nft", "nftables", &["--version"], "").await.ok()?;
    let word = said.split_whitespace().nth(1)?;
    Some(word.trim_start_matches('v').to_owned())
}

/// What `nft -f -` is given.
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

/// A subnet's address. Raw payload has type `integer`, which nft takes as numbers only.
fn number(inner: IpNet) -> u128 {
    match inner {
        IpNet::V4(inner) => u128::from(u32::from(inner.network())),
        IpNet::V6(inner) => u128::from(inner.network()),
    }
}
