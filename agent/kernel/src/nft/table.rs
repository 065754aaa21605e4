//! Tables as a whole: whether one is there, whether anybody has changed it, and how to delete it.

use std::cell::RefCell;
use std::io;

use super::netfilter::Netfilter;
use super::wire::{Attributes, Family, Message, NLM_F_ACK, Request, Writer};

/// `NFTA_TABLE_NAME`, `_FLAGS`, `_HANDLE`.
pub(crate) const TABLE_NAME: u16 = 1;
pub(crate) const TABLE_FLAGS: u16 = 2;
const TABLE_HANDLE: u16 = 4;
/// `NFTA_CHAIN_TABLE`, `_HANDLE`, `_NAME`, `_HOOK`, `_POLICY`, `_TYPE`, `_FLAGS`.
pub(crate) const CHAIN_TABLE: u16 = 1;
const CHAIN_STABLE: [u16; 6] = [2, 3, 4, 5, 7, 10];
pub(crate) const CHAIN_NAME: u16 = 3;
pub(crate) const CHAIN_POLICY: u16 = 5;
/// `NFTA_RULE_TABLE`, `_CHAIN`, `_HANDLE`, `_EXPRESSIONS`, `_USERDATA`.
pub(crate) const RULE_TABLE: u16 = 1;
const RULE_STABLE: [u16; 3] = [2, 3, 7];
pub(crate) const RULE_EXPRESSIONS: u16 = 4;
/// `NFTA_EXPR_NAME`, `_DATA`.
pub(crate) const EXPR_NAME: u16 = 1;
/// `NFTA_SET_TABLE`, `_NAME`, `_FLAGS`, `_KEY_TYPE`, `_KEY_LEN`, `_TIMEOUT`, `_HANDLE`.
pub(crate) const SET_TABLE: u16 = 1;
const SET_STABLE: [u16; 6] = [2, 3, 4, 5, 11, 16];
/// `NFTA_GEN_ID`.
const GEN_ID: u16 = 1;
/// `NF_DROP`, as a chain's policy.
const POLICY_DROP: u32 = 0;

/// A digest of a table's contents, except for elements of named sets and counters, in 128 bits. Handles are part of it:
/// the kernel never gives one out twice, so a rule that was replaced shows, even if the new one only differs in an
/// anonymous set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest(pub(crate) u128);

impl Digest {
    /// FNV-1a's 128-bit offset basis and prime. It is stable across versions, which a digest kept on disk needs. Nobody
    /// gains by a collision, since whoever can make one can as well change the memory.
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

    pub(crate) fn new() -> Self {
        Self(Self::BASIS)
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes();
        for byte in length.iter().chain(bytes) {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(Self::PRIME);
        }
    }

    fn add_attributes(&mut self, attributes: Attributes<'_>, kinds: &[u16]) {
        for kind in kinds {
            self.add(&kind.to_be_bytes());
            self.add(attributes.get(*kind).unwrap_or_default());
        }
    }
}

/// Returns the ruleset's generation, which grows by one with each transaction.
pub(crate) fn generation(netfilter: &mut Netfilter) -> io::Result<u32> {
    let found =
        netfilter.get(Request::GetGen, Family::Unspec, |_| {}, |message| message.attributes().number(GEN_ID))?;
    Ok(found.flatten().unwrap_or_default())
}

/// Returns the digest of a table; `None`: there is no such table.
pub(crate) fn digest(netfilter: &mut Netfilter, family: Family, table: &str) -> io::Result<Option<Digest>> {
    let digest = RefCell::new(Digest::new());
    let known = netfilter.get(
        Request::GetTable,
        family,
        |writer| writer.string(TABLE_NAME, table),
        |message| digest.borrow_mut().add_attributes(message.attributes(), &[TABLE_FLAGS, TABLE_HANDLE]),
    )?;
    if known.is_none() {
        return Ok(None);
    }
    let mut digest = digest.into_inner();
    for (request, key) in
        [(Request::GetChain, CHAIN_TABLE), (Request::GetRule, RULE_TABLE), (Request::GetSet, SET_TABLE)]
    {
        let part = RefCell::new(Digest::new());
        netfilter.dump(
            request,
            family,
            |writer| {
                if request != Request::GetChain {
                    writer.string(key, table);
                }
            },
            |message| {
                if message.attributes().text(key) == Some(table) {
                    add_object(&mut part.borrow_mut(), request, message);
                }
            },
            || *part.borrow_mut() = Digest::new(),
        )?;
        digest.add(&part.into_inner().0.to_be_bytes());
    }
    Ok(Some(digest))
}

fn add_object(digest: &mut Digest, request: Request, message: Message<'_>) {
    let attributes = message.attributes();
    match request {
        Request::GetChain => digest.add_attributes(attributes, &CHAIN_STABLE),
        Request::GetSet => digest.add_attributes(attributes, &SET_STABLE),
        _ => {
            digest.add_attributes(attributes, &RULE_STABLE);
            for (_, expression) in Attributes(attributes.get(RULE_EXPRESSIONS).unwrap_or_default()) {
                let name = Attributes(expression).text(EXPR_NAME);
                digest.add(if name == Some("counter") { b"counter" } else { expression });
            }
        }
    }
}

/// A base chain of a foreign table, as far as it is known without the table's program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BaseChain {
    pub(crate) name: String,
    /// True if its policy is to drop.
    pub(crate) drops: bool,
}

/// Returns the chains of `table` that have a policy.
pub(crate) fn base_chains(netfilter: &mut Netfilter, family: Family, table: &str) -> io::Result<Vec<BaseChain>> {
    let chains = RefCell::new(Vec::new());
    netfilter.dump(
        Request::GetChain,
        family,
        |_| {},
        |message| {
            let attributes = message.attributes();
            let (Some(name), Some(policy)) = (attributes.text(CHAIN_NAME), attributes.number(CHAIN_POLICY)) else {
                return;
            };
            if attributes.text(CHAIN_TABLE) == Some(table) {
                chains.borrow_mut().push(BaseChain { name: name.to_owned(), drops: policy == POLICY_DROP });
            }
        },
        || chains.borrow_mut().clear(),
    )?;
    Ok(chains.into_inner())
}

/// Deletes a table with everything in it. If there is none, that is success.
pub(crate) fn delete(netfilter: &mut Netfilter, family: Family, table: &str) -> io::Result<()> {
    let mut writer = Writer::default();
    writer.batch_begin(netfilter.next_sequence());
    let message = writer.open(Request::DelTable, NLM_F_ACK, netfilter.next_sequence(), family);
    writer.string(TABLE_NAME, table);
    writer.close(&message);
    writer.batch_end(netfilter.next_sequence());
    match netfilter.batch(&writer.bytes)?.errors.first() {
        None | Some((_, libc::ENOENT)) => Ok(()),
        Some((_, errno)) => Err(io::Error::from_raw_os_error(*errno)),
    }
}
