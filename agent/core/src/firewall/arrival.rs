//! A packet belongs to a network only if it came by that network's own way.
//!
//! Tunnel packets are judged by [`super::guard`]. This module is about the packets inside them, and about packets that
//! never were in a tunnel. A source of the network is believed if the packet
//!
//! - came out of one of the network's tunnels, where the guard (or WireGuard) has judged it, and is not this host's
//!   own;
//! - came in by the underlay, where the network has direct routes, and is in the lease of a peer;
//! - came in where this host would answer it: by the interface of a container, never by the underlay or a tunnel;
//! - came from this host itself.
//!
//! Every other packet with such a source is forged, by a machine on the link or by a guest on another bridge of this
//! host. It would be forwarded to containers here and, under this host's name, through the tunnel to other hosts.
//! Reverse-path filtering is no substitute. There is none for IPv6, and the loose kind, which hosts with several
//! uplinks need, believes every source that has a route.
//!
//! With direct routes, one thing cannot be told from the packet: which of the machines on the link sent it.

use std::collections::BTreeSet;

use flatnet_model::{IfName, IpFamily};

use super::{FirewallHost, FirewallNetwork, Text, interfaces, ip, ranges, store};
use crate::object::SetName;

/// The priority: after `raw` (-300) and before connections are tracked (-200), so that forged packets leave no trace,
/// and addresses are those on the wire.
const PRIORITY: i32 = -290;

/// Adds a set for each length of the subnets of peers with direct routes, without elements.
pub(super) fn sets(networks: &[FirewallNetwork], text: &mut Text) {
    let sets: BTreeSet<SetName> = networks.iter().flat_map(|network| &network.direct).copied().collect();
    for set in sets {
        let lines = [
            format!("type {}", if set.family == IpFamily::V4 { "ipv4_addr" } else { "ipv6_addr" }),
            match set.prefix_len == set.family.bits() {
                true => "comment \"hosts of peers that are reached without a tunnel\"".to_owned(),
                false => format!("comment \"peers' subnets /{} that come without a tunnel\"", set.prefix_len),
            },
        ];
        text.block(&format!("set {set}"), &lines);
    }
}

/// Adds the base chain, and one chain for each network and family.
pub(super) fn chains(networks: &[FirewallNetwork], host: &FirewallHost, text: &mut Text) {
    let mut lines = vec![
        format!("type filter hook prerouting priority {PRIORITY}; policy accept;"),
        "iifname \"lo\" accept".to_owned(),
    ];
    lines.extend(store::as_sent(host));
    for network in networks {
        for family in IpFamily::BOTH {
            let Some(all) = ranges(&network.cidrs, family) else { continue };
            let chain = match family {
                IpFamily::V4 => format!("arrival4_{}", network.name),
                IpFamily::V6 => format!("arrival6_{}", network.name),
            };
            let ways = ways(network, host.underlay, family, &chain, text);
            text.block(&format!("chain {chain}"), &ways);
            lines.push(format!("{} saddr {all} goto {chain}", ip(family)));
        }
    }
    text.block("chain arrival", &lines);
}

/// Returns the ways by which a packet with a source of the network may come, then a drop for each of the others.
fn ways(network: &FirewallNetwork, underlay: IfName, family: IpFamily, chain: &str, text: &mut Text) -> Vec<String> {
    let (ip, name) = (ip(family), &network.name);
    let own = ranges(&network.own, family);
    let not_own = own.as_ref().map(|own| format!("{ip} saddr != {own} ")).unwrap_or_default();
    let mut lines = Vec::new();
    let tunnels = tunnels(network, family);
    if let Some(devices) = interfaces(&tunnels) {
        lines.push(format!("iifname {devices} {not_own}accept"));
        lines.push(text.witness(chain, family, &format!("iifname {devices}"), None));
        lines.push(format!("iifname {devices} counter drop comment \"{name}: this host's own, but out of a tunnel\""));
    }
    let direct = network.direct.iter().filter(|set| set.family == family && set.prefix_len < family.bits());
    lines
        .extend(direct.map(|set| format!("iifname \"{underlay}\" {not_own}{ip} saddr & {} @{set} accept", mask(*set))));
    lines.push(text.witness(chain, family, &format!("iifname \"{underlay}\""), None));
    lines.push(format!("iifname \"{underlay}\" counter drop comment \"{name}: in clear from outside\""));
    // A bridge that still has a subnet which this host held before is a container's interface too. But an encrypted
    // network takes nothing in clear that may be another host's by now.
    let local = match (network.encrypted.is_empty(), own) {
        (true, _) => Some(String::new()),
        (false, Some(own)) => Some(format!("{ip} saddr {own} ")),
        (false, None) => None,
    };
    lines.extend(local.map(|local| format!("{local}fib saddr . iif oif exists accept")));
    lines.push(text.witness(chain, family, "", None));
    lines.push(format!("counter drop comment \"{name}: no route leads back there, a forged source\""));
    lines
}

/// Returns the devices that the network's packets of `family` come out of.
fn tunnels(network: &FirewallNetwork, family: IpFamily) -> BTreeSet<IfName> {
    let judged = network.tunnels().filter(|tunnel| tunnel.family == family).map(|tunnel| tunnel.device);
    let encrypted = network.encrypted.iter().filter(|tunnel| tunnel.families.contains(&family));
    judged.chain(encrypted.map(|tunnel| tunnel.device)).collect()
}

/// Returns the mask that cuts a source to its subnet.
fn mask(set: SetName) -> String {
    let all = ipnet::IpNet::new(
        match set.family {
            IpFamily::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
            IpFamily::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        },
        set.prefix_len.min(set.family.bits()),
    );
    // The length is bounded in the line above.
    all.map(|all| all.netmask().to_string()).unwrap_or_default()
}
