//! Elements of the sets of peers, which are read, created and deleted without a process.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flatnet_core::object::{PeerSource, Ruleset, SetName, TunnelId};
use flatnet_model::IpFamily;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::netfilter::Netfilter;
use super::wire::{Attributes, Family, LIST_ELEM, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, Request, Writer};

/// `NFTA_SET_ELEM_LIST_TABLE`, `_SET`, `_ELEMENTS`.
pub(super) const LIST_TABLE: u16 = 1;
pub(super) const LIST_SET: u16 = 2;
pub(super) const LIST_ELEMENTS: u16 = 3;
/// `NFTA_SET_ELEM_KEY`, `_FLAGS`, `_TIMEOUT`; `NFTA_DATA_VALUE`.
pub(super) const KEY: u16 = 1;
const FLAGS: u16 = 3;
const TIMEOUT: u16 = 4;
pub(super) const DATA_VALUE: u16 = 1;
/// Bytes of a list: an attribute's length has 16 bits, and a list is closed well before they run out.
pub(super) const LIST_BYTES: usize = 60_000;
/// Elements per transaction when it must be found out which one the kernel refuses. An error reply for each must fit
/// the default receive buffer (208 KiB, about 270 replies).
const SINGLY: usize = 128;

/// The present elements of a set.
#[derive(Debug, Default)]
pub(super) struct SetContents {
    /// Elements that we could have made.
    pub(super) sources: Vec<PeerSource>,
    /// The number of elements that cannot be ours: they have another shape or a timeout, or are not a subnet.
    pub(super) odd: usize,
}

/// The creation or deletion of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) create: bool,
    pub(super) source: PeerSource,
}

/// Reads a set of our table. A set that does not exist has no elements.
pub(super) fn read(netfilter: &mut Netfilter, set: SetName) -> io::Result<SetContents> {
    let contents = std::cell::RefCell::new(SetContents::default());
    let name = set.to_string();
    let result = netfilter.dump(
        Request::GetSetElem,
        Family::Inet,
        |writer| {
            writer.string(LIST_TABLE, Ruleset::TABLE);
            writer.string(LIST_SET, &name);
        },
        |message| {
            let mut contents = contents.borrow_mut();
            let Some(list) = message.attributes().get(LIST_ELEMENTS) else { return };
            for (_, element) in Attributes(list) {
                match parse(set, Attributes(element)) {
                    Some(source) => contents.sources.push(source),
                    None => contents.odd += 1,
                }
            }
        },
        || *contents.borrow_mut() = SetContents::default(),
    );
    match result {
        Ok(()) => Ok(contents.into_inner()),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(SetContents::default()),
        Err(error) => Err(error),
    }
}

fn parse(set: SetName, element: Attributes<'_>) -> Option<PeerSource> {
    if element.get(TIMEOUT).is_some() || element.number(FLAGS).is_some_and(|flags| flags != 0) {
        return None;
    }
    let key = Attributes(element.get(KEY)?).get(DATA_VALUE)?;
    if set.tunnel == TunnelId::Direct {
        let inner = match set.family {
            IpFamily::V4 => IpAddr::from(<[u8; 4]>::try_from(key).ok()?),
            IpFamily::V6 => IpAddr::from(<[u8; 16]>::try_from(key).ok()?),
        };
        let inner = IpNet::new(inner, set.prefix_len).ok()?;
        return (inner.addr() == inner.network()).then(|| PeerSource::direct(inner));
    }
    let (outer, inner) = match set.family {
        IpFamily::V4 => {
            let (outer, inner) = halves(u64::from_be_bytes(key.try_into().ok()?));
            (Ipv4Addr::from(outer).into(), IpNet::V4(Ipv4Net::new(inner.into(), set.prefix_len).ok()?))
        }
        IpFamily::V6 => {
            let (outer, inner) = address_halves(key.try_into().ok()?);
            (Ipv6Addr::from(outer).into(), IpNet::V6(Ipv6Net::new(inner.into(), set.prefix_len).ok()?))
        }
    };
    // With host bits set, no packet finds it, so it is none of ours.
    (inner.addr() == inner.network()).then_some(PeerSource { set, outer, inner })
}

fn halves(key: u64) -> (u32, u32) {
    let bytes = key.to_be_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
}

fn address_halves(key: [u8; 32]) -> (u128, u128) {
    let half = |from: usize| {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&key[from..from + 16]);
        u128::from_be_bytes(bytes)
    };
    (half(0), half(16))
}

/// Carries out `changes` in `table`, in one transaction if possible. Returns one result each: 0 or an error number.
/// Changes that the kernel refuses are found out and left out, and the others are made.
pub(super) fn apply(netfilter: &mut Netfilter, table: &str, changes: &[Change]) -> io::Result<Vec<i32>> {
    let mut results = vec![0; changes.len()];
    for range in transactions(changes, netfilter.send_limit) {
        let offset = range.start;
        if try_packed(netfilter, table, &changes[range.clone()])? {
            continue;
        }
        for (index, chunk) in changes[range].chunks(SINGLY).enumerate() {
            let start = offset + index * SINGLY;
            apply_singly(netfilter, table, chunk, &mut results[start..start + chunk.len()])?;
        }
    }
    Ok(results)
}

/// Cuts `changes` so that each part's messages fit into `limit` bytes.
fn transactions(changes: &[Change], limit: usize) -> Vec<std::ops::Range<usize>> {
    let mut parts = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, change) in changes.iter().enumerate() {
        // An element, its nests, and a share of its message's header even if every message holds only one.
        let cost = 160 + 2 * usize::from(change.source.set.family.bits());
        if bytes + cost > limit && index > start {
            parts.push(start..index);
            (start, bytes) = (index, 0);
        }
        bytes += cost;
    }
    if start < changes.len() {
        parts.push(start..changes.len());
    }
    parts
}

/// Tries with many elements per message. Returns `false` if the kernel refused some, and nothing was done.
fn try_packed(netfilter: &mut Netfilter, table: &str, changes: &[Change]) -> io::Result<bool> {
    let mut writer = Writer::default();
    writer.batch_begin(netfilter.next_sequence());
    write_packed(&mut writer, netfilter, table, changes);
    writer.batch_end(netfilter.next_sequence());
    Ok(netfilter.batch(&writer.bytes)?.errors.is_empty())
}

/// Writes many elements per message, each message acknowledged.
pub(super) fn write_packed(writer: &mut Writer, netfilter: &mut Netfilter, table: &str, changes: &[Change]) {
    let mut rest = changes;
    while let Some(first) = rest.first() {
        let like = |change: &&Change| change.create == first.create && change.source.set == first.source.set;
        let per_message = LIST_BYTES / (64 + usize::from(first.source.set.family.bits()));
        let count = rest.iter().take(per_message).take_while(like).count();
        let (now, later) = rest.split_at(count);
        write_message(writer, table, netfilter.next_sequence(), NLM_F_ACK, now);
        rest = later;
    }
}

/// Applies with one element per message, so that errors name their element. Refused elements are left out, and the
/// others are tried again. Deleting an element that is gone is success, but aborts the transaction all the same.
fn apply_singly(netfilter: &mut Netfilter, table: &str, changes: &[Change], results: &mut [i32]) -> io::Result<()> {
    let mut left: Vec<usize> = (0..changes.len()).collect();
    // Each round leaves out at least one element.
    while let Some(last) = left.last().copied() {
        let mut writer = Writer::default();
        writer.batch_begin(netfilter.next_sequence());
        let mut sequences = Vec::with_capacity(left.len());
        for index in &left {
            let sequence = netfilter.next_sequence();
            sequences.push(sequence);
            let flags = if *index == last { NLM_F_ACK } else { 0 };
            write_message(&mut writer, table, sequence, flags, &changes[*index..=*index]);
        }
        writer.batch_end(netfilter.next_sequence());
        let reply = netfilter.batch(&writer.bytes)?;
        if reply.errors.is_empty() {
            return Ok(());
        }
        let mut refused = Vec::new();
        for (sequence, errno) in reply.errors {
            // This is not a message of ours: the commit itself failed, and with it everything.
            let Some(position) = sequences.iter().position(|other| *other == sequence) else {
                return Err(io::Error::from_raw_os_error(errno));
            };
            let index = left[position];
            results[index] = if !changes[index].create && errno == libc::ENOENT { 0 } else { errno };
            refused.push(index);
        }
        left.retain(|index| !refused.contains(index));
    }
    Ok(())
}

fn write_message(writer: &mut Writer, table: &str, sequence: u32, flags: u16, changes: &[Change]) {
    let Some(first) = changes.first() else { return };
    let (request, mode) =
        if first.create { (Request::NewSetElem, NLM_F_CREATE | NLM_F_EXCL) } else { (Request::DelSetElem, 0) };
    let message = writer.open(request, flags | mode, sequence, Family::Inet);
    writer.string(LIST_TABLE, table);
    writer.string(LIST_SET, &first.source.set.to_string());
    let list = writer.open_nested(LIST_ELEMENTS);
    for change in changes {
        let element = writer.open_nested(LIST_ELEM);
        write_key(writer, KEY, &change.source);
        writer.close_attribute(&element);
    }
    writer.close_attribute(&list);
    writer.close(&message);
}

fn write_key(writer: &mut Writer, kind: u16, source: &PeerSource) {
    let key = writer.open_nested(kind);
    let mut value = Vec::with_capacity(32);
    let outer = (source.set.tunnel != TunnelId::Direct).then_some(source.outer);
    for address in outer.into_iter().chain([source.inner.network()]) {
        match address {
            IpAddr::V4(address) => value.extend_from_slice(&address.octets()),
            IpAddr::V6(address) => value.extend_from_slice(&address.octets()),
        }
    }
    writer.attribute(DATA_VALUE, &value);
    writer.close_attribute(&key);
}
