//! Addresses that a host uses itself, besides the networks: the destinations of its routes, its resolvers and the
//! store's addresses.
//!
//! A network whose range overlapped them would take that host's own traffic. Hosts publish them with their presence,
//! and they are checked when a network is created.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// The addresses one host uses itself. The set is bounded and leaves out what every host has (default routes, loopback,
/// link-local, multicast). Its order is fixed, so two of the same host are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostRanges {
    prefixes: Vec<IpNet>,
    resolvers: Vec<IpAddr>,
    endpoints: Vec<IpAddr>,
}

/// One range or address of a [`HostRanges`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostRange {
    /// The destination of a route.
    Route(IpNet),
    /// The address of a resolver.
    Resolver(IpAddr),
    /// An address at which the host reaches the store.
    Endpoint(IpAddr),
}

impl HostRanges {
    /// The most prefixes kept of one host, enough for a router's. The longest beyond that are left out. 256 take 5 KiB.
    pub const PREFIXES: usize = 256;
    /// The most resolvers kept of one host; glibc asks three.
    pub const RESOLVERS: usize = 8;
    /// The most addresses of the store kept of one host; clusters have seven members at most, each with an address or
    /// two.
    pub const ENDPOINTS: usize = 16;

    /// Keeps those among `prefixes` and `resolvers` that count. A prefix inside another one is left out.
    pub fn new(prefixes: impl IntoIterator<Item = IpNet>, resolvers: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut prefixes: Vec<IpNet> = prefixes.into_iter().map(|net| net.trunc()).filter(counts).collect();
        // By address, the shorter first: what is inside another one comes after it.
        prefixes.sort();
        prefixes.dedup_by(|next, kept| kept.contains(&*next));
        prefixes.sort_by_key(|net| (net.prefix_len(), *net));
        prefixes.truncate(Self::PREFIXES);
        let resolvers = addresses(resolvers, Self::RESOLVERS);
        Self { prefixes, resolvers, endpoints: Vec::new() }
    }

    /// Adds the addresses among `endpoints`, at which the host reaches the store.
    #[must_use]
    pub fn with_endpoints(mut self, endpoints: impl IntoIterator<Item = IpAddr>) -> Self {
        self.endpoints = addresses(endpoints, Self::ENDPOINTS);
        self
    }

    /// Returns true if a route to `net` is a default route or stands for one. A VPN that takes everything has one route
    /// to each half of all addresses.
    #[must_use]
    pub fn is_default(net: &IpNet) -> bool {
        let [v4, v6] = SHORTEST;
        net.prefix_len() < if net.addr().is_ipv4() { v4 } else { v6 }
    }

    /// Destinations of routes, the shortest first.
    #[must_use]
    pub fn prefixes(&self) -> &[IpNet] {
        &self.prefixes
    }

    /// Returns the resolvers the host asks for names.
    #[must_use]
    pub fn resolvers(&self) -> &[IpAddr] {
        &self.resolvers
    }

    /// Returns the addresses at which the host reaches the store.
    #[must_use]
    pub fn endpoints(&self) -> &[IpAddr] {
        &self.endpoints
    }

    /// Returns the ranges and addresses that share an address with `range`.
    pub fn overlapping(&self, range: IpNet) -> impl Iterator<Item = HostRange> {
        let routes = self.prefixes.iter().filter(move |net| overlap(**net, range)).map(|net| HostRange::Route(*net));
        let resolvers = self.resolvers.iter().filter(move |address| range.contains(*address));
        let endpoints = self.endpoints.iter().filter(move |address| range.contains(*address));
        let endpoints = endpoints.map(|address| HostRange::Endpoint(*address));
        endpoints.chain(routes).chain(resolvers.map(|address| HostRange::Resolver(*address)))
    }
}

impl HostRange {
    /// Returns true if it shares an address with `range`.
    #[must_use]
    pub fn overlaps(self, range: IpNet) -> bool {
        match self {
            Self::Route(net) => overlap(net, range),
            Self::Resolver(address) | Self::Endpoint(address) => range.contains(&address),
        }
    }
}

impl fmt::Display for HostRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(net) => write!(f, "has a route to {net}"),
            Self::Resolver(address) => write!(f, "asks the resolver {address}"),
            Self::Endpoint(address) => write!(f, "reaches the store at {address}"),
        }
    }
}

/// Returns those among `all` that count, at most `limit`.
fn addresses(all: impl IntoIterator<Item = IpAddr>, limit: usize) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = all.into_iter().filter(|address| is_elsewhere(*address)).collect();
    all.sort();
    all.dedup();
    all.truncate(limit);
    all
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// Half of all addresses (a VPN's 0.0.0.0/1) or all that are given out (2000::/3) are a default route by another name.
/// Nothing that somebody runs is shorter than these.
const SHORTEST: [u8; 2] = [8, 16];

fn counts(net: &IpNet) -> bool {
    !HostRanges::is_default(net) && is_elsewhere(net.addr())
}

/// Returns true if an address means the same machine beyond this host and its link.
fn is_elsewhere(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn ranges(prefixes: &[&str], resolvers: &[&str]) -> HostRanges {
        HostRanges::new(nets(prefixes), resolvers.iter().map(|text| text.parse().unwrap()))
    }

    #[test]
    fn what_every_host_has_says_nothing() {
        let every = ["0.0.0.0/0", "::/0", "0.0.0.0/1", "128.0.0.0/1", "2000::/3", "169.254.0.0/16", "fe80::/64"];
        let more = ["127.0.0.0/8", "ff00::/8", "224.0.0.0/4"];
        let all: Vec<&str> = every.into_iter().chain(more).collect();
        assert_eq!(ranges(&all, &["127.0.0.53", "::1", "fe80::1", "0.0.0.0"]), HostRanges::default());
    }

    #[test]
    fn the_same_host_says_the_same_whatever_the_order() {
        let one = ranges(&["10.0.0.0/8", "10.1.2.3/24", "192.168.33.7/24", "fd00:1::/64"], &["10.0.0.2", "9.9.9.9"]);
        let two = ranges(&["fd00:1::/64", "192.168.33.0/24", "10.0.0.0/8"], &["9.9.9.9", "10.0.0.2", "9.9.9.9"]);
        assert_eq!(one, two);
        assert_eq!(one.prefixes(), nets(&["10.0.0.0/8", "192.168.33.0/24", "fd00:1::/64"]));
    }

    #[test]
    fn a_router_says_its_shortest_prefixes() {
        let many = (0..2000_u32).map(|n| IpNet::new(std::net::Ipv4Addr::from_bits(0x0b00_0000 + n * 512).into(), 24));
        let all = many.map(Result::unwrap).chain(nets(&["172.16.0.0/12"]));
        let ranges = HostRanges::new(all, []);
        assert_eq!(ranges.prefixes().len(), HostRanges::PREFIXES);
        assert_eq!(ranges.prefixes()[0], nets(&["172.16.0.0/12"])[0]);
    }

    #[test]
    fn an_overlap_is_one_either_way_round_and_in_its_own_family() {
        let host = ranges(&["10.20.0.0/24", "fd00:20::/32"], &["10.30.0.2"]);
        let said = |range: &str| host.overlapping(nets(&[range])[0]).map(|found| found.to_string()).collect::<Vec<_>>();
        assert_eq!(said("10.20.0.0/16"), ["has a route to 10.20.0.0/24"]);
        assert_eq!(said("10.20.0.128/25"), ["has a route to 10.20.0.0/24"]);
        assert_eq!(said("10.0.0.0/8"), ["has a route to 10.20.0.0/24", "asks the resolver 10.30.0.2"]);
        assert_eq!(said("fd00:20:1::/48"), ["has a route to fd00:20::/32"]);
        assert!(said("10.21.0.0/16").is_empty() && said("fd00:21::/48").is_empty());
        let host = host.with_endpoints(["10.9.9.9", "127.0.0.1"].map(|text| text.parse().unwrap()));
        let said: Vec<String> = host.overlapping(nets(&["10.9.0.0/16"])[0]).map(|found| found.to_string()).collect();
        assert_eq!(said, ["reaches the store at 10.9.9.9"]);
    }
}
