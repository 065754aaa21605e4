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
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flatnet_model::{IfName, WireguardKey};
use gotatun::device::uapi::{UapiClient, UapiServer};
use gotatun::device::{DefaultDeviceTransports, Device, DeviceBuilder};
use gotatun::tun::tun;
use gotatun::tun::tun_async_device::TunDevice;
use gotatun::x25519::PublicKey;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// Where `wg` looks for the sockets of such devices (wireguard-tools: `ipc-uapi-unix.h`).
const SOCKETS: &str = "/var/run/wireguard";
/// Threads that carry packets: one for what is sent and one for what is received is what a busy tunnel can use.
const THREADS: usize = 2;
/// How long a device that is taken over may still be held by the tasks of one that just ended.
const BUSY: Duration = Duration::from_millis(500);
/// Between two tries while it is.
const BUSY_TRY: Duration = Duration::from_millis(10);
/// How long sending the first message of a handshake may take: it waits for no answer, only for the device's lock.
const HANDSHAKE: Duration = Duration::from_millis(50);
/// Requests to one device that may wait.
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
    /// Interface index: a device deleted and made anew under its name is another one.
    index: u32,
    asks: mpsc::Sender<Ask>,
    ended: Arc<AtomicBool>,
    socket: Socket,
}

enum Ask {
    Handshake(WireguardKey),
    Stop,
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
            let built = DeviceBuilder::new().with_default_udp().with_ip(tun).with_uapi(server).build().await;
            let device = built.map_err(io::Error::other)?;
            let listener = socket.listen()?;
            let (asks, receiver) = mpsc::channel(ASKS);
            let ended = Arc::new(AtomicBool::new(false));
            tokio::spawn(carry(device, receiver, listener, client, Arc::clone(&ended)));
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

    /// Starts a handshake with a peer at once.
    pub(crate) fn handshake(&self, name: IfName, peer: WireguardKey) {
        if let Some(running) = self.lock().devices.get(&name) {
            // A queue that is full is worked off anyway, and the next packet starts one too.
            let _ = running.asks.try_send(Ask::Handshake(peer));
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

/// One device until it is stopped or broken.
async fn carry(
    mut device: Device<DefaultDeviceTransports>,
    mut asks: mpsc::Receiver<Ask>,
    listener: UnixListener,
    client: UapiClient,
    ended: Arc<AtomicBool>,
) {
    loop {
        tokio::select! {
            ask = asks.recv() => match ask {
                Some(Ask::Handshake(peer)) => {
                    // It goes on to wait for the handshake's end, which is none of ours.
                    let peer = PublicKey::from(peer.bytes());
                    let _ = tokio::time::timeout(HANDSHAKE, device.force_handshake(&peer)).await;
                }
                Some(Ask::Stop) | None => break,
            },
            Ok((stream, _)) = listener.accept() => match stream.into_std() {
                // A thread for as long as the conversation takes.
                Ok(stream) if stream.set_nonblocking(false).is_ok() => client.clone().wrap_read_write(stream),
                _ => {}
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

/// The socket of one device, removed when dropped.
struct Socket {
    path: PathBuf,
    /// Device and inode of the file, once it is there.
    file: Mutex<Option<(u64, u64)>>,
}

impl Socket {
    fn path_of(name: IfName) -> PathBuf {
        Path::new(SOCKETS).join(format!("{name}.sock"))
    }

    /// Makes room for the socket. One that somebody answers at is left alone: another agent's, in another network namespace
    /// on this file system.
    fn claim(name: IfName) -> io::Result<Self> {
        let path = Self::path_of(name);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(SOCKETS)?;
        if std::os::unix::net::UnixStream::connect(&path).is_ok() {
            let what = format!("{} is in use by another process: give it its own /run/wireguard", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, what));
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(Self { path, file: Mutex::new(None) }),
        }
    }

    /// Root's alone: whoever reaches it can read the private key.
    fn listen(&self) -> io::Result<UnixListener> {
        let listener = UnixListener::bind(&self.path)?;
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o600))?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = identity(&self.path);
        Ok(listener)
    }

    /// Whether what is there is what we made.
    fn is_ours(&self) -> bool {
        let made = *self.file.lock().unwrap_or_else(PoisonError::into_inner);
        made.is_some() && made == identity(&self.path)
    }

    /// Removes what a killed process left.
    fn remove_stale(name: IfName) {
        let path = Self::path_of(name);
        if path.exists() && std::os::unix::net::UnixStream::connect(&path).is_err() {
            let _ = fs::remove_file(&path);
        }
        // Other programs' sockets keep it.
        let _ = fs::remove_dir(SOCKETS);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.is_ours() {
            let _ = fs::remove_file(&self.path);
            let _ = fs::remove_dir(SOCKETS);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
