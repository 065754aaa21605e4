//! The guard before decapsulation of VXLAN ([`super::gre`] is GRE's). Of the packets that carry our VNI, only those
//! reach the device whose outer source is a peer and whose inner source is in that peer's subnet.
//!
//! It stands at hook `input`, where IPv4 packets are reassembled. IPv6 ones are too, because our `postrouting` chain
//! makes the kernel track connections, and tracking reassembles at prerouting. A packet too short to carry a VNI passes
//! here and is refused by the device (drivers/net/vxlan: `vxlan_rcv` pulls the header first).
//!
//! An outer source is worth something only if it cannot be forged from *inside* this host: a container with
//! CAP_NET_RAW, which Docker grants, can send with a peer's address. So a packet that a peer could have sent must come
//! in where its source would be answered. Packets that come in by the underlay's own interface, or by another that
//! leads to machines and not to containers, are let pass: with several uplinks routes may differ by direction. Nor may
//! anybody be given this host's address on the way: see [`posing`].

use std::collections::{BTreeMap, BTreeSet};

use flatnet_model::{IpFamily, Vni};

use super::{FirewallHost, FirewallNetwork, FirewallTunnel, Text, gre, ip, mark, ranges};
use crate::object::{SetName, TunnelId};

/// The priority: after conntrack and mangle (-150) and before every filter (0), so that packets dropped here cost and
/// confuse nobody else.
const PRIORITY: i32 = -120;

/// The priority of `origin`: after `dstnat` (-100), so that a translated port is the one that counts.
const ORIGIN_PRIORITY: i32 = -90;

/// The priority of `judged`: after every filter (0, and what people hang behind it), and before security labels (50)
/// and translation (100).
const JUDGED_PRIORITY: i32 = 10;

/// The priority of `posing`: after `srcnat` (100), when a source is what it will be on the wire.
const POSING_PRIORITY: i32 = 110;

/// The fields that follow the UDP header (8 bytes) in VXLAN (RFC 7348 §5), as bit offset and length from the transport
/// header. The VNI comes after 4 bytes of flags, the inner EtherType after 8 bytes of VXLAN and two MAC addresses, and
/// then the inner packet.
const VNI: &str = "@th,96,24";
const INNER_ETHERTYPE: &str = "@th,224,16";
/// Source address at byte 12 of the IPv4 header (RFC 791).
const INNER_SOURCE_V4: &str = "@th,336,32";
/// Source address at byte 8 of the IPv6 header (RFC 8200).
const INNER_SOURCE_V6: &str = "@th,304,128";

/// Adds a set for each length of a tunnel's peers' subnets, without elements.
pub(super) fn sets(networks: &[FirewallNetwork], text: &mut Text) {
    for (network, set) in networks.iter().flat_map(|network| sets_of(network).map(move |set| (network, set))) {
        let inner = match set.tunnel {
            TunnelId::Vxlan(_) => inner_source(set.family).to_owned(),
            TunnelId::Gre(key) => gre::inner_source(set.family, key, false),
            TunnelId::Direct => continue,
        };
        let lines = [
            format!("typeof {} saddr . {inner}", ip(set.family)),
            format!("comment \"{}: peer's underlay address . its subnet /{}\"", network.name, set.prefix_len),
        ];
        text.block(&format!("set {set}"), &lines);
    }
}

/// Adds the base chains, and an allow-list for each port and VNI.
pub(super) fn chains(networks: &[FirewallNetwork], text: &mut Text) {
    let by_port_and_vni = by_port_and_vni(networks);
    for ((port, vni), (network, sets)) in &by_port_and_vni {
        let chain = format!("tunnel_{port}_{vni}");
        let mut lines: Vec<String> =
            sets.iter().map(|set| format!("{} {} accept", of_peer(*set), mark::set())).collect();
        let families: BTreeSet<IpFamily> = sets.iter().map(|set| set.family).collect();
        lines.extend(families.into_iter().map(|family| {
            text.witness(
                &chain,
                family,
                &format!("{INNER_ETHERTYPE} {}", ethertype(family)),
                Some(inner_source(family)),
            )
        }));
        lines.push(format!("counter drop comment \"{network}: our VNI, but not a peer sending from its own subnet\""));
        text.block(&format!("chain {chain}"), &lines);
    }
    gre::chains(networks, text);
    let mut lines = vec![format!("type filter hook input priority {PRIORITY}; policy accept;")];
    lines.extend(protocols(networks).map(|packets| format!("{packets} {}", mark::clear())));
    lines.extend(gre::judge(networks, gre::of_family, "before decapsulation; what is not ours comes back"));
    for ((port, vni), (network, _)) in &by_port_and_vni {
        lines.push(format!(
            "udp dport {port} {VNI} {vni} goto tunnel_{port}_{vni} comment \"{network}: before decapsulation; other VNIs are not ours\""
        ));
    }
    text.block("chain guard", &lines);
    if protocols(networks).next().is_some() {
        let mut lines = vec![format!("type filter hook input priority {JUDGED_PRIORITY}; policy accept;")];
        lines.extend(protocols(networks).map(|packets| format!("{} {packets} {}", mark::is_set(), mark::clear())));
        text.block("chain judged", &lines);
    }
}

/// Adds the base chain that refuses peers' tunnel packets from the wrong side, and the chains it uses. Other people's
/// tunnels, whose ends are not peers, do not concern us, whether they are routed or bridged through this host.
pub(super) fn origin(networks: &[FirewallNetwork], outside: &FirewallHost, text: &mut Text) {
    let by_port_and_vni = by_port_and_vni(networks);
    if protocols(networks).next().is_none() {
        return;
    }
    const FORGED: &str = "counter drop comment \"no route leads back to this peer: a forged source\"";
    for ((port, vni), (_, sets)) in &by_port_and_vni {
        let chain = format!("forged_{port}_{vni}");
        let mut lines = Vec::new();
        for set in sets {
            let peer = of_peer(*set);
            lines.push(text.witness(&chain, set.family, &peer, Some(inner_source(set.family))));
            lines.push(format!("{peer} {FORGED}"));
        }
        text.block(&format!("chain {chain}"), &lines);
    }
    gre::forged(networks, FORGED, text);
    let mut lines = vec![format!("type filter hook prerouting priority {ORIGIN_PRIORITY}; policy accept;")];
    let packets = by_port_and_vni
        .keys()
        .map(|(port, vni)| (format!("udp dport {port}"), format!("{VNI} {vni} goto forged_{port}_{vni}")));
    let wrong_side = format!("iifname != {} fib saddr . iif oif missing", interfaces(outside));
    lines.extend(packets.map(|(packets, ask)| format!("{packets} {wrong_side} {ask}")));
    lines.extend(gre::ask_forged(networks, &wrong_side));
    text.block("chain origin", &lines);
}

/// Returns the interfaces by which a peer's packets may come whatever the way back. No container hangs on any of them.
fn interfaces(outside: &FirewallHost) -> String {
    let others = outside.uplinks.iter().filter(|uplink| **uplink != outside.underlay);
    let names: Vec<String> = others.map(|name| format!(", \"{name}\"")).collect();
    match names.is_empty() {
        true => format!("\"{}\"", outside.underlay),
        false => format!("{{ \"{}\"{} }}", outside.underlay, names.concat()),
    }
}

/// Returns the rules by which `forward` marks packets that pass through this host with our VNI. Otherwise, somebody
/// masqueraded behind this host would speak with its address, which is a peer's elsewhere. Tunnels inside the networks
/// do not concern us.
pub(super) fn passing_through(networks: &[FirewallNetwork]) -> Vec<String> {
    let judged: BTreeSet<(u16, Vni)> = tunnels(networks).map(|(_, vxlan)| (vxlan.port, vxlan.vni)).collect();
    let outside = |family| match ranges(networks.iter().flat_map(|network| &network.cidrs), family) {
        Some(every) => format!("{} daddr != {every}", ip(family)),
        None => gre::of_family(family),
    };
    let mut lines = gre::ask_passing(networks, outside);
    for family in IpFamily::BOTH {
        let outside = outside(family);
        lines
            .extend(judged.iter().map(|(port, vni)| format!("{outside} udp dport {port} {VNI} {vni} {}", mark::set())));
    }
    lines
}

/// Adds the base chains that let no such packet leave with an address of this host, and clear the mark of those that
/// leave with another. A packet that this host sends itself may carry the mark of the packet inside, which is somebody
/// else's.
pub(super) fn posing(networks: &[FirewallNetwork], text: &mut Text) {
    if protocols(networks).next().is_none() {
        return;
    }
    gre::passing(networks, text);
    let clear = || protocols(networks).map(|packets| format!("{} {packets} {}", mark::is_set(), mark::clear()));
    let mut lines = vec![format!("type filter hook output priority {PRIORITY}; policy accept;")];
    lines.extend(clear());
    text.block("chain sent", &lines);
    let mut lines = vec![format!("type filter hook postrouting priority {POSING_PRIORITY}; policy accept;")];
    lines.extend(protocols(networks).map(|packets| {
        format!(
            "{} {packets} fib saddr type local counter drop comment \"nobody behind this host is its tunnel\"",
            mark::is_set()
        )
    }));
    lines.extend(clear());
    text.block("chain posing", &lines);
}

/// Matches every packet that may be a tunnel's, whoever's: one match for each port, and one for GRE.
fn protocols(networks: &[FirewallNetwork]) -> impl Iterator<Item = String> {
    let ports: BTreeSet<u16> = tunnels(networks).map(|(_, vxlan)| vxlan.port).collect();
    let gre = gre::is_used(networks).then(|| format!("meta l4proto {}", gre::NUMBER));
    ports.into_iter().map(|port| format!("udp dport {port}")).chain(gre)
}

/// Returns the sets of each port and VNI, with the network to name in comments.
fn by_port_and_vni(networks: &[FirewallNetwork]) -> BTreeMap<(u16, Vni), (String, Vec<SetName>)> {
    let mut all: BTreeMap<(u16, Vni), (String, Vec<SetName>)> = BTreeMap::new();
    for (network, vxlan) in tunnels(networks) {
        let entry = all.entry((vxlan.port, vxlan.vni));
        entry.or_insert_with(|| (network.name.to_string(), Vec::new())).1.extend(vxlan.sets);
    }
    all
}

/// Matches packets that a peer in `set` may send.
fn of_peer(set: SetName) -> String {
    format!(
        "{INNER_ETHERTYPE} {} {} saddr . ({} & {}) @{set}",
        ethertype(set.family),
        ip(set.family),
        inner_source(set.family),
        mask(set)
    )
}

/// Returns the protocol inside, as in Ethernet (and in GRE).
pub(super) fn ethertype(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "0x0800",
        IpFamily::V6 => "0x86dd",
    }
}

fn inner_source(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => INNER_SOURCE_V4,
        IpFamily::V6 => INNER_SOURCE_V6,
    }
}

/// Returns the mask that cuts an inner source to its subnet, as a number: raw payload has no other form.
pub(super) fn mask(set: SetName) -> String {
    let host_bits = u32::from(set.family.bits().saturating_sub(set.prefix_len));
    match set.family {
        IpFamily::V4 => format!("{:#x}", u32::MAX.checked_shl(host_bits).unwrap_or(0)),
        IpFamily::V6 => format!("{:#x}", u128::MAX.checked_shl(host_bits).unwrap_or(0)),
    }
}

/// A VXLAN tunnel.
struct Vxlan {
    port: u16,
    vni: Vni,
    sets: Vec<SetName>,
}

fn tunnels(networks: &[FirewallNetwork]) -> impl Iterator<Item = (&FirewallNetwork, Vxlan)> {
    let all = networks.iter().flat_map(|network| network.tunnels().map(move |tunnel| (network, tunnel)));
    all.filter_map(|(network, tunnel)| match tunnel.id {
        TunnelId::Vxlan(vni) => Some((network, Vxlan { port: tunnel.port, vni, sets: tunnel.sets().collect() })),
        TunnelId::Gre(_) | TunnelId::Direct => None,
    })
}

fn sets_of(network: &FirewallNetwork) -> impl Iterator<Item = SetName> {
    network.tunnels().flat_map(FirewallTunnel::sets)
}

#[cfg(test)]
mod tests;
