//! Who answers at which link address: neighbour (ARP, ND) and forwarding database entries, always permanent.

use std::net::IpAddr;

use flatnet_model::{IfName, Mac};

/// A neighbour of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NeighbourKey {
    /// The device.
    pub device: IfName,
    /// The neighbour's overlay address.
    pub address: IpAddr,
}

/// A forwarding entry (`NTF_SELF`) of one VXLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdbKey {
    /// The device.
    pub device: IfName,
    /// The Ethernet address that is reached through the tunnel.
    pub mac: Mac,
}
