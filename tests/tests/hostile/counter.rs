//! A counter of the frames that arrive, as packet sockets see them: on every device of a namespace, before any
//! firewall.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flatnet_tests::netns::Namespace;
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::packet::{MAGIC, MARK};
use crate::sender::inside;

/// `PACKET_OUTGOING` (linux/if_packet.h): seen on its way out.
const OUTGOING: u8 = 4;

/// One arrival of something that should not have.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub at: Instant,
    pub device: String,
    /// Its first bytes.
    pub frame: Vec<u8>,
}

/// Counts frames that carry our mark on all devices of a namespace but those of the underlay, where they may be.
pub struct Counter {
    namespace: String,
    arrivals: Arc<Mutex<Vec<Arrival>>>,
    seen: Arc<Mutex<BTreeMap<String, u64>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Counter {
    /// Begins to count. `underlay`: names of devices to be passed over.
    pub fn start(namespace: &Namespace, underlay: &[&str]) -> Self {
        let opened = inside(namespace, || {
            let socket =
                socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll).unwrap();
            setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(20)).unwrap();
            // Not permitted without root, and then the default has to do.
            let _ = setsockopt(&socket, RcvBufForce, &(16 << 20));
            socket
        });
        let devices = devices(namespace);
        let underlay: BTreeSet<String> = underlay.iter().map(|name| (*name).to_owned()).collect();
        let mut counter = Self {
            namespace: namespace.0.clone(),
            arrivals: Arc::default(),
            seen: Arc::default(),
            stop: Arc::default(),
            thread: None,
        };
        let (arrivals, seen, stop) =
            (Arc::clone(&counter.arrivals), Arc::clone(&counter.seen), Arc::clone(&counter.stop));
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while !stop.load(Ordering::Relaxed) {
                let (length, from) = match recvfrom::<LinkAddr>(opened.as_raw_fd(), &mut buffer) {
                    Ok((length, Some(from))) => (length, from),
                    Ok((_, None)) | Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => continue,
                    Err(errno) => panic!("{errno}"),
                };
                let device = devices.get(&from.ifindex()).cloned().unwrap_or_else(|| format!("#{}", from.ifindex()));
                if from.pkttype() == OUTGOING || underlay.contains(&device) {
                    continue;
                }
                *seen.lock().unwrap().entry(device.clone()).or_default() += 1;
                let frame = &buffer[..length];
                if contains(frame, MAGIC) || contains(frame, &MARK) {
                    let frame = frame[..length.min(96)].to_vec();
                    arrivals.lock().unwrap().push(Arrival { at: Instant::now(), device, frame });
                }
            }
        });
        counter.thread = Some(thread);
        counter
    }

    /// Returns what arrived until now, and what is still under way.
    pub fn arrivals(&self) -> Vec<Arrival> {
        flatnet_tests::wait::pause(Duration::from_millis(200));
        self.arrivals.lock().unwrap().clone()
    }

    /// Returns the number of all frames counted on a device, ours or not: it shows that the device was looked at.
    pub fn seen(&self, device: &str) -> u64 {
        self.seen.lock().unwrap().get(device).copied().unwrap_or_default()
    }

    /// Fails if anything arrived.
    pub fn assert_none(&self, what: &str) {
        let arrivals = self.arrivals();
        let first = arrivals.first().map(|arrival| format!("{}: {:02x?}", arrival.device, arrival.frame));
        assert!(
            arrivals.is_empty(),
            "{what}: {} frames got into {}, the first on {}",
            arrivals.len(),
            self.namespace,
            first.unwrap_or_default()
        );
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It ends within its receive timeout; if it panicked, that was shown.
            let _ = thread.join();
        }
    }
}

fn contains(frame: &[u8], wanted: &[u8]) -> bool {
    frame.windows(wanted.len()).any(|window| window == wanted)
}

fn devices(namespace: &Namespace) -> BTreeMap<usize, String> {
    let links = namespace.json("ip -j link show");
    let name = |link: &serde_json::Value| {
        let index = usize::try_from(link["ifindex"].as_u64().unwrap()).unwrap();
        (index, link["ifname"].as_str().unwrap().to_owned())
    };
    links.as_array().unwrap().iter().map(name).collect()
}
