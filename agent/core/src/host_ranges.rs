//! What this host uses itself, for whoever creates networks.

use std::net::IpAddr;

use flatnet_model::{HostRanges, SubnetKey};

use crate::facts::HostFacts;

/// Destinations of the host's routes and its resolvers, without what is there because of the networks: routes into our
/// devices, and whatever lies in a subnet that this host holds (its containers' bridges).
#[must_use]
pub fn own(facts: &HostFacts, held: &[SubnetKey]) -> HostRanges {
    let ours = |device| facts.interface(device).is_some_and(|interface| interface.ours);
    let inside = |address: IpAddr, bits: u8| {
        held.iter().flat_map(SubnetKey::iter).any(|net| net.contains(&address) && net.prefix_len() <= bits)
    };
    let routes = facts.destinations.iter().filter(|route| !route.device.is_some_and(ours));
    let routes = routes.map(|route| route.net).filter(|net| !inside(net.addr(), net.prefix_len()));
    // A resolver in a container is reached through the network, whose range it is.
    let resolvers = facts.resolvers.iter().copied().filter(|address| !inside(*address, u8::MAX));
    HostRanges::new(routes, resolvers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Destination;
    use crate::fixture::{device, facts, interface};

    #[test]
    fn what_is_there_because_of_the_networks_is_not_the_hosts_own() {
        let mut facts = facts();
        let mut tunnel = interface("flat.1", &[]);
        tunnel.ours = true;
        facts.interfaces.push(tunnel);
        let to = |net: &str, name: &str| Destination { net: net.parse().unwrap(), device: Some(device(name)) };
        facts.destinations = vec![
            to("192.0.2.0/24", "eth0"),
            // Docker's bridge on the host's subnet, our own bridge, and a peer's subnet by a route that somebody put there.
            to("10.100.40.0/24", "docker0"),
            to("10.100.40.128/25", "br-1"),
            to("10.100.41.0/24", "flat.1"),
            to("172.17.0.0/16", "docker1"),
            // Wider than what is held: not because of it.
            to("10.0.0.0/8", "eth0"),
            to("fd00:1::/64", "eth0"),
        ];
        facts.resolvers = ["10.100.40.53", "192.0.2.53"].map(|text| text.parse().unwrap()).to_vec();
        let own = own(&facts, &["10.100.40.0-24".parse().unwrap()]);
        let said: Vec<String> = own.prefixes().iter().map(ToString::to_string).collect();
        assert_eq!(said, ["10.0.0.0/8", "172.17.0.0/16", "192.0.2.0/24", "fd00:1::/64"]);
        assert_eq!(own.resolvers(), ["192.0.2.53".parse::<IpAddr>().unwrap()]);
    }
}
