//! The rules for packets that pass through this host. Nothing passes from one network to another, or out of a tunnel
//! except into its network. Containers cannot make tunnel packets, and connections into a network must be opened by
//! somebody in it.

use std::collections::{BTreeMap, BTreeSet};

use flatnet_model::{IfName, IpFamily};

use super::{FirewallHost, FirewallNetwork, FirewallTunnel, Text, gre, guard, ip, opening, ranges, store};
use crate::object::TunnelId;

/// The priority: before every filter chain (0), so that our drops are counted as ours.
const PRIORITY: i32 = -10;

/// Adds the base chain, and one chain for the packets out of each tunnel.
pub(super) fn chains(networks: &[FirewallNetwork], host: &FirewallHost, text: &mut Text) {
    let mut lines = vec![format!("type filter hook forward priority {PRIORITY}; policy accept;")];
    lines.extend(forged_tunnel_packets(networks));
    lines.extend(guard::passing_through(networks));
    // One device may serve several networks; then a packet out of it may belong to any of them.
    let mut devices: BTreeMap<IfName, (String, Vec<String>, &FirewallNetwork)> = BTreeMap::new();
    for (network, tunnel) in networks.iter().flat_map(|network| network.tunnels().map(move |tunnel| (network, tunnel)))
    {
        let device = devices.entry(tunnel.device).or_insert_with(|| (out_of("from", tunnel), Vec::new(), network));
        device.1.extend(into(network, tunnel.family));
    }
    for (device, (chain, mut rules, network)) in devices {
        rules.push(nowhere_else(network));
        text.block(&format!("chain {chain}"), &rules);
        lines.push(format!("iifname \"{device}\" goto {chain}"));
    }
    for network in networks {
        for tunnel in &network.encrypted {
            let chain = format!("from_wireguard_{}", tunnel.port);
            let mut inside: Vec<String> = tunnel.families.iter().flat_map(|family| into(network, *family)).collect();
            inside.push(nowhere_else(network));
            text.block(&format!("chain {chain}"), &inside);
            lines.push(format!("iifname \"{}\" goto {chain}", tunnel.device));
        }
    }
    lines.extend(store::elsewhere(host));
    lines.extend(isolation(networks));
    lines.extend(opening::judge(networks, ""));
    text.block("chain forward", &lines);
}

/// Drops tunnel packets made by containers. A container's packet to a host's tunnel port would leave with this host's
/// address, which is a peer's there, and so put frames into any network. Inside its own network it is not masqueraded,
/// so nested overlays work.
fn forged_tunnel_packets(networks: &[FirewallNetwork]) -> Vec<String> {
    let vxlan =
        networks.iter().flat_map(FirewallNetwork::tunnels).filter(|tunnel| matches!(tunnel.id, TunnelId::Vxlan(_)));
    let ports: BTreeSet<u16> = vxlan.map(|tunnel| tunnel.port).collect();
    let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
    let udp = (!ports.is_empty()).then(|| format!("udp dport {{ {} }}", ports.join(", ")));
    let gre = gre::is_used(networks).then(|| format!("meta l4proto {}", gre::NUMBER));
    let forged: Vec<String> = udp.into_iter().chain(gre).collect();
    let mut lines = Vec::new();
    for network in networks {
        for family in IpFamily::BOTH {
            let (Some(own), Some(all)) = (ranges(&network.own, family), ranges(&network.cidrs, family)) else {
                continue;
            };
            lines.extend(forged.iter().map(|packets| {
                format!(
                    "{ip} saddr {own} {ip} daddr != {all} {packets} counter drop comment \"{}: containers cannot pose as a tunnel's end\"",
                    network.name,
                    ip = ip(family),
                )
            }));
        }
    }
    lines
}

/// Returns the name of a chain for packets out of `tunnel`.
pub(super) fn out_of(what: &str, tunnel: &FirewallTunnel) -> String {
    match tunnel.family {
        IpFamily::V4 => format!("{what}_tunnel4_{}", tunnel.id),
        IpFamily::V6 => format!("{what}_tunnel6_{}", tunnel.id),
    }
}

/// Returns the rules for packets that may come out of a tunnel in one family: those into the network, and answers to
/// what this host masqueraded into it.
fn into(network: &FirewallNetwork, family: IpFamily) -> Vec<String> {
    let Some(all) = ranges(&network.cidrs, family) else { return Vec::new() };
    let ip = ip(family);
    vec![
        format!("{ip} saddr {all} {ip} daddr {all} accept"),
        format!(
            "{ip} saddr {all} ct direction reply ct state established,related accept comment \"{}: answers to what this host masqueraded\"",
            network.name
        ),
    ]
}

/// Returns the rule that ends such an allow-list.
fn nowhere_else(network: &FirewallNetwork) -> String {
    format!("counter drop comment \"{}: a tunnel leads into its network only\"", network.name)
}

/// Accepts packets within a network first, so that everything else between networks can be dropped.
fn isolation(networks: &[FirewallNetwork]) -> Vec<String> {
    let mut lines = Vec::new();
    for family in IpFamily::BOTH {
        let ip = ip(family);
        let sets: Vec<String> = networks.iter().filter_map(|network| ranges(&network.cidrs, family)).collect();
        let every = ranges(networks.iter().flat_map(|network| &network.cidrs), family);
        let (Some(every), true) = (every, sets.len() > 1) else { continue };
        lines.extend(sets.iter().map(|set| format!("{ip} saddr {set} {ip} daddr {set} accept")));
        lines.push(format!(
            "{ip} saddr {every} {ip} daddr {every} counter drop comment \"networks do not forward to each other\""
        ));
    }
    lines
}
