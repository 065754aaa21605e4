use std::collections::BTreeSet;

use super::*;

/// Returns a line without what differs between networks: names, comments, members of sets, numbers and addresses, of
/// which there may be one, a range or a set.
fn shape(line: &str) -> String {
    let mut shape = String::new();
    let mut words = line.split_whitespace();
    let mut is_next = false;
    while let Some(word) = words.next() {
        let is_address = is_next;
        is_next = ["saddr", "daddr"].contains(&word) || (is_address && word == "!=");
        let word = match word {
            "{" if line.contains('}') => {
                words.by_ref().find(|word| *word == "}");
                if is_address { "ADDRESSES" } else { "SET" }
            }
            _ if is_address
                && word.starts_with(|first: char| first.is_ascii_hexdigit())
                && word.contains(['.', ':']) =>
            {
                "ADDRESSES"
            }
            _ if word.starts_with('"') => {
                if !word.ends_with('"') || word.len() == 1 {
                    words.by_ref().find(|word| word.ends_with('"'));
                }
                "NAME"
            }
            _ if word.starts_with("@th,") => "PAYLOAD",
            _ if word.starts_with("(@th,") => "(PAYLOAD",
            _ if word.starts_with('@') => "@NAMED",
            _ if word.starts_with(|first: char| first.is_ascii_digit()) => "NUMBER",
            _ if word.contains(':') && !word.ends_with(';') => "NUMBER",
            _ if word.contains('_') => "CHAIN",
            _ => word,
        };
        // Chains are named after what they judge.
        let word = if word.starts_with("gre") { "CHAIN" } else { word };
        shape.push_str(word);
        shape.push(' ');
    }
    shape
}

fn shapes(text: &str) -> BTreeSet<String> {
    text.lines().map(shape).collect()
}

/// The specimen that nft is asked about before a lease is taken has every kind of rule that any table has.
#[test]
fn nothing_is_loaded_that_was_not_asked_of() {
    let asked = shapes(&specimen(&IpFamily::BOTH).0.body);
    for (table, text) in [
        ("VXLAN", include_str!("../tests/table.nft")),
        ("WireGuard", include_str!("../tests/encrypted.nft")),
        ("GRE", include_str!("../gre/tests/table.nft")),
    ] {
        let new: Vec<String> = shapes(text).difference(&asked).cloned().collect();
        assert!(new.is_empty(), "{table} has what the specimen lacks: {new:#?}\n{asked:#?}");
    }
}

/// Names of protocols and services are looked up in files that small hosts lack. Words that came after nft 1.0.3 are
/// not known to the releases people run.
#[test]
fn the_text_has_nothing_that_older_programs_cannot_read() {
    let (table, elements) = specimen(&IpFamily::BOTH);
    assert_eq!(elements.len(), 10, "one peer in each set");
    for line in table.body.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        for pair in words.windows(2) {
            let (before, word) = (pair[0], pair[1]);
            if ["l4proto", "dport", "sport"].contains(&before) {
                assert!(word.starts_with(|first: char| first.is_ascii_digit() || first == '{'), "{line}");
            }
        }
        // These are flags of sets, which are old, not of headers.
        let words: Vec<&str> = if line.trim() == "flags dynamic,timeout" { Vec::new() } else { words };
        for new in ["destroy", "vxlan", "gretap", "geneve", "flags", "typeof ct", "type . "] {
            assert!(!words.contains(&new), "{new}: {line}");
        }
    }
}

/// A table for one family says nothing of the other.
#[test]
fn a_host_without_ipv6_is_not_asked_for_it() {
    let (table, elements) = specimen(&[IpFamily::V4]);
    assert!(!table.body.contains("ip6") && elements.iter().all(|peer| peer.outer.is_ipv4()), "{}", table.body);
}
