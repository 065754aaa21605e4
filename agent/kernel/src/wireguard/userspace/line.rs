//! The handover from a device in this process to its successor. The library forgets every session with a device's key,
//! so a device that gets another key is a second one beside the first, on the same port and TUN device.
//!
//! From then on the second device sends and answers handshakes. The first one only receives packets that peers still
//! send under the sessions it has, until they know the new key. A packet's receiver index shows whose it is (WireGuard
//! §5.4.6): the second device notes the indices it gave out, and every other packet is the first one's.

use std::collections::HashSet;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::tun_async_device::TunDevice;
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use gotatun::udp::socket::UdpSocket;
use gotatun::udp::{UdpRecv, UdpSend};
use tokio::sync::{mpsc, watch};

use super::confirm::{self, Unconfirmed};

/// Packets that may wait for the earlier device: as many as the library itself lets wait for one that is slow.
const INBOX: usize = 4000;

/// The waits after which the first message of a handshake under a new key is sent again. The peer learns the key by the
/// store's watch, which takes some milliseconds, and on a busy host tens. The library tries again by its own clock,
/// after a quarter of a second at best.
const REPEAT_AFTER: [Duration; 4] =
    [Duration::from_millis(25), Duration::from_millis(50), Duration::from_millis(75), Duration::from_millis(100)];

/// Types of messages (WireGuard §5.4.2 to §5.4.7), little-endian in the first four bytes, of which three are zero.
const INITIATION: u8 = 1;
pub(super) const RESPONSE: u8 = 2;
const COOKIE: u8 = 3;
pub(super) const DATA: u8 = 4;

pub(super) type Received = (Packet, SocketAddr);

/// One device's end of the port and of the TUN device.
pub(super) struct Line {
    unconfirmed: Arc<Unconfirmed>,
    /// True once another device has taken over.
    handed_over: watch::Sender<bool>,
    /// The queue by which the device that has taken over passes on packets that are still this one's.
    inbox: Inbox,
    earlier: Option<Earlier>,
}

type Inbox = Arc<Mutex<Option<mpsc::Sender<Received>>>>;

/// The device before this one, while packets are passed on to it.
struct Earlier {
    handed_over: watch::Sender<bool>,
    inbox: Inbox,
    is_served: AtomicBool,
    own: Mutex<Own>,
}

/// The receiver indices that a device gave out.
#[derive(Default)]
struct Own {
    all: HashSet<u32>,
    /// The indices of handshakes that are not answered yet.
    waiting: HashSet<u32>,
}

impl Line {
    /// Makes the line of a device that is the first.
    pub(super) fn first() -> Arc<Self> {
        Arc::new(Self {
            unconfirmed: Arc::default(),
            handed_over: watch::Sender::new(false),
            inbox: Inbox::default(),
            earlier: None,
        })
    }

    /// Makes the line of a device that takes over from the device of `line` as soon as it has the port. Then the
    /// earlier device reads neither port nor TUN device any more, begins no handshake, and gets only packets that are
    /// still its own.
    pub(super) fn after(line: &Self) -> Arc<Self> {
        let earlier = Earlier {
            handed_over: line.handed_over.clone(),
            inbox: Arc::clone(&line.inbox),
            is_served: AtomicBool::new(true),
            own: Mutex::default(),
        };
        Arc::new(Self {
            unconfirmed: Arc::default(),
            handed_over: watch::Sender::new(false),
            inbox: Inbox::default(),
            earlier: Some(earlier),
        })
    }

    /// Gives the earlier device no more packets.
    pub(super) fn drop_earlier(&self) {
        if let Some(earlier) = &self.earlier {
            earlier.is_served.store(false, Ordering::Relaxed);
            *lock(&earlier.own) = Own::default();
            *lock(&earlier.inbox) = None;
        }
    }

    fn earlier(&self) -> Option<&Earlier> {
        self.earlier.as_ref().filter(|earlier| earlier.is_served.load(Ordering::Relaxed))
    }

    /// Returns true if this device is not to send `packet`: once another has taken over from it, it begins no handshake
    /// under its old key.
    fn is_silenced(&self, packet: &[u8]) -> bool {
        packet.first() == Some(&INITIATION) && *self.handed_over.borrow()
    }

    /// Takes note of the index that a handshake's message gives out, before it is sent.
    fn note(self: &Arc<Self>, socket: &UdpSocket, packet: &[u8], destination: SocketAddr) {
        confirm::sending(&self.unconfirmed, socket, packet);
        let (Some(earlier), Some(kind), Some(index)) = (self.earlier(), packet.first(), index_at(packet, 4)) else {
            return;
        };
        if *kind != INITIATION && *kind != RESPONSE {
            return;
        }
        let mut own = lock(&earlier.own);
        own.all.insert(index);
        if *kind == INITIATION {
            own.waiting.insert(index);
            tokio::spawn(Arc::clone(self).repeat(socket.clone(), packet.to_vec(), index, destination));
        }
    }

    /// Sends the first message of a handshake again, unchanged, until it is answered: the other end may learn the key a
    /// moment later. If it knew the key already, it takes the second message for a replay.
    async fn repeat(self: Arc<Self>, socket: UdpSocket, message: Vec<u8>, index: u32, destination: SocketAddr) {
        for wait in REPEAT_AFTER {
            tokio::time::sleep(wait).await;
            if !self.earlier().is_some_and(|earlier| lock(&earlier.own).waiting.contains(&index)) {
                return;
            }
            // A packet lost on this host is no different from one lost after it.
            let _ = socket.socket().send_to(&message, destination).await;
        }
    }

    /// Passes on a packet that is the earlier device's, and returns one that is this device's.
    fn sort(&self, received: Received) -> Option<Received> {
        let Some(earlier) = self.earlier() else { return Some(received) };
        let is_own = |index| {
            let mut own = lock(&earlier.own);
            own.waiting.remove(&index);
            own.all.contains(&index)
        };
        match receiver(&received.0) {
            Some(index) if !is_own(index) => {
                if let Some(inbox) = lock(&earlier.inbox).as_ref() {
                    // A full queue loses packets, as a socket's buffer does.
                    let _ = inbox.try_send(received);
                }
                None
            }
            _ => Some(received),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn index_at(packet: &[u8], at: usize) -> Option<u32> {
    packet.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

/// Returns the index of the receiver's session or handshake to which a message belongs. The first message of a
/// handshake belongs to none.
fn receiver(packet: &[u8]) -> Option<u32> {
    match *packet.first()? {
        RESPONSE => index_at(packet, 8),
        COOKIE | DATA => index_at(packet, 4),
        _ => None,
    }
}

/// The port, for one device to send by.
#[derive(Clone)]
pub(super) struct Sender {
    pub(super) socket: UdpSocket,
    line: Arc<Line>,
}

impl Sender {
    pub(super) fn new(socket: UdpSocket, line: Arc<Line>) -> Self {
        Self { socket, line }
    }
}

impl UdpSend for Sender {
    type SendManyBuf = <UdpSocket as UdpSend>::SendManyBuf;

    async fn send_to(&self, packet: Packet, destination: SocketAddr) -> io::Result<()> {
        if self.line.is_silenced(&packet) {
            return Ok(());
        }
        self.line.note(&self.socket, &packet, destination);
        match self.line.unconfirmed.hold((packet, destination)) {
            Some((packet, destination)) => self.socket.send_to(packet, destination).await,
            None => Ok(()),
        }
    }

    fn max_number_of_packets_to_send(&self) -> usize {
        self.socket.max_number_of_packets_to_send()
    }

    async fn send_many_to(
        &self,
        buffer: &mut Self::SendManyBuf,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        packets.retain(|(packet, _)| !self.line.is_silenced(packet));
        packets.iter().for_each(|(packet, to)| self.line.note(&self.socket, packet, *to));
        if !self.line.unconfirmed.is_empty() {
            *packets = packets.drain(..).filter_map(|packet| self.line.unconfirmed.hold(packet)).collect();
        }
        self.socket.send_many_to(buffer, packets).await
    }

    fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        UdpSend::local_addr(&self.socket)
    }

    fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        self.socket.set_fwmark(mark)
    }
}

/// The port, for one device to receive by.
pub(super) struct Receiver {
    pub(super) socket: UdpSocket,
    line: Arc<Line>,
    handed_over: watch::Receiver<bool>,
    inbox: mpsc::Receiver<Received>,
}

impl Receiver {
    pub(super) fn new(socket: UdpSocket, line: Arc<Line>) -> Self {
        let (sender, inbox) = mpsc::channel(INBOX);
        *lock(&line.inbox) = Some(sender);
        if let Some(earlier) = &line.earlier {
            earlier.handed_over.send_replace(true);
        }
        Self { socket, handed_over: line.handed_over.subscribe(), line, inbox }
    }

    /// Receives a packet that is left for this device once another one reads the port.
    async fn left(&mut self) -> Received {
        let Some(received) = self.inbox.recv().await else { return pending().await };
        confirm::send(&self.socket, self.line.unconfirmed.received(&received.0)).await;
        received
    }
}

impl UdpRecv for Receiver {
    type RecvManyBuf = <UdpSocket as UdpRecv>::RecvManyBuf;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        loop {
            let received = tokio::select! {
                biased;
                _ = self.handed_over.wait_for(|over| *over) => break,
                received = self.socket.recv_from(pool) => received?,
            };
            confirm::send(&self.socket, self.line.unconfirmed.received(&received.0)).await;
            if let Some(own) = self.line.sort(received) {
                return Ok(own);
            }
        }
        Ok(self.left().await)
    }

    async fn recv_many_from(
        &mut self,
        buffer: &mut Self::RecvManyBuf,
        pool: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        loop {
            tokio::select! {
                biased;
                _ = self.handed_over.wait_for(|over| *over) => break,
                received = self.socket.recv_many_from(buffer, pool, packets) => received?,
            }
            if !self.line.unconfirmed.is_empty() {
                let released = packets.iter().flat_map(|(packet, _)| self.line.unconfirmed.received(packet)).collect();
                confirm::send(&self.socket, released).await;
            }
            if self.line.earlier().is_some() {
                *packets = packets.drain(..).filter_map(|received| self.line.sort(received)).collect();
            }
            if !packets.is_empty() {
                return Ok(());
            }
        }
        packets.push(self.left().await);
        Ok(())
    }

    fn enable_udp_gro(&self) -> io::Result<()> {
        self.socket.enable_udp_gro()
    }
}

/// The TUN device, as one device has it.
pub(super) struct Tap {
    tun: TunDevice,
    handed_over: watch::Receiver<bool>,
    /// Keeps the other end of `handed_over`.
    _line: Arc<Line>,
}

impl Tap {
    pub(super) fn new(tun: TunDevice, line: Arc<Line>) -> Self {
        Self { tun, handed_over: line.handed_over.subscribe(), _line: line }
    }
}

impl IpSend for Tap {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        self.tun.send(packet).await
    }
}

impl IpRecv for Tap {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        tokio::select! {
            biased;
            _ = self.handed_over.wait_for(|over| *over) => {}
            packets = self.tun.recv(pool) => return packets,
        }
        pending().await
    }

    fn mtu(&self) -> MtuWatcher {
        self.tun.mtu()
    }
}

#[cfg(test)]
mod tests;
