//! Connections into a network may be opened by its members, by this host, and by those whom its user names.
//!
//! To pass packets on, this host has to be a router, and a router passes on everybody's. Without these rules every
//! machine that has a route to the network by way of this host could speak to every container of every host. Members'
//! packets are told by their source, which [`super::arrival`] has judged. Besides members, these are let in:
//!
//! * connections to ports that somebody published (their destination was translated);
//! * `--expose` and `ReachableFrom`;
//! * where there are direct routes, the peers' hosts themselves, which speak with their underlay address.
//!
//! Connections that were open stay open.

use flatnet_model::{IfName, IpFamily};

use super::{FirewallNetwork, Text, interfaces, ip, ranges};

/// Adds a chain for each network and family.
pub(super) fn chains(networks: &[FirewallNetwork], underlay: IfName, text: &mut Text) {
    for network in networks {
        for family in IpFamily::BOTH.into_iter().filter(|family| ranges(&network.cidrs, *family).is_some()) {
            text.block(&format!("chain {}", chain(network, family)), &admitted(network, underlay, family));
        }
    }
}

/// Returns the rules that send new connections from outside to judgement; `matching` gives further matches.
pub(super) fn judge(networks: &[FirewallNetwork], matching: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for network in networks {
        for family in IpFamily::BOTH {
            let Some(all) = ranges(&network.cidrs, family) else { continue };
            let ip = ip(family);
            lines.push(format!(
                "{ip} daddr {all} {ip} saddr != {all} {matching}ct state new jump {}",
                chain(network, family)
            ));
        }
    }
    lines
}

fn chain(network: &FirewallNetwork, family: IpFamily) -> String {
    match family {
        IpFamily::V4 => format!("opening4_{}", network.name),
        IpFamily::V6 => format!("opening6_{}", network.name),
    }
}

fn admitted(network: &FirewallNetwork, underlay: IfName, family: IpFamily) -> Vec<String> {
    let (ip, name) = (ip(family), &network.name);
    let mut lines = vec![format!("ct status dnat return comment \"{name}: published ports\"")];
    let hosts = network.direct.iter().filter(|set| set.family == family && set.prefix_len == family.bits());
    lines.extend(hosts.map(|set| format!("iifname \"{underlay}\" {ip} saddr @{set} return")));
    lines.extend(interfaces(&network.exposed_to).map(|devices| format!("iifname {devices} return")));
    lines.extend(ranges(&network.reachable_from, family).map(|ranges| format!("{ip} saddr {ranges} return")));
    lines.push(format!(
        "counter drop comment \"{name}: opened from outside, and nobody said that it may be (--expose)\""
    ));
    lines
}
