use flatnet_core::object::{NexthopId, PROTOCOL, Route, RouteKey, RouteVia};
use flatnet_model::Mac;
use proptest::prelude::*;

use super::encode::{self, Presence, rtm};
use super::socket::acknowledgement;
use super::wire::{Message, Request, attributes, messages};
use super::{monitor, parse};

/// Returns the request as the kernel would see it.
fn sent(request: &Request) -> Vec<u8> {
    let mut datagram = Vec::new();
    request.write(7, 4, &mut datagram);
    datagram
}

fn only(datagram: &[u8]) -> Message<'_> {
    let mut all = messages(datagram);
    let first = all.next().unwrap();
    assert_eq!(all.next(), None);
    first
}

/// Runs everything that reads bytes of the kernel's.
fn read_all(bytes: &[u8]) {
    let _ = parse::link(bytes);
    let _ = parse::address(bytes);
    let _ = parse::neighbour(bytes);
    let _ = parse::nexthop(bytes);
    let _ = parse::route(bytes);
    let _ = attributes(bytes).count();
    let _ = monitor::is_change(bytes, 1);
    for message in messages(bytes) {
        let _ = acknowledgement(&message);
    }
}

#[test]
fn a_route_through_a_nexthop_is_written_as_the_kernel_reads_it() {
    let key = RouteKey::to_peer("10.0.1.0/24".parse().unwrap());
    let route = Route { via: RouteVia::Object(NexthopId(5)), source: Some("10.0.0.1".parse().unwrap()) };
    let datagram = sent(&encode::route_set(Presence::New, key, &route, None));
    let message = only(&datagram);
    // The flags are: create, exclusive, request, acknowledge.
    assert_eq!((message.kind, message.flags, message.sequence), (rtm::NEWROUTE, 0x605, 7));
    let raw = parse::route(message.payload).unwrap();
    assert_eq!((raw.destination.to_string().as_str(), raw.prefix, raw.table), ("10.0.1.0", 24, 254));
    assert_eq!((raw.protocol, raw.nexthop, raw.source, raw.metric), (PROTOCOL, Some(5), route.source, 0));
}

#[test]
fn a_neighbour_is_written_permanent_and_ours() {
    let request = encode::neighbour_set(3, "fd00::2".parse().unwrap(), Mac::new([2, 0, 0, 0, 0, 9]).into());
    let datagram = sent(&request);
    let raw = parse::neighbour(only(&datagram).payload).unwrap();
    assert_eq!((raw.index, raw.protocol, raw.is_set(), raw.is_fdb()), (3, PROTOCOL, true, false));
    assert_eq!((raw.address, raw.mac), (Some("fd00::2".parse().unwrap()), Some([2, 0, 0, 0, 0, 9])));
}

#[test]
fn an_error_carries_the_kernels_own_words() {
    let mut payload = (-libc::EINVAL).to_ne_bytes().to_vec();
    payload.extend([0; 16]);
    let text = b"Nexthop id does not exist\0";
    payload.extend(u16::try_from(text.len() + 4).unwrap().to_ne_bytes());
    payload.extend(1_u16.to_ne_bytes());
    payload.extend(text);
    let message = Message { kind: 2, flags: 0x300, sequence: 1, port: 0, payload: &payload };
    let refusal = acknowledgement(&message).unwrap_err();
    assert_eq!((refusal.errno, refusal.reason.as_str()), (libc::EINVAL, "Nexthop id does not exist"));
    let bare = acknowledgement(&Message { flags: 0, ..message }).unwrap_err();
    assert_eq!((bare.errno, bare.reason.as_str()), (libc::EINVAL, "Invalid argument"));
}

#[test]
fn an_attribute_that_is_too_long_or_too_short_ends_the_list() {
    assert_eq!(attributes(&[8, 0, 1, 0, 1, 2, 3]).count(), 0);
    assert_eq!(attributes(&[3, 0, 1, 0, 1, 2, 3, 4]).count(), 0);
    assert_eq!(attributes(&[0, 0, 0, 0]).count(), 0);
    assert_eq!(attributes(&[5, 0, 1, 0, 9]).collect::<Vec<_>>(), [(1, &[9_u8][..])]);
}

#[test]
fn what_others_and_busy_links_do_does_not_wake() {
    let ours = sent(&encode::neighbour_set(3, "10.0.0.1".parse().unwrap(), Mac::new([2; 6]).into()));
    assert!(monitor::is_change(&ours, 9));
    let learnt = sent(&encode::neighbour_delete(3, "10.0.0.1".parse().unwrap()));
    assert!(!monitor::is_change(&learnt, 9), "neither permanent nor of our protocol");
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        read_all(&bytes);
    }

    #[test]
    fn no_damage_to_a_true_message_makes_a_reader_panic(
        cut in 0_usize..200,
        at in 0_usize..200,
        value in any::<u8>(),
    ) {
        let key = RouteKey::to_peer("fd00::/64".parse().unwrap());
        let route = Route { via: RouteVia::Unreachable, source: None };
        let mut datagram = sent(&encode::route_set(Presence::Either, key, &route, None));
        encode::link_mark(4, "flatnet").write(8, 0, &mut datagram);
        datagram.truncate(cut.min(datagram.len()));
        if let Some(byte) = datagram.get_mut(at) {
            *byte = value;
        }
        read_all(&datagram);
        for message in messages(&datagram) {
            read_all(message.payload);
        }
    }
}
