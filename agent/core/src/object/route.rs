//! Routes and nexthop objects.

use std::fmt;
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
    /// Returns the id for the peer whose subnet begins at `address`.
    #[must_use]
    pub fn of_subnet(address: Ipv4Addr) -> Self {
        Self(address.to_bits())
    }
}

/// The next hop of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The next hop's address.
    pub gateway: IpAddr,
    /// The device that the next hop is behind.
    pub device: IfName,
    /// True to treat the gateway as being on the device's link though no route says so (`RTNH_F_ONLINK`).
    pub onlink: bool,
}

/// A nexthop object (`RTM_NEWNEXTHOP`), for IPv4 only. The kernel hashes nexthop objects by id, whereas inserting
/// routes with distinct IPv4 gateways on one device takes time quadratic in their number. For IPv6, plain routes are
/// faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Nexthop {
    /// The next hop to which packets are sent.
    pub via: NextHop,
}

/// The key by which the kernel tells routes of one table apart (the main table; type of service 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Destination, without host bits.
    pub destination: IpNet,
    /// Metric (`RTA_PRIORITY`); lower wins. The kernel reads 0 as 1024 for IPv6, so IPv6 routes never have 0 here.
    pub metric: u32,
    /// The table, as `ip route` numbers them.
    pub table: u32,
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.table {
            Self::MAIN => write!(f, "{}", self.destination),
            table => write!(f, "{} table {table}", self.destination),
        }
    }
}

impl RouteKey {
    /// The main table (`RT_TABLE_MAIN`).
    pub const MAIN: u32 = 254;

    /// The further tables that are ours to use: numbers that no distribution and no other program we know of gives out
    /// (iproute2's rt_tables has 0 and 253 to 255, Tailscale 52, kube-router 77 and 78, Cilium 200 and 2004 to 2006).
    pub const TABLES: std::ops::RangeInclusive<u32> = 9_100..=9_199;

    /// Returns the same route in another table.
    #[must_use]
    pub fn in_table(self, table: u32) -> Self {
        Self { table, ..self }
    }

    /// Returns the key of a route to a peer. Its metric is the one `ip route add` gives when none is named, for each
    /// family.
    #[must_use]
    pub fn to_peer(destination: IpNet) -> Self {
        Self { destination, metric: if destination.addr().is_ipv4() { 0 } else { 1024 }, table: Self::MAIN }
    }

    /// Returns the key of the route that catches packets to addresses no peer has. The longest prefix wins before the
    /// metric is looked at, and a metric this large never wins against a route of the same destination that somebody
    /// else made.
    #[must_use]
    pub fn unreachable(destination: IpNet) -> Self {
        Self { destination, metric: Self::LAST_METRIC, table: Self::MAIN }
    }

    /// Returns the key of a route to a peer that another route already reaches. This one stays behind the other; `rank`
    /// tells several apart.
    #[must_use]
    pub fn behind(destination: IpNet, rank: u8) -> Self {
        Self { destination, metric: Self::LAST_METRIC - 1 - u32::from(rank), table: Self::MAIN }
    }

    /// The metric of routes that come last: larger than any in common use (DHCP clients use 100 to 600, IPv6 router
    /// advertisements 1024), and below the kernel's own 0xffffffff.
    pub const LAST_METRIC: u32 = 91_000;
}

/// A route of ours in the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The action on a packet.
    pub via: RouteVia,
    /// Source address of packets this host sends on it (`RTA_PREFSRC`).
    pub source: Option<IpAddr>,
}

/// The tunnel that a route's packets travel in. The route's device adds the outer header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Encap {
    /// The tunnel device.
    pub device: IfName,
    /// Outer source address.
    pub source: IpAddr,
    /// Outer destination address, of the same family.
    pub remote: IpAddr,
    /// The GRE key by which the tunnel's packets are told from others.
    pub key: GreKey,
}

impl RouteVia {
    /// Returns the device packets leave through, where the route itself names it.
    #[must_use]
    pub fn device(&self) -> Option<IfName> {
        match self {
            Self::Hop(hop) => Some(hop.device),
            Self::Encap(encap) => Some(encap.device),
            Self::Object(_) | Self::Unreachable => None,
        }
    }
}

/// The action that a route takes on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteVia {
    /// Sends the packet through a nexthop object.
    Object(NexthopId),
    /// Sends the packet to a next hop.
    Hop(NextHop),
    /// Sends the packet to a device together with the tunnel's ends (`encap ip`, `encap ip6`), for devices that serve
    /// all peers without neighbours.
    Encap(Encap),
    /// Refuses the packet with "host unreachable" (`RTN_UNREACHABLE`).
    Unreachable,
}
