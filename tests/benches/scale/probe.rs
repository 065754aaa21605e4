//! A packet and its answer across the overlay: UDP to an echo on the other side, sent until one comes back.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flatnet_tests::netns::Namespace;
use flatnet_tests::wait::pause;

use crate::host::{netns, network};

/// The echo service's port, 7 (RFC 862).
const PORT: u16 = 7;
/// The pause between two packets: well under what is measured.
const GAP: Duration = Duration::from_micros(500);

/// Answers every datagram in one namespace.
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Starts the echo.
    pub fn start(host: &Namespace) -> Self {
        let socket = netns(host).run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !stopping.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    // The way back may not be there yet; the next packet tries it again.
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A socket in one namespace from which others are tried.
pub struct Prober(UdpSocket);

impl Prober {
    /// Opens the socket.
    pub fn new(from: &Namespace) -> Self {
        let socket = netns(from).run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        Self(socket)
    }

    /// Tries `target` until it answers; returns when the answer came.
    pub fn until_answered(&self, target: Ipv4Addr, deadline: Duration) -> Instant {
        let began = Instant::now();
        // A host answers with whichever of its addresses in that subnet its way back begins with.
        let wanted = network(target);
        let target = SocketAddr::from((target, PORT));
        let answered = AtomicBool::new(false);
        let at = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !answered.load(Ordering::Relaxed) && began.elapsed() < deadline {
                    // No route yet is what is being waited out.
                    let _ = self.0.send_to(b"flatnet", target);
                    pause(GAP);
                }
            });
            let mut buffer = [0; 64];
            while began.elapsed() < deadline {
                // Somebody else's late answer, or an ICMP error, is not it.
                if let Ok((_, SocketAddr::V4(from))) = self.0.recv_from(&mut buffer)
                    && network(*from.ip()) == wanted
                {
                    answered.store(true, Ordering::Relaxed);
                    return Some(Instant::now());
                }
            }
            None
        });
        at.unwrap_or_else(|| panic!("{target} does not answer"))
    }
}
