//! Devices.

use std::net::{IpAddr, Ipv4Addr};

use flatnet_model::{GreKey, IpFamily, Mac, Mtu, Vni, WireguardKey};

/// A device of ours. Our devices are told from others by their alias (`IFLA_IFALIAS`), which begins with
/// [`Link::ALIAS`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kind of device, with what is particular to it.
    pub kind: LinkKind,
    /// MTU in bytes.
    pub mtu: Mtu,
    /// Ethernet address; `None`: the one that the kernel gave it.
    pub mac: Option<Mac>,
    /// True if the device is administratively up.
    pub up: bool,
}

impl Link {
    /// The alias of every device of ours.
    pub const ALIAS: &'static str = "flatnet";
}

/// The kinds of device that we make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A VXLAN tunnel device.
    Vxlan(VxlanLink),
    /// A WireGuard tunnel device.
    Wireguard(WireguardLink),
    /// A GRE tunnel device over IPv4: one multipoint device, which finds peers by its neighbours. If it is served in
    /// user space, it finds them by `encap` routes.
    Gre(GreLink),
    /// The GRE tunnel device over IPv6, for all networks. A multipoint device of that family does not transmit, so this
    /// is an `external` one; a network namespace has only one of those. It finds peers and keys by `encap` routes.
    Gre6(Datapath),
    /// A bridge for containers.
    Bridge,
}

/// The carrier of a tunnel's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Datapath {
    /// The kernel's own device.
    Kernel,
    /// This program, behind a TUN device: for kernels that lack the module.
    Userspace,
}

impl Datapath {
    /// Returns the name for people and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

/// The specification of a GRE device over IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GreLink {
    /// The GRE key that it sends and receives under; never changed on a device.
    pub key: GreKey,
    /// Our underlay address: the outer source of packets we send, and the address at which we receive.
    pub local: Ipv4Addr,
    /// The carrier of its packets; never changed on a device.
    pub datapath: Datapath,
}

/// The specification of a VXLAN device. Learning is always off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanLink {
    /// Network identifier; cannot be changed on a device.
    pub vni: Vni,
    /// UDP destination port; cannot be changed on a device.
    pub port: u16,
    /// Our underlay address: the outer source of packets we send. Its family cannot be changed on a device.
    pub local: IpAddr,
}

/// The specification of a WireGuard device. The private key is not in it: the code that programs the device looks it up
/// by the public one, so that no plan, log or dump can show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireguardLink {
    /// UDP port it listens on.
    pub port: u16,
    /// The public half of its key; `None`: the device has no key, so it neither sends nor receives.
    pub public_key: Option<WireguardKey>,
    /// The carrier of its packets, which encrypts them; cannot be changed on a device.
    pub datapath: Datapath,
}

impl LinkKind {
    /// Returns true for tunnels. Packets of other hosts come out of them, which only the guard can judge, or packets
    /// must leave by them or not at all.
    #[must_use]
    pub fn is_tunnel(&self) -> bool {
        match self {
            Self::Vxlan(_) | Self::Wireguard(_) | Self::Gre(_) | Self::Gre6(_) => true,
            Self::Bridge => false,
        }
    }

    /// Returns the carrier of its packets.
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
    /// Returns true if the kernel can turn `self` into `wanted` without making the device anew.
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
