//! Devices.

use std::net::IpAddr;

use flatnet_model::{IpFamily, Mac, Mtu, Vni};

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

impl Link {
    /// Whether the kernel can turn `self` into `wanted` without making the device anew.
    #[must_use]
    pub fn can_become(&self, wanted: &Self) -> bool {
        match (&self.kind, &wanted.kind) {
            (LinkKind::Bridge, LinkKind::Bridge) => true,
            (LinkKind::Vxlan(a), LinkKind::Vxlan(b)) => {
                a.vni == b.vni && a.port == b.port && IpFamily::of(a.local) == IpFamily::of(b.local)
            }
            (LinkKind::Bridge, LinkKind::Vxlan(_)) | (LinkKind::Vxlan(_), LinkKind::Bridge) => false,
        }
    }
}
