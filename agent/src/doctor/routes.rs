//! Checks whether a network takes the place of something this host can reach otherwise. Routes are read as the kernel
//! lists them in `/proc/net`: the main table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flatnet_model::HostRanges;
use ipnet::IpNet;

use super::Check;
use super::host::Host;

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostRoute {
    target: IpNet,
    gateway: Option<IpAddr>,
    device: String,
}

/// Checks for routes of others inside a network, and for gateways that a network hides.
pub(super) fn overlap(host: &Host) -> Check {
    const NAME: &str = "lan-overlap";
    let (ranges, subnets) = (host.taken(), host.subnets());
    let overlaps = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    for route in routes(host).iter().filter(|route| !host.is_ours(&route.device) && route.device != "lo") {
        let default = HostRanges::is_default(&route.target);
        // The bridges and veths of containers have this host's subnet.
        let own = subnets.iter().any(|subnet| subnet.contains(&route.target));
        if let Some(range) = ranges.iter().find(|range| !default && !own && overlaps(range, &route.target)) {
            return Check::failure(
                NAME,
                format!("the network {range} overlaps the route {} by {}", route.target, route.device),
                "one of them hides the other: give the network a range that is used nowhere here, or remove the route",
            );
        }
        let hidden =
            route.gateway.and_then(|gateway| Some((gateway, ranges.iter().find(|range| range.contains(&gateway))?)));
        if let Some((gateway, range)) = hidden.filter(|_| !own) {
            return Check::failure(
                NAME,
                format!("the network {range} covers the gateway {gateway} of the route {}", route.target),
                "this host loses that way out: give the network a range that is used nowhere here",
            );
        }
    }
    Check::ok(NAME, "no route of this host leads into a network")
}

/// Checks for name servers inside a network.
pub(super) fn resolvers(host: &Host) -> Check {
    const NAME: &str = "resolvers";
    let (ranges, subnets) = (host.taken(), host.subnets());
    let files = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
    let text: String = files.iter().filter_map(|file| host.files.read(file)).collect();
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let servers = servers.filter_map(|server| server.trim().split('%').next()?.parse::<IpAddr>().ok());
    for server in servers {
        let own = subnets.iter().any(|subnet| subnet.contains(&server));
        if let Some(range) = ranges.iter().find(|range| range.contains(&server) && !own) {
            return Check::failure(
                NAME,
                format!("the name server {server} is inside the network {range}"),
                "names cannot be looked up any more: give the network another range, or name another server",
            );
        }
    }
    Check::ok(NAME, "no name server is inside a network")
}

fn routes(host: &Host) -> Vec<HostRoute> {
    let v4 = host.files.read("/proc/net/route").unwrap_or_default();
    let v6 = host.files.read("/proc/net/ipv6_route").unwrap_or_default();
    v4.lines().filter_map(route_v4).chain(v6.lines().filter_map(route_v6)).collect()
}

/// Parses `Iface Destination Gateway Flags … Mask`: addresses are hexadecimal numbers in the machine's byte order.
fn route_v4(line: &str) -> Option<HostRoute> {
    /// The flags `RTF_UP` and `RTF_REJECT` (linux/route.h).
    const UP: u32 = 1;
    const REJECT: u32 = 0x200;
    let fields: Vec<&str> = line.split_whitespace().collect();
    let address = |at: usize| {
        let number = u32::from_str_radix(fields.get(at)?, 16).ok()?;
        Some(Ipv4Addr::from(number.to_ne_bytes()))
    };
    let flags = u32::from_str_radix(fields.get(3)?, 16).ok()?;
    let target = IpNet::with_netmask(address(1)?.into(), address(7)?.into()).ok()?;
    let gateway = address(2).filter(|gateway| !gateway.is_unspecified()).map(IpAddr::V4);
    let device = (*fields.first()?).to_owned();
    (flags & UP != 0 && flags & REJECT == 0).then_some(HostRoute { target, gateway, device })
}

/// Parses `target length source length gateway metric references uses flags device`.
fn route_v6(line: &str) -> Option<HostRoute> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let address = |at: usize| Some(Ipv6Addr::from(u128::from_str_radix(fields.get(at)?, 16).ok()?));
    let length = u8::from_str_radix(fields.get(1)?, 16).ok()?;
    let target = IpNet::new(address(0)?.into(), length).ok()?;
    // Every interface has link-local and multicast routes.
    let everywhere = match target.addr() {
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_multicast(),
        IpAddr::V4(_) => false,
    };
    let gateway = address(4).filter(|gateway| !gateway.is_unspecified()).map(IpAddr::V6);
    let device = (*fields.get(9)?).to_owned();
    (!everywhere).then_some(HostRoute { target, gateway, device })
}

#[cfg(test)]
mod tests;
