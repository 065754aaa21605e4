//! Wakes when nf_tables reports a change.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use futures::Stream;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockFlag, recv};
use tokio::io::unix::AsyncFd;

use super::netfilter::open_socket;
use crate::Wake;

/// `NFNLGRP_NFTABLES` (7), as a bit mask.
const NFTABLES_GROUP: u32 = 1 << 6;
/// Datagrams that are read at once before the reader is woken, so that a busy ruleset cannot keep us from waking.
const COALESCED: usize = 4096;

struct Events {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

/// Opens the stream of wakes. This must be called within a tokio runtime, in the network namespace that is meant.
pub(super) fn events() -> io::Result<impl Stream<Item = Wake> + Send + Unpin + 'static> {
    let socket = register(open_socket(NFTABLES_GROUP, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?)?;
    // The contents are not read, so they need not fit.
    let events = Events { socket, buffer: vec![0; 64] };
    Ok(Box::pin(futures::stream::unfold(events, |mut events| async move {
        events.next().await.then_some((Wake::Firewall, events))
    })))
}

#[expect(unsafe_code, reason = "tokio cannot know that a descriptor stays the same")]
fn register(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one descriptor from its creation to its drop.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}

impl Events {
    /// Waits for a change; returns `false` if the socket broke.
    async fn next(&mut self) -> bool {
        let Ok(mut guard) = self.socket.readable().await else { return false };
        if let Some(usable) = drain(&self.socket, &mut self.buffer) {
            guard.clear_ready();
            if !usable {
                return false;
            }
        }
        true
    }
}

/// Discards what is queued; `None`: there may be more to read. An overflow means that something changed, no more than
/// any message does.
fn drain(socket: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> Option<bool> {
    for _ in 0..COALESCED {
        match recv(socket.as_raw_fd(), buffer, MsgFlags::empty()) {
            Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Some(true),
            Err(_) => return Some(false),
        }
    }
    None
}
