//! What a device in this process hands to its successor: the library forgets every session with a device's key, so a device
//! that gets another key is a second one beside the first, on the same port and TUN device.
//!
//! From then on the second one sends and answers handshakes. The first one only receives what peers still send under the
//! sessions it has, until they know the new key. Whose a packet is shows in its receiver index (WireGuard §5.4.6): the second
//! device notes those it gave out, and whatever else comes is the first one's.

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

/// After which waits the first message of a handshake under a new key is sent again: the peer's way to the key is the store's
/// watch, some milliseconds, on a busy host tens. The library tries again by its own clock, a quarter of a second at best.
const REPEATS: [Duration; 4] =
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
    /// Whether another device has taken over.
    handed_over: watch::Sender<bool>,
    /// Where the device that has passes on what is still this one's.
    inbox: Inbox,
    earlier: Option<Earlier>,
}

type Inbox = Arc<Mutex<Option<mpsc::Sender<Received>>>>;

/// The device before this one, while it is served.
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
    /// Those of handshakes that are not answered yet.
    waiting: HashSet<u32>,
}

impl Line {
    /// A device's that is the first.
    pub(super) fn first() -> Arc<Self> {
        Arc::new(Self {
            unconfirmed: Arc::default(),
            handed_over: watch::Sender::new(false),
            inbox: Inbox::default(),
            earlier: None,
        })
    }

    /// Takes over from the device of `line` as soon as this one has the port: then that one reads neither port nor TUN device any
    /// more, begins no handshake, and gets only what is still its own.
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

    /// The earlier device gets no more packets.
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

    /// Whether this device is not to send `packet`: one that has been taken over from begins no handshake under its old key.
    fn is_silenced(&self, packet: &[u8]) -> bool {
        packet.first() == Some(&INITIATION) && *self.handed_over.borrow()
    }

    /// Takes note of what a handshake's message that is about to be sent gives out.
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

    /// Sends the first message of a handshake again, just as it was, until it is answered: the other end may learn the key a
    /// moment later. One that knew it already takes the second for a replay.
    async fn repeat(self: Arc<Self>, socket: UdpSocket, message: Vec<u8>, index: u32, destination: SocketAddr) {
        for wait in REPEATS {
            tokio::time::sleep(wait).await;
            if !self.earlier().is_some_and(|earlier| lock(&earlier.own).waiting.contains(&index)) {
                return;
            }
            // Lost on this host or after it: that is no difference.
            let _ = socket.socket().send_to(&message, destination).await;
        }
    }

    /// Passes on what is the earlier device's; gives back what is this one's.
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
                    // One that is full loses packets, as a socket's buffer does.
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

/// To which session or handshake of the receiver a message belongs; the first of a handshake belongs to none.
fn receiver(packet: &[u8]) -> Option<u32> {
    match *packet.first()? {
        RESPONSE => index_at(packet, 8),
        COOKIE | DATA => index_at(packet, 4),
        _ => None,
    }
}

/// The port as one device sends by it.
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

/// The port as one device receives by it.
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

    /// What is left for this device once another one reads the port.
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

/// The TUN device as one device has it.
pub(super) struct Tap {
    tun: TunDevice,
    handed_over: watch::Receiver<bool>,
    /// Holds the other end of `handed_over`.
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
mod tests {
    use gotatun::udp::UdpTransportFactoryParams;
    use gotatun::udp::socket::UdpSocketFactory;
    use tokio::net::UdpSocket as Plain;

    use super::*;

    /// A message of a type with indices at 4 and 8.
    fn message(kind: u8, first: u32, second: u32) -> Vec<u8> {
        [&[kind, 0, 0, 0][..], &first.to_le_bytes(), &second.to_le_bytes()].concat()
    }

    async fn read(receiver: &mut Receiver, pool: &mut PacketBufPool) -> Vec<u8> {
        let mut packets = Vec::new();
        receiver.recv_many_from(&mut Default::default(), pool, &mut packets).await.unwrap();
        assert_eq!(packets.len(), 1);
        packets[0].0.to_vec()
    }

    #[tokio::test]
    async fn what_belongs_to_the_earlier_devices_sessions_goes_there_and_all_else_to_the_new_one() {
        use gotatun::udp::UdpTransportFactory;
        let params = UdpTransportFactoryParams { addr: None, port: 0, fwmark: None };
        let (socket, _) = UdpSocketFactory::default().bind(&params).await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let outside = Plain::bind("127.0.0.1:0").await.unwrap();
        let there: SocketAddr = ([127, 0, 0, 1], port).into();
        let mut pool = PacketBufPool::new(16);
        let one = Line::first();
        let mut first = Receiver::new(socket.clone(), Arc::clone(&one));
        outside.send_to(&message(DATA, 11, 0), there).await.unwrap();
        assert_eq!(read(&mut first, &mut pool).await, message(DATA, 11, 0));

        let two = Line::after(&one);
        let mut second = Receiver::new(socket.clone(), Arc::clone(&two));
        let sender = Sender::new(socket, Arc::clone(&two));
        let mut packet = pool.get();
        packet.truncate(0);
        packet.buf_mut().extend_from_slice(&message(INITIATION, 22, 0));
        sender.send_to(packet, outside.local_addr().unwrap()).await.unwrap();
        for sent in [
            message(DATA, 11, 1),
            message(DATA, 22, 2),
            message(INITIATION, 7, 0),
            message(RESPONSE, 7, 22),
            message(RESPONSE, 7, 33),
        ] {
            outside.send_to(&sent, there).await.unwrap();
        }
        for own in [message(DATA, 22, 2), message(INITIATION, 7, 0), message(RESPONSE, 7, 22)] {
            assert_eq!(second.recv_from(&mut pool).await.unwrap().0.to_vec(), own);
        }
        // What the new one met on its way.
        outside.send_to(&message(DATA, 22, 9), there).await.unwrap();
        assert_eq!(read(&mut second, &mut pool).await, message(DATA, 22, 9));
        assert_eq!(read(&mut first, &mut pool).await, message(DATA, 11, 1));
        assert_eq!(first.recv_from(&mut pool).await.unwrap().0.to_vec(), message(RESPONSE, 7, 33));

        // Its own first message goes out again until it is answered.
        let sent = async || {
            let (mut all, mut buffer) = (Vec::new(), [0; 64]);
            while let Ok(received) = tokio::time::timeout(3 * REPEATS[3], outside.recv_from(&mut buffer)).await {
                all.push(buffer[..received.unwrap().0].to_vec());
            }
            all
        };
        let answered_soon = sent().await;
        assert!((1..REPEATS.len()).contains(&answered_soon.len()), "{answered_soon:?}");
        let mut packet = pool.get();
        packet.truncate(0);
        packet.buf_mut().extend_from_slice(&message(INITIATION, 23, 0));
        sender.send_to(packet, outside.local_addr().unwrap()).await.unwrap();
        assert_eq!(sent().await, vec![message(INITIATION, 23, 0); 1 + REPEATS.len()]);

        two.drop_earlier();
        outside.send_to(&message(DATA, 11, 3), there).await.unwrap();
        assert_eq!(read(&mut second, &mut pool).await, message(DATA, 11, 3));
    }

    #[tokio::test]
    async fn what_follows_an_answer_waits_until_the_other_end_has_sent_or_for_a_while() {
        use gotatun::udp::UdpTransportFactory;
        let params = UdpTransportFactoryParams { addr: None, port: 0, fwmark: None };
        let (socket, _) = UdpSocketFactory::default().bind(&params).await.unwrap();
        let there: SocketAddr = ([127, 0, 0, 1], socket.local_addr().unwrap().port()).into();
        let outside = Plain::bind("127.0.0.1:0").await.unwrap();
        let here = outside.local_addr().unwrap();
        let mut pool = PacketBufPool::new(16);
        let line = Line::first();
        let (sender, mut receiver) = (Sender::new(socket.clone(), Arc::clone(&line)), Receiver::new(socket, line));
        let packet = |bytes: &[u8]| {
            let mut packet = PacketBufPool::<4096>::new(1).get();
            packet.truncate(0);
            packet.buf_mut().extend_from_slice(bytes);
            packet
        };
        let next = async || {
            let mut buffer = [0; 64];
            let waited = tokio::time::timeout(Duration::from_millis(50), outside.recv_from(&mut buffer)).await;
            waited.ok().map(|received| buffer[..received.unwrap().0].to_vec())
        };
        let data = |index, number| [message(DATA, index, number), vec![0; 4]].concat();
        // The other end's session is 5, ours 6. Another host's session may have that index as well.
        sender.send_to(packet(&message(RESPONSE, 6, 5)), here).await.unwrap();
        sender.send_to(packet(&data(5, 0)), here).await.unwrap();
        let mut many = vec![(packet(&data(5, 1)), here), (packet(&data(5, 700)), here)];
        sender.send_many_to(&mut Default::default(), &mut many).await.unwrap();
        assert_eq!(
            [next().await, next().await, next().await],
            [Some(message(RESPONSE, 6, 5)), Some(data(5, 700)), None]
        );
        outside.send_to(&message(DATA, 6, 0), there).await.unwrap();
        assert_eq!(read(&mut receiver, &mut pool).await, message(DATA, 6, 0));
        assert_eq!([next().await, next().await], [Some(data(5, 0)), Some(data(5, 1))]);
        sender.send_to(packet(&data(5, 2)), here).await.unwrap();
        assert_eq!(next().await, Some(data(5, 2)));
        // One that says nothing, as its first packet was lost.
        sender.send_to(packet(&message(RESPONSE, 8, 7)), here).await.unwrap();
        sender.send_to(packet(&data(7, 0)), here).await.unwrap();
        assert_eq!([next().await, next().await], [Some(message(RESPONSE, 8, 7)), None]);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(next().await, Some(data(7, 0)));
    }

    #[test]
    fn a_message_that_is_too_short_is_nobodys_session() {
        assert_eq!(receiver(&[]), None);
        assert_eq!(receiver(&[DATA, 0, 0, 0, 1, 2]), None);
        assert_eq!(receiver(&message(RESPONSE, 1, 2)), Some(2));
        assert_eq!(receiver(&message(COOKIE, 1, 2)), Some(1));
        assert_eq!(receiver(&message(INITIATION, 1, 2)), None);
    }
}
