//! Notifications: a socket of its own in rtnetlink's multicast groups, which is read without blocking.

use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use flatnet_core::object::{PROTOCOL, RouteKey};
use futures::Stream;
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::unix::AsyncFd;

use super::encode::rtm;
use super::parse;
use super::wire::{Message, messages};
use crate::Wake;

/// Groups of devices and their forwarding (`RTNLGRP_…`, linux/rtnetlink.h): link, ipv4 and ipv6 netconf. Those of other
/// kinds are told when it is opened.
const GROUPS: [u32; 3] = [1, 24, 25];

/// `NLMSG_MIN_TYPE` (linux/netlink.h): messages below are netlink's own.
const FIRST_TYPE: u16 = 16;

/// Bytes of the receive buffer: notifications are at most one page each (`NLMSG_GOODSIZE`).
const RECEIVE_LEN: usize = 32 * 1024;

/// Datagrams that are read for one wake-up, so that a flood cannot keep the task from yielding.
const DATAGRAMS_PER_WAKE: usize = 4096;

/// A stream that wakes when links, addresses, routes, neighbours or nexthops change, unless `own_port`'s socket changed
/// them. It ends when the socket breaks. Cancellation: drop it; nothing is lost but wakes.
#[derive(Debug)]
pub struct Monitor {
    socket: AsyncFd<Socket>,
    own_port: u32,
    buffer: Vec<u8>,
}

impl Monitor {
    /// Subscribes in the network namespace of the calling thread, within a tokio runtime.
    pub fn open(own_port: u32, groups: impl IntoIterator<Item = u32>) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        for group in GROUPS.into_iter().chain(groups) {
            match socket.add_membership(group) {
                // A kernel without nexthop objects has no such group.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                other => other?,
            }
        }
        let socket = register(socket)?;
        Ok(Self { socket, own_port, buffer: vec![0; RECEIVE_LEN] })
    }

    /// Reads what is queued. Returns `Ok(true)` if any of it matters, and `WouldBlock` if nothing does.
    fn drain(socket: &Socket, buffer: &mut [u8], own_port: u32) -> io::Result<bool> {
        let mut matters = false;
        for _ in 0..DATAGRAMS_PER_WAKE {
            match recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => matters |= is_change(buffer.get(..length).unwrap_or_default(), own_port),
                Err(Errno::EAGAIN) if matters => return Ok(true),
                Err(Errno::EINTR) => {}
                // The buffer overflowed, so something was missed, and anything may have changed.
                Err(Errno::ENOBUFS) => matters = true,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(matters)
    }
}

impl Stream for Monitor {
    type Item = Wake;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Wake>> {
        let this = self.get_mut();
        loop {
            let mut guard = match ready!(this.socket.poll_read_ready(context)) {
                Ok(guard) => guard,
                Err(error) => {
                    tracing::warn!(%error, "the kernel's notifications ended");
                    return Poll::Ready(None);
                }
            };
            let (buffer, own_port) = (&mut this.buffer, this.own_port);
            match guard.try_io(|socket| Self::drain(socket.get_ref(), buffer, own_port)) {
                Ok(Ok(true)) => return Poll::Ready(Some(Wake::Netlink)),
                Ok(Ok(false)) => {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the kernel's notifications ended");
                    return Poll::Ready(None);
                }
                Err(_would_block) => {}
            }
        }
    }
}

#[expect(unsafe_code, reason = "tokio cannot know that a descriptor stays the same")]
fn register(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: `Socket::as_raw_fd` gives the one descriptor that the socket owns from its creation to its drop.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}

/// Returns true if a datagram of notifications holds a change that the agent must look at.
#[must_use]
pub fn is_change(datagram: &[u8], own_port: u32) -> bool {
    messages(datagram).any(|message| matters(&message, own_port))
}

/// Returns true if a notification matters. Neighbours come and go all the time on a busy link, and only those somebody
/// set concern us; as do only routes of the main table and of those that are ours to use. Changes by our own requests
/// (which carry their port) are known already.
fn matters(message: &Message<'_>, own_port: u32) -> bool {
    if own_port != 0 && message.port == own_port {
        return false;
    }
    match message.kind {
        rtm::NEWNEIGH | rtm::DELNEIGH => parse::neighbour(message.payload)
            .is_some_and(|neighbour| neighbour.is_set() || neighbour.protocol == PROTOCOL),
        rtm::NEWROUTE | rtm::DELROUTE => {
            let is_ours = |table| table == RouteKey::MAIN || RouteKey::TABLES.contains(&table);
            parse::route(message.payload).is_some_and(|route| is_ours(route.table) && !route.cloned)
        }
        // Of all else that was asked for, every change matters. Forwarding is the only setting that is announced.
        kind => kind >= FIRST_TYPE,
    }
}
