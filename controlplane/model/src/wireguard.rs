//! WireGuard's keys and options as the store has them (<https://www.wireguard.com/protocol/>, flannel's `wireguard`
//! backend).

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::net::{IpFamily, Mtu};

/// A public key: a point on Curve25519, 32 bytes, written as `wg` does (44 characters of base64). No value of this
/// crate has the private half.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireguardKey([u8; 32]);

/// Text that is not 32 bytes in base64, or a key nobody can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a WireGuard key (32 bytes in base64, 44 characters)")]
pub struct InvalidWireguardKey;

impl WireguardKey {
    /// Makes a key from its bytes. All zeros is no point of use to anybody: every exchange with it ends in zeros (RFC
    /// 7748 §6.1).
    pub fn new(bytes: [u8; 32]) -> Result<Self, InvalidWireguardKey> {
        if bytes == [0; 32] { Err(InvalidWireguardKey) } else { Ok(Self(bytes)) }
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn bytes(self) -> [u8; 32] {
        self.0
    }
}

impl FromStr for WireguardKey {
    type Err = InvalidWireguardKey;

    fn from_str(text: &str) -> Result<Self, InvalidWireguardKey> {
        decode(text).and_then(Self::new)
    }
}

impl fmt::Display for WireguardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for WireguardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A secret all nodes of a network share on top of their keys (`PSK`). Nothing prints it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PresharedKey([u8; 32]);

impl PresharedKey {
    /// Makes a key from its bytes; all zeros is WireGuard's "none".
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Option<Self> {
        (bytes != [0; 32]).then_some(Self(bytes))
    }

    /// Returns the bytes, to program the key into a device.
    #[must_use]
    pub const fn bytes(self) -> [u8; 32] {
        self.0
    }

    /// Returns the key as it is written in the store. For the store only.
    #[must_use]
    pub fn to_base64(self) -> String {
        STANDARD.encode(self.0)
    }
}

impl FromStr for PresharedKey {
    type Err = InvalidWireguardKey;

    fn from_str(text: &str) -> Result<Self, InvalidWireguardKey> {
        decode(text).and_then(|bytes| Self::new(bytes).ok_or(InvalidWireguardKey))
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

fn decode(text: &str) -> Result<[u8; 32], InvalidWireguardKey> {
    // 32 bytes are 44 characters with their padding; what is longer is not decoded at all.
    if text.len() != 44 {
        return Err(InvalidWireguardKey);
    }
    let bytes = STANDARD.decode(text).map_err(|_| InvalidWireguardKey)?;
    bytes.try_into().map_err(|_| InvalidWireguardKey)
}

/// The choice of tunnels: which family each carries, and over which underlay (flannel's `Mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WireguardMode {
    /// A tunnel for each family of the network, over an underlay of that family.
    #[default]
    Separate,
    /// One tunnel for both families; each peer over IPv4 if it has that, else over IPv6.
    Auto,
    /// One tunnel for both families over IPv4.
    Ipv4,
    /// One tunnel for both families over IPv6.
    Ipv6,
}

impl WireguardMode {
    /// Returns flannel's word for the mode.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Separate => "separate",
            Self::Auto => "auto",
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }

    /// Reads flannel's word for the mode.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Separate, Self::Auto, Self::Ipv4, Self::Ipv6].into_iter().find(|mode| mode.as_str() == name)
    }
}

/// flannel's wireguard options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireguardConfig {
    /// `ListenPort`: UDP port of the tunnel over IPv4, and of the only one where there is one.
    pub port: u16,
    /// `ListenPortV6`: UDP port of the tunnel over IPv6 in [`WireguardMode::Separate`].
    pub port_v6: u16,
    /// `MTU` of the tunnel devices; `None`: the underlay's less the overhead.
    pub mtu: Option<Mtu>,
    /// `PersistentKeepaliveInterval`, in seconds; 0: none.
    pub keepalive_secs: u16,
    /// `Mode`.
    pub mode: WireguardMode,
    /// `PSK`.
    pub psk: Option<PresharedKey>,
}

impl WireguardConfig {
    /// flannel's default, and everybody's since WireGuard's own examples.
    pub const DEFAULT_PORT: u16 = 51820;
    /// flannel's default.
    pub const DEFAULT_PORT_V6: u16 = 51821;

    /// Returns the port of the tunnel that carries `family`.
    #[must_use]
    pub fn port_of(&self, family: IpFamily) -> u16 {
        match (self.mode, family) {
            (WireguardMode::Separate, IpFamily::V6) => self.port_v6,
            _ => self.port,
        }
    }
}

impl Default for WireguardConfig {
    fn default() -> Self {
        Self {
            port: Self::DEFAULT_PORT,
            port_v6: Self::DEFAULT_PORT_V6,
            mtu: None,
            keepalive_secs: 0,
            mode: WireguardMode::default(),
            psk: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_as_it_was_written_and_nothing_else_is_one() {
        let text = "DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk8=";
        assert_eq!(text.parse::<WireguardKey>().unwrap().to_string(), text);
        for bad in [
            "",
            "DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk8",
            "DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk==",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "!D5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk8=",
        ] {
            assert!(bad.parse::<WireguardKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_shared_secret_is_never_printed() {
        let psk: PresharedKey = "DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk8=".parse().unwrap();
        let config = WireguardConfig { psk: Some(psk), ..WireguardConfig::default() };
        assert!(!format!("{config:?}").contains("DD5y"), "{config:?}");
        assert_eq!(psk.to_base64(), "DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk8=");
    }
}
