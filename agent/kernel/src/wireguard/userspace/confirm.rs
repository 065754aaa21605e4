//! Packets held until the other end has confirmed a session. The end that answers a handshake must not send under its
//! keys before the other end has (WireGuard §5.1): until that one has processed the answer, it drops packets that come
//! right behind it. The library sends packets that waited for the handshake at once, so they are held here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::line::{DATA, RESPONSE, Received, index_at};
use gotatun::udp::UdpSend;
use gotatun::udp::socket::UdpSocket;

/// The longest time for which packets are held. The other end sends its first one as soon as it has the answer, which
/// takes a round trip. If that one is lost, it must not silence a pair.
const HELD_TIMEOUT: Duration = Duration::from_millis(100);
/// Packets held for one session: as many as the library itself lets wait for a socket. Any more are sent at once.
const HELD: usize = 4000;

/// The sessions that the other end has not used yet.
#[derive(Default)]
pub(super) struct Unconfirmed {
    /// The number of sessions, so that packets of other sessions cost only a look at it.
    count: AtomicUsize,
    /// The sessions, by the index under which the other end sends.
    sessions: Mutex<HashMap<u32, Session>>,
}

struct Session {
    /// The index under which this end sends.
    theirs: u32,
    packets: Vec<Received>,
}

impl Unconfirmed {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Takes note of an answer to a handshake that is about to be sent, and returns the index of its session.
    fn answered(&self, packet: &[u8]) -> Option<u32> {
        let (Some(&RESPONSE), Some(own), Some(theirs)) = (packet.first(), index_at(packet, 4), index_at(packet, 8))
        else {
            return None;
        };
        let mut sessions = self.lock();
        sessions.insert(own, Session { theirs, packets: Vec::new() });
        self.count.store(sessions.len(), Ordering::Relaxed);
        Some(own)
    }

    /// Holds a packet of such a session. Returns the packet if it belongs to none.
    pub(super) fn hold(&self, packet: Received) -> Option<Received> {
        if self.is_empty() || packet.0.first() != Some(&DATA) {
            return Some(packet);
        }
        let (theirs, counter) = (index_at(&packet.0, 4), counter(&packet.0));
        let mut sessions = self.lock();
        // A new session's packets are numbered from 0 up. The index alone is the other end's choice: it could be that
        // of somebody else's session, whose packets would then be held.
        let is_next = |session: &&mut Session| {
            Some(session.theirs) == theirs && usize::try_from(counter) == Ok(session.packets.len())
        };
        match sessions.values_mut().find(is_next).filter(|session| session.packets.len() < HELD) {
            Some(session) => {
                session.packets.push(packet);
                None
            }
            None => Some(packet),
        }
    }

    /// Takes the packets held for a session whose other end has used it, or did not in time.
    fn take(&self, own: u32) -> Vec<Received> {
        let mut sessions = self.lock();
        let taken = sessions.remove(&own);
        self.count.store(sessions.len(), Ordering::Relaxed);
        taken.map(|session| session.packets).unwrap_or_default()
    }

    /// Returns the packets that may be sent now that `packet` has come.
    pub(super) fn received(&self, packet: &[u8]) -> Vec<Received> {
        if self.is_empty() {
            return Vec::new();
        }
        match (packet.first(), index_at(packet, 4)) {
            (Some(&DATA), Some(own)) => self.take(own),
            _ => Vec::new(),
        }
    }
}

/// Returns the number of a packet in its session (WireGuard §5.4.6).
fn counter(packet: &[u8]) -> u64 {
    packet.get(8..16).and_then(|bytes| bytes.try_into().ok()).map_or(u64::MAX, u64::from_le_bytes)
}

/// Takes note that `packet` is about to be sent by `socket`. Packets that are held because of it are sent in the end in
/// any case.
pub(super) fn sending(unconfirmed: &Arc<Unconfirmed>, socket: &UdpSocket, packet: &[u8]) {
    let Some(own) = unconfirmed.answered(packet) else { return };
    let (unconfirmed, socket) = (Arc::clone(unconfirmed), socket.clone());
    tokio::spawn(async move {
        tokio::time::sleep(HELD_TIMEOUT).await;
        send(&socket, unconfirmed.take(own)).await;
    });
}

/// Sends packets that were held.
pub(super) async fn send(socket: &UdpSocket, packets: Vec<Received>) {
    for (packet, destination) in packets {
        // A packet lost on this host is, to its sender, no different from one lost after it.
        let _ = socket.send_to(packet, destination).await;
    }
}
