//! The peers of WireGuard devices.

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

/// The specification of a peer. On one device, an address is allowed to at most one peer: giving it to another peer
/// takes it from the one that had it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireguardPeer {
    /// The endpoint as it was configured. Once the peer's authenticated packets come from elsewhere (a router
    /// translates addresses), the device answers them there; that does not count as a change of this field.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between packets that keep an address translation (NAT) open; 0: none are sent.
    pub keepalive_secs: u16,
    /// A preshared secret in addition to the keys.
    pub psk: Option<PresharedKey>,
    /// The prefixes that the peer may send from and that packets are sent to it for, in order and without host bits.
    pub allowed: Vec<IpNet>,
}

/// Returns the name of the device that listens on `port`: `flatwg.<port>`, at most 12 characters. It is unique because
/// a host can use a port only once.
pub fn wireguard_device(port: u16) -> Result<IfName, flatnet_model::net::InvalidIfName> {
    IfName::new(&format!("flatwg.{port}"))
}
