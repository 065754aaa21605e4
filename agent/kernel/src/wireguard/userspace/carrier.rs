//! The task that carries one device's packets, and the requests to it meanwhile.

use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flatnet_model::WireguardKey;
use futures::future::join_all;
use gotatun::device::uapi::{UapiClient, UapiServer};
use gotatun::device::{Device, DeviceBuilder, Peer};
use gotatun::noise::TimerParams;
use gotatun::noise::index_table::IndexTable;
use gotatun::tun::tun_async_device::TunDevice;
use gotatun::x25519::{PublicKey, StaticSecret};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::line::{Line, Tap};
use super::port::Port;

/// The time that sending the first messages of handshakes may take. It waits for no answer, only for the device's lock.
const HANDSHAKE_SEND_TIMEOUT: Duration = Duration::from_millis(50);
/// The pause between two tries of a handshake with a peer that has another key than before, instead of the protocol's 5
/// s. A first message that is lost, or that crosses the peer's own change, must not silence the pair for so long. It is
/// random within these bounds, so that thousands of peers of one host do not speak at once.
const EAGER_RETRY_AFTER: RangeInclusive<Duration> = Duration::from_millis(200)..=Duration::from_millis(600);
/// The time for which a peer is tried that often: as long as the protocol lets one try wait.
const SETTLE_AFTER: Duration = Duration::from_secs(5);
/// The wait after a connection to the device could not be accepted.
const ACCEPT_RETRY_AFTER: Duration = Duration::from_millis(100);
/// The time after a change of key for which packets of earlier sessions are accepted. Peers read the new key from the
/// store well within a second, and whoever publishes it gives up after ten. A peer that is cut off from the store
/// cannot be answered anyway.
pub(super) const EARLIER_SESSIONS_LIFETIME: Duration = Duration::from_secs(30);

pub(super) enum Ask {
    Handshake(Vec<WireguardKey>, Pace),
    /// Try these peers at the protocol's pace again.
    Settle(Vec<WireguardKey>),
    /// Change the key. The answer says whether the device has it.
    ChangeKey(StaticSecret, oneshot::Sender<bool>),
    /// Accept no more packets from these peers by sessions from before the last change of key.
    Forget(Vec<WireguardKey>),
    /// Accept no such packets from anybody, because the port is about to change.
    ForgetAll,
    Stop,
}

/// The pace at which a handshake that is not answered is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// The protocol's pace.
    Usual,
    /// Several times a second at first, because the peer was there under another key until now.
    Eager,
}

/// The library's device.
type Carrier = Device<(Port, Tap, Tap)>;

/// A device that is carried.
pub(super) struct Carried {
    device: Carrier,
    client: UapiClient,
    tun: TunDevice,
    line: Arc<Line>,
    port: Port,
    indices: IndexTable,
    /// The device with the key before, and the time until which it is kept.
    earlier: Option<(Carrier, Instant)>,
}

impl Carried {
    /// Makes a device without key, port and peers.
    pub(super) async fn first(tun: TunDevice) -> io::Result<Self> {
        let line = Line::first();
        let port = Port::new(Arc::clone(&line));
        let indices = IndexTable::from_os_rng();
        let (client, server) = UapiServer::new();
        let taps = [&line, &line].map(|line| Tap::new(tun.clone(), Arc::clone(line)));
        let [send, receive] = taps;
        let built = DeviceBuilder::new()
            .with_udp(port.taken_over(Arc::clone(&line)))
            .with_ip_pair(send, receive)
            .with_index_table(indices.clone())
            .with_uapi(server);
        let device = built.build().await.map_err(io::Error::other)?;
        Ok(Self { device, client, tun, line, port, indices, earlier: None })
    }

    /// Lets a device with another key take over, and keeps the earlier one to receive. Its peers, which are returned,
    /// are tried several times a second: agents begin the handshake when they read the new key, flannel only once it
    /// has something to send.
    async fn change_key(&mut self, key: StaticSecret) -> io::Result<Vec<WireguardKey>> {
        let (number, peers) = self.device.read(async |device| (device.listen_port(), device.peers().await)).await;
        let peers = peers.into_iter().map(|found| {
            let mut peer = found.peer;
            peer.danger_timer_params = Some(eager());
            peer
        });
        let peers: Vec<Peer> = peers.collect();
        let keys = peers.iter().filter_map(|peer| WireguardKey::new(peer.public_key.to_bytes()).ok()).collect();
        let line = Line::after(&self.line);
        let (client, server) = UapiServer::new();
        let built = DeviceBuilder::new()
            .with_udp(self.port.taken_over(Arc::clone(&line)))
            .with_ip_pair(Tap::new(self.tun.clone(), Arc::clone(&line)), Tap::new(self.tun.clone(), Arc::clone(&line)))
            // One table, so that no two sessions have one index.
            .with_index_table(self.indices.clone())
            .with_uapi(server);
        let device = built.build().await.map_err(io::Error::other)?;
        // Setting another key makes the device take the port, also while there are no peers. A builder's key would
        // leave it without.
        let set_up = device.write(async |device| {
            device.set_private_key(key).await;
            device.set_listen_port(number);
            device.add_peers(peers)
        });
        set_up.await.map_err(io::Error::other)?;
        let before = std::mem::replace(&mut self.device, device);
        (self.client, self.line) = (client, line);
        if let Some((oldest, _)) = self.earlier.replace((before, Instant::now() + EARLIER_SESSIONS_LIFETIME)) {
            oldest.stop().await;
        }
        Ok(keys)
    }

    /// Stops receiving by the earlier key.
    async fn drop_earlier(&mut self) {
        self.line.drop_earlier();
        if let Some((earlier, _)) = self.earlier.take() {
            earlier.stop().await;
        }
    }

    async fn forget(&self, peers: &[WireguardKey]) {
        let Some((earlier, _)) = &self.earlier else { return };
        for peer in peers {
            if let Err(error) = earlier.remove_peer(&PublicKey::from(peer.bytes())).await {
                tracing::debug!(%error, "a peer of the key of before was not removed");
            }
        }
    }
}

/// Carries one device until it is stopped or broken.
pub(super) async fn carry(
    mut carried: Carried,
    mut asks: mpsc::Receiver<Ask>,
    own_asks: mpsc::WeakSender<Ask>,
    listener: UnixListener,
    ended: Arc<AtomicBool>,
) {
    loop {
        tokio::select! {
            ask = asks.recv() => match ask {
                Some(Ask::Handshake(peers, pace)) => {
                    if pace == Pace::Eager {
                        set_pace(&carried.device, &peers, Some(eager())).await;
                    }
                    start_handshakes(&carried.device, &peers).await;
                    if pace == Pace::Eager {
                        tokio::spawn(settle_later(own_asks.clone(), peers));
                    }
                }
                Some(Ask::Settle(peers)) => set_pace(&carried.device, &peers, None).await,
                Some(Ask::Forget(peers)) => carried.forget(&peers).await,
                Some(Ask::ForgetAll) => carried.drop_earlier().await,
                Some(Ask::ChangeKey(key, done)) => {
                    let changed = carried.change_key(key).await;
                    if let Err(error) = &changed {
                        tracing::warn!(%error, "the WireGuard device did not get its new key; it is set up again");
                    }
                    // Whoever asked may have stopped waiting.
                    let _ = done.send(changed.is_ok());
                    match changed {
                        Ok(peers) => drop(tokio::spawn(settle_later(own_asks.clone(), peers))),
                        Err(_) => break,
                    }
                }
                Some(Ask::Stop) | None => break,
            },
            accepted = listener.accept() => match accepted.and_then(|(stream, _)| stream.into_std()) {
                // The conversation gets a thread for as long as it takes.
                Ok(stream) if stream.set_nonblocking(false).is_ok() => carried.client.clone().wrap_read_write(stream),
                Ok(_) => {}
                // The process is out of descriptors. The client is waiting, so this is tried again, but not all the
                // time.
                Err(error) => {
                    tracing::debug!(%error, "cannot take a connection to the WireGuard device");
                    tokio::time::sleep(ACCEPT_RETRY_AFTER).await;
                }
            },
            () = until(carried.earlier.as_ref().map(|(_, until)| *until)) => carried.drop_earlier().await,
            () = carried.device.wait() => {
                tracing::warn!("the WireGuard device broke; it is set up again");
                break;
            }
        }
    }
    ended.store(true, Ordering::Relaxed);
    carried.drop_earlier().await;
    carried.device.stop().await;
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Sends the first messages. Each goes on to wait for its handshake's end, which does not concern us.
async fn start_handshakes(device: &Carrier, peers: &[WireguardKey]) {
    let peers: Vec<PublicKey> = peers.iter().map(|peer| PublicKey::from(peer.bytes())).collect();
    let _ =
        tokio::time::timeout(HANDSHAKE_SEND_TIMEOUT, join_all(peers.iter().map(|peer| device.force_handshake(peer))))
            .await;
}

fn eager() -> TimerParams {
    TimerParams { rekey_timeout: EAGER_RETRY_AFTER, ..TimerParams::default() }
}

/// Sets how often a handshake with `peers` that is not answered is tried; `None`: as the protocol says.
async fn set_pace(device: &Carrier, peers: &[WireguardKey], pace: Option<TimerParams>) {
    let set = device.write(async |device| {
        for peer in peers {
            let pace = pace.clone();
            // A peer that is gone meanwhile needs no pace.
            device.modify_peer(&PublicKey::from(peer.bytes()), |peer| peer.dangerously_set_timer_params(pace)).await;
        }
    });
    if let Err(error) = set.await {
        tracing::debug!(%error, "the pace of handshakes was not set");
    }
}

/// Asks for the usual pace later. This ends with the device, since it does not keep its queue open.
async fn settle_later(asks: mpsc::WeakSender<Ask>, peers: Vec<WireguardKey>) {
    tokio::time::sleep(SETTLE_AFTER).await;
    if let Some(asks) = asks.upgrade() {
        let _ = asks.send(Ask::Settle(peers)).await;
    }
}
