//! The request socket, which takes batches of requests and returns one answer per request.

use std::io;
use std::os::fd::AsRawFd;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::wire::{HEADER_LEN, Message, Request, attributes, messages, read_text, read_u32};

/// Requests per `send()`. Their acknowledgements wait in the receive buffer: the default of 208 KiB
/// (`net.core.rmem_default`) overflows at about 270, and it cannot be raised in a user namespace.
const BATCH: usize = 150;

/// Seconds to wait for an answer. The kernel answers within `send()`, so this is only ever reached if a reply was lost.
const ANSWER_TIMEOUT_SECS: i64 = 5;

/// Bytes of the receive buffer. The kernel fills at most 32 KiB with one part of a dump (af_netlink.c:
/// `netlink_recvmsg`, `max_recvmsg_len`), but a single message may be larger.
const RECEIVE_LEN: usize = 128 * 1024;

/// The number of times that an interrupted dump (`NLM_F_DUMP_INTR`: the table changed meanwhile) is tried.
const DUMP_ATTEMPTS: usize = 8;

/// Datagrams that are read for one answer before giving up, so that no reply, however wrong, makes a loop endless.
const MAX_DATAGRAMS: usize = 1_000_000;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLM_F_DUMP: u16 = 0x300;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// The kernel's refusal of a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// The error number, positive.
    pub errno: i32,
    /// The text of the kernel's extended acknowledgement, or else of the error number.
    pub reason: String,
}

impl Refusal {
    /// Makes a refusal of an error number without further words.
    #[must_use]
    pub fn of(errno: Errno) -> Self {
        Self { errno: errno as i32, reason: errno.desc().to_owned() }
    }

    /// Returns true if the refusal says that the object is not there, which for a deletion is success.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(Errno::from_raw(self.errno), Errno::ENOENT | Errno::ESRCH | Errno::ENODEV | Errno::EADDRNOTAVAIL)
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self { errno: error.raw_os_error().unwrap_or(libc::EIO), reason: error.to_string() }
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        Self::from_raw_os_error(refusal.errno)
    }
}

/// Reads an `NLMSG_ERROR`; `Ok` is an acknowledgement.
pub fn acknowledgement(message: &Message<'_>) -> Result<(), Refusal> {
    let Some(code) = message.payload.first_chunk().copied().map(i32::from_ne_bytes) else {
        return Err(Refusal { errno: libc::EBADMSG, reason: "truncated acknowledgement".to_owned() });
    };
    if code == 0 {
        return Ok(());
    }
    let errno = code.checked_neg().unwrap_or(libc::EIO);
    let reason = extended(message).unwrap_or_else(|| Errno::from_raw(errno).desc().to_owned());
    Err(Refusal { errno, reason })
}

/// Returns the kernel's own words in an `NLMSG_ERROR`, which come after the (perhaps capped) copy of the request.
fn extended(message: &Message<'_>) -> Option<String> {
    if message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let copied = if message.flags & NLM_F_CAPPED == 0 {
        usize::try_from(read_u32(message.payload, 4)?).ok()?
    } else {
        HEADER_LEN
    };
    let tlvs = message.payload.get(super::wire::align(copied.checked_add(4)?)..)?;
    attributes(tlvs).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG).map(|(_, text)| read_text(text))
}

/// A socket for requests. It is bound to the network namespace of the thread that opened it, whichever thread uses it.
#[derive(Debug)]
pub struct Channel {
    socket: Socket,
    port: u32,
    sequence: u32,
    receive: Vec<u8>,
    datagram: Vec<u8>,
}

impl Channel {
    /// Opens and binds the socket.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        // Without this, a dump's filters are ignored. It came with Linux 4.20; where it is missing, the dump is
        // filtered here.
        if let Err(error) = socket.set_netlink_get_strict_chk(true) {
            tracing::debug!(%error, "no strict checking of dump requests");
        }
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_TIMEOUT_SECS))?;
        Ok(Self { socket, port, sequence: 0, receive: vec![0; RECEIVE_LEN], datagram: Vec::new() })
    }

    /// Creates a channel with `socket` in the kernel's place.
    pub(crate) fn over(socket: std::os::fd::OwnedFd) -> Self {
        use std::os::fd::{FromRawFd, IntoRawFd};
        #[expect(unsafe_code, reason = "netlink_sys takes descriptors by number only")]
        // SAFETY: the descriptor is open and given away, so the new owner is the only one.
        let socket = unsafe { Socket::from_raw_fd(socket.into_raw_fd()) };
        Self { socket, port: 0, sequence: 0, receive: vec![0; RECEIVE_LEN], datagram: Vec::new() }
    }

    /// Returns its port (`nlmsg_pid`), by which the notifications it causes are known.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Carries out `requests` in order and returns one answer each. A refused one does not stop the rest.
    pub fn request_all(&mut self, requests: &[Request]) -> Vec<Result<(), Refusal>> {
        requests.chunks(BATCH).flat_map(|batch| self.request_batch(batch)).collect()
    }

    /// Carries out one request.
    pub fn request(&mut self, request: &Request) -> Result<(), Refusal> {
        self.request_batch(std::slice::from_ref(request)).pop().unwrap_or_else(|| Err(Refusal::of(Errno::EIO)))
    }

    fn request_batch(&mut self, batch: &[Request]) -> Vec<Result<(), Refusal>> {
        let mut datagram = std::mem::take(&mut self.datagram);
        datagram.clear();
        let first = self.sequence.wrapping_add(1);
        for request in batch {
            self.sequence = self.sequence.wrapping_add(1);
            request.write(self.sequence, NLM_F_ACK, &mut datagram);
        }
        let sent = self.socket.send(&datagram, 0);
        self.datagram = datagram;
        let mut answers: Vec<Option<Result<(), Refusal>>> = vec![None; batch.len()];
        let lost = match sent {
            Ok(_) => self.collect(first, &mut answers).err(),
            Err(error) => Some(error),
        };
        // Every request gets an answer. One whose reply was lost may have been carried out, which the next dump shows.
        let lost = Refusal::from(lost.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EIO)));
        answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(lost.clone()))).collect()
    }

    /// Fills `answers`, of which the first is to sequence number `first`.
    fn collect(&mut self, first: u32, answers: &mut [Option<Result<(), Refusal>>]) -> io::Result<()> {
        let mut missing = answers.len();
        let mut flags = MsgFlags::empty();
        for _ in 0..MAX_DATAGRAMS {
            if missing == 0 {
                return Ok(());
            }
            let datagram = match receive(&self.socket, &mut self.receive, flags) {
                // Some acknowledgements did not fit. Those that did are read; no more will come.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) && flags.is_empty() => {
                    flags = MsgFlags::MSG_DONTWAIT;
                    continue;
                }
                other => other?,
            };
            for message in messages(datagram) {
                // A late answer to an earlier request that was given up is passed over.
                let index = usize::try_from(message.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                let Some(slot) = answers.get_mut(index).filter(|_| message.kind == NLMSG_ERROR) else { continue };
                if slot.is_none() {
                    *slot = Some(acknowledgement(&message));
                    missing = missing.saturating_sub(1);
                }
            }
        }
        Err(io::Error::from_raw_os_error(libc::EPROTO))
    }

    /// Sends a dump request and passes every message of the answer to `each`, as type and payload. If the table changed
    /// meanwhile, the dump is begun again: `T` is dropped and made anew, so what `each` builds comes from one whole
    /// answer.
    pub fn dump<T>(
        &mut self,
        request: &Request,
        mut each: impl FnMut(&mut T, u16, &[u8]),
        mut empty: impl FnMut() -> T,
    ) -> io::Result<T> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut into = empty();
            if self.dump_once(request, &mut |kind, payload| each(&mut into, kind, payload))? {
                return Ok(into);
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "the table changed during each attempt to read it"))
    }

    /// Makes one attempt at a dump. Returns `false` if it was interrupted, so that what was read may be inconsistent.
    fn dump_once(&mut self, request: &Request, each: &mut dyn FnMut(u16, &[u8])) -> io::Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let mut datagram = Vec::new();
        request.write(sequence, NLM_F_DUMP, &mut datagram);
        self.socket.send(&datagram, 0)?;
        let mut whole = true;
        for _ in 0..MAX_DATAGRAMS {
            let datagram = match receive(&self.socket, &mut self.receive, MsgFlags::empty()) {
                // A part did not fit. The rest is read to the end, so that the next request is not refused, and the
                // dump is begun again.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    whole = false;
                    continue;
                }
                other => other?,
            };
            for message in messages(datagram) {
                if message.sequence != sequence {
                    continue;
                }
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE => return acknowledged_dump(&message).map(|()| whole),
                    NLMSG_ERROR => return acknowledgement(&message).map(|()| whole).map_err(io::Error::from),
                    kind => each(kind, message.payload),
                }
            }
        }
        Err(io::Error::from_raw_os_error(libc::EPROTO))
    }

    /// Sends a request that has one message as its answer, and reads that with `read`.
    pub fn get<T>(
        &mut self,
        request: &Request,
        mut read: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let mut datagram = Vec::new();
        request.write(sequence, NLM_F_ACK, &mut datagram);
        self.socket.send(&datagram, 0)?;
        let mut found = None;
        for _ in 0..MAX_DATAGRAMS {
            for message in messages(receive(&self.socket, &mut self.receive, MsgFlags::empty())?) {
                if message.sequence != sequence {
                    continue;
                }
                if message.kind == NLMSG_ERROR {
                    return acknowledgement(&message).map(|()| found);
                }
                found = found.or_else(|| read(message.kind, message.payload));
            }
        }
        Err(Refusal::of(Errno::EPROTO))
    }
}

/// Reads the end of a dump, at which it can fail: `NLMSG_DONE` carries the error number.
fn acknowledged_dump(message: &Message<'_>) -> io::Result<()> {
    match message.payload.first_chunk().copied().map(i32::from_ne_bytes) {
        Some(code) if code < 0 => Err(io::Error::from_raw_os_error(code.checked_neg().unwrap_or(libc::EIO))),
        _ => Ok(()),
    }
}

/// Returns the next datagram from the kernel.
fn receive<'a>(socket: &Socket, buffer: &'a mut [u8], flags: MsgFlags) -> io::Result<&'a [u8]> {
    loop {
        // The socket is connected to port 0, so only the kernel is heard.
        match recv(socket.as_raw_fd(), buffer, flags) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => return buffer.get(..length).ok_or_else(|| io::ErrorKind::InvalidData.into()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
