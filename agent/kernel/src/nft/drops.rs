//! The counters of those rules of ours that drop, read over netlink. Refused packets are evidence, and nobody looks at
//! the counters by hand.

use std::io;

use flatnet_core::drops::DropCount;

use super::netfilter::Netfilter;
use super::replica::{DATA_VERDICT, EXPR_DATA, IMMEDIATE_DATA, RULE_CHAIN, RULE_USERDATA, collect};
use super::table::{EXPR_NAME, RULE_EXPRESSIONS, RULE_TABLE};
use super::wire::{Attributes, LIST_ELEM, Request};

/// `NFTA_COUNTER_PACKETS`; `NFTA_VERDICT_CODE`; `NF_DROP`.
pub(super) const COUNTER_PACKETS: u16 = 2;
const VERDICT_CODE: u16 = 1;
const DROP: u32 = 0;
/// `NFTNL_UDATA_RULE_COMMENT` (libnftnl's udata.h): one byte of type, one of length, the text and a NUL.
const COMMENT: u8 = 0;

/// Reads the counters of `table`, in its order.
pub(super) fn read(netfilter: &mut Netfilter, table: &'static str) -> io::Result<Vec<DropCount>> {
    collect(netfilter, Request::GetRule, RULE_TABLE, table, |rule| {
        let packets = dropped(rule)?;
        let comment = comment(rule.get(RULE_USERDATA).unwrap_or_default()).unwrap_or_default().to_owned();
        Some(DropCount { table, chain: rule.text(RULE_CHAIN)?.to_owned(), comment, packets })
    })
}

/// Returns a rule's count, if it drops.
fn dropped(rule: Attributes<'_>) -> Option<u64> {
    let expressions = Attributes(rule.get(RULE_EXPRESSIONS)?).filter(|(kind, _)| *kind == LIST_ELEM);
    let (mut packets, mut drops) = (None, false);
    for expression in expressions.map(|(_, expression)| Attributes(expression)) {
        let data = Attributes(expression.get(EXPR_DATA).unwrap_or_default());
        match expression.text(EXPR_NAME) {
            Some("counter") => {
                packets = data
                    .get(COUNTER_PACKETS)
                    .and_then(|bytes| bytes.first_chunk())
                    .map(|bytes| u64::from_be_bytes(*bytes));
            }
            Some("immediate") => {
                let verdict = data.get(IMMEDIATE_DATA).and_then(|data| Attributes(data).get(DATA_VERDICT));
                drops |= verdict.is_some_and(|verdict| Attributes(verdict).number(VERDICT_CODE) == Some(DROP));
            }
            _ => {}
        }
    }
    packets.filter(|_| drops)
}

fn comment(userdata: &[u8]) -> Option<&str> {
    let mut rest = userdata;
    while let [kind, length, after @ ..] = rest {
        let value = after.get(..usize::from(*length))?;
        if *kind == COMMENT {
            return std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok();
        }
        rest = &after[value.len()..];
    }
    None
}
