//! Who is spoken to through a WireGuard device.

use std::net::SocketAddr;

use flatnet_model::{IfName, PresharedKey, WireguardKey};
use ipnet::IpNet;

/// A peer of one WireGuard device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireguardPeerKey {
    /// The device.
    pub device: IfName,
    /// The peer's public key.
    pub public_key: WireguardKey,
}

/// What is set about a peer. On one device every address is allowed to one peer at most: giving it to another takes it from
/// the one that had it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireguardPeer {
    /// Where it was said to be. Once its authenticated packets come from elsewhere (a router translates addresses), they are
    /// answered there, which is no change of this.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between packets that keep a translation open; 0: none.
    pub keepalive_secs: u16,
    /// A secret beside the keys.
    pub psk: Option<PresharedKey>,
    /// What it may send from, and what is sent to it; in order, no host bits.
    pub allowed: Vec<IpNet>,
}

/// The name of the device that listens on `port`: `flatwg.<port>`, at most 12 characters. The port is what is one of its kind on
/// a host.
pub fn wireguard_device(port: u16) -> Result<IfName, flatnet_model::net::InvalidIfName> {
    IfName::new(&format!("flatwg.{port}"))
}
