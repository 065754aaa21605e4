//! The GRE header (RFC 2784, RFC 2890), and the fields of the inner packet that are looked at. Any bytes may come.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flatnet_model::{GreKey, IpFamily};

/// Bytes of the longest header that is written: flags, protocol, key.
pub(super) const HEADER_MAX: usize = 8;

/// Bit of the flags: a key follows.
const KEY: u16 = 0x2000;
/// Bit of the flags: a sequence number follows, which is not looked at.
const SEQUENCE: u16 = 0x1000;

/// Returns `ETH_P_IP` or `ETH_P_IPV6`.
const fn protocol(family: IpFamily) -> u16 {
    match family {
        IpFamily::V4 => 0x0800,
        IpFamily::V6 => 0x86dd,
    }
}

/// A packet that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received<'a> {
    /// Its key; [`GreKey::NONE`] if it has none.
    pub(super) key: GreKey,
    /// The IP packet inside.
    pub(super) inner: &'a [u8],
    /// The source of the inner packet.
    pub(super) source: IpAddr,
}

/// Reads a GRE header and the packet inside, of `family`. `None`: it is not for us. These are refused: a checksum and
/// routing, as the kernel's own devices refuse them; reserved bits; other versions (PPTP); and a key of 0, which nobody
/// is told to send.
pub(super) fn receive(packet: &[u8], family: IpFamily) -> Option<Received<'_>> {
    let (flags, rest) = split_u16(packet)?;
    let (carried, mut rest) = split_u16(rest)?;
    if flags & !(KEY | SEQUENCE) != 0 || carried != protocol(family) {
        return None;
    }
    let mut key = GreKey::NONE;
    if flags & KEY != 0 {
        let (bytes, after) = rest.split_first_chunk()?;
        key = Some(GreKey::new(u32::from_be_bytes(*bytes))).filter(|key| !key.is_none())?;
        rest = after;
    }
    if flags & SEQUENCE != 0 {
        rest = rest.get(4..)?;
    }
    Some(Received { key, inner: rest, source: addresses(rest, family)?.0 })
}

fn split_u16(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (first, rest) = bytes.split_first_chunk()?;
    Some((u16::from_be_bytes(*first), rest))
}

/// Returns the header for a packet of `family`, at the end of the array, and its length in bytes.
pub(super) fn header(family: IpFamily, key: GreKey) -> ([u8; HEADER_MAX], usize) {
    let [a, b] = protocol(family).to_be_bytes();
    if key.is_none() {
        return ([0, 0, 0, 0, 0, 0, a, b], 4);
    }
    let [c, d] = KEY.to_be_bytes();
    let [e, f, g, h] = key.get().to_be_bytes();
    ([c, d, a, b, e, f, g, h], HEADER_MAX)
}

/// Returns source and destination of an IP packet of `family`; `None`: it is cut short, or of another family.
pub(super) fn addresses(packet: &[u8], family: IpFamily) -> Option<(IpAddr, IpAddr)> {
    let version = packet.first()? >> 4;
    match (family, version) {
        (IpFamily::V4, 4) => {
            let header: &[u8; 20] = packet.first_chunk()?;
            let [.., a, b, c, d, e, f, g, h] = *header;
            Some((Ipv4Addr::new(a, b, c, d).into(), Ipv4Addr::new(e, f, g, h).into()))
        }
        (IpFamily::V6, 6) => {
            let header: &[u8; 40] = packet.first_chunk()?;
            let (source, destination) = header.get(8..)?.split_first_chunk::<16>()?;
            let destination: &[u8; 16] = destination.first_chunk()?;
            Some((Ipv6Addr::from(*source).into(), Ipv6Addr::from(*destination).into()))
        }
        _ => None,
    }
}

/// Returns the bytes after the outer IPv4 header, which a raw socket hands over too, and that header's destination.
pub(super) fn behind_ipv4(packet: &[u8]) -> Option<(&[u8], IpAddr)> {
    let (_, destination) = addresses(packet, IpFamily::V4)?;
    let words = packet.first()? & 0xf;
    packet.get(usize::from(words) * 4..).filter(|_| words >= 5).map(|rest| (rest, destination))
}

#[cfg(test)]
mod tests;
