//! Entrances for fuzzing: the parsers of what the kernel and other programs say, with any bytes for an answer.
//!
//! They are not an interface of the crate, and are hidden from its documentation. The fuzz targets are not here but
//! with the tests.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, send, shutdown, socketpair};

pub use crate::iptables::fuzzing::{iptables_listing, legacy_table};
use crate::netlink::socket::{Channel, acknowledgement};
use crate::netlink::wire::{Request, attributes, messages};
use crate::netlink::{monitor, parse};
pub use crate::nft::fuzzing::nfnetlink;

/// Bytes of all datagrams together. This is below what a socket takes before `send` blocks (`net.core.wmem_default`,
/// 208 KiB, of which every datagram costs about a KiB beside its bytes).
const ANSWERS_BYTES: usize = 64 * 1024;
/// The most datagrams, for the same reason.
const ANSWERS: usize = 32;

/// Returns a socket whose answers are already there, and its other end, which is to be kept as long. `bytes` is a list
/// of datagrams, each after its length (16 bits, little endian). After them the socket ends.
pub(crate) fn answers(bytes: &[u8]) -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let mut rest = bytes.get(..ANSWERS_BYTES.min(bytes.len())).unwrap_or_default();
    for _ in 0..ANSWERS {
        let Some((length, after)) = rest.split_first_chunk::<2>() else { break };
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (datagram, after) = after.split_at(length);
        // An empty datagram would read as the end.
        if !datagram.is_empty() {
            send(theirs.as_raw_fd(), datagram, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?;
        }
        rest = after;
    }
    shutdown(theirs.as_raw_fd(), Shutdown::Write)?;
    Ok((ours, theirs))
}

/// Reads `bytes` as rtnetlink's answers to everything that is asked of it, in the form that `answers` takes.
pub fn rtnetlink(bytes: &[u8]) {
    let ask = |question: &dyn Fn(&mut Channel)| {
        if let Ok((ours, _theirs)) = answers(bytes) {
            question(&mut Channel::over(ours));
        }
    };
    let request = Request::new(18, 0, &[0; 16]);
    ask(&|channel| drop(channel.dump(&request, |count: &mut usize, _, payload| *count += parse_all(payload), || 0)));
    ask(&|channel| drop(channel.get(&request, |_, payload| Some(parse_all(payload)))));
    let requests = vec![request.clone(); 3];
    ask(&|channel| assert_eq!(channel.request_all(&requests).len(), requests.len(), "an answer for every request"));
    rtnetlink_notice(bytes);
}

/// Reads one datagram of notifications.
pub fn rtnetlink_notice(bytes: &[u8]) {
    let _ = monitor::is_change(bytes, 1);
    let _ = parse_all(bytes);
    for message in messages(bytes) {
        let _ = acknowledgement(&message);
        let _ = parse_all(message.payload);
    }
}

/// Reads a payload as every kind of object, and returns the number of its attributes plus that of the kinds it can be
/// read as.
fn parse_all(payload: &[u8]) -> usize {
    let link = parse::link(payload).is_some();
    let address = parse::address(payload).is_some_and(|address| !address.is_kernel_made());
    let neighbour = parse::neighbour(payload).is_some_and(|neighbour| neighbour.is_set() || neighbour.is_fdb());
    let nexthop = parse::nexthop(payload).is_some();
    let route = parse::route(payload).is_some();
    attributes(payload).count() + [link, address, neighbour, nexthop, route].into_iter().filter(|is| *is).count()
}
