//! Replies and notifications, read from bytes that may be anything. What cannot be read becomes `None` or stays at its
//! default; nothing here panics.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flatnet_model::GreKey;

use super::encode::{AF_BRIDGE, ONLINK};
use super::gre::{self, RawGre};
use super::wire::{attributes, read_address, read_text, read_u8, read_u16, read_u32};

/// A device (`struct ifinfomsg`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawLink {
    /// Interface index.
    pub index: u32,
    /// `IFF_…` flags.
    pub flags: u32,
    /// Name.
    pub name: String,
    /// Alias; empty if there is none.
    pub alias: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Link address.
    pub mac: Option<[u8; 6]>,
    /// Index of the bridge, bond or VRF that it is plugged into; `None`: it is in none.
    pub master: Option<u32>,
    /// True if it has a carrier; `None`: the kernel did not say.
    pub carrier: Option<bool>,
    /// Kind (`vxlan`, `bridge`); empty for hardware.
    pub kind: String,
    /// The specification of a device of kind `vxlan`.
    pub vxlan: Option<RawVxlan>,
    /// The specification of a device of kind `gre` or `ip6gre`.
    pub gre: Option<RawGre>,
}

impl RawLink {
    /// Returns true if `IFF_UP` is set.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.flags & 1 != 0
    }

    /// Returns true if `IFF_LOOPBACK` is set.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.flags & 8 != 0
    }
}

/// `IFLA_INFO_DATA` of a VXLAN device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawVxlan {
    /// Network identifier.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Underlay source address.
    pub local: Option<IpAddr>,
    /// True if it learns.
    pub learning: bool,
}

/// Reads a device.
#[must_use]
pub fn link(payload: &[u8]) -> Option<RawLink> {
    let mut link = RawLink { index: read_u32(payload, 4)?, flags: read_u32(payload, 8)?, ..RawLink::default() };
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            1 => link.mac = <[u8; 6]>::try_from(value).ok(),
            3 => link.name = read_text(value),
            4 => link.mtu = read_u32(value, 0).unwrap_or_default(),
            10 => link.master = read_u32(value, 0),
            18 => link_info(value, &mut link),
            20 => link.alias = read_text(value),
            33 => link.carrier = read_u8(value, 0).map(|carrier| carrier != 0),
            _ => {}
        }
    }
    Some(link)
}

/// Reads `IFLA_LINKINFO`, in which the kind comes before the data.
fn link_info(bytes: &[u8], link: &mut RawLink) {
    for (kind, value) in attributes(bytes) {
        match kind {
            1 => link.kind = read_text(value),
            2 if link.kind == "vxlan" => link.vxlan = Some(vxlan(value)),
            2 if link.kind == "gre" || link.kind == "ip6gre" => link.gre = Some(gre::read_device(value)),
            _ => {}
        }
    }
}

fn vxlan(bytes: &[u8]) -> RawVxlan {
    let mut vxlan = RawVxlan::default();
    for (kind, value) in attributes(bytes) {
        match kind {
            1 => vxlan.vni = read_u32(value, 0).unwrap_or_default(),
            4 | 17 => vxlan.local = read_address(value),
            7 => vxlan.learning = read_u8(value, 0).is_some_and(|learning| learning != 0),
            15 => vxlan.port = value.first_chunk().copied().map(u16::from_be_bytes).unwrap_or_default(),
            _ => {}
        }
    }
    vxlan
}

/// An address (`struct ifaddrmsg`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawAddress {
    /// Interface index.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Prefix length.
    pub prefix: u8,
    /// `IFA_F_…` flags.
    pub flags: u32,
    /// The maker of the address (`IFAPROT_…`, Linux 5.18): 0 is unknown, 1 to 3 are the kernel.
    pub protocol: u8,
}

impl RawAddress {
    /// Returns true if nobody should be told of the address: it is tentative, failed duplicate detection, is
    /// deprecated, or is temporary (RFC 8981).
    #[must_use]
    pub fn is_passing(&self) -> bool {
        // IFA_F_TEMPORARY is the same bit as IFA_F_SECONDARY, which is IPv4's.
        let temporary = self.address.is_ipv6() && self.flags & 0x01 != 0;
        temporary || self.flags & (0x40 | 0x20 | 0x08) != 0
    }

    /// Returns true if the address is alone in its prefix (/32 or /128).
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.prefix == if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// Returns true if the kernel made the address: loopback, router advertisement, link-local (linux/if_addr.h).
    #[must_use]
    pub fn is_kernel_made(&self) -> bool {
        (1..=3).contains(&self.protocol)
    }
}

/// Reads an address.
#[must_use]
pub fn address(payload: &[u8]) -> Option<RawAddress> {
    let prefix = read_u8(payload, 1)?;
    let mut flags = u32::from(read_u8(payload, 2)?);
    let index = read_u32(payload, 4)?;
    let (mut any, mut local, mut protocol) = (None, None, 0);
    for (kind, value) in attributes(payload.get(8..)?) {
        match kind {
            // On a point-to-point device, IFA_ADDRESS is the other end's address and IFA_LOCAL ours.
            1 => any = read_address(value),
            2 => local = read_address(value),
            8 => flags = read_u32(value, 0).unwrap_or(flags),
            11 => protocol = read_u8(value, 0).unwrap_or_default(),
            _ => {}
        }
    }
    Some(RawAddress { index, address: local.or(any)?, prefix, flags, protocol })
}

/// A neighbour or forwarding entry (`struct ndmsg`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawNeighbour {
    /// Address family; `AF_BRIDGE` for a forwarding entry.
    pub family: u8,
    /// Interface index.
    pub index: u32,
    /// `NUD_…` state.
    pub state: u16,
    /// `NTF_…` flags.
    pub flags: u8,
    /// The neighbour's address; for a forwarding entry, the underlay address.
    pub address: Option<IpAddr>,
    /// Link address.
    pub mac: Option<[u8; 6]>,
    /// Link address of a neighbour on a GRE device: the address at which the tunnel ends.
    pub tunnel_end: Option<Ipv4Addr>,
    /// The protocol number of the entry's maker.
    pub protocol: u8,
}

impl RawNeighbour {
    /// Returns true if it is a forwarding entry.
    #[must_use]
    pub fn is_fdb(&self) -> bool {
        self.family == AF_BRIDGE
    }

    /// Returns true for `NUD_PERMANENT` or `NUD_NOARP` (bridge's "static"), which somebody set rather than the kernel
    /// learnt.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.state & (0x80 | 0x40) != 0
    }
}

/// Reads a neighbour or forwarding entry.
#[must_use]
pub fn neighbour(payload: &[u8]) -> Option<RawNeighbour> {
    let mut neighbour = RawNeighbour {
        family: read_u8(payload, 0)?,
        index: read_u32(payload, 4)?,
        state: read_u16(payload, 8)?,
        flags: read_u8(payload, 10)?,
        address: None,
        mac: None,
        tunnel_end: None,
        protocol: 0,
    };
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            1 => neighbour.address = read_address(value),
            2 => {
                neighbour.mac = <[u8; 6]>::try_from(value).ok();
                neighbour.tunnel_end = <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from);
            }
            12 => neighbour.protocol = read_u8(value, 0).unwrap_or_default(),
            _ => {}
        }
    }
    Some(neighbour)
}

/// A nexthop object (`struct nhmsg`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawNexthop {
    /// Its id.
    pub id: u32,
    /// The protocol number of the object's maker.
    pub protocol: u8,
    /// True if the gateway is taken to be on the link.
    pub onlink: bool,
    /// Interface index; `None` for a group or blackhole.
    pub index: Option<u32>,
    /// Gateway.
    pub gateway: Option<IpAddr>,
}

/// Reads a nexthop object.
#[must_use]
pub fn nexthop(payload: &[u8]) -> Option<RawNexthop> {
    let protocol = read_u8(payload, 2)?;
    let onlink = read_u32(payload, 4)? & ONLINK != 0;
    let (mut id, mut index, mut gateway) = (None, None, None);
    for (kind, value) in attributes(payload.get(8..)?) {
        match kind {
            1 => id = read_u32(value, 0),
            5 => index = read_u32(value, 0),
            6 => gateway = read_address(value),
            _ => {}
        }
    }
    Some(RawNexthop { id: id?, protocol, onlink, index, gateway })
}

/// A route (`struct rtmsg`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRoute {
    /// Destination; the unspecified address of its family for a default route.
    pub destination: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// Type of service.
    pub tos: u8,
    /// Table.
    pub table: u32,
    /// The protocol number of the route's maker.
    pub protocol: u8,
    /// `RTN_…` type.
    pub kind: u8,
    /// Metric.
    pub metric: u32,
    /// Interface index; for a multipath route, the first one's.
    pub index: Option<u32>,
    /// Gateway.
    pub gateway: Option<IpAddr>,
    /// True if the gateway is taken to be on the link.
    pub onlink: bool,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Id of the nexthop object.
    pub nexthop: Option<u32>,
    /// MTU of the route itself, in bytes.
    pub mtu: Option<u32>,
    /// True if it is a cached copy rather than a route (`RTM_F_CLONED`).
    pub cloned: bool,
    /// True if it has several next hops.
    pub multipath: bool,
    /// The ends of the tunnel that its packets travel in: source, remote, key.
    pub encap: Option<(IpAddr, IpAddr, GreKey)>,
}

/// A routing rule (`struct fib_rule_hdr`, linux/fib_rules.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRule {
    /// Priority; lower rules come first.
    pub priority: u32,
    /// The table it leads to; 0 if none.
    pub table: u32,
}

/// Reads a routing rule.
#[must_use]
pub fn rule(payload: &[u8]) -> Option<RawRule> {
    let mut rule = RawRule { priority: 0, table: u32::from(read_u8(payload, 4)?) };
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            6 => rule.priority = read_u32(value, 0)?,
            15 => rule.table = read_u32(value, 0)?,
            _ => {}
        }
    }
    Some(rule)
}

/// Reads a route of IPv4 or IPv6.
#[must_use]
pub fn route(payload: &[u8]) -> Option<RawRoute> {
    const RTM_F_CLONED: u32 = 0x200;
    let unspecified = match read_u8(payload, 0)? {
        2 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        10 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let flags = read_u32(payload, 8)?;
    let mut route = RawRoute {
        destination: unspecified,
        prefix: read_u8(payload, 1)?,
        tos: read_u8(payload, 3)?,
        table: u32::from(read_u8(payload, 4)?),
        protocol: read_u8(payload, 5)?,
        kind: read_u8(payload, 7)?,
        metric: 0,
        index: None,
        gateway: None,
        onlink: flags & ONLINK != 0,
        source: None,
        nexthop: None,
        mtu: None,
        cloned: flags & RTM_F_CLONED != 0,
        multipath: false,
        encap: None,
    };
    let (mut encap_type, mut encap): (Option<u16>, &[u8]) = (None, &[]);
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            1 => route.destination = read_address(value)?,
            4 => route.index = read_u32(value, 0),
            5 => route.gateway = read_address(value),
            6 => route.metric = read_u32(value, 0)?,
            7 => route.source = read_address(value),
            8 => route.mtu = attributes(value).find(|(metric, _)| *metric == 2).and_then(|(_, mtu)| read_u32(mtu, 0)),
            9 => {
                route.multipath = true;
                // struct rtnexthop: length, flags, hops, interface index.
                route.index = route.index.or(read_u32(value, 4));
            }
            15 => route.table = read_u32(value, 0)?,
            18 => route.gateway = value.get(2..).and_then(read_address),
            gre::RTA_ENCAP_TYPE => encap_type = gre::read_encap_type(value),
            gre::RTA_ENCAP => encap = value,
            30 => route.nexthop = read_u32(value, 0),
            _ => {}
        }
    }
    route.encap = encap_type.and_then(|kind| gre::read_encap(kind, encap));
    Some(route)
}
