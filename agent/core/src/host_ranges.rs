//! Addresses and ranges that this host uses itself, for whoever creates networks.

use std::net::IpAddr;

use flatnet_model::{HostRanges, SubnetKey};
use ipnet::IpNet;

use crate::facts::HostFacts;

/// Returns the destinations of the host's routes, its addresses and gateways, its resolvers, and the addresses at which
/// it reaches the `store`. What is there because of the networks is left out: routes into our devices, and everything
/// in a subnet that this host holds (its containers' bridges).
#[must_use]
pub fn own(facts: &HostFacts, held: &[SubnetKey], store: &[IpAddr]) -> HostRanges {
    let ours = |device| facts.interface(device).is_some_and(|interface| interface.ours);
    let inside = |address: IpAddr, bits: u8| {
        held.iter().flat_map(SubnetKey::iter).any(|net| net.contains(&address) && net.prefix_len() <= bits)
    };
    let routes = facts.destinations.iter().filter(|route| !route.device.is_some_and(ours));
    let routes = routes.map(|route| route.net).filter(|net| !inside(net.addr(), net.prefix_len()));
    // A resolver in a container is reached through the network, whose range it is.
    let resolvers = facts.resolvers.iter().copied().filter(|address| !inside(*address, u8::MAX));
    let addresses =
        facts.interfaces.iter().filter(|interface| !interface.ours).flat_map(|interface| &interface.addresses);
    let alone = addresses.map(IpNet::addr).chain(facts.gateways.iter().copied());
    let alone = alone.filter(|address| !inside(*address, u8::MAX)).map(IpNet::from);
    HostRanges::new(routes.chain(alone), resolvers).with_endpoints(store.iter().copied())
}

/// Returns the addresses without which this host cannot be reached or repaired: the store, the default gateways, and
/// the resolvers.
pub(crate) fn vital(facts: &HostFacts, store: &[IpAddr]) -> Vec<(IpAddr, &'static str)> {
    let with = |what| move |address: &IpAddr| (*address, what);
    let store = store.iter().map(with("where this host reaches the store"));
    let gateways = facts.gateways.iter().map(with("this host's default gateway"));
    let resolvers = facts.resolvers.iter().map(with("a resolver of this host"));
    store.chain(gateways).chain(resolvers).filter(|(address, _)| !address.is_loopback()).collect()
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
            // Docker's bridge on the host's subnet, our own bridge, and a peer's subnet by a route that somebody put
            // there.
            to("10.100.40.0/24", "docker0"),
            to("10.100.40.128/25", "br-1"),
            to("10.100.41.0/24", "flat.1"),
            to("172.17.0.0/16", "docker1"),
            // Wider than the subnet that is held, so not there because of it.
            to("10.0.0.0/8", "eth0"),
            to("fd00:1::/64", "eth0"),
        ];
        facts.resolvers = ["10.100.40.53", "192.0.2.53"].map(|text| text.parse().unwrap()).to_vec();
        facts.gateways = vec!["192.0.2.1".parse().unwrap(), "198.51.100.1".parse().unwrap()];
        facts.interfaces.push(interface("lo1", &["10.255.0.1/32", "172.20.0.1/32"]));
        let own = own(&facts, &["10.100.40.0-24".parse().unwrap()], &["203.0.113.7".parse().unwrap()]);
        let said: Vec<String> = own.prefixes().iter().map(ToString::to_string).collect();
        let v4 = ["10.0.0.0/8", "172.17.0.0/16", "192.0.2.0/24", "172.20.0.1/32", "198.51.100.1/32"];
        assert_eq!(said, [&v4[..], &["fd00:1::/64", "2001:db8::10/128"]].concat());
        assert_eq!(own.endpoints(), ["203.0.113.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(own.resolvers(), ["192.0.2.53".parse::<IpAddr>().unwrap()]);
    }
}
