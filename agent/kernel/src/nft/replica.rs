//! The filtering part of a table, read as the kernel's own attributes and written again under another name. Nothing in
//! it need be understood except who refers to whom.
//!
//! Rules that translate addresses are left out (base chains of type `nat`, and chains that only they lead to): done
//! twice they would be wrong, and they guard nothing. Counters begin at 0. The sets in which the kernel remembers
//! senders are copied empty, since while the table is away it is the copy that drops. Maps that lead to chains are not
//! followed: our rules have none.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::elements::{LIST_BYTES, LIST_ELEMENTS, LIST_SET, LIST_TABLE};
use super::netfilter::Netfilter;
use super::table::{CHAIN_NAME, CHAIN_TABLE, EXPR_NAME, RULE_EXPRESSIONS, RULE_TABLE, SET_TABLE};
use super::wire::{Attributes, Family, LIST_ELEM, NLM_F_APPEND, NLM_F_CREATE, Request, Writer};

/// `NFTA_CHAIN_HOOK`, `_TYPE`; `_POLICY`, `_TYPE`, `_USERDATA`.
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const CHAIN_COPIED: [u16; 3] = [5, 7, 12];
/// `NFTA_HOOK_HOOKNUM`, `_PRIORITY`.
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
/// `NFTA_RULE_CHAIN`, `_USERDATA`.
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_USERDATA: u16 = 7;
/// `NFTA_EXPR_DATA`; `NFTA_LOOKUP_SET`; `NFTA_IMMEDIATE_DATA`, `NFTA_DATA_VERDICT`, `NFTA_VERDICT_CHAIN`.
pub(super) const EXPR_DATA: u16 = 2;
const LOOKUP_SET: u16 = 1;
pub(super) const IMMEDIATE_DATA: u16 = 2;
pub(super) const DATA_VERDICT: u16 = 2;
const VERDICT_CHAIN: u16 = 2;
/// `NFTA_SET_NAME`, `_FLAGS`, `_ID`; copied along with the first two are `_KEY_TYPE`, `_KEY_LEN`, `_DATA_TYPE`,
/// `_DATA_LEN`, `_POLICY`, `_DESC`, `_TIMEOUT`, `_GC_INTERVAL`, `_USERDATA`.
pub(super) const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_ID: u16 = 10;
const SET_COPIED: [u16; 11] = [SET_NAME, SET_FLAGS, 4, 5, 6, 7, 8, 9, 11, 12, 13];
/// `NFT_SET_ANONYMOUS`: the set belongs to one rule, and must not be without it.
const ANONYMOUS: u32 = 1;

/// The parts by which a table filters.
#[derive(Debug, Default)]
pub(super) struct Parts {
    sets: Vec<Set>,
    chains: Vec<Chain>,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Set {
    name: String,
    anonymous: bool,
    /// The attributes without table and identifier.
    attributes: Vec<u8>,
    /// The elements of an anonymous set, in the order in which they are to be added.
    elements: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Chain {
    name: String,
    /// The type of a base chain; `None`: the chain is only jumped to.
    kind: Option<String>,
    /// The attributes without table and name.
    attributes: Vec<u8>,
}

#[derive(Debug)]
struct Rule {
    chain: String,
    /// The chains and the sets that it names.
    chains: Vec<String>,
    sets: Vec<String>,
    /// The attributes without table and chain.
    attributes: Vec<u8>,
}

/// Reads `table`. Its parts are read one after the other. If they must be of one moment, the caller compares the
/// table's digest afterwards.
pub(super) fn read(netfilter: &mut Netfilter, table: &str) -> io::Result<Parts> {
    let mut parts = Parts {
        chains: collect(netfilter, Request::GetChain, CHAIN_TABLE, table, chain)?,
        rules: collect(netfilter, Request::GetRule, RULE_TABLE, table, rule)?,
        sets: collect(netfilter, Request::GetSet, SET_TABLE, table, set)?,
    };
    parts.keep_what_filters();
    for set in parts.sets.iter_mut().filter(|set| set.anonymous) {
        set.elements = elements(netfilter, table, &set.name)?;
    }
    Ok(parts)
}

/// Returns every object of a kind that `table` has. `key` is the attribute that names the object's table.
pub(super) fn collect<T>(
    netfilter: &mut Netfilter,
    request: Request,
    key: u16,
    table: &str,
    parse: impl Fn(Attributes<'_>) -> Option<T>,
) -> io::Result<Vec<T>> {
    let found = RefCell::new(Vec::new());
    netfilter.dump(
        request,
        Family::Inet,
        |writer| {
            // The kernel returns all chains of the family, whatever is asked.
            if request != Request::GetChain {
                writer.string(key, table);
            }
        },
        |message| {
            let attributes = message.attributes();
            if attributes.text(key) == Some(table) {
                found.borrow_mut().extend(parse(attributes));
            }
        },
        || found.borrow_mut().clear(),
    )?;
    Ok(found.into_inner())
}

fn chain(attributes: Attributes<'_>) -> Option<Chain> {
    let mut writer = Writer::default();
    if let Some(hook) = attributes.get(CHAIN_HOOK) {
        write_hook(&mut writer, Attributes(hook))?;
    }
    writer.copy(attributes, &CHAIN_COPIED);
    let kind = attributes.get(CHAIN_HOOK).map(|_| attributes.text(CHAIN_TYPE).unwrap_or_default().to_owned());
    Some(Chain { name: attributes.text(CHAIN_NAME)?.to_owned(), kind, attributes: writer.bytes })
}

/// Writes a chain's hook with a priority one later than the original's, so that the original counts what both would
/// drop.
fn write_hook(writer: &mut Writer, hook: Attributes<'_>) -> Option<()> {
    let priority = i32::from_be_bytes(*hook.get(HOOK_PRIORITY)?.first_chunk::<4>()?).saturating_add(1);
    let open = writer.open_nested(CHAIN_HOOK);
    writer.copy(hook, &[HOOK_NUMBER]);
    writer.attribute(HOOK_PRIORITY, &priority.to_be_bytes());
    writer.close_attribute(&open);
    Some(())
}

fn rule(attributes: Attributes<'_>) -> Option<Rule> {
    let (mut chains, mut sets, mut writer) = (Vec::new(), Vec::new(), Writer::default());
    let list = writer.open_nested(RULE_EXPRESSIONS);
    for (_, expression) in Attributes(attributes.get(RULE_EXPRESSIONS).unwrap_or_default()) {
        let open = writer.open_nested(LIST_ELEM);
        let name = Attributes(expression).text(EXPR_NAME)?;
        if name == "counter" {
            writer.string(EXPR_NAME, name);
        } else {
            writer.bytes.extend_from_slice(expression);
        }
        writer.close_attribute(&open);
        let data = Attributes(Attributes(expression).get(EXPR_DATA).unwrap_or_default());
        match name {
            "lookup" => sets.push(data.text(LOOKUP_SET)?.to_owned()),
            "immediate" => {
                let nested = |of: Attributes<'_>, kind| of.get(kind).map(<[u8]>::to_vec).unwrap_or_default();
                let verdict = nested(Attributes(&nested(data, IMMEDIATE_DATA)), DATA_VERDICT);
                chains.extend(Attributes(&verdict).text(VERDICT_CHAIN).map(str::to_owned));
            }
            _ => {}
        }
    }
    writer.close_attribute(&list);
    writer.copy(attributes, &[RULE_USERDATA]);
    Some(Rule { chain: attributes.text(RULE_CHAIN)?.to_owned(), chains, sets, attributes: writer.bytes })
}

fn set(attributes: Attributes<'_>) -> Option<Set> {
    let mut writer = Writer::default();
    writer.copy(attributes, &SET_COPIED);
    Some(Set {
        name: attributes.text(SET_NAME)?.to_owned(),
        anonymous: attributes.number(SET_FLAGS).is_some_and(|flags| flags & ANONYMOUS != 0),
        attributes: writer.bytes,
        elements: Vec::new(),
    })
}

/// Reads the elements of a set, each as it is. The kernel lists intervals from the last to the first, but takes them
/// from the first.
fn elements(netfilter: &mut Netfilter, table: &str, set: &str) -> io::Result<Vec<Vec<u8>>> {
    let found = RefCell::new(Vec::new());
    netfilter.dump(
        Request::GetSetElem,
        Family::Inet,
        |writer| {
            writer.string(LIST_TABLE, table);
            writer.string(LIST_SET, set);
        },
        |message| {
            let list = Attributes(message.attributes().get(LIST_ELEMENTS).unwrap_or_default());
            found.borrow_mut().extend(list.map(|(_, element)| element.to_vec()));
        },
        || found.borrow_mut().clear(),
    )?;
    let mut found = found.into_inner();
    found.reverse();
    Ok(found)
}

impl Parts {
    /// Returns the sets whose elements are not part of the rules.
    pub(super) fn named_sets(&self) -> impl Iterator<Item = &str> {
        self.sets.iter().filter(|set| !set.anonymous).map(|set| set.name.as_str())
    }

    fn keep_what_filters(&mut self) {
        let filters = |chain: &&Chain| chain.kind.as_deref().is_some_and(|kind| kind != "nat");
        let mut next: Vec<String> = self.chains.iter().filter(filters).map(|chain| chain.name.clone()).collect();
        let mut by_chain: BTreeMap<&str, Vec<&Rule>> = BTreeMap::new();
        for rule in &self.rules {
            by_chain.entry(&rule.chain).or_default().push(rule);
        }
        let (mut chains, mut sets) = (BTreeSet::new(), BTreeSet::new());
        while let Some(chain) = next.pop() {
            for rule in by_chain.get(chain.as_str()).into_iter().flatten() {
                sets.extend(rule.sets.iter().cloned());
                next.extend(
                    rule.chains.iter().filter(|target| !chains.contains(*target) && **target != chain).cloned(),
                );
            }
            chains.insert(chain);
        }
        self.chains.retain(|chain| chains.contains(&chain.name));
        self.rules.retain(|rule| chains.contains(&rule.chain));
        self.sets.retain(|set| !set.anonymous || sets.contains(&set.name));
    }

    /// Writes the named sets, without elements.
    pub(super) fn write_sets(&self, writer: &mut Writer, netfilter: &mut Netfilter, table: &str) {
        for (index, set) in self.sets.iter().enumerate().filter(|(_, set)| !set.anonymous) {
            set.write(writer, netfilter, table, index);
        }
    }

    /// Writes what judges: the chains, then what their rules need, then the rules. The first message has `flags`
    /// besides its own.
    pub(super) fn write_rules(&self, writer: &mut Writer, netfilter: &mut Netfilter, table: &str, flags: u16) {
        let mut flags = flags;
        for chain in &self.chains {
            let sequence = netfilter.next_sequence();
            let message = writer.open(Request::NewChain, NLM_F_CREATE | flags, sequence, Family::Inet);
            writer.string(CHAIN_TABLE, table);
            writer.string(CHAIN_NAME, &chain.name);
            writer.bytes.extend_from_slice(&chain.attributes);
            writer.close(&message);
            flags = 0;
        }
        for (index, set) in self.sets.iter().enumerate().filter(|(_, set)| set.anonymous) {
            set.write(writer, netfilter, table, index);
            set.write_elements(writer, netfilter, table);
        }
        for rule in &self.rules {
            let sequence = netfilter.next_sequence();
            let message = writer.open(Request::NewRule, NLM_F_CREATE | NLM_F_APPEND, sequence, Family::Inet);
            writer.string(RULE_TABLE, table);
            writer.string(RULE_CHAIN, &rule.chain);
            writer.bytes.extend_from_slice(&rule.attributes);
            writer.close(&message);
        }
    }
}

impl Set {
    /// Writes the set. `index` tells it from the others of the transaction.
    fn write(&self, writer: &mut Writer, netfilter: &mut Netfilter, table: &str, index: usize) {
        let message = writer.open(Request::NewSet, NLM_F_CREATE, netfilter.next_sequence(), Family::Inet);
        writer.string(SET_TABLE, table);
        writer.bytes.extend_from_slice(&self.attributes);
        writer.attribute(SET_ID, &u32::try_from(index).unwrap_or(u32::MAX).to_be_bytes());
        writer.close(&message);
    }

    fn write_elements(&self, writer: &mut Writer, netfilter: &mut Netfilter, table: &str) {
        let mut rest = self.elements.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |element: &&Vec<u8>| {
                bytes += element.len() + 8;
                bytes <= LIST_BYTES
            };
            let (now, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            let message = writer.open(Request::NewSetElem, NLM_F_CREATE, netfilter.next_sequence(), Family::Inet);
            writer.string(LIST_TABLE, table);
            writer.string(LIST_SET, &self.name);
            let list = writer.open_nested(LIST_ELEMENTS);
            for element in now {
                writer.attribute(LIST_ELEM, element);
            }
            writer.close_attribute(&list);
            writer.close(&message);
            rest = later;
        }
    }
}
