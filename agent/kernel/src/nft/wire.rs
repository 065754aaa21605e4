//! nfnetlink's bytes: messages, attributes, batches (linux/netlink.h, linux/netfilter/nfnetlink.h, nf_tables.h).

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`; the messages between them are one transaction.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
/// A flag that the kernel sets when the objects changed during the dump.
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;

/// Bytes of `nlmsghdr` and of `nfgenmsg`, and the alignment of messages and attributes.
pub(crate) const HEADER: usize = 16;
pub(crate) const GENERIC: usize = 4;
const ALIGN: usize = 4;
/// `NLA_F_NESTED`, and the bits of a type without it and `NLA_F_NET_BYTEORDER`.
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// `NFTA_LIST_ELEM`, the type of one entry of a list.
pub(crate) const LIST_ELEM: u16 = 1;

/// Requests, by `enum nf_tables_msg_types`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Request {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    NewRule = 6,
    GetRule = 7,
    NewSet = 9,
    GetSet = 10,
    NewSetElem = 12,
    GetSetElem = 13,
    DelSetElem = 14,
    GetGen = 16,
}

/// Address families as nf_tables counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Family {
    Unspec = 0,
    Inet = 1,
    V4 = 2,
    V6 = 10,
}

/// Messages while they are written.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
}

/// The place where a length is to be filled in once it is known.
pub(crate) struct Open(usize);

impl Writer {
    pub(crate) fn open(&mut self, request: Request, flags: u16, sequence: u32, family: Family) -> Open {
        self.open_raw((SUBSYSTEM << 8) | request as u16, flags, sequence, family, 0)
    }

    fn open_raw(&mut self, kind: u16, flags: u16, sequence: u32, family: Family, resource: u16) -> Open {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.push(family as u8);
        self.bytes.push(0);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        Open(start)
    }

    pub(crate) fn close(&mut self, open: &Open) {
        // A message never nears 4 GiB: callers split at the send buffer.
        let length = u32::try_from(self.bytes.len() - open.0).unwrap_or(u32::MAX);
        self.bytes[open.0..open.0 + 4].copy_from_slice(&length.to_ne_bytes());
    }

    pub(crate) fn batch_begin(&mut self, sequence: u32) {
        let open = self.open_raw(BATCH_BEGIN, 0, sequence, Family::Unspec, SUBSYSTEM);
        self.close(&open);
    }

    pub(crate) fn batch_end(&mut self, sequence: u32) {
        let open = self.open_raw(BATCH_END, 0, sequence, Family::Unspec, SUBSYSTEM);
        self.close(&open);
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let open = self.open_attribute(kind);
        self.bytes.extend_from_slice(value);
        self.close_attribute(&open);
    }

    /// Copies those of `attributes` that are of `kinds`, as they are.
    pub(crate) fn copy(&mut self, attributes: Attributes<'_>, kinds: &[u16]) {
        for (kind, value) in attributes.filter(|(kind, _)| kinds.contains(kind)) {
            self.attribute(kind, value);
        }
    }

    /// Writes a NUL-terminated string.
    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        let open = self.open_attribute(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close_attribute(&open);
    }

    pub(crate) fn open_nested(&mut self, kind: u16) -> Open {
        self.open_attribute(kind | NESTED)
    }

    fn open_attribute(&mut self, kind: u16) -> Open {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        Open(start)
    }

    pub(crate) fn close_attribute(&mut self, open: &Open) {
        // Callers cut lists well below 64 KiB.
        let length = u16::try_from(self.bytes.len() - open.0).unwrap_or(u16::MAX);
        self.bytes[open.0..open.0 + 2].copy_from_slice(&length.to_ne_bytes());
        while !self.bytes.len().is_multiple_of(ALIGN) {
            self.bytes.push(0);
        }
    }
}

/// One message of a reply.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// The bytes after `nlmsghdr`.
    pub(crate) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Returns the (positive) error number in an `NLMSG_ERROR` or `NLMSG_DONE`; 0 is success.
    pub(crate) fn errno(&self) -> i32 {
        let number = self.payload.first_chunk::<4>().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
        number.checked_neg().unwrap_or(0)
    }

    /// Returns the attributes after `nfgenmsg`.
    pub(crate) fn attributes(&self) -> Attributes<'a> {
        Attributes(self.payload.get(GENERIC..).unwrap_or_default())
    }
}

/// Returns the messages in `bytes`, up to the first that is not whole.
pub(crate) fn messages(bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<HEADER>()?;
        let length = usize::try_from(u32::from_ne_bytes([header[0], header[1], header[2], header[3]])).ok()?;
        let payload = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            payload,
        })
    })
}

/// Attributes in order, as type and value, up to the first that is not whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    /// Returns the value of the first attribute of that type.
    pub(crate) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter().find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// Returns the first attribute of that type, as text without its NUL.
    pub(crate) fn text(self, kind: u16) -> Option<&'a str> {
        let bytes = self.get(kind)?;
        std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()
    }

    /// Returns the first attribute of that type, as a number in network byte order.
    pub(crate) fn number(self, kind: u16) -> Option<u32> {
        self.get(kind)?.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some((u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK, value))
    }
}
