//! Devices.

use std::net::{IpAddr, Ipv4Addr};

use flatnet_model::{GreKey, IpFamily, Mac, Mtu, Vni, WireguardKey};

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
    /// A GRE tunnel device over IPv4: one multipoint device, which finds peers by its neighbours; served in user space,
    /// by `encap` routes.
    Gre(GreLink),
    /// The GRE tunnel device over IPv6, for all networks: a multipoint device of that family does not transmit, so it is
    /// an `external` one, of which there is one in a network namespace. It finds peers and keys by `encap` routes.
    Gre6(Datapath),
    /// A bridge for containers.
    Bridge,
}

/// Who carries a tunnel's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Datapath {
    /// The kernel's own device.
    Kernel,
    /// This program, behind a TUN device: for kernels that lack the module.
    Userspace,
}

impl Datapath {
    /// For people and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

/// What a GRE device over IPv4 is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GreLink {
    /// What it sends and receives under; never changed on a device.
    pub key: GreKey,
    /// Our underlay address: outer source of what we send, and where we receive.
    pub local: Ipv4Addr,
    /// Who carries its packets; never changed on a device.
    pub datapath: Datapath,
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

impl LinkKind {
    /// Whether packets of other hosts come out of it, which only the guard can judge, or are to leave by it or not at all.
    #[must_use]
    pub fn is_tunnel(&self) -> bool {
        match self {
            Self::Vxlan(_) | Self::Wireguard(_) | Self::Gre(_) | Self::Gre6(_) => true,
            Self::Bridge => false,
        }
    }

    /// Who carries its packets.
    #[must_use]
    pub fn datapath(&self) -> Datapath {
        match self {
            Self::Gre(gre) => gre.datapath,
            Self::Wireguard(wireguard) => wireguard.datapath,
            Self::Gre6(datapath) => *datapath,
            Self::Vxlan(_) | Self::Bridge => Datapath::Kernel,
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
            (LinkKind::Gre(a), LinkKind::Gre(b)) => a.key == b.key && a.datapath == b.datapath,
            (LinkKind::Gre6(a), LinkKind::Gre6(b)) => a == b,
            (
                LinkKind::Bridge | LinkKind::Vxlan(_) | LinkKind::Wireguard(_) | LinkKind::Gre(_) | LinkKind::Gre6(_),
                _,
            ) => false,
        }
    }
}
