//! GRE devices and routes with tunnel ends, which the netlink crates do not build. The requests are those that `ip link
//! … type gre` and `ip route … encap ip` send.

use std::net::{IpAddr, Ipv4Addr};

use flatnet_core::object::{Encap, GreLink, Link};
use flatnet_model::{GreKey, IfName, IpFamily};

use super::encode::{Presence, rtm};
use super::wire::{Request, align, attributes, read_address, read_u8, read_u16};

/// `IFLA_…` attributes of a device (linux/if_link.h).
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;

/// `IFLA_GRE_…` attributes (linux/if_tunnel.h).
const IFLAGS: u16 = 2;
const OFLAGS: u16 = 3;
const IKEY: u16 = 4;
const OKEY: u16 = 5;
const LOCAL: u16 = 6;
const REMOTE: u16 = 7;
const TTL: u16 = 8;
const PMTUDISC: u16 = 10;
const FLAGS: u16 = 13;
const COLLECT_METADATA: u16 = 18;

/// `GRE_KEY` as it stands on the wire.
const KEY_FLAG: [u8; 2] = 0x2000_u16.to_be_bytes();
/// `IP6_TNL_F_IGN_ENCAP_LIMIT`: no option header, which would take 8 bytes more (RFC 2473 §4.1.1).
const NO_ENCAP_LIMIT: u32 = 1;
/// Hop limit of the outer packets: the Internet's usual one (RFC 1700). The inner packet's is not used, so that a
/// tunnel is one hop.
pub const HOPS: u8 = 64;

/// `RTA_ENCAP_TYPE`, `RTA_ENCAP` (linux/rtnetlink.h) and `LWTUNNEL_ENCAP_IP…` (linux/lwtunnel.h).
pub const RTA_ENCAP_TYPE: u16 = 21;
/// See [`RTA_ENCAP_TYPE`].
pub const RTA_ENCAP: u16 = 22;
const ENCAP_IP: u16 = 2;
const ENCAP_IP6: u16 = 4;
/// `LWTUNNEL_IP_…` attributes; those of IPv6 have the same numbers.
const ENCAP_ID: u16 = 1;
const ENCAP_DST: u16 = 2;
const ENCAP_SRC: u16 = 3;
const ENCAP_TTL: u16 = 4;
const ENCAP_FLAGS: u16 = 6;
/// `TUNNEL_KEY` (linux/if_tunnel.h), big endian: the id is sent as the key.
const TUNNEL_KEY: [u8; 2] = 0x04_u16.to_be_bytes();

/// Makes the multipoint device of one network, down.
#[must_use]
pub fn create(name: IfName, link: &Link, gre: &GreLink, index: u32) -> Request {
    device(Presence::New, index, "gre", &multipoint(gre))
        .with(IFLA_IFNAME, &terminated(name))
        .with_u32(IFLA_MTU, link.mtu.get())
}

/// Gives such a device its underlay address. The request includes the MTU: without one, the driver computes its own.
#[must_use]
pub fn remake(index: u32, link: &Link, gre: &GreLink) -> Request {
    device(Presence::Existing, index, "gre", &multipoint(gre)).with_u32(IFLA_MTU, link.mtu.get())
}

/// Makes the one device over IPv6 that all networks share, down.
#[must_use]
pub fn create_v6(name: IfName, link: &Link, index: u32) -> Request {
    let data = Attributes::default().with(COLLECT_METADATA, &[]).with(TTL, &[HOPS]);
    device(Presence::New, index, "ip6gre", &data.with(FLAGS, &NO_ENCAP_LIMIT.to_ne_bytes()))
        .with(IFLA_IFNAME, &terminated(name))
        .with_u32(IFLA_MTU, link.mtu.get())
}

/// Asks for a device of that kind that no kernel makes, because it is of another version of GRE (net/ipv4/ip_gre.c:
/// `ipgre_tunnel_validate`).
#[must_use]
pub fn impossible(family: IpFamily) -> Request {
    /// `GRE_VERSION`, the lowest of its bits, as it stands on the wire.
    const VERSION: [u8; 2] = 1_u16.to_be_bytes();
    let kind = if family == IpFamily::V4 { "gre" } else { "ip6gre" };
    device(Presence::New, 0, kind, &Attributes::default().with(IFLAGS, &VERSION))
}

fn multipoint(gre: &GreLink) -> Attributes {
    let data = Attributes::default().with(LOCAL, &gre.local.octets()).with(TTL, &[HOPS]).with(PMTUDISC, &[1]);
    if gre.key.is_none() {
        return data;
    }
    let key = gre.key.get().to_be_bytes();
    data.with(IFLAGS, &KEY_FLAG).with(OFLAGS, &KEY_FLAG).with(IKEY, &key).with(OKEY, &key)
}

fn device(presence: Presence, index: u32, kind: &str, data: &Attributes) -> Request {
    // struct ifinfomsg: family, padding, type, then the index.
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    let flags = if presence == Presence::Existing { 0 } else { presence.flags() };
    let info = Attributes::default().with(INFO_KIND, kind.as_bytes()).with(INFO_DATA, &data.0);
    Request::new(rtm::NEWLINK, flags, &fixed).with(IFLA_LINKINFO, &info.0)
}

fn terminated(name: IfName) -> Vec<u8> {
    name.as_str().bytes().chain([0]).collect()
}

/// Attributes that go into another attribute.
#[derive(Debug, Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    /// Adds an attribute. Values here are a few bytes long.
    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(align(self.0.len()), 0);
        self
    }

    fn with_address(self, kind: u16, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.with(kind, &address.octets()),
            IpAddr::V6(address) => self.with(kind, &address.octets()),
        }
    }
}

/// Adds the tunnel's ends to `route`.
#[must_use]
pub fn with_encap(route: Request, encap: &Encap) -> Request {
    let kind = if encap.remote.is_ipv4() { ENCAP_IP } else { ENCAP_IP6 };
    let mut ends = Attributes::default()
        .with(ENCAP_ID, &u64::from(encap.key.get()).to_be_bytes())
        .with_address(ENCAP_DST, encap.remote)
        .with_address(ENCAP_SRC, encap.source)
        .with(ENCAP_TTL, &[HOPS]);
    if !encap.key.is_none() {
        ends = ends.with(ENCAP_FLAGS, &TUNNEL_KEY);
    }
    route.with(RTA_ENCAP_TYPE, &kind.to_ne_bytes()).with(RTA_ENCAP, &ends.0)
}

/// The specification of a device of kind `gre` or `ip6gre`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawGre {
    /// The key it receives under; `None`: no key.
    pub in_key: Option<u32>,
    /// The key it sends under; `None`: no key.
    pub out_key: Option<u32>,
    /// Its end of the tunnel.
    pub local: Option<IpAddr>,
    /// The other end; `None`: there are many.
    pub remote: Option<IpAddr>,
    /// True if routes name the ends (`external`).
    pub external: bool,
}

/// Reads `IFLA_INFO_DATA`.
#[must_use]
pub fn read_device(data: &[u8]) -> RawGre {
    let (mut gre, mut in_flags, mut out_flags) = (RawGre::default(), [0; 2], [0; 2]);
    let address = |value: &[u8]| read_address(value).filter(|address| !address.is_unspecified());
    for (kind, value) in attributes(data) {
        match kind {
            IFLAGS => in_flags = value.first_chunk().copied().unwrap_or_default(),
            OFLAGS => out_flags = value.first_chunk().copied().unwrap_or_default(),
            IKEY => gre.in_key = value.first_chunk().copied().map(u32::from_be_bytes),
            OKEY => gre.out_key = value.first_chunk().copied().map(u32::from_be_bytes),
            LOCAL => gre.local = address(value),
            REMOTE => gre.remote = address(value),
            COLLECT_METADATA => gre.external = true,
            _ => {}
        }
    }
    let keyed = |flags: [u8; 2]| flags[0] & KEY_FLAG[0] != 0;
    gre.in_key = gre.in_key.filter(|_| keyed(in_flags));
    gre.out_key = gre.out_key.filter(|_| keyed(out_flags));
    gre
}

impl RawGre {
    /// Returns its key and our end, if it is the multipoint device of one network.
    #[must_use]
    pub fn multipoint(&self) -> Option<(GreKey, Ipv4Addr)> {
        let key = (self.in_key == self.out_key).then(|| GreKey::new(self.in_key.unwrap_or_default()))?;
        match (self.local, self.remote, self.external) {
            (Some(IpAddr::V4(local)), None, false) => Some((key, local)),
            _ => None,
        }
    }
}

/// Reads the ends in a route's `RTA_ENCAP`: source, remote, key. `None`: it is another kind of encapsulation, or ends
/// are missing.
#[must_use]
pub fn read_encap(kind: u16, bytes: &[u8]) -> Option<(IpAddr, IpAddr, GreKey)> {
    let (mut source, mut remote, mut id, mut keyed) = (None, None, 0, false);
    for (attribute, value) in attributes(bytes) {
        match attribute {
            ENCAP_ID => id = value.first_chunk().copied().map(u64::from_be_bytes)?,
            ENCAP_DST => remote = read_address(value),
            ENCAP_SRC => source = read_address(value),
            ENCAP_FLAGS => keyed = read_u8(value, 1)? & TUNNEL_KEY[1] != 0,
            _ => {}
        }
    }
    let fits = |address: &IpAddr| match kind {
        ENCAP_IP => address.is_ipv4(),
        ENCAP_IP6 => address.is_ipv6(),
        _ => false,
    };
    let key = if keyed { GreKey::new(u32::try_from(id).ok()?) } else { GreKey::NONE };
    Some((source.filter(fits)?, remote.filter(fits)?, key))
}

/// Reads a route's `RTA_ENCAP_TYPE`.
#[must_use]
pub fn read_encap_type(value: &[u8]) -> Option<u16> {
    read_u16(value, 0)
}
