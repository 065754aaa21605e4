//! Source addresses: between containers of a network they stay; to the outside they are masqueraded if that is wanted.

use flatnet_model::IpFamily;

use super::{FirewallNetwork, Text, ip, ranges};

/// The priority: ten before `srcnat` (100). The first chain that decides on a connection's source is the last, so a
/// plain dockerd's MASQUERADE of its bridge's subnet finds container-to-container connections already settled.
const PRIORITY: i32 = 90;

/// kube-proxy's mark for "to be masqueraded". flannel leaves packets that carry it alone, so that kube-proxy's rule can
/// act.
const MASQUERADE_MARK: &str = "0x4000";

/// Adds the base chain, and one chain per network, because `return` must not skip the other networks.
pub(super) fn chains(networks: &[FirewallNetwork], text: &mut Text) {
    let mut lines = vec![
        format!("type nat hook postrouting priority {PRIORITY}; policy accept;"),
        "oifname \"lo\" return".to_owned(),
        format!("meta mark & {MASQUERADE_MARK} == {MASQUERADE_MARK} return comment \"kube-proxy masquerades it\""),
    ];
    for network in networks {
        let rules: Vec<String> = IpFamily::BOTH.iter().flat_map(|family| source(network, *family)).collect();
        text.block(&format!("chain nat_{}", network.name), &rules);
        lines.push(format!("jump nat_{}", network.name));
    }
    text.block("chain postrouting", &lines);
}

/// Returns flannel's rules for one family (flannel: `iptables.go`, `masqRules`), except that within the network the
/// source is pinned rather than left to later chains.
fn source(network: &FirewallNetwork, family: IpFamily) -> Vec<String> {
    let Some(all) = ranges(&network.cidrs, family) else { return Vec::new() };
    let own = ranges(&network.own, family);
    let ip = ip(family);
    let name = &network.name;
    let mut lines = Vec::new();
    if let Some(own) = &own {
        // A container that reaches a neighbour on its bridge, or itself, through a published port needs the publisher's
        // own masquerading, or the answer goes past the translation.
        lines.push(format!("{ip} saddr {own} {ip} daddr {own} ct status dnat return"));
    }
    lines.push(format!(
        "{ip} saddr {all} {ip} daddr {all} snat {ip} to {ip} saddr comment \"{name}: containers see each other's own address\""
    ));
    if network.masquerade {
        if let Some(own) = &own {
            lines.push(format!("{ip} saddr != {all} {ip} daddr {own} return"));
        }
        lines.push(format!(
            "{ip} saddr {all} {ip} daddr != {} masquerade fully-random comment \"{name}: containers to the outside\"",
            multicast(family)
        ));
        lines.push(format!(
            "{ip} saddr != {all} {ip} daddr {all} masquerade fully-random comment \"{name}: the outside to remote containers\""
        ));
    }
    lines
}

fn multicast(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "224.0.0.0/4",
        IpFamily::V6 => "ff00::/8",
    }
}
