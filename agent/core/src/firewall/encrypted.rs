//! Encrypted or dropped: while a network is WireGuard's, its packets cross between hosts in its tunnel or not at all.
//!
//! Packets that come in are judged by [`super::arrival`]; this module is about packets that go out. The route of every
//! peer leads into the tunnel, and a route that refuses catches the rest of the network. This chain holds when those do
//! not: before the first route is made, after a killed agent's device is gone, or when somebody else's more specific
//! route leads elsewhere. It is in the kernel, so it needs no agent. It comes before the first device and goes after
//! the last.
//!
//! While a network changes to WireGuard (or from it), peers that are still reached by the other backend are named as
//! exceptions, one by one. Packets to every other peer are encrypted or dropped already.

use flatnet_model::IpFamily;
use ipnet::IpNet;

use super::{FirewallNetwork, Text, ip, ranges};

/// The priority: before source addresses are translated (at 100; ours at 90), so that the container's own address is
/// judged.
const OUT_PRIORITY: i32 = -120;

/// Adds the base chain, unless no network is encrypted.
pub(super) fn chains(networks: &[FirewallNetwork], text: &mut Text) {
    let encrypted = || networks.iter().filter(|network| !network.encrypted.is_empty());
    if encrypted().next().is_none() {
        return;
    }
    let mut lines = vec![format!("type filter hook postrouting priority {OUT_PRIORITY}; policy accept;")];
    lines.extend(encrypted().flat_map(outgoing));
    text.block("chain encrypted_out", &lines);
}

/// Writes the devices of the network's own packets, and the loopback.
fn devices(network: &FirewallNetwork) -> String {
    let mut names = vec!["\"lo\"".to_owned()];
    names.extend(network.encrypted.iter().map(|tunnel| format!("\"{}\"", tunnel.device)));
    format!("{{ {} }}", names.join(", "))
}

/// Returns the rules for packets to another host of the network, which go through the tunnel.
fn outgoing(network: &FirewallNetwork) -> Vec<String> {
    let mut lines = Vec::new();
    for family in IpFamily::BOTH {
        let Some(all) = ranges(&network.cidrs, family) else { continue };
        let (ip, not_own) = (ip(family), none_of(network.own.iter().chain(&network.clear_to), family));
        lines.push(format!(
            "oifname != {} {ip} daddr {all}{not_own} counter drop comment \"{}: encrypted or dropped\"",
            devices(network),
            network.name
        ));
    }
    lines
}

/// Writes ` ip daddr != { … }`, or nothing if there is no prefix of that family.
fn none_of<'a>(prefixes: impl IntoIterator<Item = &'a IpNet>, family: IpFamily) -> String {
    let set = ranges(prefixes, family);
    set.map(|set| format!(" {} daddr != {set}", ip(family))).unwrap_or_default()
}
