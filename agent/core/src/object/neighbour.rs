//! Neighbour (ARP, ND) and forwarding database entries: which peer answers at which link address. They are always
//! permanent.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use flatnet_model::{IfName, Mac};

/// A neighbour of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NeighbourKey {
    /// The device.
    pub device: IfName,
    /// The neighbour's overlay address.
    pub address: IpAddr,
}

/// A neighbour's address on its device's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkAddress {
    /// An Ethernet address.
    Mac(Mac),
    /// For a multipoint GRE device: the underlay address at which the tunnel ends.
    V4(Ipv4Addr),
}

impl From<Mac> for LinkAddress {
    fn from(mac: Mac) -> Self {
        Self::Mac(mac)
    }
}

impl fmt::Display for LinkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => mac.fmt(f),
            Self::V4(address) => address.fmt(f),
        }
    }
}

/// A forwarding entry (`NTF_SELF`) of one VXLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdbKey {
    /// The device.
    pub device: IfName,
    /// The Ethernet address that is reached through the tunnel.
    pub mac: Mac,
}
