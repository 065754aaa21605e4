//! Encrypted or dropped: while a network is WireGuard's, its packets cross between hosts in its tunnel or not at all.
//!
//! The route of every peer leads into the tunnel, and one that refuses catches the rest of the network. These chains hold
//! when those do not: before the first route is made, after a killed agent's device is gone, or when somebody else's more
//! specific route leads elsewhere. They are in the kernel, so they need no agent; they come before the first device and go
//! after the last.
//!
//! While a network changes to WireGuard (or from it), peers that are still reached by the other backend, or may still send by
//! it, are named as exceptions, one by one: every other one is encrypted or dropped already.

use flatnet_model::{IfName, IpFamily};
use ipnet::IpNet;

use super::{FirewallNetwork, Text, anonymous_set, ip};

/// After `raw` (-300), before connections are tracked (-200): what never was encrypted leaves no trace.
const IN_PRIORITY: i32 = -290;
/// Before source addresses are translated (100, ours 90), so that the container's own address is judged.
const OUT_PRIORITY: i32 = -120;

/// Both base chains; none where no network is encrypted.
pub(super) fn chains(networks: &[FirewallNetwork], underlay: IfName, text: &mut Text) {
    let encrypted = || networks.iter().filter(|network| !network.encrypted.is_empty());
    if encrypted().next().is_none() {
        return;
    }
    let mut lines = vec![format!("type filter hook prerouting priority {IN_PRIORITY}; policy accept;")];
    lines.extend(encrypted().flat_map(|network| incoming(network, underlay)));
    text.block("chain encrypted_in", &lines);
    let mut lines = vec![format!("type filter hook postrouting priority {OUT_PRIORITY}; policy accept;")];
    lines.extend(encrypted().flat_map(outgoing));
    text.block("chain encrypted_out", &lines);
}

/// The devices of the network's own packets, and the loopback.
fn devices(network: &FirewallNetwork) -> String {
    let mut names = vec!["\"lo\"".to_owned()];
    names.extend(network.encrypted.iter().map(|tunnel| format!("\"{}\"", tunnel.device)));
    format!("{{ {} }}", names.join(", "))
}

/// Nobody on the underlay has an address of the network; other hosts' addresses come out of the tunnel only.
fn incoming(network: &FirewallNetwork, underlay: IfName) -> Vec<String> {
    let mut lines = Vec::new();
    for family in IpFamily::BOTH {
        let Some(all) = anonymous_set(&network.cidrs, family) else { continue };
        let (ip, name) = (ip(family), &network.name);
        let not_yet = none_of(&network.clear_from, family, "saddr");
        lines.push(format!(
            "iifname \"{underlay}\" {ip} saddr {all}{not_yet} counter drop comment \"{name}: in clear from outside\""
        ));
        let not_own = none_of(network.own.iter().chain(&network.clear_from), family, "saddr");
        lines.push(format!(
            "iifname != {} {ip} saddr {all}{not_own} counter drop comment \"{name}: another host's, but not from the tunnel\"",
            devices(network),
        ));
    }
    lines
}

/// To another host of the network: through the tunnel.
fn outgoing(network: &FirewallNetwork) -> Vec<String> {
    let mut lines = Vec::new();
    for family in IpFamily::BOTH {
        let Some(all) = anonymous_set(&network.cidrs, family) else { continue };
        let (ip, not_own) = (ip(family), none_of(network.own.iter().chain(&network.clear_to), family, "daddr"));
        lines.push(format!(
            "oifname != {} {ip} daddr {all}{not_own} counter drop comment \"{}: encrypted or dropped\"",
            devices(network),
            network.name
        ));
    }
    lines
}

/// ` ip saddr != { … }`, or nothing if there is none of that family.
fn none_of<'a>(prefixes: impl IntoIterator<Item = &'a IpNet>, family: IpFamily, field: &str) -> String {
    let set = anonymous_set(prefixes, family);
    set.map(|set| format!(" {} {field} != {set}", ip(family))).unwrap_or_default()
}
