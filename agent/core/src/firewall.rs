//! What our firewall says: the one nftables table, the elements of its sets, and the rules at the head of other people's
//! iptables chains. Pure text and element generation; programming it is the kernel crate's part.
//!
//! | chain | hook, priority | what for |
//! |---|---|---|
//! | `guard` | input, -120 | tunnel packets are judged before they are decapsulated: an allow-list that ends in a drop |
//! | `judged` | input, 10 | the mark by which other people's chains let in what `guard` accepted is taken off again |
//! | `origin` | prerouting, -90 | tunnel packets come from where their source is: no container wears a peer's address |
//! | `arrival` | prerouting, -290 | a source of a network is believed only of what came by that network's own way |
//! | `sent` | output, -120 | this host's own tunnel packets are not taken for others' |
//! | `posing` | postrouting, 110 | nobody's tunnel packets leave this host with its own address |
//! | `encrypted_out` | postrouting, -120 | a WireGuard network's packets leave through its tunnel, or not at all |
//! | `forward` | forward, -10 | networks are kept apart; containers cannot speak the tunnel's protocol to hosts |
//! | `local` | input, -10 | what comes out of a tunnel reaches this host's addresses in its network only |
//! | `postrouting` | postrouting, 90 | container to container keeps its source; masquerading with flannel's meaning |
//!
//! What the drops of `guard`, `origin` and `arrival` are about is kept by sets of the kernel's own ([`WitnessSet`]).
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

/// What the firewall has to know of a network on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallNetwork {
    /// Its name: part of chain names and comments.
    pub name: NetworkName,
    /// Every prefix it hands addresses out of.
    pub cidrs: Vec<IpNet>,
    /// This host's subnets of it; empty while it has none.
    pub own: Vec<IpNet>,
    /// Whether containers are masqueraded when they speak to the outside (`--ip-masq`).
    pub masquerade: bool,
    /// Its tunnel devices on this host; none for direct routes.
    pub tunnels: Vec<FirewallTunnel>,
    /// Its WireGuard devices on this host: its packets leave by these or not at all.
    pub encrypted: Vec<EncryptedTunnel>,
    /// Peers' subnets that are reached past those devices, while the network changes to or from WireGuard.
    pub clear_to: Vec<IpNet>,
    /// The sets of the subnets whose packets may come without a tunnel, by the underlay (host-gw, `DirectRouting`).
    pub direct: BTreeSet<SetName>,
    /// Interfaces by which anybody may open connections into it.
    pub exposed_to: BTreeSet<IfName>,
    /// Ranges outside of it from which anybody may.
    pub reachable_from: Vec<IpNet>,
    /// Who may send what through the tunnels and without; sets that are not here are ignored.
    pub peers: BTreeSet<PeerSource>,
}

impl FirewallNetwork {
    fn tunnels(&self) -> impl Iterator<Item = &FirewallTunnel> {
        self.tunnels.iter()
    }
}

/// A tunnel device that packets must not reach unjudged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallTunnel {
    /// The tunnel's identifier.
    pub id: TunnelId,
    /// Family of the underlay and of what is inside.
    pub family: IpFamily,
    /// The lengths that its peers' subnets have, in bits: a set each.
    pub prefix_lens: BTreeSet<u8>,
    /// UDP destination port of VXLAN; 0 for GRE, which has no ports.
    pub port: u16,
    /// The device decapsulated packets come out of.
    pub device: IfName,
}

/// A WireGuard device: it judges by itself who may send what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptedTunnel {
    /// The device decrypted packets come out of.
    pub device: IfName,
    /// UDP port it listens on.
    pub port: u16,
    /// What is inside.
    pub families: Vec<IpFamily>,
}

/// What the firewall has to know of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallHost {
    /// The interface by which peers are reached.
    pub underlay: IfName,
    /// Further interfaces that lead to other machines, not to containers or guests of this one.
    pub uplinks: BTreeSet<IfName>,
    /// This host's addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Endpoints of the store that containers must not reach.
    pub store: BTreeSet<SocketAddr>,
}

impl From<IfName> for FirewallHost {
    /// A host of which only the underlay is known.
    fn from(underlay: IfName) -> Self {
        Self { underlay, uplinks: BTreeSet::new(), addresses: BTreeSet::new(), store: BTreeSet::new() }
    }
}

impl FirewallTunnel {
    /// The sets of its peers.
    pub fn sets(&self) -> impl Iterator<Item = SetName> {
        let (tunnel, family) = (self.id, self.family);
        self.prefix_lens.iter().map(move |length| SetName { tunnel, family, prefix_len: *length })
    }
}

/// The table for `networks` on `host`, and all elements of its sets. With no network there is nothing
/// to guard, and the body is empty: the table should then not exist.
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

/// An element of another family or length than its set's could not be encoded, and would take the whole swap down with it.
fn is_usable(peer: &PeerSource, sets: &BTreeSet<SetName>) -> bool {
    sets.contains(&peer.set)
        && IpFamily::of(peer.outer) == peer.set.family
        && IpFamily::of(peer.inner.addr()) == peer.set.family
        && peer.inner.prefix_len() == peer.set.prefix_len
}

/// The table's body as it grows, indented as `nft list` does.
#[derive(Debug, Default)]
struct Text {
    body: String,
    /// The sets that its rules fill, and the type of their keys.
    witnesses: BTreeMap<WitnessSet, String>,
}

impl Text {
    /// A set or chain: `header {`, its lines, `}`.
    fn block(&mut self, header: &str, lines: &[String]) {
        self.body.push_str(&format!("\t{header} {{\n"));
        for line in lines {
            self.body.push_str(&format!("\t\t{line}\n"));
        }
        self.body.push_str("\t}\n");
    }
}

/// nft's word for an address of `family` in a rule.
fn ip(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "ip",
        IpFamily::V6 => "ip6",
    }
}

/// Interfaces as an anonymous set; `None`: there are none.
fn interfaces(names: &BTreeSet<IfName>) -> Option<String> {
    let names: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    (!names.is_empty()).then(|| format!("{{ {} }}", names.join(", ")))
}

/// The members of `family` as an anonymous set, `{ 10.0.0.0/8, 192.0.2.0/24 }`; `None`: there are none. Merged, since nft
/// refuses intervals that overlap.
fn anonymous_set<'a>(prefixes: impl IntoIterator<Item = &'a IpNet>, family: IpFamily) -> Option<String> {
    let prefixes = merged(prefixes, family);
    if prefixes.is_empty() {
        return None;
    }
    let words: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
    Some(format!("{{ {} }}", words.join(", ")))
}

/// The prefixes of `family`, host bits cleared, none within another, in order.
fn merged<'a>(prefixes: impl IntoIterator<Item = &'a IpNet>, family: IpFamily) -> Vec<IpNet> {
    let (mut v4, mut v6) = (Vec::<Ipv4Net>::new(), Vec::<Ipv6Net>::new());
    for prefix in prefixes.into_iter().filter(|prefix| IpFamily::of(prefix.addr()) == family) {
        match prefix {
            IpNet::V4(prefix) => v4.push(prefix.trunc()),
            IpNet::V6(prefix) => v6.push(prefix.trunc()),
        }
    }
    // One is the rule, and aggregating even that is work.
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
