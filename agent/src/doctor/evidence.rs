//! Evidence of packets that do not arrive: our own rules' counters, and the ways to peers as the kernel has them.

use std::net::IpAddr;

use flatnet_core::claims::{Holder, are_cut, claims, others};
use flatnet_core::drops::Reason;
use flatnet_core::object::LinkKind;
use flatnet_core::way::WayQuery;
use flatnet_model::{IfName, IpFamily, NetworkName, SubnetKey};
use ipnet::IpNet;

use super::Check;
use super::host::Host;
use crate::node::evidence::of_peer;

/// The number of senders that are named: as many as are worth reading.
const SHOWN: usize = 8;
/// The most peers whose way is asked: a look-up takes microseconds.
const PEERS: usize = 4096;

/// Returns the ways to each peer that is programmed.
pub(super) fn ways(host: &Host) -> Vec<WayQuery> {
    let bridge: Option<IfName> =
        host.ours.links.iter().find(|(_, link)| matches!(link.kind, LinkKind::Bridge)).map(|(name, _)| *name);
    let mut ways = Vec::new();
    for network in host.networks() {
        let Some(own) = subnets(&network.subnet, &network.subnet6) else { continue };
        let bridge = bridge.filter(|bridge| host.is_in(*bridge, own));
        let programmed = network.peers.iter().filter(|peer| peer.state == "programmed");
        let peers = programmed.filter_map(|peer| subnets(&peer.subnet, &peer.subnet6));
        ways.extend(peers.flat_map(|peer| of_peer(peer, own, bridge)));
    }
    ways.truncate(PEERS);
    ways
}

fn subnets(v4: &Option<String>, v6: &Option<String>) -> Option<SubnetKey> {
    let parse = |text: &Option<String>| text.as_ref().and_then(|text| text.parse::<IpNet>().ok());
    let v4 = parse(v4).and_then(|net| if let IpNet::V4(net) = net { Some(net) } else { None });
    let v6 = parse(v6).and_then(|net| if let IpNet::V6(net) = net { Some(net) } else { None });
    SubnetKey::new(v4, v6).ok()
}

/// Returns who has which subnet, as far as the agent says. Of a peer with two addresses it has only the first.
fn holders(host: &Host) -> Vec<Holder> {
    let mut holders = Vec::new();
    for network in host.networks() {
        let holder = |node: &str, subnet: &Option<String>, published: Option<IpAddr>, is_here| {
            let subnet: IpNet = subnet.as_ref()?.parse().ok()?;
            let published = published.filter(|address| IpFamily::of(*address) == IpFamily::of(subnet.addr()));
            Some(Holder { network: network.name.clone(), node: node.to_owned(), subnet, published, is_here })
        };
        for peer in &network.peers {
            let published = peer.public_ip.parse().ok();
            let both = [&peer.subnet, &peer.subnet6];
            holders.extend(both.into_iter().filter_map(|subnet| holder(&peer.node, subnet, published, false)));
        }
        let own = [&network.subnet, &network.subnet6];
        holders.extend(own.into_iter().filter_map(|subnet| holder("", subnet, None, true)));
    }
    holders
}

/// Checks what our own rules have dropped since they were loaded, and whom the packets of the last minutes claimed to
/// be from.
pub(super) fn drops(host: &Host) -> Check {
    const NAME: &str = "dropped-packets";
    let names: Vec<NetworkName> = host.networks().iter().filter_map(|network| network.name.parse().ok()).collect();
    let mut dropped: Vec<(Reason, u64)> = Vec::new();
    for count in host.drops.iter().filter(|count| count.packets > 0) {
        let reason = Reason::of(count, &names);
        match dropped.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, packets)) => *packets += count.packets,
            None => dropped.push((reason, count.packets)),
        }
    }
    dropped.sort_by_key(|(_, packets)| std::cmp::Reverse(*packets));
    let Some((first, _)) = dropped.first() else {
        return Check::ok(NAME, "the agent's own rules have dropped nothing since they were loaded");
    };
    let named: Vec<String> = dropped
        .iter()
        .map(|(reason, packets)| match reason.network.as_str() {
            "" => format!("{packets}: {}", reason.text),
            network => format!("{packets} of network {network}: {}", reason.text),
        })
        .collect();
    let mut cause = format!("the agent's own rules have dropped packets since they were loaded: {}", named.join("; "));
    let claims = claims(&host.sightings, &holders(host));
    // Claims that name a peer come first.
    let (of_peers, of_nobody): (Vec<_>, Vec<_>) = claims.iter().partition(|(claim, _)| claim.of.is_some());
    let mut texts: Vec<String> =
        of_peers.iter().chain(&of_nobody).take(SHOWN).map(|(claim, packets)| claim.text(*packets)).collect();
    let Some((most, _)) = of_peers.first().or(of_nobody.first()) else {
        return Check::warning(NAME, cause, first.hint());
    };
    texts.extend(others(claims.len().saturating_sub(SHOWN), are_cut(&host.sightings)));
    cause.push_str(&format!(". Of the last minutes: {}", texts.join("; ")));
    Check::warning(NAME, cause, most.hint())
}

/// Checks for ways to peers that do not use our routes.
pub(super) fn detours(host: &Host) -> Check {
    const NAME: &str = "peer-routes";
    let Some(first) = host.detours.first() else {
        return Check::ok(NAME, "the kernel sends packets to every peer's containers by the agent's routes");
    };
    let problem = first.problem();
    let others = host.detours.len() - 1;
    let more = if others > 0 { format!("; {others} other ways likewise") } else { String::new() };
    Check::failure(NAME, format!("{}{more}", problem.message), problem.hint)
}

#[cfg(test)]
mod tests {
    use flatnet_core::claims::Sighting;
    use flatnet_core::drops::DropCount;
    use flatnet_proto::agent::v1::Peer;

    use super::*;
    use crate::doctor::Verdict;
    use crate::doctor::fixture::Fixture;

    #[test]
    fn whose_packets_were_dropped_is_named_with_what_that_peer_publishes() {
        let mut fixture = Fixture::with(&[]);
        assert_eq!(drops(&fixture.host).verdict, Verdict::Ok);
        let peer = Peer {
            node: "host2".to_owned(),
            subnet: Some("10.100.32.0/20".to_owned()),
            subnet6: Some("fd00:0:0:2::/64".to_owned()),
            public_ip: "192.168.1.12".to_owned(),
            ..Peer::default()
        };
        fixture.network().peers = vec![peer];
        let (table, chain) = ("flatnet", "tunnel_8472_1".to_owned());
        let comment = "default: our VNI, but not a peer sending from its own subnet".to_owned();
        fixture.host.drops = vec![DropCount { table, chain: chain.clone(), comment, packets: 9 }];
        assert!(!drops(&fixture.host).cause.contains("claimed"));
        let sighting = |outer: &str, inner: &str, packets| Sighting {
            table,
            chain: chain.clone(),
            interface: "eth1".to_owned(),
            outer: outer.parse().ok(),
            inner: inner.parse().unwrap(),
            packets,
        };
        fixture.host.sightings =
            vec![sighting("192.168.1.66", "10.100.33.7", 7), sighting("fd33::66", "fd00:0:0:2::7", 2)];
        let check = drops(&fixture.host);
        assert_eq!(check.verdict, Verdict::Warning);
        let text = ". Of the last minutes: 7 packets that claimed to be from host2 (10.100.32.0/20): came from 192.168.1.66 by eth1, \
                    it publishes 192.168.1.12; 2 packets that claimed to be from host2 (fd00:0:0:2::/64): came from fd33::66 by eth1";
        assert!(check.cause.ends_with(text), "{}", check.cause);
        assert!(check.hint.contains("--public-ip"), "{}", check.hint);
        fixture.host.sightings = (0..64).map(|n| sighting(&format!("192.0.2.{n}"), "10.9.9.9", 1)).collect();
        let check = drops(&fixture.host);
        assert!(check.cause.ends_with("; and 56 others likewise, and more than are remembered"), "{}", check.cause);
        assert!(check.cause.len() < 1500, "{}", check.cause);
    }
}
