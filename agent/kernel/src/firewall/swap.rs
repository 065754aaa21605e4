//! The whole table in one transaction, by `nft -f -`: the text is what a person would load, and nft's own parser checks it.

use std::fmt::Write;

use flatnet_core::object::{PeerSource, Ruleset};
use ipnet::IpNet;

use super::program::{ProgramError, run};

/// Replaces our table; what was in it is gone at the moment when the new one is there.
pub(super) async fn swap(ruleset: &Ruleset, elements: &[PeerSource]) -> Result<(), ProgramError> {
    run("nft", "nftables", &["-f", "-"], &text(ruleset, elements)).await.map(drop)
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
            let _ = writeln!(text, "{} . {},", source.outer, interval(source.inner));
        }
        text.push_str("}\n");
    }
    text
}

/// Raw payload has type `integer`, which nft takes as numbers only.
fn interval(inner: IpNet) -> String {
    match inner {
        IpNet::V4(inner) => range(u128::from(u32::from(inner.network())), u128::from(u32::from(inner.broadcast()))),
        IpNet::V6(inner) => range(u128::from(inner.network()), u128::from(inner.broadcast())),
    }
}

fn range(from: u128, to: u128) -> String {
    if from == to { format!("{from:#x}") } else { format!("{from:#x}-{to:#x}") }
}
