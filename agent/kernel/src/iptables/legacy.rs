//! The kernel's older `ip_tables`: has its table `filter` changed? It sends no events, so this must be cheap enough to
//! ask twice a second: reading `/proc` and two `getsockopt` take some 20 µs.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use flatnet_model::IpFamily;

use crate::nft::table::Digest;

/// The table's name.
const TABLE: &[u8] = b"filter";
/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES` (linux/netfilter_ipv4/ip_tables.h). The numbers are the same for IPv6.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// `struct ipt_getinfo`: name, valid hooks, 5 entries, 5 underflows, number of entries, size.
const INFO_BYTES: usize = 84;
const INFO_ENTRIES_AT: usize = 76;
const INFO_SIZE_AT: usize = 80;
/// `struct ipt_get_entries` before its entries: name, size, padding to 8.
const ENTRIES_HEADER: usize = 40;
/// The number of entries of an empty table: three chains' policies and the end.
const EMPTY_TABLE: u32 = 4;
/// The largest table that is read, in bytes.
const LARGEST: usize = 64 * 1024 * 1024;

/// The offsets in `struct ipt_entry` / `ip6t_entry`.
struct Layout {
    next_offset_at: usize,
    /// `comefrom` and the packet and byte counters, which change by themselves.
    volatile: std::ops::Range<usize>,
    level: libc::c_int,
    names: &'static str,
}

const V4: Layout =
    Layout { next_offset_at: 90, volatile: 92..112, level: libc::SOL_IP, names: "/proc/self/net/ip_tables_names" };
const V6: Layout =
    Layout { next_offset_at: 142, volatile: 144..168, level: libc::SOL_IPV6, names: "/proc/self/net/ip6_tables_names" };

/// The look of the table, without counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    pub(super) digest: Digest,
    /// True if the table has rules.
    pub(super) has_rules: bool,
}

/// Returns the table's fingerprint; `None`: there is no such table. Asking for a table that is not there would create
/// it, so `/proc` is looked at first.
pub(super) fn fingerprint(family: IpFamily) -> io::Result<Option<Fingerprint>> {
    /// Attempts, because somebody may change the table between the two questions.
    const TRIES: usize = 8;
    let layout = match family {
        IpFamily::V4 => &V4,
        IpFamily::V6 => &V6,
    };
    // The file is absent without the module. It is not readable without rights, and then the options below would not be
    // either.
    let Ok(names) = std::fs::read_to_string(layout.names) else { return Ok(None) };
    if !names.lines().any(|name| name.as_bytes() == TABLE) {
        return Ok(None);
    }
    // Any socket of the family will do, since the option is netfilter's. It is bound to nothing.
    let socket = udp(layout)?;
    let mut result = Err(io::Error::from(io::ErrorKind::WouldBlock));
    for _ in 0..TRIES {
        result = look(&socket, layout);
        if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            break;
        }
    }
    result.map(Some)
}

fn udp(layout: &Layout) -> io::Result<UdpSocket> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let family = if layout.level == libc::SOL_IP { AddressFamily::Inet } else { AddressFamily::Inet6 };
    Ok(socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?.into())
}

fn look(socket: &UdpSocket, layout: &Layout) -> io::Result<Fingerprint> {
    let mut info = [0u8; INFO_BYTES];
    info[..TABLE.len()].copy_from_slice(TABLE);
    option(socket, layout.level, GET_INFO, &mut info)?;
    let entries = number(&info, INFO_ENTRIES_AT);
    let size = usize::try_from(number(&info, INFO_SIZE_AT)).unwrap_or(usize::MAX);
    if size > LARGEST {
        return Err(io::Error::from(io::ErrorKind::OutOfMemory));
    }
    let mut table = vec![0u8; ENTRIES_HEADER + size];
    table[..TABLE.len()].copy_from_slice(TABLE);
    table[32..36].copy_from_slice(&number(&info, INFO_SIZE_AT).to_ne_bytes());
    option(socket, layout.level, GET_ENTRIES, &mut table)?;
    let digest = digest(table.get(ENTRIES_HEADER..).unwrap_or_default(), layout);
    Ok(Fingerprint { digest, has_rules: entries > EMPTY_TABLE })
}

fn digest(mut entries: &[u8], layout: &Layout) -> Digest {
    let mut digest = Digest::new();
    while let Some(next) = entries.get(layout.next_offset_at..layout.next_offset_at + 2) {
        let length = usize::from(u16::from_ne_bytes([next[0], next[1]]));
        let Some(entry) = entries.get(..length).filter(|entry| entry.len() >= layout.volatile.end) else { break };
        digest.add(&entry[..layout.volatile.start]);
        digest.add(&entry[layout.volatile.end..]);
        entries = &entries[length..];
    }
    digest
}

/// Reads any bytes in the place of a table's entries, of both families.
pub(super) fn read_any(bytes: &[u8]) {
    for layout in [&V4, &V6] {
        let _ = digest(bytes, layout);
    }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk::<4>).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

#[expect(unsafe_code, reason = "no crate wraps netfilter's socket options")]
fn option(socket: &UdpSocket, level: libc::c_int, name: libc::c_int, value: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: `value` is writable for `length` bytes, which is what the kernel is told; the descriptor is open.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
