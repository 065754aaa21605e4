//! Raw GRE sockets, which move many packets per system call, each way.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use flatnet_model::IpFamily;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::netlink::gre::HOPS;

/// The most packets that one system call moves.
pub(super) const BATCH: usize = 32;
/// Bytes that the kernel keeps for us while this thread does not run: a few milliseconds at 10 Gbit/s.
const BUFFER_BYTES: usize = 4 << 20;

/// The socket that all tunnels over one underlay family share. It gets every GRE packet for this host.
///
/// The guard of our firewall stands before it (net/ipv4/ip_input.c: raw sockets are served after the hook `input`).
#[derive(Debug)]
pub(super) struct GreSocket {
    socket: Socket,
    family: IpFamily,
}

/// A packet to send, from its GRE header on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outgoing<'a> {
    pub(super) source: IpAddr,
    pub(super) remote: IpAddr,
    pub(super) packet: &'a [u8],
}

impl GreSocket {
    /// Opens the socket in the network namespace of the calling thread. This needs `CAP_NET_RAW`.
    pub(super) fn open(family: IpFamily) -> io::Result<Self> {
        let domain = if family == IpFamily::V4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::RAW.cloexec(), Some(Protocol::from(libc::IPPROTO_GRE)))?;
        match family {
            // Path MTU discovery is the kernel's default: a packet too long for the path is sent in fragments.
            IpFamily::V4 => setsockopt(&socket, sockopt::Ipv4Ttl, &i32::from(HOPS))?,
            IpFamily::V6 => setsockopt(&socket, sockopt::Ipv6Ttl, &i32::from(HOPS))?,
        }
        // In a user namespace the system's limit stands.
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &BUFFER_BYTES)?;
        }
        Ok(Self { socket, family })
    }

    /// Sends `packets`. A packet that cannot be sent is left out. Waits while the kernel's buffer is full.
    pub(super) fn send(&self, packets: &[Outgoing<'_>]) {
        for of_one_source in packets.chunk_by(|a, b| a.source == b.source) {
            let Some(first) = of_one_source.first() else { continue };
            for batch in of_one_source.chunks(BATCH) {
                self.send_from(first.source, batch);
            }
        }
    }

    fn send_from(&self, source: IpAddr, batch: &[Outgoing<'_>]) {
        let mut addresses: Vec<SockAddr> =
            batch.iter().map(|packet| SockAddr::from(SocketAddr::new(packet.remote, 0))).collect();
        let mut parts: Vec<libc::iovec> = batch
            .iter()
            .map(|outgoing| libc::iovec {
                iov_base: outgoing.packet.as_ptr().cast_mut().cast(),
                iov_len: outgoing.packet.len(),
            })
            .collect();
        let mut control = Control::source(source);
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .zip(&mut addresses)
            .map(|(part, address)| {
                let name = (address.as_ptr().cast_mut().cast(), address.len());
                control.message(name, part)
            })
            .collect();
        let mut rest = messages.as_mut_slice();
        while !rest.is_empty() {
            let count = libc::c_uint::try_from(rest.len()).unwrap_or(0);
            #[expect(unsafe_code, reason = "sendmmsg(2) has no safe form")]
            // SAFETY: `rest` is `count` messages whose names, parts and control data live in `addresses`, `batch`'s
            // packets and `control` until the end of this function, with their lengths; sendmmsg only reads what they
            // point to.
            let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), rest.as_mut_ptr(), count, 0) };
            let done = match usize::try_from(sent) {
                Ok(done) if done > 0 => done,
                _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => 0,
                // There is no route, or the address is no longer ours. The reconciler sees that by itself.
                _ => 1,
            };
            rest = rest.get_mut(done..).unwrap_or_default();
        }
    }

    /// Reads the packets that are there into `buffers`, up to [`BATCH`], without waiting. Returns each packet's source
    /// and length. Over IPv4 a packet begins with its IP header, over IPv6 with the GRE header.
    pub(super) fn receive(&self, buffers: &mut [Vec<u8>]) -> io::Result<Vec<(IpAddr, usize)>> {
        let buffers = buffers.get_mut(..BATCH.min(buffers.len())).unwrap_or_default();
        let mut addresses: Vec<SockAddrStorage> = buffers.iter().map(|_| SockAddrStorage::zeroed()).collect();
        let mut parts: Vec<libc::iovec> = buffers
            .iter_mut()
            .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() })
            .collect();
        let mut no_control = Control::none();
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .zip(&mut addresses)
            .map(|(part, address)| {
                let length = address.size_of();
                let name = std::ptr::from_mut(address).cast();
                no_control.message((name, length), part)
            })
            .collect();
        let count = libc::c_uint::try_from(messages.len()).map_err(io::Error::other)?;
        let (fd, flags) = (self.socket.as_raw_fd(), libc::MSG_DONTWAIT);
        #[expect(unsafe_code, reason = "recvmmsg(2) has no safe form")]
        // SAFETY: `messages` is `count` messages whose names and parts point to `addresses` and `buffers`, which nobody
        // else uses until the end of this function, with their lengths; there is no control data and no timeout.
        let got = unsafe { libc::recvmmsg(fd, messages.as_mut_ptr(), count, flags, std::ptr::null_mut()) };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        let received = messages.iter().zip(addresses).take(got).map(|(message, address)| {
            #[expect(unsafe_code, reason = "the kernel wrote the address")]
            // SAFETY: recvmmsg wrote an address of `msg_namelen` bytes into this storage.
            let address = unsafe { SockAddr::new(address, message.msg_hdr.msg_namelen) };
            let length = usize::try_from(message.msg_len).unwrap_or(0);
            (address.as_socket().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |from| from.ip()), length)
        });
        Ok(received.collect())
    }

    /// Returns the family of the underlay.
    pub(super) fn family(&self) -> IpFamily {
        self.family
    }
}

impl AsFd for GreSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Control data that several messages share, aligned as `struct cmsghdr`.
#[repr(C, align(8))]
struct Control {
    bytes: [u8; Control::LONGEST],
    length: usize,
}

impl Control {
    /// Bytes of a header (16) and a `struct in6_pktinfo` (20), padded.
    const LONGEST: usize = 40;

    fn none() -> Self {
        Self { bytes: [0; Self::LONGEST], length: 0 }
    }

    /// Writes `IP_PKTINFO` or `IPV6_PKTINFO`, with the source to send from.
    fn source(source: IpAddr) -> Self {
        let (level, kind, info) = match source {
            // struct in_pktinfo: interface index, the source, an address that only receiving fills.
            IpAddr::V4(source) => {
                let mut info = vec![0; 4];
                info.extend(source.octets());
                info.extend([0; 4]);
                (libc::IPPROTO_IP, libc::IP_PKTINFO, info)
            }
            // struct in6_pktinfo: the source, interface index.
            IpAddr::V6(source) => {
                let mut info = source.octets().to_vec();
                info.extend([0; 4]);
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
            }
        };
        // struct cmsghdr: length with itself, level, type; then the data.
        let length = 16 + info.len();
        let parts = length.to_ne_bytes().into_iter().chain(level.to_ne_bytes()).chain(kind.to_ne_bytes()).chain(info);
        let mut control = Self::none();
        for (to, from) in control.bytes.iter_mut().zip(parts) {
            *to = from;
        }
        control.length = length.next_multiple_of(8);
        control
    }

    fn message(
        &mut self,
        (name, name_length): (*mut libc::c_void, libc::socklen_t),
        part: &mut libc::iovec,
    ) -> libc::mmsghdr {
        #[expect(unsafe_code, reason = "the struct has padding that cannot be named on every libc")]
        // SAFETY: all-zero bytes are a valid `mmsghdr`: numbers and null pointers.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_name = name;
        message.msg_hdr.msg_namelen = name_length;
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
        if self.length > 0 {
            message.msg_hdr.msg_control = self.bytes.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = self.length;
        }
        message
    }
}
