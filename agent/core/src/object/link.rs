//! Devices.

use std::net::IpAddr;

use flatnet_model::{IpFamily, Mac, Mtu, Vni, WireguardKey};

/// A device of ours. Ours are told from others by their alias (`IFLA_IFALIAS`), which begins with [`Link::ALIAS`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// What it is.
    pub kind: LinkKind,
    /// MTU in bytes.
    pub mtu: Mtu,
    /// Ethernet address; `None`: whatever the kernel gave it.
    pub mac: Option<Mac>,
    /// Administratively up.
    pub up: bool,
}

impl Link {
    /// The alias of every device of ours.
    pub const ALIAS: &'static str = "flatnet";
}

/// The kinds of device we make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A VXLAN tunnel device.
    Vxlan(VxlanLink),
    /// A WireGuard tunnel device.
    Wireguard(WireguardLink),
    /// A bridge for containers.
    Bridge,
}

/// What a VXLAN device is made of; learning is always off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanLink {
    /// Network identifier; cannot be changed on a device.
    pub vni: Vni,
    /// UDP destination port; cannot be changed on a device.
    pub port: u16,
    /// Our underlay address: outer source of what we send. Its family cannot be changed on a device.
    pub local: IpAddr,
}

/// What a WireGuard device is made of. Its private key is not here: whoever programs the device looks it up by the public
/// one, so that no plan, log or dump can show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireguardLink {
    /// UDP port it listens on.
    pub port: u16,
    /// The public half of its key; `None`: it has none, so it neither sends nor receives.
    pub public_key: Option<WireguardKey>,
    /// Who encrypts; cannot be changed on a device.
    pub datapath: Datapath,
}

/// Who carries the packets of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Datapath {
    /// The kernel.
    Kernel,
    /// This process, through a TUN device: where the kernel lacks the module.
    Userspace,
}

impl Datapath {
    /// For JSON and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

impl Link {
    /// Whether the kernel can turn `self` into `wanted` without making the device anew.
    #[must_use]
    pub fn can_become(&self, wanted: &Self) -> bool {
        match (&self.kind, &wanted.kind) {
            (LinkKind::Bridge, LinkKind::Bridge) => true,
            (LinkKind::Vxlan(a), LinkKind::Vxlan(b)) => {
                a.vni == b.vni && a.port == b.port && IpFamily::of(a.local) == IpFamily::of(b.local)
            }
            (LinkKind::Wireguard(a), LinkKind::Wireguard(b)) => a.datapath == b.datapath,
            (LinkKind::Bridge | LinkKind::Vxlan(_) | LinkKind::Wireguard(_), _) => false,
        }
    }
}
