//! The sets in which the kernel remembers the sources of packets that our rules dropped. They are only read: their
//! contents are the kernel's.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use flatnet_core::claims::Sighting;
use flatnet_core::firewall::WitnessSet;
use flatnet_model::IpFamily;

use super::drops::COUNTER_PACKETS;
use super::elements::{DATA_VALUE, KEY, LIST_ELEMENTS, LIST_SET, LIST_TABLE};
use super::netfilter::Netfilter;
use super::replica::{EXPR_DATA, SET_NAME, collect};
use super::table::{EXPR_NAME, SET_TABLE};
use super::wire::{Attributes, Family, Request};

/// `NFTA_SET_ELEM_EXPR`.
const ELEMENT_EXPRESSION: u16 = 7;
/// Bytes of an interface's name in a key (`IFNAMSIZ`), filled up with NULs.
const NAME_BYTES: usize = 16;
/// The most elements that are read of all sets of a table: those of some dozens of networks. More would be somebody
/// else's.
const MOST: usize = 8192;

/// Reads everything that the sets of `table` remember.
pub(super) fn read(netfilter: &mut Netfilter, table: &'static str) -> io::Result<Vec<Sighting>> {
    let names = collect(netfilter, Request::GetSet, SET_TABLE, table, |set| WitnessSet::parse(set.text(SET_NAME)?))?;
    let mut all = Vec::new();
    for set in names {
        match elements(netfilter, table, &set) {
            Ok(found) => all.extend(found),
            // The table was swapped meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
        if all.len() >= MOST {
            break;
        }
    }
    Ok(all)
}

fn elements(netfilter: &mut Netfilter, table: &'static str, set: &WitnessSet) -> io::Result<Vec<Sighting>> {
    // While the set grows, the kernel may list an element twice.
    let found = RefCell::new(BTreeMap::new());
    let name = set.to_string();
    netfilter.dump(
        Request::GetSetElem,
        Family::Inet,
        |writer| {
            writer.string(LIST_TABLE, table);
            writer.string(LIST_SET, &name);
        },
        |message| {
            let list = Attributes(message.attributes().get(LIST_ELEMENTS).unwrap_or_default());
            let mut found = found.borrow_mut();
            for (_, element) in list {
                if found.len() < MOST
                    && let Some((key, packets)) = element_of(Attributes(element))
                {
                    found.insert(key.to_vec(), packets);
                }
            }
        },
        || found.borrow_mut().clear(),
    )?;
    let sighting = |(key, packets): (Vec<u8>, u64)| {
        let (interface, outer, inner) = parse(set.family, &key)?;
        Some(Sighting { table, chain: set.chain.clone(), interface, outer, inner, packets })
    };
    Ok(found.into_inner().into_iter().filter_map(sighting).collect())
}

/// Returns an element's key and the value of its counter.
fn element_of(element: Attributes<'_>) -> Option<(&[u8], u64)> {
    let key = Attributes(element.get(KEY)?).get(DATA_VALUE)?;
    let expression = Attributes(element.get(ELEMENT_EXPRESSION).unwrap_or_default());
    let counter = expression.get(EXPR_DATA).filter(|_| expression.text(EXPR_NAME) == Some("counter"));
    let packets = Attributes(counter.unwrap_or_default()).get(COUNTER_PACKETS);
    let packets = packets.and_then(|bytes| bytes.first_chunk()).map(|bytes| u64::from_be_bytes(*bytes));
    Some((key, packets.unwrap_or_default()))
}

/// Reads a key: the interface, the outer source if there is one, and the inner source. `None`: it has another shape
/// than our sets' keys.
fn parse(family: IpFamily, key: &[u8]) -> Option<(String, Option<IpAddr>, IpAddr)> {
    let (name, addresses) = key.split_at_checked(NAME_BYTES)?;
    let length = usize::from(family.bits()) / 8;
    let address = |bytes: &[u8]| match family {
        IpFamily::V4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        IpFamily::V6 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    };
    let (outer, inner) = match addresses.len() {
        one if one == length => (None, address(addresses)?),
        two if two == 2 * length => {
            let (outer, inner) = addresses.split_at_checked(length)?;
            (Some(address(outer)?), address(inner)?)
        }
        _ => return None,
    };
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Some((String::from_utf8_lossy(name).into_owned(), outer, inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_by_their_length_and_others_are_left_out() {
        let name = *b"veth0\0\0\0\0\0\0\0\0\0\0\0";
        let key = |addresses: &[u8]| [&name[..], addresses].concat();
        let v4 = |text: &str| text.parse::<IpAddr>().unwrap();
        let both = key(&[192, 0, 2, 1, 10, 1, 2, 3]);
        assert_eq!(parse(IpFamily::V4, &both), Some(("veth0".to_owned(), Some(v4("192.0.2.1")), v4("10.1.2.3"))));
        assert_eq!(parse(IpFamily::V4, &key(&[10, 1, 2, 3])), Some(("veth0".to_owned(), None, v4("10.1.2.3"))));
        let six = key(&[0xfd; 32]);
        assert_eq!(parse(IpFamily::V6, &six).unwrap().2, v4("fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd"));
        for odd in [&both[..15], &both[..17], &both[..], &six[..47], &[]] {
            assert_eq!(parse(IpFamily::V6, odd), None, "{odd:?}");
        }
    }
}
