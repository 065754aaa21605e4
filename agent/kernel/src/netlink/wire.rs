//! Netlink's framing (linux/netlink.h): messages and attributes, read defensively, and written.

use std::net::IpAddr;

/// Length of a message header (`struct nlmsghdr`) in bytes.
pub const HEADER_LEN: usize = 16;

/// One message of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`: the sequence number of the request it answers.
    pub sequence: u32,
    /// `nlmsg_pid`: in a notification, the port of the socket that caused it, or 0 for the kernel itself.
    pub port: u32,
    /// The bytes after the header.
    pub payload: &'a [u8],
}

/// Returns the messages of a datagram, up to the first that is not whole.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(read_u32(rest, 0)?).ok()?;
        let whole = rest.get(..length)?;
        let message = Message {
            kind: read_u16(whole, 4)?,
            flags: read_u16(whole, 6)?,
            sequence: read_u32(whole, 8)?,
            port: read_u32(whole, 12)?,
            payload: whole.get(HEADER_LEN..)?,
        };
        rest = rest.get(align(length)..).unwrap_or_default();
        Some(message)
    })
}

/// Returns the attributes (`struct nlattr`) in `bytes`, as type without its flag bits and value, up to the first that
/// is not whole.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(read_u16(rest, 0)?);
        let kind = read_u16(rest, 2)? & NLA_TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// All bits but `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` (linux/netlink.h).
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Rounds up to a multiple of 4, at which attributes and messages begin (`NLA_ALIGNTO`, `NLMSG_ALIGNTO`).
#[must_use]
pub const fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}

/// Reads the byte at `at`.
#[must_use]
pub fn read_u8(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

/// Reads the native-endian 16 bits at `at`.
#[must_use]
pub fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

/// Reads the native-endian 32 bits at `at`.
#[must_use]
pub fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

/// Reads an address of 4 or 16 bytes.
#[must_use]
pub fn read_address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        Some(IpAddr::from(octets))
    } else {
        <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
    }
}

/// Reads text up to its NUL. Bytes that are not UTF-8 are replaced, so that no bytes make an object invisible.
#[must_use]
pub fn read_text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// One request while it is written: header, fixed part, attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// Begins a request of `kind` with `flags`, to which `NLM_F_REQUEST` is added. `fixed` is the family's own header
    /// (`struct rtmsg`, …).
    #[must_use]
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        /// Bytes that are enough for every request but a link's, so that thousands are written without growing.
        const USUAL_LEN: usize = 96;
        /// linux/netlink.h.
        const NLM_F_REQUEST: u16 = 1;
        let mut bytes = Vec::with_capacity(USUAL_LEN);
        bytes.extend([0; 4]);
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(fixed);
        Self { bytes }.padded()
    }

    fn padded(mut self) -> Self {
        self.bytes.resize(align(self.bytes.len()), 0);
        self
    }

    /// Adds an attribute. Values over 65,531 bytes do not fit its 16-bit length and are left out.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let Some(length) = u16::try_from(value.len()).ok().and_then(|length| length.checked_add(4)) else {
            return self;
        };
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.padded()
    }

    /// Adds an attribute of 32 bits.
    #[must_use]
    pub fn with_u32(self, kind: u16, value: u32) -> Self {
        self.with(kind, &value.to_ne_bytes())
    }

    /// Adds an attribute that holds an address.
    #[must_use]
    pub fn with_address(self, kind: u16, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.with(kind, &address.octets()),
            IpAddr::V6(address) => self.with(kind, &address.octets()),
        }
    }

    /// Returns the length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns false, always: a request has a header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends the request to a datagram under `sequence`, with further `flags`.
    pub fn write(&self, sequence: u32, flags: u16, datagram: &mut Vec<u8>) {
        let Some(rest) = self.bytes.get(HEADER_LEN..) else { return };
        let Some(own) = read_u16(&self.bytes, 6) else { return };
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        datagram.extend(length.to_ne_bytes());
        datagram.extend(self.bytes.iter().skip(4).take(2));
        datagram.extend((own | flags).to_ne_bytes());
        datagram.extend(sequence.to_ne_bytes());
        datagram.extend([0; 4]);
        datagram.extend(rest);
    }
}
