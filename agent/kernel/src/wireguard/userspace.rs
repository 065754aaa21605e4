//! WireGuard in this process, for kernels without the module: a TUN device that carries plain packets between the kernel and
//! gotatun, and a socket at which `wg` and this program set it up.
//!
//! The TUN device is kept when the process ends, however it ends: its routes stay, and what is sent to it meanwhile is
//! dropped in the kernel, not sent in clear. The next process takes it over by name. Sessions are the process's: they end
//! with it, and the next one starts with a handshake.
//!
//! Threads of its own carry the packets, so that a long pass over thousands of peers does not hold them up. They are of the
//! network namespace of the thread that starts the first device.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flatnet_model::{IfName, WireguardKey};
use futures::future::join_all;
use gotatun::device::uapi::{UapiClient, UapiServer};
use gotatun::device::{Device, DeviceBuilder};
use gotatun::noise::TimerParams;
use gotatun::tun::tun;
use gotatun::tun::tun_async_device::TunDevice;
use gotatun::x25519::PublicKey;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use port::Port;
use socket::Socket;

mod port;
mod socket;

/// Threads that carry packets: one for what is sent and one for what is received is what a busy tunnel can use.
const THREADS: usize = 2;
/// How long a device that is taken over may still be held by the tasks of one that just ended.
const BUSY: Duration = Duration::from_millis(500);
/// Between two tries while it is.
const BUSY_TRY: Duration = Duration::from_millis(10);
/// How long the first messages of handshakes may take to be sent: that waits for no answer, only for the device's lock.
const HANDSHAKE: Duration = Duration::from_millis(50);
/// Between two tries of a handshake with a peer that has another key than before, instead of the protocol's 5 s: a first
/// message that is lost, or that crosses the peer's own change, must not silence the pair for so long. At random in here, so
/// that thousands of peers of one host do not speak at once.
const EAGER: RangeInclusive<Duration> = Duration::from_millis(200)..=Duration::from_millis(600);
/// How long a peer is tried that often: as long as the protocol lets one try wait.
const EAGER_FOR: Duration = Duration::from_secs(5);
/// Requests to one device that may wait.
const ASKS: usize = 64;
/// The wait after a connection to the device could not be taken.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The devices this process carries.
#[derive(Default)]
pub(crate) struct Userspace {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    runtime: Option<Runtime>,
    devices: BTreeMap<IfName, Running>,
}

/// A device that is carried.
struct Running {
    /// Interface index: a device deleted and made anew under its name is another one.
    index: u32,
    asks: mpsc::Sender<Ask>,
    ended: Arc<AtomicBool>,
    socket: Socket,
}

enum Ask {
    Handshake(Vec<WireguardKey>, Pace),
    /// These are tried at the protocol's pace again.
    Settle(Vec<WireguardKey>),
    Stop,
}

/// How often a handshake that is not answered is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As the protocol says.
    Usual,
    /// Several times a second at first: the peer was there under another key until now.
    Eager,
}

impl Userspace {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this kernel lets us.
    pub(crate) fn is_possible() -> bool {
        fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_ok()
    }

    /// Whether the device with interface index `index` is carried by this process, and its socket is still ours.
    pub(crate) fn is_running(&self, name: IfName, index: u32) -> bool {
        let inner = self.lock();
        let running = inner.devices.get(&name);
        running.is_some_and(|running| {
            running.index == index && !running.ended.load(Ordering::Relaxed) && running.socket.is_ours()
        })
    }

    /// Whether this process carries a device of that name.
    pub(crate) fn is_carried(&self, name: IfName) -> bool {
        self.lock().devices.get(&name).is_some_and(|running| !running.ended.load(Ordering::Relaxed))
    }

    /// Opens the TUN device `name`, or takes over the one that an ended process left, and carries its packets; its key and
    /// peers are still to be set. `mark` is called with the device there but not yet kept beyond this process: it finds
    /// the interface index and puts our mark on it.
    pub(crate) fn start(&self, name: IfName, mark: impl FnOnce() -> io::Result<u32>) -> io::Result<u32> {
        let mut inner = self.lock();
        inner.stop(name);
        let socket = Socket::claim(name)?;
        let runtime = inner.runtime()?;
        let (index, running) = runtime.block_on(async {
            let mut tun = open(name).await?;
            let index = mark()?;
            tun.persist().map_err(io::Error::other)?;
            let tun = TunDevice::from_tun_device(tun::AsyncDevice::new(tun)?).map_err(io::Error::other)?;
            let (client, server) = UapiServer::new();
            let built = DeviceBuilder::new().with_udp(Port::default()).with_ip(tun).with_uapi(server).build().await;
            let device = built.map_err(io::Error::other)?;
            let listener = socket.listen()?;
            let (asks, receiver) = mpsc::channel(ASKS);
            let ended = Arc::new(AtomicBool::new(false));
            let settle = asks.downgrade();
            tokio::spawn(carry(device, receiver, settle, listener, client, Arc::clone(&ended)));
            Ok::<_, io::Error>((index, Running { index, asks, ended, socket }))
        })?;
        inner.devices.insert(name, running);
        tracing::info!(device = %name, "this process carries WireGuard: the kernel has no module for it");
        Ok(index)
    }

    /// No longer carries `name`. The TUN device stays.
    pub(crate) fn stop(&self, name: IfName) {
        self.lock().stop(name);
        Socket::remove_stale(name);
    }

    /// Starts handshakes with peers at once.
    pub(crate) fn handshake(&self, name: IfName, peers: Vec<WireguardKey>, pace: Pace) {
        if let Some(running) = self.lock().devices.get(&name).filter(|_| !peers.is_empty()) {
            // A queue that is full is one of handshakes, and the next packet starts one too.
            let _ = running.asks.try_send(Ask::Handshake(peers, pace));
        }
    }
}

impl Inner {
    fn runtime(&mut self) -> io::Result<&Runtime> {
        if self.runtime.is_none() {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            self.runtime = Some(builder.worker_threads(THREADS).thread_name("wireguard").enable_all().build()?);
        }
        self.runtime.as_ref().ok_or_else(|| io::Error::other("no runtime"))
    }

    fn stop(&mut self, name: IfName) {
        if let (Some(running), Some(runtime)) = (self.devices.remove(&name), &self.runtime) {
            let asks = running.asks.clone();
            runtime.block_on(async move {
                let _ = asks.send(Ask::Stop).await;
                // Until the task has let go of the device.
                let _ = tokio::time::timeout(BUSY, asks.closed()).await;
            });
        }
    }
}

impl Drop for Userspace {
    fn drop(&mut self) {
        let mut inner = self.lock();
        inner.devices.clear();
        if let Some(runtime) = inner.runtime.take() {
            // May be dropped where waiting is not allowed; the TUN device stays in any case.
            runtime.shutdown_background();
        }
    }
}

/// Opens the TUN device; one that is being let go of is waited for.
async fn open(name: IfName) -> io::Result<tun::Device> {
    let mut config = tun::Configuration::default();
    config.tun_name(name.as_str());
    // Addresses, MTU and state are set over netlink like those of every other device.
    config.platform_config(|platform| {
        platform.ensure_root_privileges(false);
    });
    let started = tokio::time::Instant::now();
    loop {
        match tun::create(&config) {
            Ok(device) => return Ok(device),
            Err(tun::Error::Io(error)) => {
                if error.raw_os_error() != Some(libc::EBUSY) || started.elapsed() > BUSY {
                    return Err(error);
                }
            }
            Err(error) => return Err(io::Error::other(error)),
        }
        tokio::time::sleep(BUSY_TRY).await;
    }
}

/// What carries the packets of one device.
type Carrier = Device<(Port, TunDevice, TunDevice)>;

/// One device until it is stopped or broken.
async fn carry(
    mut device: Carrier,
    mut asks: mpsc::Receiver<Ask>,
    own_asks: mpsc::WeakSender<Ask>,
    listener: UnixListener,
    client: UapiClient,
    ended: Arc<AtomicBool>,
) {
    loop {
        tokio::select! {
            ask = asks.recv() => match ask {
                Some(Ask::Handshake(peers, pace)) => {
                    if pace == Pace::Eager {
                        set_pace(&device, &peers, Some(TimerParams { rekey_timeout: EAGER, ..TimerParams::default() })).await;
                    }
                    start_handshakes(&device, &peers).await;
                    if pace == Pace::Eager {
                        tokio::spawn(settle_later(own_asks.clone(), peers));
                    }
                }
                Some(Ask::Settle(peers)) => set_pace(&device, &peers, None).await,
                Some(Ask::Stop) | None => break,
            },
            accepted = listener.accept() => match accepted.and_then(|(stream, _)| stream.into_std()) {
                // A thread for as long as the conversation takes.
                Ok(stream) if stream.set_nonblocking(false).is_ok() => client.clone().wrap_read_write(stream),
                Ok(_) => {}
                // Out of descriptors: who asks is waiting, so it is tried again, but not all the time.
                Err(error) => {
                    tracing::debug!(%error, "cannot take a connection to the WireGuard device");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            },
            () = device.wait() => {
                tracing::warn!("the WireGuard device broke; it is set up again");
                break;
            }
        }
    }
    ended.store(true, Ordering::Relaxed);
    device.stop().await;
}

/// Sends the first messages. Each goes on to wait for its handshake's end, which is none of ours.
async fn start_handshakes(device: &Carrier, peers: &[WireguardKey]) {
    let peers: Vec<PublicKey> = peers.iter().map(|peer| PublicKey::from(peer.bytes())).collect();
    let _ = tokio::time::timeout(HANDSHAKE, join_all(peers.iter().map(|peer| device.force_handshake(peer)))).await;
}

/// How often a handshake with `peers` that is not answered is tried; `None`: as the protocol says.
async fn set_pace(device: &Carrier, peers: &[WireguardKey], pace: Option<TimerParams>) {
    let set = device.write(async |device| {
        for peer in peers {
            let pace = pace.clone();
            // One that is gone meanwhile needs no pace.
            device.modify_peer(&PublicKey::from(peer.bytes()), |peer| peer.dangerously_set_timer_params(pace)).await;
        }
    });
    if let Err(error) = set.await {
        tracing::debug!(%error, "the pace of handshakes was not set");
    }
}

/// Ends with the device: it does not keep its queue open.
async fn settle_later(asks: mpsc::WeakSender<Ask>, peers: Vec<WireguardKey>) {
    tokio::time::sleep(EAGER_FOR).await;
    if let Some(asks) = asks.upgrade() {
        let _ = asks.send(Ask::Settle(peers)).await;
    }
}
