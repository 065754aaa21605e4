//! The rules for packets to this host itself.
//!
//! Packets out of a tunnel are for the network: for its containers, which is [`super::forward`]'s part, and for this
//! host's own addresses in it. Services at other addresses of this host would take their sender for somebody local, and
//! groups and broadcasts would reach all services at once.

use std::collections::BTreeMap;

use flatnet_model::{IfName, IpFamily};

use super::{FirewallHost, FirewallNetwork, Text, forward, ip, opening, ranges, store};

/// The priority: before every filter chain (0), so that our drops are counted as ours, and after what is judged before
/// decapsulation.
const PRIORITY: i32 = -10;

/// Adds the base chain, and one chain for the packets out of each tunnel.
pub(super) fn chains(networks: &[FirewallNetwork], host: &FirewallHost, text: &mut Text) {
    let mut lines = vec![format!("type filter hook input priority {PRIORITY}; policy accept;")];
    // One device may serve several networks.
    let mut devices: BTreeMap<IfName, (String, Vec<String>, &FirewallNetwork)> = BTreeMap::new();
    for network in networks {
        for tunnel in network.tunnels() {
            let chain = || forward::out_of("local", tunnel);
            let device = devices.entry(tunnel.device).or_insert_with(|| (chain(), Vec::new(), network));
            device.1.extend(from_tunnel(network, tunnel.family));
        }
        for tunnel in &network.encrypted {
            let chain = || format!("local_wireguard_{}", tunnel.port);
            let device = devices.entry(tunnel.device).or_insert_with(|| (chain(), Vec::new(), network));
            device.1.extend(tunnel.families.iter().flat_map(|family| from_tunnel(network, *family)));
        }
    }
    for (device, (chain, mut rules, network)) in devices {
        rules.push(format!(
            "counter drop comment \"{}: out of a tunnel, but not to this host's address in it\"",
            network.name
        ));
        text.block(&format!("chain {chain}"), &rules);
        lines.push(format!("iifname \"{device}\" goto {chain}"));
    }
    lines.extend(store::at_this_host(host));
    // An address that is the interface's own may be spoken to from there by any source, as a container's link-local one
    // is.
    lines.extend(opening::judge(networks, "iifname != \"lo\" fib daddr . iif type != local "));
    text.block("chain local", &lines);
}

fn from_tunnel(network: &FirewallNetwork, family: IpFamily) -> Vec<String> {
    let Some(all) = ranges(&network.cidrs, family) else { return Vec::new() };
    let ip = ip(family);
    let own = ranges(&network.own, family);
    let mut lines: Vec<String> =
        own.map(|own| format!("{ip} saddr {all} {ip} daddr {own} fib daddr type local accept")).into_iter().collect();
    lines.push(format!(
        "{ip} saddr {all} ct direction reply ct state established,related accept comment \"{}: answers to this host\"",
        network.name
    ));
    lines
}
