//! Settings of a device, in the words of [`flatnet_core::object`]. The calls block: for the kernel they are one system
//! call, for the process's own device one exchange over its socket.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use flatnet_core::object::{Datapath, WireguardPeer};
use flatnet_model::{IfName, PresharedKey, WireguardKey};
use ipnet::IpNet;
use wireguard_control::{Backend, Device, DeviceUpdate, InterfaceName, Key, PeerConfigBuilder, PeerInfo};

use super::PrivateKey;

/// The time after a handshake for which packets can still come in under its keys (`REJECT_AFTER_TIME`, WireGuard §6.1).
/// For that long, the place they come from is the peer's.
const SESSION_LIFETIME: Duration = Duration::from_secs(180);

/// The present settings of a device.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// UDP port.
    pub(crate) port: u16,
    /// The public half of its key, if it has one.
    pub(crate) public_key: Option<WireguardKey>,
    /// Its peers.
    pub(crate) peers: Vec<Found>,
}

/// The present settings of a peer.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) public_key: WireguardKey,
    pub(crate) peer: WireguardPeer,
    /// Time since the last handshake, if there was one. If the clock was set back, it is unknown.
    pub(crate) handshake: Option<Duration>,
}

impl Found {
    /// Returns true if there was a handshake lately, so that its endpoint may be where its packets came from.
    pub(crate) fn in_session(&self) -> bool {
        self.handshake.is_some_and(|ago| ago < SESSION_LIFETIME)
    }
}

/// The change to make to one peer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PeerChange<'a> {
    /// Make the peer, or change it, to what is given.
    Set(WireguardKey, &'a WireguardPeer),
    /// Remove the peer.
    Remove(WireguardKey),
}

/// Reads a device.
pub(crate) fn read(name: IfName, datapath: Datapath) -> io::Result<Settings> {
    let device = Device::get(&interface(name)?, backend(datapath))?;
    let public = device.public_key.or_else(|| device.private_key.map(|key| key.get_public()));
    Ok(Settings {
        port: device.listen_port.unwrap_or_default(),
        public_key: public.and_then(|key| WireguardKey::new(key.0).ok()),
        peers: device.peers.iter().filter_map(found).collect(),
    })
}

fn found(info: &PeerInfo) -> Option<Found> {
    let config = &info.config;
    let nets = config.allowed_ips.iter().filter_map(|ip| IpNet::new(ip.address, ip.cidr).ok());
    let mut allowed: Vec<IpNet> = nets.map(|net| net.trunc()).collect();
    allowed.sort();
    Some(Found {
        public_key: WireguardKey::new(config.public_key.0).ok()?,
        peer: WireguardPeer {
            endpoint: config.endpoint,
            keepalive_secs: config.persistent_keepalive_interval.unwrap_or_default(),
            psk: config.preshared_key.as_ref().and_then(|key| PresharedKey::new(key.0)),
            allowed,
        },
        handshake: info.stats.last_handshake_time.and_then(|at| at.elapsed().ok()),
    })
}

/// Gives a device its key and port.
pub(crate) fn configure(name: IfName, datapath: Datapath, key: &PrivateKey, port: u16) -> io::Result<()> {
    apply(name, datapath, DeviceUpdate::new().set_private_key(key.key()).set_listen_port(port))
}

/// Carries out changes of peers.
pub(crate) fn change(name: IfName, datapath: Datapath, changes: &[PeerChange<'_>]) -> io::Result<()> {
    let update = changes.iter().fold(DeviceUpdate::new(), |update, change| match change {
        PeerChange::Set(key, peer) => update.add_peer(builder(*key, peer)),
        PeerChange::Remove(key) => update.remove_peer_by_key(&Key(key.bytes())),
    });
    apply(name, datapath, update)
}

/// Makes the kernel start a handshake with a peer at once: it sends a first keepalive when those are turned on
/// (drivers/net/wireguard/netlink.c: `set_peer`).
pub(crate) fn provoke(name: IfName, peers: &[(WireguardKey, &WireguardPeer)]) -> io::Result<()> {
    let interval = |secs: u16| {
        let with = |update: DeviceUpdate, (key, _): &(WireguardKey, &WireguardPeer)| {
            update.add_peer(PeerConfigBuilder::new(&Key(key.bytes())).set_persistent_keepalive_interval(secs))
        };
        peers.iter().filter(|(_, peer)| peer.keepalive_secs == 0).fold(DeviceUpdate::new(), with)
    };
    if peers.iter().all(|(_, peer)| peer.keepalive_secs != 0) {
        return Ok(());
    }
    apply(name, Datapath::Kernel, interval(1))?;
    apply(name, Datapath::Kernel, interval(0))
}

fn builder(key: WireguardKey, peer: &WireguardPeer) -> PeerConfigBuilder {
    let builder = PeerConfigBuilder::new(&Key(key.bytes()))
        .set_persistent_keepalive_interval(peer.keepalive_secs)
        .replace_allowed_ips();
    let builder = peer.allowed.iter().fold(builder, |b, net| b.add_allowed_ip(net.addr(), net.prefix_len()));
    let builder = match peer.psk {
        Some(psk) => builder.set_preshared_key(Key(psk.bytes())),
        None => builder.unset_preshared_key(),
    };
    let with = |builder: PeerConfigBuilder, endpoint: SocketAddr| builder.set_endpoint(endpoint);
    peer.endpoint.into_iter().fold(builder, with)
}

fn apply(name: IfName, datapath: Datapath, update: DeviceUpdate) -> io::Result<()> {
    update.apply(&interface(name)?, backend(datapath))
}

fn backend(datapath: Datapath) -> Backend {
    match datapath {
        Datapath::Kernel => Backend::Kernel,
        Datapath::Userspace => Backend::Userspace,
    }
}

fn interface(name: IfName) -> io::Result<InterfaceName> {
    name.as_str().parse().map_err(io::Error::other)
}
