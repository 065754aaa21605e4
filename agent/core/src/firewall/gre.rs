//! The guard for GRE. It judges packets that carry a key of ours, or no key if a network of ours has none. Only those
//! reach the device whose outer source is a peer and whose inner source is in that peer's subnet.
//!
//! Some packets are not judged, because they never come to our devices: PPTP (version 1), Ethernet in GRE (`gretap`,
//! ERSPAN), and over IPv4 other keys. Over IPv6 our one device takes every key (it is `external`), so there everything
//! is judged. A header with a checksum or routing is refused: our devices do not take it either (net/ipv4/ip_tunnel.c:
//! `ip_tunnel_rcv`; net/ipv4/gre_demux.c: `gre_parse_header`).
//!
//! The rules that look into packets are in chains of their own, reached by protocol: nft 1.0.6 cannot list a rule in
//! which raw payload follows `meta l4proto gre`.

use std::collections::BTreeMap;

use flatnet_model::{GreKey, IpFamily};

use super::{FirewallNetwork, Text, guard, ip, mark};
use crate::object::{SetName, TunnelId};

/// The protocol number of GRE. The name would be looked up in /etc/protocols, which a small host lacks.
pub(super) const NUMBER: u8 = 47;

/// Fields of RFC 2784 §2.1 and RFC 2890 §2, from the transport header: flags and version, then the protocol.
const FLAGS: &str = "@th,0,16";
const PROTOCOL: &str = "@th,16,16";
/// The bits that must be 0 for a packet to be of version 0, and the flags for a key, a sequence number and a checksum.
/// Sequence numbers are skipped over.
const VERSION: &str = "0x0007";
const KEY: u16 = 0x2000;
const SEQUENCE: u16 = 0x1000;
const CHECKSUM: u16 = 0x8000;
/// Ethernet (`ETH_P_TEB`), ERSPAN and ERSPAN2, which other drivers' devices take.
const OTHERS: &str = "{ 0x6558, 0x88be, 0x22eb }";

/// The judgement of one network's packets over one family.
struct Judged<'a> {
    network: &'a FirewallNetwork,
    key: GreKey,
    family: IpFamily,
    sets: Vec<SetName>,
}

/// Adds the chains that judge GRE over each family, without the sets.
pub(super) fn chains(networks: &[FirewallNetwork], text: &mut Text) {
    for family in IpFamily::BOTH {
        let judged = judged(networks, family);
        if judged.is_empty() {
            continue;
        }
        let mut lines = others();
        match family {
            IpFamily::V4 => {
                for one in judged.values() {
                    let mut rules = allow(one);
                    rules.extend(witnesses(one, &chain_of(one), text));
                    text.block(&format!("chain {}", chain_of(one)), &with_drop(rules, &one.network.name.to_string()));
                    lines.extend(selectors(one).map(|selector| format!("{selector} goto {}", chain_of(one))));
                }
            }
            IpFamily::V6 => {
                lines.extend(judged.values().flat_map(allow));
                for one in judged.values() {
                    lines.extend(witnesses(one, entrance(family), text));
                }
                let names: Vec<String> = judged.values().map(|one| one.network.name.to_string()).collect();
                lines = with_drop(lines, names.first().map_or("", String::as_str));
            }
        }
        text.block(&format!("chain {}", entrance(family)), &lines);
    }
}

/// Returns the rules of a base chain that send GRE to judgement. `matching` gives further matches for each family.
/// Packets that are none of ours come back.
pub(super) fn judge(networks: &[FirewallNetwork], matching: impl Fn(IpFamily) -> String, why: &str) -> Vec<String> {
    let families = families(networks).into_iter();
    families
        .map(|family| format!("{} meta l4proto {NUMBER} jump {} comment \"{why}\"", matching(family), entrance(family)))
        .collect()
}

/// Adds chains with the same matches that apply `verdict` to packets that a peer could have sent.
pub(super) fn forged(networks: &[FirewallNetwork], verdict: &str, text: &mut Text) {
    for family in families(networks) {
        let chain = format!("forged_{}", entrance(family));
        let mut lines = Vec::new();
        for (peer, source) in judged(networks, family).values().flat_map(of_peer) {
            lines.push(text.witness(&chain, family, &peer, Some(&source)));
            lines.push(format!("{peer} {verdict}"));
        }
        text.block(&format!("chain {chain}"), &lines);
    }
}

/// Returns the rules of a base chain that send packets which match `wrong_side` to those chains.
pub(super) fn ask_forged(networks: &[FirewallNetwork], wrong_side: &str) -> Vec<String> {
    let families = families(networks).into_iter();
    families
        .map(|family| {
            format!("{} meta l4proto {NUMBER} {wrong_side} jump forged_{}", of_family(family), entrance(family))
        })
        .collect()
}

/// Adds chains that mark packets which carry a key of ours, or no key if a network of ours has none.
pub(super) fn passing(networks: &[FirewallNetwork], text: &mut Text) {
    for family in families(networks) {
        let mut lines = others();
        match family {
            IpFamily::V4 => {
                let judged = judged(networks, family);
                let selectors = judged.values().flat_map(selectors);
                lines.extend(selectors.map(|selector| format!("{selector} {}", mark::set())));
            }
            IpFamily::V6 => lines.push(mark::set()),
        }
        text.block(&format!("chain passing_{}", entrance(family)), &lines);
    }
}

/// Returns the rules of a base chain that send GRE to those chains.
pub(super) fn ask_passing(networks: &[FirewallNetwork], matching: impl Fn(IpFamily) -> String) -> Vec<String> {
    let families = families(networks).into_iter();
    families
        .map(|family| format!("{} meta l4proto {NUMBER} jump passing_{}", matching(family), entrance(family)))
        .collect()
}

/// Returns the families over which there are GRE tunnels here.
fn families(networks: &[FirewallNetwork]) -> Vec<IpFamily> {
    IpFamily::BOTH.into_iter().filter(|family| !judged(networks, *family).is_empty()).collect()
}

/// Returns true if any network has GRE tunnels on this host.
pub(super) fn is_used(networks: &[FirewallNetwork]) -> bool {
    IpFamily::BOTH.into_iter().any(|family| !judged(networks, family).is_empty())
}

/// Matches packets of `family` by their network protocol.
pub(super) fn of_family(family: IpFamily) -> String {
    format!("meta nfproto {}", if family == IpFamily::V4 { "ipv4" } else { "ipv6" })
}

fn judged(networks: &[FirewallNetwork], family: IpFamily) -> BTreeMap<GreKey, Judged<'_>> {
    let all = networks.iter().flat_map(|network| network.tunnels().map(move |tunnel| (network, tunnel)));
    let of_family = all.filter(|(_, tunnel)| tunnel.family == family);
    of_family
        .filter_map(|(network, tunnel)| match tunnel.id {
            TunnelId::Gre(key) => Some((key, Judged { network, key, family, sets: tunnel.sets().collect() })),
            TunnelId::Vxlan(_) | TunnelId::Direct => None,
        })
        .collect()
}

fn entrance(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "gre4",
        IpFamily::V6 => "gre6",
    }
}

fn chain_of(one: &Judged<'_>) -> String {
    format!("{}_{}", entrance(one.family), one.key)
}

/// Matches packets that the device of this network would take, or would take and then refuse.
fn selectors(one: &Judged<'_>) -> impl Iterator<Item = String> {
    let key = one.key;
    let with = |flags: u16, at: u16| format!("{FLAGS} & {:#06x} == {flags:#06x} @th,{at},32 {key}", KEY | CHECKSUM);
    match key.is_none() {
        true => vec![format!("{FLAGS} & {KEY:#06x} == 0")],
        // A checksum comes before the key and is as long.
        false => vec![with(KEY, 32), with(KEY | CHECKSUM, 64)],
    }
    .into_iter()
}

/// Returns the rules that let packets pass which our devices do not take.
fn others() -> Vec<String> {
    vec![format!("{PROTOCOL} {OTHERS} return"), format!("{FLAGS} & {VERSION} != 0 return comment \"PPTP\"")]
}

/// Returns the allow-list.
fn allow(one: &Judged<'_>) -> Vec<String> {
    of_peer(one).into_iter().map(|(peer, _)| format!("{peer} {} accept", mark::set())).collect()
}

/// Returns the rules that remember the sources of packets that are no peer's, with and without a sequence number. A
/// packet without a whole header of ours has no source.
fn witnesses(one: &Judged<'_>, chain: &str, text: &mut Text) -> Vec<String> {
    let rule = |sequence| {
        let source = inner_source(one.family, one.key, sequence);
        text.witness(chain, one.family, header(one, sequence).trim_end(), Some(&source))
    };
    [false, true].map(rule).into()
}

/// Returns matches for packets that peers may send, each with the place of the inner source. There is one with and one
/// without a sequence number, for each length of the peers' subnets.
fn of_peer(one: &Judged<'_>) -> Vec<(String, String)> {
    let family = one.family;
    let rule = |set: &SetName, sequence: bool| {
        let source = inner_source(family, one.key, sequence);
        let peer = format!("{}{} saddr . ({source} & {}) @{set}", header(one, sequence), ip(family), guard::mask(*set));
        (peer, source)
    };
    one.sets.iter().flat_map(|set| [rule(set, false), rule(set, true)]).collect()
}

/// Matches a header with the key and perhaps a sequence number, and the protocol inside. The text ends in a space.
fn header(one: &Judged<'_>, sequence: bool) -> String {
    let key = if one.key.is_none() { String::new() } else { format!("@th,32,32 {} ", one.key) };
    let flags = if one.key.is_none() { 0 } else { KEY } | if sequence { SEQUENCE } else { 0 };
    format!("{FLAGS} {flags:#06x} {PROTOCOL} {} {key}", guard::ethertype(one.family))
}

fn with_drop(mut lines: Vec<String>, network: &str) -> Vec<String> {
    lines.push(format!("counter drop comment \"{network}: our GRE, but not a peer sending from its own subnet\""));
    lines
}

fn header_bytes(key: GreKey, sequence: bool) -> u16 {
    4 + if key.is_none() { 0 } else { 4 } + if sequence { 4 } else { 0 }
}

/// Returns the place of the inner packet's source, behind a GRE header with `key` and perhaps a sequence number.
pub(super) fn inner_source(family: IpFamily, key: GreKey, sequence: bool) -> String {
    // Byte 12 of an IPv4 header (RFC 791), 8 of an IPv6 one (RFC 8200).
    let (at, bits) = match family {
        IpFamily::V4 => (12, 32),
        IpFamily::V6 => (8, 128),
    };
    format!("@th,{},{bits}", (header_bytes(key, sequence) + at) * 8)
}

#[cfg(test)]
mod tests;
