//! Routes and nexthop objects.

use std::net::{IpAddr, Ipv4Addr};

use flatnet_model::{GreKey, IfName};
use ipnet::IpNet;

/// A nexthop object's id.
///
/// It is the first address of the peer's IPv4 subnet as a number, so that it is the same on every host, after every
/// restart, and unique: subnets do not overlap. (Other programs count up from 1.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NexthopId(pub u32);

impl NexthopId {
    /// The id for the peer whose subnet begins at `address`.
    #[must_use]
    pub fn of_subnet(address: Ipv4Addr) -> Self {
        Self(address.to_bits())
    }
}

/// Where a packet goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The next hop's address.
    pub gateway: IpAddr,
    /// The device it is behind.
    pub device: IfName,
    /// `RTNH_F_ONLINK`: take the gateway to be on the device's link though no route says so.
    pub onlink: bool,
}

/// A nexthop object (`RTM_NEWNEXTHOP`), IPv4 only: the kernel hashes them by id, whereas inserting routes with distinct
/// IPv4 gateways on one device is quadratic in their number. For IPv6 plain routes are the faster way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Nexthop {
    /// Where packets go.
    pub via: NextHop,
}

/// What the kernel tells routes of one table apart by (the main table; type of service 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Destination, no host bits.
    pub destination: IpNet,
    /// Metric (`RTA_PRIORITY`); lower wins. The kernel reads 0 as 1024 for IPv6, so IPv6 routes never have 0 here.
    pub metric: u32,
}

impl RouteKey {
    /// Metric of routes to peers: what `ip route add` gives when none is named, for each family.
    #[must_use]
    pub fn to_peer(destination: IpNet) -> Self {
        Self { destination, metric: if destination.addr().is_ipv4() { 0 } else { 1024 } }
    }

    /// The route that catches what no peer has: the longest prefix wins before the metric is looked at, and a metric this
    /// large never wins against a route of the same destination that somebody else made.
    #[must_use]
    pub fn unreachable(destination: IpNet) -> Self {
        Self { destination, metric: Self::LAST_METRIC }
    }

    /// A route to a peer that is reached by another one, and stays behind that; `rank` tells several apart.
    #[must_use]
    pub fn behind(destination: IpNet, rank: u8) -> Self {
        Self { destination, metric: Self::LAST_METRIC - 1 - u32::from(rank) }
    }

    /// Larger than any metric in common use (DHCP clients use 100 to 600, IPv6 router advertisements 1024), below the
    /// kernel's own 0xffffffff.
    pub const LAST_METRIC: u32 = 91_000;
}

/// A route of ours in the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// What it does with a packet.
    pub via: RouteVia,
    /// Source address of packets this host sends on it (`RTA_PREFSRC`).
    pub source: Option<IpAddr>,
}

/// The tunnel a route's packets travel in, put round them by the route's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Encap {
    /// The tunnel device.
    pub device: IfName,
    /// Outer source.
    pub source: IpAddr,
    /// Outer destination, of the same family.
    pub remote: IpAddr,
    /// What tells the tunnel's packets from those of others.
    pub key: GreKey,
}

impl RouteVia {
    /// The device packets leave through, where the route itself names it.
    #[must_use]
    pub fn device(&self) -> Option<IfName> {
        match self {
            Self::Hop(hop) => Some(hop.device),
            Self::Encap(encap) => Some(encap.device),
            Self::Object(_) | Self::Unreachable => None,
        }
    }
}

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteVia {
    /// Sends it through a nexthop object.
    Object(NexthopId),
    /// Sends it to a next hop.
    Hop(NextHop),
    /// Sends it to a device with the tunnel's ends (`encap ip`, `encap ip6`), for devices that serve all peers without
    /// neighbours.
    Encap(Encap),
    /// Refuses it with "host unreachable" (`RTN_UNREACHABLE`).
    Unreachable,
}
