use std::collections::BTreeMap;

use flatnet_core::object::{Encap, RouteKey};
use flatnet_model::GreKey;

use super::*;

const LOCAL: [u8; 4] = [192, 0, 2, 1];
const PEER: [u8; 4] = [192, 0, 2, 2];

/// Returns a table with one peer, which has 10.0.0.0/31 under key 5, and the device it is behind.
fn table() -> (Table, Arc<Tun>) {
    let device = IfName::new("flatgre5").unwrap();
    let tun = Arc::new(Tun::placeholder().unwrap());
    let encap = Encap { device, source: LOCAL.into(), remote: PEER.into(), key: GreKey::new(5) };
    let routes = BTreeMap::from([(RouteKey::to_peer("10.0.0.0/31".parse().unwrap()), encap)]);
    (Table::new(&routes, &BTreeMap::from([(device, Arc::clone(&tun))])), tun)
}

fn inner(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    [&[0x45; 12][..], &source, &destination, b"data"].concat()
}

/// Returns a packet with an outer header to `to` and the key `key`.
fn wire(to: [u8; 4], key: u32, inner: &[u8]) -> Vec<u8> {
    let (bytes, length) = header(IpFamily::V4, GreKey::new(key));
    [&[0x45; 12][..], &PEER, &to, &bytes[HEADER_MAX - length..], inner].concat()
}

#[test]
fn only_a_peers_packets_from_its_own_subnet_under_its_key_and_to_us_come_in() {
    let (table, _) = table();
    let from_peer = inner([10, 0, 0, 1], [10, 9, 9, 9]);
    let outside = inner([10, 0, 0, 2], [10, 9, 9, 9]);
    let in_from = |outer: [u8; 4], packet: &[u8]| {
        unwrap(&table, IpFamily::V4, Some(packet), outer.into()).map(|(_, inner)| inner.to_vec())
    };
    assert_eq!(in_from(PEER, &wire(LOCAL, 5, &from_peer)), Some(from_peer.clone()));
    assert_eq!(in_from([192, 0, 2, 3], &wire(LOCAL, 5, &from_peer)), None, "a stranger");
    assert_eq!(in_from(PEER, &wire(LOCAL, 5, &outside)), None, "outside its lease");
    assert_eq!(in_from(PEER, &wire(LOCAL, 6, &from_peer)), None, "another key");
    assert_eq!(in_from(PEER, &wire(LOCAL, 0, &from_peer)), None, "no key");
    assert_eq!(in_from(PEER, &wire([192, 0, 2, 9], 5, &from_peer)), None, "to another address of this host");
}

#[test]
fn what_goes_out_has_the_peers_key_and_only_through_its_own_device() {
    let (table, tun) = table();
    let packet = inner([10, 9, 9, 9], [10, 0, 0, 1]);
    let mut buffer = [vec![0; HEADER_MAX], packet.clone()].concat();
    let out = wrap(&table, &tun, IpFamily::V4, &mut buffer, packet.len()).unwrap();
    assert_eq!((out.source, out.remote), (IpAddr::from(LOCAL), IpAddr::from(PEER)));
    assert_eq!(out.packet, [&[0x20, 0, 8, 0, 0, 0, 0, 5][..], &packet].concat());
    let other = Arc::new(Tun::placeholder().unwrap());
    assert_eq!(wrap(&table, &other, IpFamily::V4, &mut buffer, packet.len()).map(|out| out.remote), None);
    let nobody = inner([10, 9, 9, 9], [10, 0, 0, 2]);
    let mut buffer = [vec![0; HEADER_MAX], nobody.clone()].concat();
    assert_eq!(wrap(&table, &tun, IpFamily::V4, &mut buffer, nobody.len()).map(|out| out.remote), None);
}
