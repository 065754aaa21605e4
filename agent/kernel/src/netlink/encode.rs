//! Requests, one function each: what `ip` and `bridge` would send.
//!
//! Devices go through rtnetlink's builders. Objects that come by the thousand, and nexthop objects, which those crates
//! lack, are written straight into the request.

use std::net::IpAddr;

use flatnet_core::object::{
    Datapath, Link, LinkAddress, LinkKind, NextHop, NexthopId, PROTOCOL, Route, RouteKey, RouteVia, VxlanLink,
};
use flatnet_model::{IfName, IpFamily, Mac, Mtu};
use ipnet::IpNet;
use netlink_packet_core::Emitable;
use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVxlan, LinkWireguard};

use super::gre;
use super::wire::Request;

/// Message types (linux/rtnetlink.h). `GET` is also the type of a dump request, and `NEW` that of its answers.
#[expect(missing_docs, reason = "the kernel's own names")]
pub mod rtm {
    pub const NEWLINK: u16 = 16;
    pub const DELLINK: u16 = 17;
    pub const GETLINK: u16 = 18;
    pub const NEWADDR: u16 = 20;
    pub const DELADDR: u16 = 21;
    pub const GETADDR: u16 = 22;
    pub const NEWROUTE: u16 = 24;
    pub const DELROUTE: u16 = 25;
    pub const GETROUTE: u16 = 26;
    pub const NEWNEIGH: u16 = 28;
    pub const DELNEIGH: u16 = 29;
    pub const GETNEIGH: u16 = 30;
    pub const NEWRULE: u16 = 32;
    pub const GETRULE: u16 = 34;
    pub const NEWNETCONF: u16 = 80;
    pub const NEWNEXTHOP: u16 = 104;
    pub const DELNEXTHOP: u16 = 105;
    pub const GETNEXTHOP: u16 = 106;
}

/// The state in which a request requires its object: already there, not there yet, or either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Makes the object, and refuses if it is there (`NLM_F_CREATE | NLM_F_EXCL`).
    New,
    /// Changes the object, and refuses if it is not there (`NLM_F_REPLACE`).
    Existing,
    /// Makes or changes the object (`NLM_F_CREATE | NLM_F_REPLACE`).
    Either,
}

impl Presence {
    /// Returns the `NLM_F_…` flags.
    pub(crate) fn flags(self) -> u16 {
        const REPLACE: u16 = 0x100;
        const EXCL: u16 = 0x200;
        const CREATE: u16 = 0x400;
        match self {
            Self::New => CREATE | EXCL,
            Self::Existing => REPLACE,
            Self::Either => CREATE | REPLACE,
        }
    }
}

/// Returns `AF_INET` or `AF_INET6` (linux/socket.h).
#[must_use]
pub const fn family(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 2,
        IpFamily::V6 => 10,
    }
}

/// `AF_BRIDGE`, the family of neighbours that are forwarding entries.
pub const AF_BRIDGE: u8 = 7;
/// `RT_TABLE_MAIN`.
pub const TABLE_MAIN: u8 = 254;
/// `RTN_UNICAST`.
pub const UNICAST: u8 = 1;
/// `RTPROT_RA`, the protocol of a route that a router advertisement brought.
pub const PROTOCOL_RA: u8 = 9;
/// `RTN_UNREACHABLE`.
pub const UNREACHABLE: u8 = 7;
/// `NUD_PERMANENT` (linux/neighbour.h).
pub const PERMANENT: u16 = 0x80;
/// `RTNH_F_ONLINK`.
pub const ONLINK: u32 = 4;

fn link(kind: u16, flags: u16, message: &LinkMessage) -> Request {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    Request::new(kind, flags, &bytes)
}

fn with_common<T>(builder: LinkMessageBuilder<T>, wanted: &Link) -> LinkMessageBuilder<T> {
    let builder = builder.mtu(wanted.mtu.get());
    match wanted.mac {
        Some(mac) => builder.address(mac.octets().to_vec()),
        None => builder,
    }
}

fn with_vxlan(builder: LinkMessageBuilder<LinkVxlan>, vxlan: &VxlanLink) -> LinkMessageBuilder<LinkVxlan> {
    let builder = builder.learning(false);
    match vxlan.local {
        IpAddr::V4(address) => builder.local(address),
        IpAddr::V6(address) => builder.local6(address),
    }
}

/// Makes the device, down, with the interface index `index`. `None`: the device is not made this way, but in user
/// space. We choose the index so that [`link_mark`], [`link_quiet`] and [`link_up`] can follow in the same `send()`. If
/// the creation is refused, there is no device of that index, and they cannot touch somebody else's of that name. And
/// no crash leaves a device without our mark.
#[must_use]
pub fn link_create(name: IfName, wanted: &Link, index: u32) -> Option<Request> {
    let message = match &wanted.kind {
        LinkKind::Vxlan(vxlan) => {
            let builder = LinkVxlan::new(name.as_str(), vxlan.vni.get()).port(vxlan.port);
            with_common(with_vxlan(builder, vxlan), wanted).index(index).build()
        }
        LinkKind::Bridge => {
            let made = Link { mtu: another_mtu(wanted.mtu), ..wanted.clone() };
            with_common(LinkBridge::new(name.as_str()), &made).index(index).build()
        }
        // A device that this process carries is made through /dev/net/tun, not here.
        LinkKind::Wireguard(_) => with_common(LinkWireguard::new(name.as_str()), wanted).index(index).build(),
        LinkKind::Gre(gre) if gre.datapath == Datapath::Kernel => return Some(gre::create(name, wanted, gre, index)),
        LinkKind::Gre6(Datapath::Kernel) => return Some(gre::create_v6(name, wanted, index)),
        LinkKind::Gre(_) | LinkKind::Gre6(Datapath::Userspace) => return None,
    };
    Some(link(rtm::NEWLINK, Presence::New.flags(), &message))
}

/// Returns the request that follows [`link_create`] before the device is up. A bridge has the MTU of what is plugged
/// into it until somebody *changes* its own (net/bridge/br_device.c: `br_change_mtu`). The MTU it is made with does not
/// count, nor does the one it has already.
#[must_use]
pub fn link_settle(index: u32, wanted: &Link) -> Option<Request> {
    (wanted.kind == LinkKind::Bridge).then(|| link_set(index, wanted, None))
}

/// Returns an MTU other than the wanted one. It is larger if possible, since below 1,280 a device has no IPv6.
fn another_mtu(wanted: Mtu) -> Mtu {
    Mtu::new(wanted.get() + 1).or_else(|_| wanted.less(1)).unwrap_or(wanted)
}

/// Asks for a WireGuard device of a name that no device can have. The kernel's answer tells whether it knows the kind,
/// and nothing is made. The request loads the module if there is one.
#[must_use]
pub fn link_probe_wireguard() -> Request {
    link(rtm::NEWLINK, Presence::New.flags(), &LinkWireguard::new("no/device").build())
}

/// Gives a device our alias followed by `word`, for kinds that others use too.
#[must_use]
pub fn link_mark_as(index: u32, word: &str) -> Request {
    link_mark(index, &format!("{} {word}", Link::ALIAS))
}

/// Gives the device an alias: ours, possibly with more. (Linux accepts an alias only for a device that exists.)
#[must_use]
pub fn link_mark(index: u32, alias: &str) -> Request {
    link(rtm::NEWLINK, 0, &LinkUnspec::new_with_index(index).alias(alias).build())
}

/// Turns off the IPv6 link-local address that the kernel would make, so that the device sends nothing by itself. The
/// kernel refuses this with `EAFNOSUPPORT` for a device that has no IPv6.
#[must_use]
pub fn link_quiet(index: u32) -> Request {
    let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let attribute = LinkAttribute::AfSpecUnspec(vec![mode]);
    link(rtm::NEWLINK, 0, &LinkUnspec::new_with_index(index).append_extra_attribute(attribute).build())
}

/// Brings the device up.
#[must_use]
pub fn link_up(index: u32) -> Request {
    link(rtm::NEWLINK, 0, &LinkUnspec::new_with_index(index).up().build())
}

/// Plugs the device `port` into `bridge`.
#[must_use]
pub fn link_plug(port: u32, bridge: u32) -> Request {
    link(rtm::NEWLINK, 0, &LinkUnspec::new_with_index(port).controller(bridge).build())
}

/// Brings the device down.
#[must_use]
pub fn link_down(index: u32) -> Request {
    link(rtm::NEWLINK, 0, &LinkUnspec::new_with_index(index).down().build())
}

/// Gives a device that exists the MTU of `wanted`, and its Ethernet address unless it is the `present` one: setting the
/// address, even to the same value, makes the kernel drop all the device's neighbours.
#[must_use]
pub fn link_set(index: u32, wanted: &Link, present: Option<[u8; 6]>) -> Request {
    let builder = LinkUnspec::new_with_index(index).mtu(wanted.mtu.get());
    let mac = wanted.mac.map(Mac::octets).filter(|mac| Some(*mac) != present);
    let message = match mac {
        Some(mac) => builder.address(mac.to_vec()).build(),
        None => builder.build(),
    };
    link(rtm::NEWLINK, 0, &message)
}

/// Gives a tunnel device that exists the underlay address of `wanted`, and turns learning off. This is apart from
/// [`link_set`], since the VXLAN driver refuses an MTU in the same request. Returns `None` for other kinds.
#[must_use]
pub fn link_remake(index: u32, name: IfName, wanted: &Link) -> Option<Request> {
    let vxlan = match &wanted.kind {
        LinkKind::Vxlan(vxlan) => vxlan,
        LinkKind::Gre(gre) if gre.datapath == Datapath::Kernel => return Some(gre::remake(index, wanted, gre)),
        LinkKind::Gre(_) | LinkKind::Gre6(_) | LinkKind::Wireguard(_) | LinkKind::Bridge => return None,
    };
    let builder = with_vxlan(LinkMessageBuilder::<LinkVxlan>::new(name.as_str()), vxlan);
    Some(link(rtm::NEWLINK, 0, &builder.index(index).build()))
}

/// Deletes the device.
#[must_use]
pub fn link_delete(index: u32) -> Request {
    link(rtm::DELLINK, 0, &LinkUnspec::new_with_index(index).build())
}

/// Asks for the device of that name.
#[must_use]
pub fn link_get(name: IfName) -> Request {
    link(rtm::GETLINK, 0, &LinkUnspec::new_with_name(name.as_str()).build())
}

/// Asks for the device of that index.
#[must_use]
pub fn link_get_index(index: u32) -> Request {
    link(rtm::GETLINK, 0, &LinkUnspec::new_with_index(index).build())
}

/// Asks for all devices.
#[must_use]
pub fn link_dump() -> Request {
    Request::new(rtm::GETLINK, 0, &[0; 16])
}

fn address(kind: u16, flags: u16, index: u32, address: IpNet) -> Request {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_FLAGS: u16 = 8;
    /// No duplicate address detection: the device's neighbours are all known, and the address can be used at once.
    const IFA_F_NODAD: u32 = 2;
    let mut fixed = [0; 8];
    fixed[0] = family(IpFamily::of(address.addr()));
    fixed[1] = address.prefix_len();
    fixed[4..].copy_from_slice(&index.to_ne_bytes());
    let request = Request::new(kind, flags, &fixed).with_address(IFA_LOCAL, address.addr());
    let request = request.with_address(IFA_ADDRESS, address.addr());
    if kind == rtm::NEWADDR && address.addr().is_ipv6() { request.with_u32(IFA_FLAGS, IFA_F_NODAD) } else { request }
}

/// Adds an address to a device.
#[must_use]
pub fn address_add(presence: Presence, index: u32, net: IpNet) -> Request {
    address(rtm::NEWADDR, presence.flags(), index, net)
}

/// Takes an address from a device.
#[must_use]
pub fn address_delete(index: u32, net: IpNet) -> Request {
    address(rtm::DELADDR, 0, index, net)
}

/// Asks for all addresses of both families.
#[must_use]
pub fn address_dump() -> Request {
    Request::new(rtm::GETADDR, 0, &[0; 8])
}

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_IFINDEX: u16 = 8;
const NDA_PROTOCOL: u16 = 12;

/// Writes a `struct ndmsg`.
fn neighbour_header(family: u8, index: u32, state: u16, flags: u8) -> [u8; 12] {
    let mut fixed = [0; 12];
    fixed[0] = family;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..10].copy_from_slice(&state.to_ne_bytes());
    fixed[10] = flags;
    fixed
}

/// Sets a permanent neighbour of ours. It replaces one that is there, since the kernel makes entries of its own as soon
/// as somebody asks for the address.
#[must_use]
pub fn neighbour_set(index: u32, address: IpAddr, link: LinkAddress) -> Request {
    let fixed = neighbour_header(family(IpFamily::of(address)), index, PERMANENT, 0);
    let request = Request::new(rtm::NEWNEIGH, Presence::Either.flags(), &fixed).with_address(NDA_DST, address);
    let request = match link {
        LinkAddress::Mac(mac) => request.with(NDA_LLADDR, &mac.octets()),
        LinkAddress::V4(address) => request.with(NDA_LLADDR, &address.octets()),
    };
    request.with(NDA_PROTOCOL, &[PROTOCOL])
}

/// Deletes a neighbour.
#[must_use]
pub fn neighbour_delete(index: u32, address: IpAddr) -> Request {
    let fixed = neighbour_header(family(IpFamily::of(address)), index, 0, 0);
    Request::new(rtm::DELNEIGH, 0, &fixed).with_address(NDA_DST, address)
}

/// Asks for the neighbours of a device, of both families, or with family [`AF_BRIDGE`] for its forwarding entries.
#[must_use]
pub fn neighbour_dump(family: u8, index: u32) -> Request {
    Request::new(rtm::GETNEIGH, 0, &neighbour_header(family, 0, 0, 0)).with_u32(NDA_IFINDEX, index)
}

/// `NTF_SELF`: an entry of the device itself, not of the bridge that it is a port of.
const NTF_SELF: u8 = 2;

/// Sets a permanent forwarding entry. If there is one for that Ethernet address, it gets the new destination without a
/// gap. (Linux keeps several destinations for group addresses only.)
#[must_use]
pub fn fdb_set(index: u32, mac: Mac, to: IpAddr) -> Request {
    let fixed = neighbour_header(AF_BRIDGE, index, PERMANENT, NTF_SELF);
    Request::new(rtm::NEWNEIGH, Presence::Either.flags(), &fixed)
        .with(NDA_LLADDR, &mac.octets())
        .with_address(NDA_DST, to)
}

/// Deletes a forwarding entry with all its destinations.
#[must_use]
pub fn fdb_delete(index: u32, mac: Mac) -> Request {
    let fixed = neighbour_header(AF_BRIDGE, index, PERMANENT, NTF_SELF);
    Request::new(rtm::DELNEIGH, 0, &fixed).with(NDA_LLADDR, &mac.octets())
}

const NHA_ID: u16 = 1;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;

/// Sets a nexthop object of ours. `index` is that of its device.
#[must_use]
pub fn nexthop_set(presence: Presence, id: NexthopId, hop: NextHop, index: u32) -> Request {
    let flags = if hop.onlink { ONLINK } else { 0 };
    let mut fixed = [0; 8];
    fixed[0] = family(IpFamily::of(hop.gateway));
    fixed[2] = PROTOCOL;
    fixed[4..].copy_from_slice(&flags.to_ne_bytes());
    Request::new(rtm::NEWNEXTHOP, presence.flags(), &fixed)
        .with_u32(NHA_ID, id.0)
        .with_u32(NHA_OIF, index)
        .with_address(NHA_GATEWAY, hop.gateway)
}

/// Deletes a nexthop object, and with it the routes through it.
#[must_use]
pub fn nexthop_delete(id: NexthopId) -> Request {
    Request::new(rtm::DELNEXTHOP, 0, &[0; 8]).with_u32(NHA_ID, id.0)
}

/// Asks for all nexthop objects.
#[must_use]
pub fn nexthop_dump() -> Request {
    Request::new(rtm::GETNEXTHOP, 0, &[0; 8])
}

const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;

/// `RT_SCOPE_UNIVERSE`: through a gateway.
const SCOPE_UNIVERSE: u8 = 0;
/// `RT_SCOPE_LINK`: to what the device itself reaches.
const SCOPE_LINK: u8 = 253;
/// `RT_SCOPE_NOWHERE`: in a deletion, any scope.
const SCOPE_NOWHERE: u8 = 255;

/// Writes a `struct rtmsg`; the table, whose number may need more than a byte, is an attribute.
fn route_header(key: RouteKey, scope: u8, kind: u8, flags: u32) -> [u8; 12] {
    let mut fixed = [0; 12];
    fixed[0] = family(IpFamily::of(key.destination.addr()));
    fixed[1] = key.destination.prefix_len();
    fixed[5] = PROTOCOL;
    fixed[6] = scope;
    fixed[7] = kind;
    fixed[8..].copy_from_slice(&flags.to_ne_bytes());
    fixed
}

fn with_key(request: Request, key: RouteKey) -> Request {
    let request = request.with_address(RTA_DST, key.destination.network()).with_u32(RTA_TABLE, key.table);
    if key.metric == 0 { request } else { request.with_u32(RTA_PRIORITY, key.metric) }
}

fn with_gateway(request: Request, key: RouteKey, gateway: IpAddr) -> Request {
    if gateway.is_unspecified() {
        request
    } else if gateway.is_ipv4() == key.destination.addr().is_ipv4() {
        request.with_address(RTA_GATEWAY, gateway)
    } else {
        // struct rtvia: the address's family, then the address.
        let mut via = u16::from(family(IpFamily::of(gateway))).to_ne_bytes().to_vec();
        match gateway {
            IpAddr::V4(address) => via.extend(address.octets()),
            IpAddr::V6(address) => via.extend(address.octets()),
        }
        request.with(RTA_VIA, &via)
    }
}

/// Sets a route of ours. For a route through a hop, `index` is that of the device.
#[must_use]
pub fn route_set(presence: Presence, key: RouteKey, route: &Route, index: Option<u32>) -> Request {
    let (scope, kind, flags) = match route.via {
        RouteVia::Hop(hop) => {
            let scope = if hop.gateway.is_unspecified() { SCOPE_LINK } else { SCOPE_UNIVERSE };
            (scope, UNICAST, if hop.onlink { ONLINK } else { 0 })
        }
        RouteVia::Encap(_) => (SCOPE_LINK, UNICAST, 0),
        RouteVia::Object(_) => (SCOPE_UNIVERSE, UNICAST, 0),
        RouteVia::Unreachable => (SCOPE_UNIVERSE, UNREACHABLE, 0),
    };
    let request = Request::new(rtm::NEWROUTE, presence.flags(), &route_header(key, scope, kind, flags));
    let request = with_key(request, key);
    let request = match route.via {
        RouteVia::Hop(hop) => {
            let request = with_gateway(request, key, hop.gateway);
            index.into_iter().fold(request, |request, index| request.with_u32(RTA_OIF, index))
        }
        RouteVia::Encap(encap) => {
            let request = gre::with_encap(request, &encap);
            index.into_iter().fold(request, |request, index| request.with_u32(RTA_OIF, index))
        }
        RouteVia::Object(id) => request.with_u32(RTA_NH_ID, id.0),
        RouteVia::Unreachable => request,
    };
    route.source.into_iter().fold(request, |request, source| request.with_address(RTA_PREFSRC, source))
}

/// Deletes a route of ours. The protocol and the route's action must match, so that neither somebody else's route goes
/// nor one of ours at another metric (the kernel reads an IPv4 metric of 0 as any).
#[must_use]
pub fn route_delete(key: RouteKey, route: &Route, index: Option<u32>) -> Request {
    let kind = match route.via {
        RouteVia::Object(_) => UNICAST,
        RouteVia::Hop(hop) if hop.gateway.is_unspecified() => 0,
        RouteVia::Hop(_) | RouteVia::Encap(_) => UNICAST,
        RouteVia::Unreachable => UNREACHABLE,
    };
    let request = with_key(Request::new(rtm::DELROUTE, 0, &route_header(key, SCOPE_NOWHERE, kind, 0)), key);
    match route.via {
        RouteVia::Object(id) => request.with_u32(RTA_NH_ID, id.0),
        RouteVia::Hop(hop) if hop.gateway.is_unspecified() => request,
        RouteVia::Hop(hop) => {
            let request = with_gateway(request, key, hop.gateway);
            index.into_iter().fold(request, |request, index| request.with_u32(RTA_OIF, index))
        }
        RouteVia::Encap(_) => index.into_iter().fold(request, |request, index| request.with_u32(RTA_OIF, index)),
        RouteVia::Unreachable => request,
    }
}

/// Asks for the routes of the main table, or of all tables.
#[must_use]
pub fn route_dump(of: IpFamily, table: Option<u8>) -> Request {
    let mut fixed = [0; 12];
    fixed[0] = family(of);
    fixed[4] = table.unwrap_or(0);
    Request::new(rtm::GETROUTE, 0, &fixed)
}

/// Asks which route packets from `from` to `to` take; `from` is an address and the index of the interface. The answer
/// is the route itself, with its table (`RTM_F_LOOKUP_TABLE | RTM_F_FIB_MATCH`).
#[must_use]
pub fn way_lookup(to: IpAddr, from: Option<(IpAddr, u32)>) -> Request {
    const RTM_F_LOOKUP_TABLE: u32 = 0x1000;
    const RTM_F_FIB_MATCH: u32 = 0x2000;
    let of = IpFamily::of(to);
    let mut fixed = [0; 12];
    fixed[0] = family(of);
    fixed[1] = of.bits();
    fixed[2] = if from.is_some() { of.bits() } else { 0 };
    // Over IPv6 the table is always named. A request for it is refused (net/ipv6/route.c:
    // `inet6_rtm_valid_getroute_req`), with the very error that a blackhole gives.
    let flags = match of {
        IpFamily::V4 => RTM_F_LOOKUP_TABLE | RTM_F_FIB_MATCH,
        IpFamily::V6 => RTM_F_FIB_MATCH,
    };
    fixed[8..].copy_from_slice(&flags.to_ne_bytes());
    let request = Request::new(rtm::GETROUTE, 0, &fixed).with_address(RTA_DST, to);
    match from {
        Some((source, index)) => request.with_address(RTA_SRC, source).with_u32(RTA_IIF, index),
        None => request,
    }
}

/// Asks for the routing rules.
#[must_use]
pub fn rule_dump(of: IpFamily) -> Request {
    let mut fixed = [0; 12];
    fixed[0] = family(of);
    Request::new(rtm::GETRULE, 0, &fixed)
}

/// Asks which way packets to `address` leave.
#[must_use]
pub fn route_lookup(address: IpAddr) -> Request {
    let of = IpFamily::of(address);
    let mut fixed = [0; 12];
    fixed[0] = family(of);
    fixed[1] = of.bits();
    Request::new(rtm::GETROUTE, 0, &fixed).with_address(RTA_DST, address)
}
