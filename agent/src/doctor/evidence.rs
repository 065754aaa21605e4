//! What tells of packets that do not arrive: our own rules' counters, and the ways to peers as the kernel has them.

use flatnet_core::drops::Reason;
use flatnet_core::object::LinkKind;
use flatnet_core::way::WayQuery;
use flatnet_model::{IfName, NetworkName, SubnetKey};
use ipnet::IpNet;

use super::Check;
use super::host::Host;
use crate::evidence::of_peer;

/// Peers whose way is asked at most: a look-up takes microseconds.
const PEERS: usize = 4096;

/// The way to each peer that is programmed.
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

/// What our own rules have dropped since they were loaded.
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
    let cause = format!("the agent's own rules have dropped packets since they were loaded: {}", named.join("; "));
    Check::warning(NAME, cause, first.hint())
}

/// Ways to peers that are not by our routes.
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
