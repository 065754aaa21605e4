//! WireGuard in this process, for kernels without the module. A TUN device carries plain packets between the kernel and
//! gotatun, and `wg` and this program set it up at a socket.
//!
//! The TUN device is kept when the process ends, however it ends. Its routes stay, and packets sent to it meanwhile are
//! dropped in the kernel, not sent in clear. The next process takes it over by name. Sessions belong to the process:
//! they end with it, and the next one starts with a handshake.
//!
//! Threads of its own carry the packets, so that a long pass over thousands of peers does not hold them up. They are in
//! the network namespace of the thread that starts the first device.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flatnet_model::{IfName, WireguardKey};
use gotatun::tun::tun;
use gotatun::tun::tun_async_device::TunDevice;
use gotatun::x25519::StaticSecret;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

use super::PrivateKey;
pub(crate) use carrier::Pace;
use carrier::{Ask, Carried, EARLIER_SESSIONS_LIFETIME, carry};
use socket::Socket;

mod carrier;
mod confirm;
mod line;
mod port;
mod socket;

/// The number of threads that carry packets. One for sending and one for receiving is what a busy tunnel can use.
const THREADS: usize = 2;
/// The time for which a device that is taken over may still be held by the tasks of one that just ended.
const DEVICE_RELEASE_TIMEOUT: Duration = Duration::from_millis(500);
/// The pause between two tries while it is held.
const DEVICE_RETRY_AFTER: Duration = Duration::from_millis(10);
/// Requests that may wait for one device.
const ASKS: usize = 64;

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
    /// Interface index. A device that was deleted and made anew under its name is another one.
    index: u32,
    asks: mpsc::Sender<Ask>,
    ended: Arc<AtomicBool>,
    socket: Socket,
    /// The time at which it last got another key.
    changed: Option<Instant>,
}

impl Userspace {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns true if this host lets the process open TUN devices.
    pub(crate) fn is_possible() -> bool {
        fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_ok()
    }

    /// Returns true if this process carries the device with interface index `index`, and its socket is still ours.
    pub(crate) fn is_running(&self, name: IfName, index: u32) -> bool {
        let inner = self.lock();
        let running = inner.devices.get(&name);
        running.is_some_and(|running| {
            running.index == index && !running.ended.load(Ordering::Relaxed) && running.socket.is_ours()
        })
    }

    /// Returns true if this process carries a device of that name.
    pub(crate) fn is_carried(&self, name: IfName) -> bool {
        self.lock().devices.get(&name).is_some_and(|running| !running.ended.load(Ordering::Relaxed))
    }

    /// Opens the TUN device `name`, or takes over the one that an ended process left, and carries its packets. Its key
    /// and peers are still to be set. `mark` is called while the device is there but not yet kept beyond this process:
    /// it finds the interface index and puts our mark on the device.
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
            let carried = Carried::first(tun).await?;
            let listener = socket.listen()?;
            let (asks, receiver) = mpsc::channel(ASKS);
            let ended = Arc::new(AtomicBool::new(false));
            let settle = asks.downgrade();
            tokio::spawn(carry(carried, receiver, settle, listener, Arc::clone(&ended)));
            Ok::<_, io::Error>((index, Running { index, asks, ended, socket, changed: None }))
        })?;
        inner.devices.insert(name, running);
        tracing::info!(device = %name, "this process carries WireGuard: the kernel has no module for it");
        Ok(index)
    }

    /// Stops carrying `name`. The TUN device stays.
    pub(crate) fn stop(&self, name: IfName) {
        self.lock().stop(name);
        Socket::remove_stale(name);
    }

    /// Gives the device another key. From then on, it also receives packets that peers send by the sessions they have.
    /// Returns true if that was done; if not, whoever finds the device ended sets it up anew.
    pub(crate) fn change_key(&self, name: IfName, key: &PrivateKey) -> bool {
        let mut inner = self.lock();
        let Inner { runtime: Some(runtime), devices } = &mut *inner else { return false };
        let Some(running) = devices.get_mut(&name) else { return false };
        let asks = running.asks.clone();
        let key = StaticSecret::from(key.key().0);
        let changed = runtime.block_on(async move {
            let (done, answer) = oneshot::channel();
            let asked = asks.send(Ask::ChangeKey(key, done)).await;
            asked.is_ok() && answer.await.unwrap_or(false)
        });
        running.changed = changed.then(Instant::now);
        changed
    }

    /// Returns true if the device got another key lately, so that its peers may have sessions that it does not show.
    pub(crate) fn has_earlier(&self, name: IfName) -> bool {
        let changed = self.lock().devices.get(&name).and_then(|running| running.changed);
        changed.is_some_and(|changed| changed.elapsed() < EARLIER_SESSIONS_LIFETIME)
    }

    /// Stops receiving by the earlier key, because the device's port is about to change.
    pub(crate) fn forget_all_earlier(&self, name: IfName) {
        let inner = self.lock();
        if let (Some(running), Some(runtime)) = (inner.devices.get(&name), &inner.runtime) {
            let _ = runtime.block_on(running.asks.send(Ask::ForgetAll));
        }
    }

    /// Stops accepting packets from `peers` by sessions of the earlier key, because they are gone or have other
    /// addresses.
    pub(crate) fn forget_earlier(&self, name: IfName, peers: Vec<WireguardKey>) {
        let inner = self.lock();
        if let (Some(running), Some(runtime), false) = (inner.devices.get(&name), &inner.runtime, peers.is_empty()) {
            let asks = running.asks.clone();
            // An ended device has no sessions.
            let _ = runtime.block_on(asks.send(Ask::Forget(peers)));
        }
    }

    /// Starts handshakes with peers at once.
    pub(crate) fn handshake(&self, name: IfName, peers: Vec<WireguardKey>, pace: Pace) {
        if let Some(running) = self.lock().devices.get(&name).filter(|_| !peers.is_empty()) {
            // If the queue is full, it is full of handshakes, and the next packet starts one too.
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
                // Waits until the task has let go of the device.
                let _ = tokio::time::timeout(DEVICE_RELEASE_TIMEOUT, asks.closed()).await;
            });
        }
    }
}

impl Drop for Userspace {
    fn drop(&mut self) {
        let mut inner = self.lock();
        inner.devices.clear();
        if let Some(runtime) = inner.runtime.take() {
            // This may be dropped where waiting is not allowed. The TUN device stays in any case.
            runtime.shutdown_background();
        }
    }
}

/// Opens the TUN device. If somebody is letting go of it, this waits.
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
                if error.raw_os_error() != Some(libc::EBUSY) || started.elapsed() > DEVICE_RELEASE_TIMEOUT {
                    return Err(error);
                }
            }
            Err(error) => return Err(io::Error::other(error)),
        }
        tokio::time::sleep(DEVICE_RETRY_AFTER).await;
    }
}
