//! WireGuard devices and peers within a dump and an `apply`.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flatnet_core::handshakes::{Handshakes, MetPeers, handshakes};
use flatnet_core::object::{Datapath, KernelState, Link, LinkKind, WireguardLink, WireguardPeer, WireguardPeerKey};
use flatnet_core::op::{Action, Object, Op};
use flatnet_core::takeover::Takeover;
use flatnet_model::{IfName, WireguardKey};
use futures::Stream;
use nix::errno::Errno;
use tokio::time::Instant;

use super::control::{self, PeerChange, Settings};
use super::userspace::{Pace, Userspace};
use super::{Keyring, PrivateKey};
use crate::Wake;
use crate::netlink::encode;
use crate::netlink::socket::{Channel, Refusal};
use crate::rtnetlink::{device as link_device, links, port_holder};

/// The path at which a loaded module shows (Documentation/ABI/stable/sysfs-module).
const MODULE: &str = "/sys/module/wireguard";
/// The interval at which devices are checked for changes by others, since nothing reports those. It leaves room within
/// the second in which they must be repaired.
const POLL_EVERY: Duration = Duration::from_millis(500);
/// The share of time that checking may take, as its inverse: with thousands of peers a check takes tens of
/// milliseconds.
const POLL_SHARE: u32 = 20;
/// Peers that are changed in one exchange. If one is refused, it is found by trying them singly.
const BATCH: usize = 500;

/// The WireGuard devices of one network namespace.
pub(super) struct Devices {
    /// The time that the takeover's clock counts from.
    started: Instant,
    keys: Keyring,
    userspace: Userspace,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// True if the kernel knows the kind; `None`: it has not been asked yet.
    kernel: Option<bool>,
    /// True if the module was there when the kernel was asked.
    module: bool,
    /// The kernel's takeover of devices that this process carries.
    takeover: Takeover,
    /// Our devices, as the last dump found them.
    devices: BTreeMap<IfName, (u32, Datapath)>,
    /// Peers that were found or set, until they are deleted on purpose.
    met: MetPeers,
    /// The endpoints that peers were given. The endpoint found later may be where their packets came from.
    endpoints: HashMap<WireguardPeerKey, SocketAddr>,
}

impl Devices {
    pub(super) fn new(keys: Keyring) -> Self {
        Self { started: Instant::now(), keys, userspace: Userspace::default(), known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the datapath that can carry WireGuard here. The kernel is asked once, and again when the module turns up
    /// or vanishes.
    pub(super) fn datapath(&self, channel: &mut Channel) -> Option<Datapath> {
        let mut known = self.known();
        let module = Path::new(MODULE).exists();
        let in_kernel = match known.kernel {
            Some(answer) if module == known.module => answer,
            _ => {
                let answer = channel.request(&encode::link_probe_wireguard());
                !matches!(&answer, Err(refusal) if refusal.errno == libc::EOPNOTSUPP)
            }
        };
        (known.kernel, known.module) = (Some(in_kernel), module);
        let carried = carried(&known);
        drop(known);
        match in_kernel {
            true if carried.is_empty() => {
                self.known().takeover.forget();
                Some(Datapath::Kernel)
            }
            true => {
                let youngest = youngest_handshake(&carried);
                let is_due = self.known().takeover.is_due(youngest, self.started.elapsed());
                Some(if is_due { Datapath::Kernel } else { Datapath::Userspace })
            }
            false => Userspace::is_possible().then_some(Datapath::Userspace),
        }
    }

    /// Returns true if the moment that [`Self::datapath`] waits for is there now.
    fn takeover_became_due(&self) -> bool {
        let carried = carried(&self.known());
        !carried.is_empty() && {
            let youngest = youngest_handshake(&carried);
            self.known().takeover.became_due(youngest, self.started.elapsed())
        }
    }

    /// Adds ports, keys and peers to the devices in `state`. A device that cannot be read has none: putting that right
    /// is refused with the reason. `all`: these are all the devices that there are.
    pub(super) fn dump(&self, channel: &mut Channel, state: &mut KernelState, all: bool) {
        let mut devices = BTreeMap::new();
        for (name, link) in &mut state.links {
            let LinkKind::Wireguard(wireguard) = &mut link.kind else { continue };
            let Ok(Some(raw)) = links::named(channel, *name) else { continue };
            devices.insert(*name, (raw.index, wireguard.datapath));
            match self.read(*name, raw.index, wireguard.datapath) {
                Ok(settings) => {
                    (wireguard.port, wireguard.public_key) = (settings.port, settings.public_key);
                    let peers = self.peers(*name, settings);
                    self.known().met.found(peers.iter().map(|(key, _)| *key));
                    state.wireguard_peers.extend(peers);
                }
                Err(error) => tracing::debug!(device = %name, %error, "a WireGuard device cannot be read"),
            }
        }
        let mut known = self.known();
        if all {
            known.devices.clear();
        }
        known.devices.extend(devices);
    }

    fn read(&self, name: IfName, index: u32, datapath: Datapath) -> io::Result<Settings> {
        if datapath == Datapath::Userspace && !self.userspace.is_running(name, index) {
            // The device was left by a process that ended, or is broken.
            return Ok(Settings::default());
        }
        control::read(name, datapath)
    }

    fn peers(&self, device: IfName, settings: Settings) -> Vec<(WireguardPeerKey, WireguardPeer)> {
        let changed_lately = self.userspace.has_earlier(device);
        let known = self.known();
        let peer = |found: control::Found| {
            let key = WireguardPeerKey { device, public_key: found.public_key };
            // After a change of key, a device shows no earlier handshakes.
            let in_session = found.in_session() || changed_lately;
            let mut peer = found.peer;
            if let Some(said) = known.endpoints.get(&key).filter(|_| in_session) {
                peer.endpoint = Some(*said);
            }
            (key, peer)
        };
        settings.peers.into_iter().map(peer).collect()
    }

    /// Carries out an operation on a device.
    pub(super) fn carry_out(&self, channel: &mut Channel, op: &Op) -> Result<(), Refusal> {
        let Object::Link(name, wanted @ Link { kind: LinkKind::Wireguard(link), .. }) = &op.object else {
            return Err(Refusal::of(Errno::EOPNOTSUPP));
        };
        match op.action {
            Action::Create => self.create(channel, *name, wanted, *link),
            Action::Change => {
                let present = link_device::present(channel, *name)?;
                self.configure(channel, *name, present.index, *link)?;
                link_device::change(channel, *name, &present, wanted)
            }
            Action::Replace => {
                self.delete(channel, *name)?;
                self.create(channel, *name, wanted, *link)
            }
            Action::Delete => self.delete(channel, *name),
            Action::Adopt => link_device::adopt(channel, *name),
        }
    }

    fn delete(&self, channel: &mut Channel, name: IfName) -> Result<(), Refusal> {
        link_device::owned(channel, name)?;
        self.forget(name);
        link_device::delete(channel, name)
    }

    /// Makes a device with key and port, and brings it up. None of it stays if any of it fails.
    fn create(&self, channel: &mut Channel, name: IfName, wanted: &Link, link: WireguardLink) -> Result<(), Refusal> {
        let key = self.key(link)?;
        let index = match link.datapath {
            Datapath::Kernel => {
                let index = link_device::free_index();
                let create = encode::link_create(name, wanted, index);
                let requests: Vec<_> = create.into_iter().chain([encode::link_mark(index, Link::ALIAS)]).collect();
                channel.request_all(&requests).into_iter().collect::<Result<(), Refusal>>()?;
                index
            }
            Datapath::Userspace => self.start(channel, name)?,
        };
        let made = self.finish(channel, name, index, wanted, link, &key);
        if made.is_err() {
            self.forget(name);
            link_device::take_back(channel, name, index);
        }
        made
    }

    fn finish(
        &self,
        channel: &mut Channel,
        name: IfName,
        index: u32,
        wanted: &Link,
        link: WireguardLink,
        key: &PrivateKey,
    ) -> Result<(), Refusal> {
        control::configure(name, link.datapath, key, link.port).map_err(|error| port_or(error, link))?;
        let requests = [encode::link_set(index, wanted, None), encode::link_quiet(index)];
        let answers = channel.request_all(&requests).into_iter();
        answers.filter(|answer| !link_device::is_no_ipv6(answer)).collect::<Result<(), Refusal>>()?;
        link_device::bring_up(channel, name, wanted, index)
    }

    fn start(&self, channel: &mut Channel, name: IfName) -> Result<u32, Refusal> {
        let mark = || {
            let found = links::named(channel, name).map_err(|refusal| io::Error::from_raw_os_error(refusal.errno))?;
            let index = found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?.index;
            let marked = channel.request(&encode::link_mark_as(index, links::WIREGUARD));
            marked.map(|()| index).map_err(|refusal| io::Error::from_raw_os_error(refusal.errno))
        };
        self.userspace.start(name, mark).map_err(Refusal::from)
    }

    /// Gives a device of ours the key and port of `link`. A device that nobody carries is carried again.
    fn configure(&self, channel: &mut Channel, name: IfName, index: u32, link: WireguardLink) -> Result<(), Refusal> {
        let key = self.key(link)?;
        if link.datapath == Datapath::Userspace && !self.userspace.is_running(name, index) {
            self.start(channel, name)?;
        }
        if link.datapath == Datapath::Userspace
            && self.has_another_key(name, link)
            && !self.userspace.change_key(name, &key)
        {
            self.userspace.stop(name);
            self.start(channel, name)?;
        }
        if link.datapath == Datapath::Userspace
            && self.userspace.has_earlier(name)
            && control::read(name, link.datapath).is_ok_and(|found| found.port != link.port)
        {
            self.userspace.forget_all_earlier(name);
        }
        let configured = control::configure(name, link.datapath, &key, link.port);
        if configured.is_err() && link.datapath == Datapath::Userspace {
            // It may have the key by now and yet no port, which does not show. The next pass starts it again.
            self.userspace.stop(name);
        }
        configured.map_err(|error| port_or(error, link))
    }

    /// Returns true if a device that this process carries has a key that is not that of `link`.
    fn has_another_key(&self, name: IfName, link: WireguardLink) -> bool {
        let found = control::read(name, link.datapath).ok().and_then(|settings| settings.public_key);
        found.is_some() && found != link.public_key
    }

    fn key(&self, link: WireguardLink) -> Result<PrivateKey, Refusal> {
        let key = link.public_key.and_then(|public| self.keys.get(public));
        key.ok_or_else(|| Refusal { errno: libc::ENOKEY, reason: "the private key is not known here".to_owned() })
    }

    /// Forgets a device that is about to go.
    fn forget(&self, name: IfName) {
        let datapath = {
            let mut known = self.known();
            known.endpoints.retain(|key, _| key.device != name);
            known.devices.remove(&name).map(|(_, datapath)| datapath)
        };
        if datapath != Some(Datapath::Kernel) && name.as_str().starts_with("flatwg.") {
            self.userspace.stop(name);
        }
    }

    /// Carries out operations on peers and returns one answer each, in their order.
    pub(super) fn change_peers(&self, ops: &[&Op], all: &[Op]) -> Vec<Result<(), Refusal>> {
        // This is looked up before the peers are set again.
        let lost = self.known().met.lost(ops);
        let mut answers = Vec::with_capacity(ops.len());
        for run in ops.chunk_by(|a, b| device(a) == device(b)) {
            for batch in run.chunks(BATCH) {
                answers.extend(self.change_batch(batch));
            }
        }
        for handshakes in handshakes(ops, all, &lost, |name| self.datapath_of(name)) {
            self.start_handshakes(&handshakes);
        }
        answers
    }

    fn change_batch(&self, batch: &[&Op]) -> Vec<Result<(), Refusal>> {
        let Some(name) = batch.first().and_then(|op| device(op)) else { return vec![Ok(()); batch.len()] };
        let Some(datapath) = self.datapath_of(name) else {
            let refusal = || Refusal { errno: libc::ENODEV, reason: format!("there is no device {name}") };
            return batch.iter().map(|_| Err(refusal())).collect();
        };
        if datapath == Datapath::Userspace {
            let gone = batch.iter().filter(|op| op.action != Action::Create).filter_map(|op| match &op.object {
                Object::WireguardPeer(key, _) => Some(key.public_key),
                _ => None,
            });
            self.userspace.forget_earlier(name, gone.collect());
        }
        let changes: Vec<PeerChange<'_>> = batch.iter().filter_map(|op| change(op)).collect();
        let done = control::change(name, datapath, &changes);
        let answers: Vec<Result<(), Refusal>> = match (done, batch) {
            (Ok(()), _) => batch.iter().map(|_| Ok(())).collect(),
            (Err(error), [_]) => vec![Err(Refusal::from(error))],
            // Trying them one by one shows which one is refused.
            (Err(_), _) => {
                let one = |change: &PeerChange<'_>| {
                    control::change(name, datapath, std::slice::from_ref(change)).map_err(Refusal::from)
                };
                changes.iter().map(one).collect()
            }
        };
        let mut known = self.known();
        for (op, _) in batch.iter().zip(&answers).filter(|(_, answer)| answer.is_ok()) {
            let Object::WireguardPeer(key, peer) = &op.object else { continue };
            known.met.carried_out(op);
            match peer.endpoint.filter(|_| op.action != Action::Delete) {
                Some(endpoint) => known.endpoints.insert(*key, endpoint),
                None => known.endpoints.remove(key),
            };
        }
        answers
    }

    fn datapath_of(&self, name: IfName) -> Option<Datapath> {
        let known = self.known().devices.get(&name).map(|(_, datapath)| *datapath);
        known.or_else(|| self.made_since(name))
    }

    /// Returns the datapath of a device that was made after the last dump.
    fn made_since(&self, name: IfName) -> Option<Datapath> {
        if self.userspace.is_carried(name) {
            return Some(Datapath::Userspace);
        }
        control::read(name, Datapath::Kernel).ok().map(|_| Datapath::Kernel)
    }

    fn start_handshakes(&self, with: &Handshakes<'_>) {
        match with.datapath {
            Datapath::Userspace => {
                let keys = |peers: &[(WireguardKey, &WireguardPeer)]| peers.iter().map(|(key, _)| *key).collect();
                self.userspace.handshake(with.device, keys(&with.eager), Pace::Eager);
                self.userspace.handshake(with.device, keys(&with.usual), Pace::Usual);
            }
            Datapath::Kernel => {
                if let Err(error) = control::provoke(with.device, &with.eager) {
                    tracing::debug!(device = %with.device, %error, "no handshake was started; the next packet starts one");
                }
            }
        }
    }

    /// Returns what others may have changed of our devices, as a number.
    fn digest(&self) -> u64 {
        let devices = self.known().devices.clone();
        let mut hasher = DefaultHasher::new();
        for (name, (index, datapath)) in devices {
            (name, index).hash(&mut hasher);
            let Ok(settings) = self.read(name, index, datapath) else { continue };
            (settings.port, settings.public_key).hash(&mut hasher);
            let peers: BTreeSet<(WireguardKey, Vec<ipnet::IpNet>, u16)> = settings
                .peers
                .into_iter()
                .map(|found| (found.public_key, found.peer.allowed, found.peer.keepalive_secs))
                .collect();
            peers.hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// Wakes when somebody changed a device of ours. Checks only while there is one.
pub(super) fn events(wireguard: &Arc<Devices>) -> impl Stream<Item = Wake> + Send + Unpin + 'static {
    let state = (Arc::clone(wireguard), None::<u64>, POLL_EVERY);
    Box::pin(futures::stream::unfold(state, |(wireguard, mut last, mut pause)| async move {
        loop {
            tokio::time::sleep(pause).await;
            if wireguard.known().devices.is_empty() {
                last = None;
                continue;
            }
            let started = Instant::now();
            let looked = Arc::clone(&wireguard);
            // A check that was cut off is made again.
            let look = move || (looked.digest(), looked.takeover_became_due());
            let Ok((now, due)) = tokio::task::spawn_blocking(look).await else { continue };
            pause = POLL_EVERY.max(started.elapsed() * POLL_SHARE);
            if last.replace(now).is_some_and(|last| last != now) || due {
                return Some((Wake::Netlink, (wireguard, last, pause)));
            }
        }
    }))
}

/// Returns the devices that this process carries, as far as known.
fn carried(known: &Known) -> Vec<IfName> {
    let of_ours = known.devices.iter().filter(|(_, (_, datapath))| *datapath == Datapath::Userspace);
    of_ours.map(|(name, _)| *name).collect()
}

/// Returns the time since the latest handshake of any peer of `devices`, if there was one. A device that cannot be read
/// has none.
fn youngest_handshake(devices: &[IfName]) -> Option<Duration> {
    let settings = devices.iter().filter_map(|name| control::read(*name, Datapath::Userspace).ok());
    settings.flat_map(|settings| settings.peers).filter_map(|found| found.handshake).min()
}

fn device(op: &Op) -> Option<IfName> {
    if let Object::WireguardPeer(key, _) = &op.object { Some(key.device) } else { None }
}

fn change(op: &Op) -> Option<PeerChange<'_>> {
    let Object::WireguardPeer(key, peer) = &op.object else { return None };
    Some(match op.action {
        Action::Delete => PeerChange::Remove(key.public_key),
        Action::Create | Action::Change | Action::Replace | Action::Adopt => PeerChange::Set(key.public_key, peer),
    })
}

/// Explains a failure by a port that is taken, if it is. The process's own device answers a taken port with "invalid
/// argument" and no more.
fn port_or(error: io::Error, link: WireguardLink) -> Refusal {
    let taken = std::net::UdpSocket::bind(("0.0.0.0", link.port)).is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse);
    let refused = matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::AddrInUse);
    if refused && taken {
        return port_holder::refusal(link.port);
    }
    Refusal::from(error)
}
