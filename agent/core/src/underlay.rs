//! The underlay: the interface and addresses of this host that carry the tunnels.
//!
//! The choice is made from [`HostFacts`] each time they are looked at, so a new address, another default route or a
//! smaller MTU is followed without a restart.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flatnet_model::{IfName, IpFamily, Mtu};
use regex::Regex;

use crate::facts::{HostFacts, Interface, RouteTo};

/// The user's options for the underlay. Usually all are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// `--iface`: names or addresses. The first that is there wins.
    pub ifaces: Vec<String>,
    /// `--iface-regex`: tried after `ifaces`, each against all addresses and then against all names.
    pub iface_regexes: Vec<String>,
    /// `--iface-can-reach`: the interface whose route leads to this address; tried last.
    pub can_reach: Option<IpAddr>,
    /// `--public-ip`: published instead of the interface's address.
    pub public_ip: Option<Ipv4Addr>,
    /// `--public-ipv6`: published instead of the interface's IPv6 address.
    pub public_ipv6: Option<Ipv6Addr>,
    /// Addresses of the store's first endpoint, to which the interface chosen by default must lead.
    pub store: Vec<IpAddr>,
}

impl Selection {
    /// Returns the addresses whose routes [`select`] wants to find in [`HostFacts::routes`].
    #[must_use]
    pub fn route_queries(&self) -> Vec<IpAddr> {
        self.can_reach.iter().chain(&self.store).copied().collect()
    }
}

/// The interface towards the other hosts, and the addresses at which they reach us. The addresses are the interface's
/// own, except on a host that is reached at an address of its loopback, by routes alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// The interface by which packets leave.
    pub device: IfName,
    /// The bytes that fit through the interface: the smaller of its MTU and that of the route looked up through it.
    pub mtu: Mtu,
    /// This host's IPv4 address: the outer source of packets we send.
    pub v4: Option<Ipv4Addr>,
    /// This host's IPv6 address, in the same role.
    pub v6: Option<Ipv6Addr>,
    /// The IPv4 address that is published (`PublicIP`).
    pub public_v4: Option<Ipv4Addr>,
    /// The IPv6 address that is published (`PublicIPv6`).
    pub public_v6: Option<Ipv6Addr>,
}

impl Underlay {
    /// Returns the interface's address of `family`.
    #[must_use]
    pub fn address(&self, family: IpFamily) -> Option<IpAddr> {
        match family {
            IpFamily::V4 => self.v4.map(IpAddr::V4),
            IpFamily::V6 => self.v6.map(IpAddr::V6),
        }
    }

    /// Keeps addresses that `last` had on the same interface, for those of `families` in which `self` has none. Also
    /// returns these families. A link set down and up loses its IPv6 addresses for a moment. That must not take down
    /// the network, and with it the bridge that containers hang on.
    #[must_use]
    pub fn keeping(mut self, last: &Self, families: &[IpFamily]) -> (Self, Vec<IpFamily>) {
        let lost = |family: &&IpFamily| self.address(**family).is_none() && last.address(**family).is_some();
        let lost: Vec<IpFamily> = families.iter().filter(lost).copied().collect();
        if self.device != last.device {
            return (self, Vec::new());
        }
        for family in &lost {
            match family {
                IpFamily::V4 => (self.v4, self.public_v4) = (last.v4, last.public_v4),
                IpFamily::V6 => (self.v6, self.public_v6) = (last.v6, last.public_v6),
            }
        }
        (self, lost)
    }

    /// Returns the published address of `family`.
    #[must_use]
    pub fn public_address(&self, family: IpFamily) -> Option<IpAddr> {
        match family {
            IpFamily::V4 => self.public_v4.map(IpAddr::V4),
            IpFamily::V6 => self.public_v6.map(IpAddr::V6),
        }
    }
}

/// The reason why no underlay could be chosen. Every text ends with the interfaces that are there to choose from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnderlayError {
    /// None of the interfaces that were named is here.
    #[error("no interface matches {wanted}; there is: {candidates}")]
    NoMatch {
        /// The options as given.
        wanted: String,
        /// Interfaces with addresses.
        candidates: String,
    },
    /// `--iface-regex` cannot be read.
    #[error("--iface-regex {pattern:?} is not a regular expression: {reason}")]
    Regex {
        /// The expression as given.
        pattern: String,
        /// The parser's words.
        reason: String,
    },
    /// No interface was named, and none stands out.
    #[error("cannot tell which interface carries the tunnels: name it with --iface; there is: {candidates}")]
    Ambiguous {
        /// Interfaces with addresses.
        candidates: String,
    },
    /// The interface has no address that can be used.
    #[error("{device} has no {family} address; there is: {candidates}")]
    NoAddress {
        /// The interface.
        device: IfName,
        /// `IPv4`, `IPv6`, or `IPv4 or IPv6`.
        family: String,
        /// Interfaces with addresses.
        candidates: String,
    },
    /// The interface's MTU is not a usable one.
    #[error("the MTU of {device} is not known")]
    NoMtu {
        /// The interface.
        device: IfName,
    },
}

impl UnderlayError {
    /// Returns advice on how to put it right.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoMatch { .. } | Self::Ambiguous { .. } => {
                "name the interface towards the other hosts, e.g. --iface eth1 or --iface 192.168.33.10"
            }
            Self::Regex { .. } => "see https://docs.rs/regex for the syntax; quote it in the shell",
            Self::NoAddress { .. } => "give the interface an address, or name another one with --iface",
            Self::NoMtu { .. } => {
                "name the interface by which packets leave, with --iface, or give it an MTU: ip link set DEVICE mtu 1500"
            }
        }
    }
}

/// Chooses the underlay. `families` are those the networks need, as far as known; if empty, any will do.
///
/// An interface that lacks *some* of them is still chosen (the networks that need the missing one say so). An interface
/// that lacks all of them is not.
pub fn select(facts: &HostFacts, selection: &Selection, families: &[IpFamily]) -> Result<Underlay, UnderlayError> {
    let needed = if families.is_empty() { &IpFamily::BOTH[..] } else { families };
    let named = !(selection.ifaces.is_empty() && selection.iface_regexes.is_empty() && selection.can_reach.is_none());
    let chosen = if named { by_option(facts, selection)? } else { by_route(facts, selection, needed)? };
    build(facts, selection, needed, chosen)
}

/// An interface, with what is known of the address on it.
#[derive(Clone, Copy)]
struct Chosen<'a> {
    interface: &'a Interface,
    /// The address that was asked for.
    address: Option<IpAddr>,
    /// The address that the kernel would choose.
    source: Option<IpAddr>,
}

impl<'a> Chosen<'a> {
    fn of(interface: &'a Interface) -> Self {
        Self { interface, address: None, source: None }
    }

    fn at(interface: &'a Interface, address: IpAddr) -> Self {
        Self { interface, address: Some(address), source: None }
    }
}

/// Chooses by option, in flannel's order (`pkg/ipmatch`, `main.go`): every `--iface`, then every `--iface-regex`, then
/// `--iface-can-reach`.
fn by_option<'a>(facts: &'a HostFacts, selection: &Selection) -> Result<Chosen<'a>, UnderlayError> {
    for wanted in &selection.ifaces {
        if let Some(chosen) = by_name_or_address(facts, wanted) {
            return Ok(way_out(facts, chosen));
        }
    }
    for pattern in &selection.iface_regexes {
        if let Some(chosen) = by_regex(facts, pattern)? {
            return Ok(way_out(facts, chosen));
        }
    }
    if let Some(target) = selection.can_reach
        && let Some(chosen) = route_to(facts, target)
        && !chosen.interface.loopback
    {
        return Ok(chosen);
    }
    Err(UnderlayError::NoMatch { wanted: options(selection), candidates: candidates(facts) })
}

fn by_name_or_address<'a>(facts: &'a HostFacts, wanted: &str) -> Option<Chosen<'a>> {
    match wanted.parse::<IpAddr>() {
        Ok(address) => holder(facts, address).map(|interface| Chosen::at(interface, address)),
        Err(_) => facts.interfaces.iter().find(|interface| interface.name.as_str() == wanted).map(Chosen::of),
    }
}

/// Returns the interface that has `address`.
fn holder(facts: &HostFacts, address: IpAddr) -> Option<&Interface> {
    facts.interfaces.iter().find(|interface| interface.addresses.iter().any(|net| net.addr() == address))
}

/// Returns the interface by which packets leave. It may differ from the one chosen for its address: an address of the
/// loopback, or of a device that stands in for it, is routed to this host by its routers. Then the device is that of
/// the route on which the kernel takes this address as the source, or the default route's.
fn way_out<'a>(facts: &'a HostFacts, chosen: Chosen<'a>) -> Chosen<'a> {
    let Chosen { interface, .. } = chosen;
    let addresses = || match chosen.address {
        Some(address) => vec![address],
        None => IpFamily::BOTH.into_iter().filter_map(|family| first_address(interface, family)).collect(),
    };
    for address in addresses() {
        let takes_it = |route: &&RouteTo| route.source == Some(address) && route.device != interface.name;
        let by_route = facts.routes.iter().filter_map(|(_, route)| route.as_ref()).filter(takes_it);
        let by_route = by_route.filter_map(|route| facts.interface(route.device)).find(|way| is_way(way));
        let family = IpFamily::of(address);
        let default = facts.default_route.iter().filter(|(of, _)| *of == family && interface.loopback);
        let by_default = default.filter_map(|(_, name)| facts.interface(*name)).find(|way| is_way(way));
        if let Some(way) = by_route.or(by_default) {
            return Chosen::at(way, address);
        }
    }
    chosen
}

fn is_way(interface: &Interface) -> bool {
    !interface.loopback && !interface.ours
}

fn by_regex<'a>(facts: &'a HostFacts, pattern: &str) -> Result<Option<Chosen<'a>>, UnderlayError> {
    let regex = Regex::new(pattern).map_err(|error| UnderlayError::Regex {
        pattern: flatnet_model::text::excerpt(pattern),
        reason: flatnet_model::text::excerpt(&error.to_string()),
    })?;
    let usable = || facts.interfaces.iter().filter(|interface| !interface.ours);
    let by_address = usable().find_map(|interface| {
        let hit = interface.addresses.iter().map(ipnet::IpNet::addr).find(|addr| regex.is_match(&addr.to_string()))?;
        Some(Chosen::at(interface, hit))
    });
    Ok(by_address.or_else(|| usable().find(|interface| regex.is_match(interface.name.as_str())).map(Chosen::of)))
}

/// Chooses without options: the interface towards the store; if the store is on this host, the default route's; else
/// the only one there is.
fn by_route<'a>(facts: &'a HostFacts, selection: &Selection, needed: &[IpFamily]) -> Result<Chosen<'a>, UnderlayError> {
    let has_one = |interface: &Interface| needed.iter().any(|family| first_address(interface, *family).is_some());
    let usable = |interface: &Interface| is_way(interface) && has_one(interface);
    for target in &selection.store {
        if let Some(chosen) = route_to(facts, *target)
            && is_way(chosen.interface)
            && (has_one(chosen.interface) || chosen.address.is_some())
        {
            return Ok(chosen);
        }
    }
    // The store is on this host. The kernel reaches all its own addresses by the loopback, but an endpoint at an
    // address of a real interface still says which interface the other hosts are on. It does not say at which address
    // they find this host: the store's address may float.
    for target in selection.store.iter().filter(|target| !target.is_loopback()) {
        let Some(interface) = holder(facts, *target) else { continue };
        if usable(interface) {
            return Ok(Chosen::of(interface));
        }
        let way = way_out(facts, Chosen::at(interface, *target));
        if interface.loopback && is_way(way.interface) && !has_one(way.interface) {
            return Ok(way);
        }
    }
    for family in needed {
        let default = facts.default_route.iter().find(|(of, _)| of == family);
        if let Some(interface) = default.and_then(|(_, name)| facts.interface(*name))
            && usable(interface)
        {
            return Ok(Chosen::of(interface));
        }
    }
    let mut up = facts.interfaces.iter().filter(|interface| interface.up && usable(interface));
    match (up.next(), up.next()) {
        (Some(interface), None) => Ok(Chosen::of(interface)),
        _ => Err(UnderlayError::Ambiguous { candidates: candidates(facts) }),
    }
}

fn build(
    facts: &HostFacts,
    selection: &Selection,
    needed: &[IpFamily],
    chosen: Chosen<'_>,
) -> Result<Underlay, UnderlayError> {
    let interface = chosen.interface;
    let of = |family| address(facts, selection, chosen, family);
    if needed.iter().all(|family| of(*family).is_none()) {
        let family = needed.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
        return Err(UnderlayError::NoAddress { device: interface.name, family, candidates: candidates(facts) });
    }
    let v4 = of(IpFamily::V4).and_then(|address| if let IpAddr::V4(v4) = address { Some(v4) } else { None });
    let v6 = of(IpFamily::V6).and_then(|address| if let IpAddr::V6(v6) = address { Some(v6) } else { None });
    let mtu = interface.mtu.ok_or(UnderlayError::NoMtu { device: interface.name })?;
    Ok(Underlay {
        device: interface.name,
        mtu: route_mtu(facts, interface.name).map_or(mtu, |of_route| mtu.min(of_route)),
        v4,
        v6,
        // An address of a family we cannot send in must not be published: peers would send to it in vain.
        public_v4: v4.map(|own| selection.public_ip.unwrap_or(own)),
        public_v6: v6.map(|own| selection.public_ipv6.unwrap_or(own)),
    })
}

/// Returns this host's address of `family`: the one asked for; the one the kernel takes, if it is there to stay; the
/// interface's first; the published one, if it is this host's on whatever interface.
fn address(facts: &HostFacts, selection: &Selection, chosen: Chosen<'_>, family: IpFamily) -> Option<IpAddr> {
    let of_family = |address: &IpAddr| IpFamily::of(*address) == family;
    let first = first_address(chosen.interface, family);
    let stays = |source: &IpAddr| {
        // The kernel chooses IPv6 addresses that are alone in their prefix like any other.
        let floats = source.is_ipv6() && is_alone(chosen.interface, *source) && first != Some(*source);
        !facts.passing.contains(source) && !floats
    };
    let published = match family {
        IpFamily::V4 => selection.public_ip.map(IpAddr::V4),
        IpFamily::V6 => selection.public_ipv6.map(IpAddr::V6),
    };
    let own = |address: &IpAddr| holder(facts, *address).is_some();
    chosen
        .address
        .filter(of_family)
        .or(chosen.source.filter(of_family).filter(stays))
        .or(first)
        .or(published.filter(own))
        .or_else(|| source_by(facts, chosen.interface, family))
}

fn is_alone(interface: &Interface, address: IpAddr) -> bool {
    interface.addresses.iter().any(|net| net.addr() == address && net.prefix_len() == net.max_prefix_len())
}

/// Returns the first address of `family`. The facts list the most useful ones first.
fn first_address(interface: &Interface, family: IpFamily) -> Option<IpAddr> {
    let mut reachable = interface.addresses.iter().map(ipnet::IpNet::addr).filter(|address| !address.is_loopback());
    reachable.find(|address| IpFamily::of(*address) == family)
}

/// Returns the address of this host that the kernel takes as the source on a looked-up route, through an interface that
/// has no address.
fn source_by(facts: &HostFacts, interface: &Interface, family: IpFamily) -> Option<IpAddr> {
    let through = facts.routes.iter().filter_map(|(_, route)| *route).filter(|route| route.device == interface.name);
    let mut sources = through.filter_map(|route| route.source);
    sources.find(|source| IpFamily::of(*source) == family && !source.is_loopback() && holder(facts, *source).is_some())
}

/// Returns the interface towards `target`, and the source address the kernel would choose there. That is one of the
/// interface's own, or one of the loopback, at which the routers reach this host whatever its interfaces have.
fn route_to(facts: &HostFacts, target: IpAddr) -> Option<Chosen<'_>> {
    let (_, route) = facts.routes.iter().find(|(to, _)| *to == target)?;
    let route = route.as_ref()?;
    let interface = facts.interface(route.device)?;
    let holder = route.source.and_then(|source| holder(facts, source));
    let of_route = Chosen { source: route.source, ..Chosen::of(interface) };
    Some(match (route.source, holder) {
        (Some(_), Some(holder)) if holder.name == interface.name => of_route,
        (Some(source), Some(holder)) if !source.is_loopback() => {
            let bare = first_address(interface, IpFamily::of(source)).is_none();
            if holder.loopback || bare { Chosen::at(interface, source) } else { Chosen::of(interface) }
        }
        _ => Chosen::of(interface),
    })
}

/// Returns the smallest MTU of the looked-up routes through `device`.
fn route_mtu(facts: &HostFacts, device: IfName) -> Option<Mtu> {
    facts
        .routes
        .iter()
        .filter_map(|(_, route)| *route)
        .filter(|route| route.device == device)
        .filter_map(|r| r.mtu)
        .min()
}

fn options(selection: &Selection) -> String {
    let mut parts: Vec<String> = selection.ifaces.iter().map(|iface| format!("--iface {iface}")).collect();
    parts.extend(selection.iface_regexes.iter().map(|regex| format!("--iface-regex {regex}")));
    parts.extend(selection.can_reach.iter().map(|address| format!("--iface-can-reach {address}")));
    parts.join(" ")
}

fn has_global(interface: &Interface) -> bool {
    interface.addresses.iter().any(|net| !net.addr().is_loopback())
}

/// Lists the interfaces to choose from, such as `eth0 (10.0.0.1/24), eth1 (down)`. Ours are left out, and so is a
/// loopback without further addresses.
fn candidates(facts: &HostFacts) -> String {
    let texts: Vec<String> = facts
        .interfaces
        .iter()
        .filter(|interface| !interface.ours && (!interface.loopback || has_global(interface)))
        .map(|interface| {
            let mut words: Vec<String> = interface.addresses.iter().map(ToString::to_string).collect();
            if words.is_empty() {
                words.push("no address".to_owned());
            }
            if !interface.up {
                words.push("down".to_owned());
            }
            format!("{} ({})", interface.name, words.join(" "))
        })
        .collect();
    if texts.is_empty() { "no interface but the loopback".to_owned() } else { texts.join(", ") }
}

#[cfg(test)]
mod tests;
