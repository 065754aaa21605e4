//! Watching a host's routes from outside. The kernel's own notifications are read as they come, so that looking costs
//! next to nothing whatever their number.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flatnet_tests::netns::Namespace;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::host::netns;

/// `RTMGRP_IPV4_ROUTE` (linux/rtnetlink.h).
const IPV4_ROUTES: u32 = 0x40;
/// `RTM_NEWROUTE`, `RTM_DELROUTE` (linux/rtnetlink.h).
const NEW: u16 = 24;
const DEL: u16 = 25;
/// The number that marks the agent's routes.
const PROTOCOL: u8 = 91;
/// The receive buffer, in bytes: 8,000 notifications, were they to come before the thread gets a processor.
const BUFFER: usize = 32 << 20;

#[derive(Debug, Default)]
struct Seen {
    present: i64,
    changed: Option<Instant>,
    lost: bool,
}

/// Counts the agent's /24 routes in one namespace.
pub struct Routes {
    seen: Arc<(Mutex<Seen>, Condvar)>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Routes {
    /// Starts to count in a namespace that has none yet.
    pub fn watch(host: &Namespace) -> Self {
        let seen: Arc<(Mutex<Seen>, Condvar)> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let socket = netns(host).run(open).unwrap();
        let (counted, stopping) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || count(&socket, &counted, &stopping));
        Self { seen, stop, thread: Some(thread) }
    }

    /// Waits until there are `wanted`; returns when the last of them came.
    pub fn wait(&self, wanted: u32, deadline: Duration) -> Instant {
        let (seen, changed) = &*self.seen;
        let wanted = i64::from(wanted);
        let guard = seen.lock().unwrap();
        let there = |seen: &mut Seen| seen.present != wanted && !seen.lost;
        let (seen, timeout) = changed.wait_timeout_while(guard, deadline, there).unwrap();
        assert!(!seen.lost, "notifications of routes were lost: this needs root, or a larger net.core.rmem_max");
        assert!(!timeout.timed_out(), "{} routes where {wanted} were awaited", seen.present);
        seen.changed.unwrap_or_else(Instant::now)
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn open() -> OwnedFd {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute).unwrap();
    // Without root only as far as net.core.rmem_max; a loss is noticed.
    let _ = setsockopt(&fd, sockopt::RcvBufForce, &BUFFER).or_else(|_| setsockopt(&fd, sockopt::RcvBuf, &BUFFER));
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000)).unwrap();
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, IPV4_ROUTES)).unwrap();
    fd
}

fn count(socket: &OwnedFd, counted: &(Mutex<Seen>, Condvar), stop: &AtomicBool) {
    let mut buffer = vec![0; 64 << 10];
    while !stop.load(Ordering::Relaxed) {
        let change = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => difference(&buffer[..length]),
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(_) => {
                counted.0.lock().unwrap().lost = true;
                counted.1.notify_all();
                return;
            }
        };
        if change != 0 {
            let mut seen = counted.0.lock().unwrap();
            seen.present += change;
            seen.changed = Some(Instant::now());
            drop(seen);
            counted.1.notify_all();
        }
    }
}

/// Routes that came less those that went, in one datagram of `struct nlmsghdr` (16 bytes) and `struct rtmsg`.
fn difference(mut datagram: &[u8]) -> i64 {
    let mut change = 0;
    while datagram.len() >= 28 {
        let length = u32::from_ne_bytes(datagram[0..4].try_into().unwrap());
        let length = usize::try_from(length).unwrap().clamp(28, datagram.len());
        let kind = u16::from_ne_bytes(datagram[4..6].try_into().unwrap());
        let (prefix, protocol) = (datagram[17], datagram[21]);
        if prefix == 24 && protocol == PROTOCOL {
            change += match kind {
                NEW => 1,
                DEL => -1,
                _ => 0,
            };
        }
        datagram = &datagram[length.next_multiple_of(4).min(datagram.len())..];
    }
    change
}
