//! Packets byte by byte: Ethernet, IPv4, IPv6, UDP, VXLAN; no more than a sender of bad ones needs.

use std::net::IpAddr;

/// The mark in every payload: a packet that carries it was made here.
pub const MAGIC: &[u8; 16] = b"flatnet-hostile!";
/// The inner source of every frame made here: no peer has it.
pub const MARK: [u8; 6] = [0x06, 0xde, 0xad, 0xbe, 0xef, 0x01];

pub const UDP: u8 = 17;
pub const GRE: u8 = 47;

/// Makes an Ethernet frame from [`MARK`].
pub fn ethernet(to: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &MARK, &ethertype.to_be_bytes(), payload].concat()
}

/// Makes a VXLAN packet (RFC 7348 §5): flags, 24 bits reserved, VNI, 8 bits reserved.
pub fn vxlan(flags: u8, vni: u32, reserved: u8, frame: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = vni.to_be_bytes();
    [&[flags, 0, 0, 0, a, b, c, reserved][..], frame].concat()
}

/// Makes a GRE packet (RFC 2784, RFC 2890): flags and version, protocol, a key if there is one.
pub fn gre(flags: u16, protocol: u16, key: Option<u32>, packet: &[u8]) -> Vec<u8> {
    let key = key.map(|key| key.to_be_bytes().to_vec()).unwrap_or_default();
    [&flags.to_be_bytes()[..], &protocol.to_be_bytes(), &key, packet].concat()
}

/// Makes a UDP datagram with its checksum.
pub fn udp(from: IpAddr, to: IpAddr, source_port: u16, port: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut datagram =
        [&source_port.to_be_bytes()[..], &port.to_be_bytes(), &length.to_be_bytes(), &[0, 0], payload].concat();
    let pseudo = [&octets(from)[..], &octets(to), &u32::from(length).to_be_bytes(), &[0, 0, 0, UDP]].concat();
    // 0 would mean that there is none.
    let sum = match checksum(&[&pseudo[..], &datagram].concat()) {
        0 => 0xffff,
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

/// Makes an IP packet. `fragment` is its identification, offset in bytes (a multiple of 8), and whether more follow.
pub fn ip(from: IpAddr, to: IpAddr, protocol: u8, fragment: Option<(u16, usize, bool)>, payload: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let (id, offset, more) = fragment.unwrap_or((0, 0, false));
            let field = u16::try_from(offset / 8).unwrap() | if more { 0x2000 } else { 0 };
            let length = u16::try_from(20 + payload.len()).unwrap();
            let [length, id, field] = [length, id, field].map(u16::to_be_bytes);
            let mut header = [&[0x45, 0][..], &length, &id, &field, &[64, protocol, 0, 0]].concat();
            header.extend([octets(from), octets(to)].concat());
            let sum = checksum(&header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            [header, payload.to_vec()].concat()
        }
        (IpAddr::V6(_), IpAddr::V6(_)) => {
            let extension = fragment.map(|(id, offset, more)| {
                let field = u16::try_from(offset).unwrap() | u16::from(more);
                [&[protocol, 0][..], &field.to_be_bytes(), &u32::from(id).to_be_bytes()].concat()
            });
            let next = if extension.is_some() { 44 } else { protocol };
            let rest = [extension.unwrap_or_default(), payload.to_vec()].concat();
            let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
            [&[0x60, 0, 0, 0][..], &length, &[next, 64], &octets(from), &octets(to), &rest].concat()
        }
        _ => panic!("{from} and {to} are of two families"),
    }
}

/// Makes a UDP datagram in an IP packet.
pub fn udp_ip(from: IpAddr, to: IpAddr, source_port: u16, port: u16, payload: &[u8]) -> Vec<u8> {
    ip(from, to, UDP, None, &udp(from, to, source_port, port, payload))
}

/// Returns the Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
