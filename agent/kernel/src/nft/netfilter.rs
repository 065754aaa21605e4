//! A socket to nf_tables. The kernel answers while `send` runs, so calls are short and blocking; async code calls from
//! a blocking thread.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockopt, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::wire::{
    Family, HEADER, Message, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, Request, Writer, messages,
};

/// Bytes to receive at once: the kernel fills at most 32 KiB of a dump into one datagram (net/netlink/af_netlink.c).
const RECEIVE_BYTES: usize = 64 * 1024;
/// Bytes of send and receive buffer that are asked for. Without CAP_NET_ADMIN in the first user namespace one gets
/// less, and transactions are cut to fit.
const BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// Seconds that the kernel may take to answer. It answers while we send; only a wedged kernel reaches this.
const ANSWER_TIMEOUT_SECS: i64 = 5;
/// The number of times a dump is tried, because somebody may change the ruleset meanwhile.
const DUMP_TRIES: usize = 16;
/// Bytes that the kernel takes from the send buffer for itself (netlink_sendmsg: `sk_sndbuf - 32`), with room to spare.
const SEND_RESERVE: usize = 1024;

/// The answer to the messages of a batch: what failed.
#[derive(Debug, Default)]
pub(crate) struct BatchReply {
    /// Sequence number and (positive) error number of each message that was refused.
    pub(crate) errors: Vec<(u32, i32)>,
}

/// The socket.
#[derive(Debug)]
pub(crate) struct Netfilter {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
    /// Bytes that one transaction may have.
    pub(crate) send_limit: usize,
}

impl Netfilter {
    /// Opens the socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = open_socket(0, SockFlag::SOCK_CLOEXEC)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_TIMEOUT_SECS, 0))?;
        if setsockopt(&socket, sockopt::SndBufForce, &BUFFER_BYTES).is_err() {
            setsockopt(&socket, sockopt::SndBuf, &BUFFER_BYTES)?;
        }
        let send_limit = getsockopt(&socket, sockopt::SndBuf)?.saturating_sub(SEND_RESERVE);
        Ok(Self { socket, sequence: 0, buffer: vec![0; RECEIVE_BYTES], send_limit })
    }

    /// Makes one with `socket` in the kernel's place.
    pub(crate) fn over(socket: OwnedFd) -> Self {
        Self { socket, sequence: 0, buffer: vec![0; RECEIVE_BYTES], send_limit: RECEIVE_BYTES }
    }

    /// Returns a sequence number that was not used lately.
    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Dumps everything of a kind. `write` adds what narrows it down, and `each` gets every message.
    pub(crate) fn dump(
        &mut self,
        request: Request,
        family: Family,
        write: impl Fn(&mut Writer),
        mut each: impl FnMut(Message<'_>),
        mut restart: impl FnMut(),
    ) -> io::Result<()> {
        for _ in 0..DUMP_TRIES {
            if self.dump_once(request, family, &write, &mut each)? {
                return Ok(());
            }
            restart();
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the ruleset kept changing while it was read"))
    }

    /// Makes one attempt at a dump. Returns `false` if somebody changed the ruleset meanwhile, so that what was read is
    /// not one state.
    fn dump_once(
        &mut self,
        request: Request,
        family: Family,
        write: &impl Fn(&mut Writer),
        each: &mut impl FnMut(Message<'_>),
    ) -> io::Result<bool> {
        let sequence = self.next_sequence();
        self.send_one(request, NLM_F_DUMP, sequence, family, write)?;
        let mut consistent = true;
        loop {
            let length = self.receive(MsgFlags::empty())?;
            for message in messages(&self.buffer[..length]).filter(|message| message.sequence == sequence) {
                consistent &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE if message.errno() != 0 => return Err(os_error(message.errno())),
                    NLMSG_ERROR | NLMSG_DONE => return Ok(consistent),
                    _ => each(message),
                }
            }
        }
    }

    /// Gets one object; `Ok(None)`: the kernel has none. `take` reads what is wanted of it.
    pub(crate) fn get<T>(
        &mut self,
        request: Request,
        family: Family,
        write: impl Fn(&mut Writer),
        take: impl Fn(Message<'_>) -> T,
    ) -> io::Result<Option<T>> {
        let sequence = self.next_sequence();
        self.send_one(request, 0, sequence, family, &write)?;
        loop {
            let length = self.receive(MsgFlags::empty())?;
            let answer = messages(&self.buffer[..length]).find(|message| message.sequence == sequence);
            match answer.map(|message| (message.kind, message.errno(), message)) {
                // Late answers to an earlier request that was given up.
                None => {}
                Some((NLMSG_ERROR, libc::ENOENT, _)) => return Ok(None),
                Some((NLMSG_ERROR, errno, _)) => return Err(os_error(errno)),
                Some((_, _, message)) => return Ok(Some(take(message))),
            }
        }
    }

    fn send_one(
        &self,
        request: Request,
        flags: u16,
        sequence: u32,
        family: Family,
        write: &impl Fn(&mut Writer),
    ) -> io::Result<()> {
        let mut writer = Writer::default();
        let open = writer.open(request, flags, sequence, family);
        write(&mut writer);
        writer.close(&open);
        self.send(&writer.bytes)
    }

    /// Sends one whole batch. The last of its messages must ask for an acknowledgement (`NLM_F_ACK`): if that is
    /// absent, it is an error too.
    pub(crate) fn batch(&mut self, bytes: &[u8]) -> io::Result<BatchReply> {
        let wanted: Vec<(u32, bool)> = messages(bytes).map(|m| (m.sequence, m.flags & NLM_F_ACK != 0)).collect();
        self.send(bytes)?;
        let mut reply = BatchReply::default();
        let mut answered = false;
        loop {
            let length = match self.receive(MsgFlags::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            for message in messages(&self.buffer[..length]).filter(|message| message.kind == NLMSG_ERROR) {
                let Some((_, ack)) = wanted.iter().find(|(sequence, _)| *sequence == message.sequence) else {
                    continue;
                };
                answered |= *ack || message.errno() != 0;
                if message.errno() != 0 {
                    reply.errors.push((message.sequence, message.errno()));
                }
            }
        }
        if answered { Ok(reply) } else { Err(io::Error::from(io::ErrorKind::TimedOut)) }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = send(self.socket.as_raw_fd(), bytes, MsgFlags::empty())?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero)) }
    }

    fn receive(&mut self, flags: MsgFlags) -> io::Result<usize> {
        let length = recv(self.socket.as_raw_fd(), &mut self.buffer, flags | MsgFlags::MSG_TRUNC)?;
        match length {
            0..HEADER => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            _ if length > self.buffer.len() => Err(io::Error::from_raw_os_error(libc::EMSGSIZE)),
            _ => Ok(length),
        }
    }
}

/// Opens a netfilter netlink socket in the calling thread's network namespace, which listens to `groups` (a bit mask).
pub(crate) fn open_socket(groups: u32, flags: SockFlag) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    bind(socket.as_fd().as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

fn os_error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}
