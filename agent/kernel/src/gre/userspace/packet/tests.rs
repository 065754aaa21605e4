use proptest::prelude::*;

use super::*;

/// Returns an IP packet of `family` from …1 to …2.
pub(crate) fn inner(family: IpFamily) -> Vec<u8> {
    match family {
        IpFamily::V4 => {
            let mut packet = vec![0x45; 1];
            packet.resize(12, 0);
            packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
            packet.extend(*b"data");
            packet
        }
        IpFamily::V6 => {
            let mut packet = vec![0x60; 1];
            packet.resize(8, 0);
            packet.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
            packet.extend("fd00::2".parse::<Ipv6Addr>().unwrap().octets());
            packet.extend(*b"data");
            packet
        }
    }
}

fn wrapped(family: IpFamily, key: GreKey) -> Vec<u8> {
    let (bytes, length) = header(family, key);
    [&bytes[HEADER_MAX - length..], &inner(family)].concat()
}

#[test]
fn what_is_written_is_read() {
    for family in IpFamily::BOTH {
        for key in [0, 1, u32::MAX].map(GreKey::new) {
            let packet = wrapped(family, key);
            let received = receive(&packet, family).unwrap();
            assert_eq!((received.key, received.inner), (key, inner(family).as_slice()));
            assert_eq!(addresses(received.inner, family).unwrap().0, received.source);
        }
    }
}

#[test]
fn headers_are_those_of_the_rfcs() {
    assert_eq!(header(IpFamily::V4, GreKey::NONE), ([0, 0, 0, 0, 0, 0, 0x08, 0], 4));
    assert_eq!(header(IpFamily::V6, GreKey::new(5)), ([0x20, 0, 0x86, 0xdd, 0, 0, 0, 5], 8));
}

#[test]
fn a_sequence_number_is_skipped_and_everything_else_unknown_is_refused() {
    let family = IpFamily::V4;
    let with = |start: &[u8]| [start, &inner(family)].concat();
    let numbered = with(&[0x30, 0, 8, 0, 0, 0, 0, 5, 9, 9, 9, 9]);
    assert_eq!(receive(&numbered, family).unwrap().key, GreKey::new(5));
    for (what, start) in [
        ("a checksum", &[0x80, 0, 8, 0, 0, 0, 0, 0][..]),
        ("routing", &[0x40, 0, 8, 0]),
        ("a reserved bit", &[0x08, 0, 8, 0]),
        ("version 1", &[0x20, 1, 8, 0, 0, 0, 0, 5]),
        ("a key of 0", &[0x20, 0, 8, 0, 0, 0, 0, 0]),
        ("another protocol", &[0, 0, 0x65, 0x58]),
        ("the other family", &[0, 0, 0x86, 0xdd]),
    ] {
        assert_eq!(receive(&with(start), family), None, "{what}");
    }
    // The inner packet must be what the header says.
    assert_eq!(receive(&[&[0, 0, 8, 0][..], &inner(IpFamily::V6)].concat(), family), None);
}

#[test]
fn the_outer_header_may_have_options() {
    let mut packet = inner(IpFamily::V4);
    packet[0] = 0x46;
    assert_eq!(behind_ipv4(&packet), Some((&b""[..], [10, 0, 0, 2].into())));
    packet[0] = 0x44;
    assert_eq!(behind_ipv4(&packet), None);
    packet[0] = 0x4f;
    assert_eq!(behind_ipv4(&packet), None);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80), v6: bool) {
        let family = if v6 { IpFamily::V6 } else { IpFamily::V4 };
        let _ = (receive(&bytes, family), behind_ipv4(&bytes), addresses(&bytes, family));
    }

    #[test]
    fn a_packet_cut_anywhere_in_its_headers_is_refused(cut in 0_usize..1000, v6: bool, keyed: bool) {
        let family = if v6 { IpFamily::V6 } else { IpFamily::V4 };
        let packet = wrapped(family, GreKey::new(u32::from(keyed)));
        let headers = packet.len() - 4;
        prop_assert_eq!(receive(&packet[..cut % headers], family), None);
    }
}
