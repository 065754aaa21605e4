//! The firewall: our one nftables table, the elements of its sets, and the rules at the head of other people's iptables
//! chains. This module only generates text and elements; the kernel crate programs them.
//!
//! | chain | hook, priority | purpose |
//! |---|---|---|
//! | `guard` | input, -120 | judges tunnel packets before they are decapsulated: an allow-list that ends in a drop |
//! | `judged` | input, 10 | removes the mark by which other people's chains let in packets that `guard` accepted |
//! | `origin` | prerouting, -90 | refuses a peer's tunnel packets that come from elsewhere, such as a container |
//! | `arrival` | prerouting, -290 | believes a source of a network only if the packet came by that network's own way |
//! | `sent` | output, -120 | keeps this host's own tunnel packets from being taken for others' |
//! | `posing` | postrouting, 110 | lets nobody else's tunnel packets leave with this host's own address |
//! | `encrypted_out` | postrouting, -120 | lets a WireGuard network's packets leave through its tunnel only |
//! | `forward` | forward, -10 | keeps networks apart, and containers from speaking the tunnel's protocol to hosts |
//! | `local` | input, -10 | lets packets out of a tunnel reach this host's addresses in its network only |
//! | `postrouting` | postrouting, 90 | keeps the source between containers; masquerades with flannel's meaning |
//!
//! Sets that the kernel fills itself keep the sources of packets that `guard`, `origin` and `arrival` drop
//! ([`WitnessSet`]).
//!
//! A drop is final in netfilter, an accept is not: what these chains let through is still judged by everybody else's.

mod arrival;
mod encrypted;
mod forward;
mod gre;
mod guard;
mod iptables;
mod local;
mod mark;
mod nat;
mod opening;
mod specimen;
mod store;
#[cfg(test)]
mod tests;
mod witness;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use flatnet_model::{IfName, IpFamily, NetworkName};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::object::{PeerSource, Ruleset, SetName, TunnelId};

pub use iptables::iptables;
pub use specimen::specimen;
pub use witness::WitnessSet;

/// A network on this host, as far as the firewall needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallNetwork {
    /// The network's name, which is part of chain names and comments.
    pub name: NetworkName,
    /// Every prefix that the network hands addresses out of.
    pub cidrs: Vec<IpNet>,
    /// This host's subnets of the network; empty while it has none.
    pub own: Vec<IpNet>,
    /// True if containers are masqueraded when they speak to the outside (`--ip-masq`).
    pub masquerade: bool,
    /// The network's tunnel devices on this host; none for direct routes.
    pub tunnels: Vec<FirewallTunnel>,
    /// The network's WireGuard devices on this host. Its packets leave by these or not at all.
    pub encrypted: Vec<EncryptedTunnel>,
    /// Peers' subnets that are reached past those devices, while the network changes to or from WireGuard.
    pub clear_to: Vec<IpNet>,
    /// The sets of the subnets whose packets may come without a tunnel, by the underlay (host-gw, `DirectRouting`).
    pub direct: BTreeSet<SetName>,
    /// Interfaces by which anybody may open connections into the network.
    pub exposed_to: BTreeSet<IfName>,
    /// Ranges outside the network from which anybody may open connections into it.
    pub reachable_from: Vec<IpNet>,
    /// The sources that peers may use through the tunnels and without. Elements of sets that the table does not have
    /// are ignored.
    pub peers: BTreeSet<PeerSource>,
}

impl FirewallNetwork {
    fn tunnels(&self) -> impl Iterator<Item = &FirewallTunnel> {
        self.tunnels.iter()
    }
}

/// A tunnel device, which packets must not reach unjudged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallTunnel {
    /// The tunnel's identifier.
    pub id: TunnelId,
    /// The family of the underlay and of the packets inside.
    pub family: IpFamily,
    /// The lengths that its peers' subnets have, in bits. There is one set for each.
    pub prefix_lens: BTreeSet<u8>,
    /// UDP destination port of VXLAN; 0 for GRE, which has no ports.
    pub port: u16,
    /// The device that decapsulated packets come out of.
    pub device: IfName,
}

/// A WireGuard device, which judges by itself the sources of its peers' packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptedTunnel {
    /// The device that decrypted packets come out of.
    pub device: IfName,
    /// UDP port it listens on.
    pub port: u16,
    /// The families of the packets inside.
    pub families: Vec<IpFamily>,
}

/// The host, as far as the firewall needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallHost {
    /// The interface by which peers are reached.
    pub underlay: IfName,
    /// Further interfaces that lead to other machines, not to containers or guests of this one.
    pub uplinks: BTreeSet<IfName>,
    /// This host's addresses, at least those at which it runs the store.
    pub addresses: BTreeSet<IpAddr>,
    /// Endpoints of the store that containers must not reach.
    pub store: BTreeSet<SocketAddr>,
}

impl From<IfName> for FirewallHost {
    /// Makes a host of which only the underlay is known.
    fn from(underlay: IfName) -> Self {
        Self { underlay, uplinks: BTreeSet::new(), addresses: BTreeSet::new(), store: BTreeSet::new() }
    }
}

impl FirewallTunnel {
    /// Returns the sets of its peers.
    pub fn sets(&self) -> impl Iterator<Item = SetName> {
        let (tunnel, family) = (self.id, self.family);
        self.prefix_lens.iter().map(move |length| SetName { tunnel, family, prefix_len: *length })
    }
}

/// Returns the table for `networks` on `host`, and all elements of its sets. With no network there is nothing to guard,
/// and the body is empty: the table should then not exist.
#[must_use]
pub fn ruleset(networks: &[FirewallNetwork], host: impl Into<FirewallHost>) -> (Ruleset, BTreeSet<PeerSource>) {
    if networks.is_empty() {
        return (Ruleset { body: String::new() }, BTreeSet::new());
    }
    let host = host.into();
    let underlay = host.underlay;
    let mut text = Text::default();
    guard::sets(networks, &mut text);
    arrival::sets(networks, &mut text);
    guard::chains(networks, &mut text);
    guard::origin(networks, &host, &mut text);
    guard::posing(networks, &mut text);
    arrival::chains(networks, &host, &mut text);
    encrypted::chains(networks, &mut text);
    opening::chains(networks, underlay, &mut text);
    forward::chains(networks, &host, &mut text);
    local::chains(networks, &host, &mut text);
    nat::chains(networks, &mut text);
    let of_tunnels = networks.iter().flat_map(|network| &network.tunnels).flat_map(FirewallTunnel::sets);
    let sets: BTreeSet<SetName> =
        of_tunnels.chain(networks.iter().flat_map(|network| &network.direct).copied()).collect();
    let elements = networks.iter().flat_map(|network| &network.peers).filter(|peer| is_usable(peer, &sets));
    (Ruleset { body: text.finish() }, elements.copied().collect())
}

/// Returns true if the element has the family and length of its set. Otherwise it could not be encoded, and the whole
/// swap would fail with it.
fn is_usable(peer: &PeerSource, sets: &BTreeSet<SetName>) -> bool {
    sets.contains(&peer.set)
        && IpFamily::of(peer.outer) == peer.set.family
        && IpFamily::of(peer.inner.addr()) == peer.set.family
        && peer.inner.prefix_len() == peer.set.prefix_len
}

/// The table's body while it is written, indented as `nft list` does.
#[derive(Debug, Default)]
struct Text {
    body: String,
    /// The sets that its rules fill, with the type of their keys.
    witnesses: BTreeMap<WitnessSet, String>,
}

impl Text {
    /// Writes a set or chain: `header {`, its lines, `}`.
    fn block(&mut self, header: &str, lines: &[String]) {
        self.body.push_str(&format!("\t{header} {{\n"));
        for line in lines {
            self.body.push_str(&format!("\t\t{line}\n"));
        }
        self.body.push_str("\t}\n");
    }
}

/// Returns nft's word for an address of `family` in a rule.
fn ip(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "ip",
        IpFamily::V6 => "ip6",
    }
}

/// Writes interfaces as an anonymous set; `None`: there are none.
fn interfaces(names: &BTreeSet<IfName>) -> Option<String> {
    let names: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    (!names.is_empty()).then(|| format!("{{ {} }}", names.join(", ")))
}

/// Writes the members of `family` as nft compares an address with them: `10.0.0.0/8`, `10.0.0.1-10.0.0.9`, or, for
/// several, a set such as `{ 10.0.0.0/8, 192.0.2.0/24 }`; `None`: there are none. They are merged, since nft refuses
/// intervals that overlap.
///
/// What is one range must not be a set. A set of intervals is published after the rules that ask it (Linux 6.18: each
/// set's commit follows the change of generation), so that for a moment of every swap nothing is in it, and a packet
/// that it would let in is dropped.
fn ranges<'a>(prefixes: impl IntoIterator<Item = &'a IpNet>, family: IpFamily) -> Option<String> {
    let prefixes = merged(prefixes, family);
    let (first, last) = (prefixes.first()?, prefixes.last()?);
    if let [one] = prefixes.as_slice() {
        return Some(one.to_string());
    }
    let follows =
        |pair: &[IpNet]| matches!(pair, [a, b] if number(a.broadcast()).checked_add(1) == Some(number(b.network())));
    if prefixes.windows(2).all(follows) {
        return Some(format!("{}-{}", first.network(), last.broadcast()));
    }
    let words: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
    Some(format!("{{ {} }}", words.join(", ")))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// Returns the prefixes of `family`, in order, with host bits cleared and none within another.
fn merged<'a>(prefixes: impl IntoIterator<Item = &'a IpNet>, family: IpFamily) -> Vec<IpNet> {
    let (mut v4, mut v6) = (Vec::<Ipv4Net>::new(), Vec::<Ipv6Net>::new());
    for prefix in prefixes.into_iter().filter(|prefix| IpFamily::of(prefix.addr()) == family) {
        match prefix {
            IpNet::V4(prefix) => v4.push(prefix.trunc()),
            IpNet::V6(prefix) => v6.push(prefix.trunc()),
        }
    }
    // Usually there is one, and aggregating even that is work.
    match (v4.as_slice(), v6.as_slice()) {
        ([one], []) => return vec![IpNet::V4(*one)],
        ([], [one]) => return vec![IpNet::V6(*one)],
        _ => {}
    }
    match family {
        IpFamily::V4 => Ipv4Net::aggregate(&v4).into_iter().map(IpNet::V4).collect(),
        IpFamily::V6 => Ipv6Net::aggregate(&v6).into_iter().map(IpNet::V6).collect(),
    }
}
