//! Reads the facts about the host.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;

use flatnet_core::facts::{Destination, Features, HostFacts, Interface, RouteTo};
use flatnet_core::object::{PROTOCOL, Sysctl};
use flatnet_model::{HostRanges, IfName, IpFamily, Mtu};
use ipnet::IpNet;

use super::{carriers, links};
use crate::netlink::encode::{self, rtm};
use crate::netlink::parse::{self, RawAddress, RawLink, RawRoute};
use crate::netlink::socket::Channel;
use crate::{KernelError, resolvers, sysctl};

/// `RTN_LOCAL`: the address is this host's own.
const LOCAL: u8 = 2;

/// The most destinations that are kept of each family. A host has tens; a router's whole table says nothing that its
/// first part does not.
const DESTINATIONS: usize = 4096;

/// Reads the facts that rtnetlink and settings tell.
pub(super) fn facts(channel: &mut Channel, route_to: &[IpAddr]) -> Result<HostFacts, KernelError> {
    let raw = links::all(channel).map_err(of("links"))?;
    let names: HashMap<u32, IfName> =
        raw.iter().filter_map(|link| Some((link.index, IfName::new(&link.name).ok()?))).collect();
    let (interfaces, passing) = interfaces(channel, &raw).map_err(of("addresses"))?;
    let (mut default_route, mut destinations, mut learnt, mut gateways) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for family in IpFamily::BOTH {
        let found = routes(channel, family).map_err(of("routes"))?;
        default_route.extend(found.default_device(&names).map(|device| (family, device)));
        destinations.extend(found.destinations(&names));
        learnt.extend(found.learnt(&names));
        gateways.extend(found.gateways);
    }
    Ok(HostFacts {
        accept_ra: accept_ra(&interfaces, &learnt),
        uplinks: uplinks(&interfaces, &raw),
        interfaces,
        passing,
        routes: route_to.iter().map(|&address| (address, lookup(channel, address, &names))).collect(),
        default_route,
        gateways,
        destinations,
        resolvers: resolvers::read(),
        dropping_chains: BTreeSet::new(),
        features: Features { nexthop_objects: has_nexthops(channel), ipv6: sysctl::has_ipv6(), ..Features::default() },
    })
}

fn of(what: &'static str) -> impl Fn(io::Error) -> KernelError {
    move |source| KernelError { what, source }
}

fn interfaces(channel: &mut Channel, links: &[RawLink]) -> io::Result<(Vec<Interface>, BTreeSet<IpAddr>)> {
    let mut addresses: HashMap<u32, Vec<RawAddress>> = HashMap::new();
    let mut passing = BTreeSet::new();
    for address in carriers::all_addresses(channel)? {
        if !carriers::is_link_local(address.address) {
            passing.extend(address.is_passing().then_some(address.address));
            addresses.entry(address.index).or_default().push(address);
        }
    }
    let interface = |link: &RawLink| {
        let mut found = addresses.remove(&link.index).unwrap_or_default();
        found.sort_by_key(|address| (address.is_passing(), address.is_alone()));
        Some(Interface {
            name: IfName::new(&link.name).ok()?,
            up: link.is_up() && link.carrier != Some(false),
            loopback: link.is_loopback(),
            mtu: mtu(link.mtu),
            addresses: found.iter().filter_map(|raw| IpNet::new(raw.address, raw.prefix).ok()).collect(),
            ours: links::is_ours(link),
        })
    };
    Ok((links.iter().filter_map(interface).collect(), passing))
}

/// Returns the interfaces with addresses that lead to other machines. A network card's link has no kind; every device
/// made by software has one.
fn uplinks(interfaces: &[Interface], links: &[RawLink]) -> BTreeSet<IfName> {
    const KINDS: [&str; 4] = ["", "bond", "team", "vlan"];
    let leads_out = |name: &IfName| {
        links
            .iter()
            .any(|link| link.name == name.as_str() && KINDS.contains(&link.kind.as_str()) && !link.is_loopback())
    };
    let own = interfaces.iter().filter(|interface| !interface.ours && !interface.addresses.is_empty());
    own.map(|interface| interface.name).filter(leads_out).collect()
}

/// Converts an MTU. One that is larger than an IP packet can be is as good as the largest: the loopback's is 65,536.
fn mtu(bytes: u32) -> Option<Mtu> {
    Mtu::new(bytes.min(Mtu::MAX)).ok()
}

/// Looks up the route to `address`; `None`: the kernel has no way there, or a route that refuses.
fn lookup(channel: &mut Channel, address: IpAddr, names: &HashMap<u32, IfName>) -> Option<RouteTo> {
    let found = channel.get(&encode::route_lookup(address), |kind, payload| {
        (kind == rtm::NEWROUTE).then(|| parse::route(payload)).flatten()
    });
    let raw = match found {
        Ok(found) => found?,
        Err(refusal) => {
            tracing::debug!(%address, error = %refusal, "no route");
            return None;
        }
    };
    let usable = raw.kind == encode::UNICAST || raw.kind == LOCAL;
    let device = names.get(&raw.index?).copied().filter(|_| usable)?;
    Some(RouteTo { device, source: raw.source, mtu: raw.mtu.and_then(mtu) })
}

/// Routes of the main table that lead somewhere.
#[derive(Default)]
struct Routes {
    default: Vec<RawRoute>,
    /// Next hops of default routes, and of routes that stand for a default route.
    gateways: Vec<IpAddr>,
    /// All other routes that are not ours, at most [`DESTINATIONS`], as destination and interface.
    others: Vec<(IpNet, Option<u32>)>,
}

impl Routes {
    fn add(&mut self, route: RawRoute) {
        if route.kind != encode::UNICAST || route.table != u32::from(encode::TABLE_MAIN) || route.cloned {
            return;
        }
        let net = IpNet::new(route.destination, route.prefix).ok();
        if net.is_some_and(|net| HostRanges::is_default(&net)) {
            self.gateways.extend(route.gateway);
        }
        if route.prefix == 0 {
            self.default.push(route);
        } else if route.protocol != PROTOCOL && self.others.len() < DESTINATIONS {
            self.others.extend(IpNet::new(route.destination, route.prefix).ok().map(|net| (net, route.index)));
        }
    }

    /// Returns the device of the default route with the lowest metric.
    fn default_device(&self, names: &HashMap<u32, IfName>) -> Option<IfName> {
        let usable = self.default.iter().filter_map(|route| Some((route.metric, names.get(&route.index?).copied()?)));
        usable.min_by_key(|(metric, _)| *metric).map(|(_, device)| device)
    }

    /// Returns the devices of default routes that router advertisements brought.
    fn learnt(&self, names: &HashMap<u32, IfName>) -> Vec<IfName> {
        let learnt = self.default.iter().filter(|route| route.protocol == encode::PROTOCOL_RA);
        learnt.filter_map(|route| names.get(&route.index?).copied()).collect()
    }

    fn destinations(&self, names: &HashMap<u32, IfName>) -> impl Iterator<Item = Destination> {
        let device = |index: &Option<u32>| index.and_then(|index| names.get(&index).copied());
        self.others.iter().map(move |(net, index)| Destination { net: *net, device: device(index) })
    }
}

fn routes(channel: &mut Channel, family: IpFamily) -> io::Result<Routes> {
    let read = channel.dump(
        &encode::route_dump(family, Some(encode::TABLE_MAIN)),
        |found: &mut Routes, kind, payload| {
            if let Some(route) = (kind == rtm::NEWROUTE).then(|| parse::route(payload)).flatten() {
                found.add(route);
            }
        },
        Routes::default,
    );
    match read {
        // No IPv6, or a table that was never used.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOENT)) => Ok(Routes::default()),
        other => other,
    }
}

/// Returns true if the kernel has nexthop objects. This is found by trying: a kernel without them does not know the
/// request.
fn has_nexthops(channel: &mut Channel) -> bool {
    channel.dump(&encode::nexthop_dump(), |(), _, _| {}, || ()).is_ok()
}

fn accept_ra(interfaces: &[Interface], learnt: &[IfName]) -> Vec<Sysctl> {
    let forwards = sysctl::read(&Sysctl::new(Sysctl::FORWARD_IPV6)).ok().flatten();
    if forwards.as_deref() != Some("0") {
        return Vec::new();
    }
    let candidates = interfaces.iter().filter(|interface| !interface.loopback && !interface.ours);
    let heard = candidates.filter(|interface| learnt.contains(&interface.name));
    let settings = heard.map(|interface| Sysctl::accept_ra(interface.name));
    settings.filter(|setting| matches!(sysctl::read(setting), Ok(Some(value)) if value == "1")).collect()
}
