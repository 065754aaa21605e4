//! The backends: the ways a network's packets travel between hosts.

use std::fmt;

use crate::net::{GreKey, Mac, Mtu, Vni};
use crate::wireguard::{WireguardConfig, WireguardKey};

/// The type named in a network's configuration and in every lease (flannel's `Backend.Type`, `BackendType`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackendKind {
    /// `vxlan`: RFC 7348 with permanent entries, learning off.
    Vxlan,
    /// `host-gw`: plain routes to peers on the same link.
    HostGw,
    /// `gre`: RFC 2784 / 2890.
    Gre,
    /// `wireguard`.
    Wireguard,
    /// Anything else, kept as it was written (bounded), to be named in a problem.
    Other(String),
}

impl BackendKind {
    /// Reads the store's spelling.
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        match name {
            "vxlan" => Self::Vxlan,
            "host-gw" => Self::HostGw,
            "gre" => Self::Gre,
            "wireguard" => Self::Wireguard,
            other => Self::Other(crate::text::excerpt(other)),
        }
    }

    /// Returns the store's spelling.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            Self::Gre => "gre",
            Self::Wireguard => "wireguard",
            Self::Other(name) => name,
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A network's `Backend` object, read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendConfig {
    /// VXLAN.
    Vxlan(VxlanConfig),
    /// Direct routes; no options.
    HostGw,
    /// WireGuard.
    Wireguard(WireguardConfig),
    /// GRE.
    Gre(GreConfig),
    /// A type this version does not build.
    Unsupported(BackendKind),
}

impl BackendConfig {
    /// Returns the type's name.
    #[must_use]
    pub fn kind(&self) -> BackendKind {
        match self {
            Self::Vxlan(_) => BackendKind::Vxlan,
            Self::HostGw => BackendKind::HostGw,
            Self::Wireguard(_) => BackendKind::Wireguard,
            Self::Gre(_) => BackendKind::Gre,
            Self::Unsupported(kind) => kind.clone(),
        }
    }

    /// Returns true if a node that publishes `kind` and `data` (over IPv4 and IPv6) is reached by this backend. Data
    /// without a VNI or key has the network's.
    #[must_use]
    pub fn reaches(&self, kind: &BackendKind, data: [&BackendData; 2]) -> bool {
        let fits = |data: &BackendData| match (data, self) {
            (BackendData::Vxlan { vni: Some(vni), .. }, Self::Vxlan(vxlan)) => *vni == vxlan.vni,
            (BackendData::Gre { key }, Self::Gre(gre)) => *key == gre.key,
            _ => true,
        };
        *kind == self.kind() && data.into_iter().all(fits)
    }

    /// Returns the VNI of its packets.
    #[must_use]
    pub fn vni(&self) -> Option<Vni> {
        if let Self::Vxlan(vxlan) = self { Some(vxlan.vni) } else { None }
    }

    /// Returns the GRE key of its packets, which may say that there is none.
    #[must_use]
    pub fn gre_key(&self) -> Option<GreKey> {
        if let Self::Gre(gre) = self { Some(gre.key) } else { None }
    }

    /// Returns true if one host can have both backends at once and peers can tell which is meant. Otherwise `new` takes
    /// this one's place: a changed MTU is set in the device, a changed VXLAN port replaces the device.
    fn stands_beside(&self, new: &Self) -> bool {
        match (self, new) {
            (Self::Vxlan(old), Self::Vxlan(new)) => old.vni != new.vni,
            (Self::Gre(old), Self::Gre(new)) => old.key != new.key,
            // One key at two ports would be one peer that keeps moving.
            (Self::Wireguard(_), Self::Wireguard(_)) => false,
            (Self::Unsupported(_), _) => false,
            _ => self.kind() != new.kind(),
        }
    }
}

/// A backend's part of a lease, for one underlay family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendData {
    /// Nothing published (host-gw, or no such underlay).
    None,
    /// flannel's vxlan data.
    Vxlan {
        /// The VNI the node receives on; absent in leases of old flannel releases.
        vni: Option<Vni>,
        /// `VtepMAC`.
        mac: Mac,
    },
    /// flannel's wireguard data.
    Wireguard {
        /// `PublicKey`.
        public_key: WireguardKey,
        /// `Port`: UDP port the node listens on; absent: that of the network's configuration.
        port: Option<u16>,
    },
    /// The gre backend's data.
    Gre {
        /// `Key`: the key of the packets the node receives.
        key: GreKey,
    },
}

impl BackendData {
    /// Returns the key for which packets to the node are encrypted.
    #[must_use]
    pub fn public_key(&self) -> Option<WireguardKey> {
        if let Self::Wireguard { public_key, .. } = self { Some(*public_key) } else { None }
    }
}

/// The most earlier backends a network or a lease may have: one change in progress, and two that a peer did not follow.
pub const EARLIER_BACKENDS: usize = 3;

/// Returns the earlier backends of a network after it changed from `old` to `new`, the latest first. `before` are the
/// earlier backends it had until then.
#[must_use]
pub fn earlier_backends(before: &[BackendConfig], old: &BackendConfig, new: &BackendConfig) -> Vec<BackendConfig> {
    let mut kept: Vec<BackendConfig> = Vec::new();
    for backend in std::iter::once(old).chain(before) {
        let is_news = backend.stands_beside(new) && kept.iter().all(|other| backend.stands_beside(other));
        if is_news && kept.len() < EARLIER_BACKENDS {
            kept.push(backend.clone());
        }
    }
    kept
}

/// Options of the gre backend; flannel has none of that name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GreConfig {
    /// `Key`: what tells one network's packets from another's; 0 and absent mean no key at all.
    pub key: GreKey,
    /// `MTU` of the tunnel device; `None`: the underlay's less the overhead.
    pub mtu: Option<Mtu>,
}

/// flannel's vxlan options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanConfig {
    /// `VNI`; flannel's default is 1.
    pub vni: Vni,
    /// `Port`: UDP destination port; 0 and absent mean [`VxlanConfig::DEFAULT_PORT`].
    pub port: u16,
    /// `MTU` of the tunnel device; `None`: the underlay's less the overhead.
    pub mtu: Option<Mtu>,
    /// `DirectRouting`: peers on the same link get plain routes.
    pub direct_routing: bool,
}

impl VxlanConfig {
    /// The Linux kernel's own default (drivers/net/vxlan: `vxlan_port`), which flannel uses; IANA's is 4789.
    pub const DEFAULT_PORT: u16 = 8472;
}

impl Default for VxlanConfig {
    fn default() -> Self {
        Self { vni: Vni::FLANNEL_DEFAULT, port: Self::DEFAULT_PORT, mtu: None, direct_routing: false }
    }
}
