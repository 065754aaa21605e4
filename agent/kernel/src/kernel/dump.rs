//! Dumps of the kernel's objects: ours, and those that are in the way.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::IpAddr;

use flatnet_core::object::{
    AddressKey, Dump, Encap, FdbKey, Foreign, KernelState, Link, LinkAddress, LinkKind, NeighbourKey, NextHop, Nexthop,
    NexthopId, PROTOCOL, Route, RouteKey, RouteVia,
};
use flatnet_model::{IfName, IpFamily, Mac};
use ipnet::IpNet;

use super::links;
use super::ports::Ports;
use crate::netlink::encode::{self, rtm};
use crate::netlink::parse::{self, RawLink, RawRoute};
use crate::netlink::socket::Channel;
use crate::userspace::Userspace;
use crate::{KernelError, Scope, sysctl};

/// The most routes of others that are remembered. A router with a full table has a million, and a conflict there also
/// shows when the kernel refuses ours.
const MAX_FOREIGN_ROUTES: usize = 65_536;

/// Dumps everything but the firewall.
pub(super) fn dump(
    channel: &mut Channel,
    userspace: &mut Userspace,
    ports: &mut Ports,
    scope: &Scope,
) -> Result<Dump, KernelError> {
    let mut dump = Dump::default();
    let links = links::all(channel).map_err(of("links"))?;
    let devices = Devices::new(&links);
    read_links(&links, scope, &mut dump);
    ports.look(&links, &mut dump);
    addresses(channel, &devices, &mut dump.state).map_err(of("addresses"))?;
    for (&index, &device) in &devices.ours {
        neighbours(channel, index, device, &mut dump.state).map_err(of("neighbours"))?;
    }
    let tunnels: Vec<IfName> =
        dump.state.links.iter().filter(|(_, link)| is_vxlan(link)).map(|(name, _)| *name).collect();
    for (&index, &device) in devices.ours.iter().filter(|(_, device)| tunnels.contains(device)) {
        fdb(channel, index, device, &mut dump.state).map_err(of("forwarding entries"))?;
    }
    nexthops(channel, &devices, &mut dump).map_err(of("nexthops"))?;
    for family in IpFamily::BOTH {
        routes(channel, family, &devices, &mut dump).map_err(of("routes"))?;
    }
    userspace.look(&mut dump.state, |name| devices.index(name));
    read_sysctls(scope, &mut dump.state).map_err(of("settings"))?;
    Ok(dump)
}

fn of(what: &'static str) -> impl Fn(io::Error) -> KernelError {
    move |source| KernelError { what, source }
}

fn is_vxlan(link: &Link) -> bool {
    matches!(link.kind, LinkKind::Vxlan(_))
}

/// Device names by interface index.
struct Devices {
    all: HashMap<u32, IfName>,
    ours: BTreeMap<u32, IfName>,
}

impl Devices {
    fn new(links: &[RawLink]) -> Self {
        let named = |link: &RawLink| Some((link.index, IfName::new(&link.name).ok()?));
        Self {
            all: links.iter().filter_map(named).collect(),
            ours: links.iter().filter(|link| links::is_ours(link)).filter_map(named).collect(),
        }
    }

    fn index(&self, name: IfName) -> Option<u32> {
        self.ours.iter().find(|(_, ours)| **ours == name).map(|(index, _)| *index)
    }

    fn name(&self, index: Option<u32>) -> Option<IfName> {
        self.all.get(&index?).copied()
    }
}

fn read_links(links: &[RawLink], scope: &Scope, dump: &mut Dump) {
    let wanted: HashSet<IfName> = scope.links.iter().copied().collect();
    for raw in links {
        let Ok(name) = IfName::new(&raw.name) else { continue };
        match links::read(raw).filter(|_| links::is_ours(raw)) {
            Some(link) => {
                dump.state.links.insert(name, link);
            }
            None if wanted.contains(&name) => {
                dump.foreign.links.insert(name, links::describe(raw));
            }
            None => {}
        }
    }
}

fn addresses(channel: &mut Channel, devices: &Devices, into: &mut KernelState) -> io::Result<()> {
    for raw in all_addresses(channel)? {
        let Some(&device) = devices.ours.get(&raw.index) else { continue };
        if is_link_local(raw.address) || raw.is_kernel_made() {
            continue;
        }
        if let Ok(address) = IpNet::new(raw.address, raw.prefix) {
            into.addresses.insert(AddressKey { device, address });
        }
    }
    Ok(())
}

/// Returns every address of every device.
pub(super) fn all_addresses(channel: &mut Channel) -> io::Result<Vec<parse::RawAddress>> {
    channel.dump(
        &encode::address_dump(),
        |addresses: &mut Vec<_>, kind, payload| {
            if kind == rtm::NEWADDR {
                addresses.extend(parse::address(payload));
            }
        },
        Vec::new,
    )
}

/// Returns true for addresses in `fe80::/10` or `169.254.0.0/16`.
pub(super) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn neighbours(channel: &mut Channel, index: u32, device: IfName, into: &mut KernelState) -> io::Result<()> {
    let found = absent_is_empty(channel.dump(
        &encode::neighbour_dump(0, index),
        |found: &mut Vec<_>, kind, payload| {
            if kind != rtm::NEWNEIGH {
                return;
            }
            let Some(raw) = parse::neighbour(payload).filter(|raw| raw.index == index && !raw.is_fdb()) else { return };
            let link = raw.mac.map(|mac| Mac::new(mac).into()).or(raw.tunnel_end.map(LinkAddress::V4));
            if let (Some(address), Some(link), PROTOCOL, true) = (raw.address, link, raw.protocol, raw.is_set()) {
                found.push((NeighbourKey { device, address }, link));
            }
        },
        Vec::new,
    ))?;
    into.neighbours.extend(found);
    Ok(())
}

fn fdb(channel: &mut Channel, index: u32, device: IfName, into: &mut KernelState) -> io::Result<()> {
    let found = absent_is_empty(channel.dump(
        &encode::neighbour_dump(encode::AF_BRIDGE, index),
        |found: &mut BTreeMap<FdbKey, IpAddr>, kind, payload| {
            if kind != rtm::NEWNEIGH {
                return;
            }
            let Some(raw) = parse::neighbour(payload).filter(|raw| raw.index == index && raw.is_set()) else { return };
            let (Some(mac), Some(to)) = (raw.mac, raw.address) else { return };
            found.insert(FdbKey { device, mac: Mac::new(mac) }, to);
        },
        BTreeMap::new,
    ))?;
    into.fdb.extend(found);
    Ok(())
}

/// Reads a failure as empty if the device went away, or the table was never used (`ENOENT`), since neither has anything
/// in it.
fn absent_is_empty<T: Default>(found: io::Result<T>) -> io::Result<T> {
    match found {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => Ok(T::default()),
        other => other,
    }
}

fn nexthops(channel: &mut Channel, devices: &Devices, dump: &mut Dump) -> io::Result<()> {
    let read = channel.dump(
        &encode::nexthop_dump(),
        |found: &mut Vec<_>, kind, payload| {
            if kind == rtm::NEWNEXTHOP {
                found.extend(parse::nexthop(payload));
            }
        },
        Vec::new,
    );
    let found = match read {
        // Linux before 5.3.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(()),
        other => other?,
    };
    for raw in found {
        let id = NexthopId(raw.id);
        let device = devices.name(raw.index);
        match (raw.gateway, device) {
            (Some(gateway), Some(device)) if raw.protocol == PROTOCOL => {
                dump.state.nexthops.insert(id, Nexthop { via: NextHop { gateway, device, onlink: raw.onlink } });
            }
            _ => {
                dump.foreign.nexthops.insert(id);
            }
        }
    }
    Ok(())
}

fn routes(channel: &mut Channel, family: IpFamily, devices: &Devices, dump: &mut Dump) -> io::Result<()> {
    let read = channel.dump(
        &encode::route_dump(family),
        |(ours, foreign): &mut (BTreeMap<RouteKey, Route>, Foreign), kind, payload| {
            if kind != rtm::NEWROUTE {
                return;
            }
            let Some((key, raw)) = parse::route(payload).and_then(|raw| Some((key(&raw)?, raw))) else { return };
            if raw.protocol == PROTOCOL {
                ours.extend(route(&raw, devices).map(|route| (key, route)));
            } else if foreign.routes.len() < MAX_FOREIGN_ROUTES {
                foreign.routes.insert(key);
            }
        },
        Default::default,
    );
    let (ours, foreign) = match read {
        // No IPv6 here.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(()),
        other => absent_is_empty(other)?,
    };
    dump.state.routes.extend(ours);
    dump.foreign.routes.extend(foreign.routes);
    Ok(())
}

/// Returns a route's key; `None`: it is not in the main table, or differs from others by more than we set.
fn key(raw: &RawRoute) -> Option<RouteKey> {
    let ours = raw.table == u32::from(encode::TABLE_MAIN) && raw.tos == 0 && !raw.cloned;
    let destination = IpNet::new(raw.destination, raw.prefix).ok().filter(|_| ours)?.trunc();
    Some(RouteKey { destination, metric: raw.metric })
}

fn route(raw: &RawRoute, devices: &Devices) -> Option<Route> {
    let via = match (raw.kind, raw.nexthop, raw.gateway, devices.name(raw.index)) {
        (encode::UNICAST, None, None, Some(device)) if raw.encap.is_some() && !raw.multipath => {
            let (source, remote, key) = raw.encap?;
            RouteVia::Encap(Encap { device, source, remote, key })
        }
        (encode::UNREACHABLE, ..) => RouteVia::Unreachable,
        (encode::UNICAST, Some(id), ..) => RouteVia::Object(NexthopId(id)),
        (encode::UNICAST, None, Some(gateway), Some(device)) if !raw.multipath => {
            RouteVia::Hop(NextHop { gateway, device, onlink: raw.onlink })
        }
        // A route with our number that we would never make. It is reported as one by a hop that nobody wants, so that
        // it is replaced or deleted.
        (_, _, _, device) => RouteVia::Hop(NextHop {
            gateway: if raw.destination.is_ipv4() { [0; 4].into() } else { [0; 16].into() },
            device: device.or_else(|| IfName::new("lo").ok())?,
            onlink: false,
        }),
    };
    Some(Route { via, source: raw.source })
}

fn read_sysctls(scope: &Scope, into: &mut KernelState) -> io::Result<()> {
    for setting in &scope.sysctls {
        if let Some(value) = sysctl::read(setting)? {
            into.sysctls.insert(setting.clone(), value);
        }
    }
    Ok(())
}
