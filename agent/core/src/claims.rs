//! The senders of packets that our rules dropped. The kernel remembers the packets' sources, and the leases say whose
//! packets they claimed to be.
//!
//! A source can be made up, so everything kept or reported about sources is bounded. Few are named, packets are counted
//! by peer, and the rest is "others".

mod log;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use flatnet_model::{IpFamily, text};
use ipnet::IpNet;

use crate::firewall::WitnessSet;
use crate::problem::{Problem, ProblemCode};

pub use log::{ClaimLog, News};

/// One element of a set that remembers sources ([`crate::firewall::WitnessSet`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The table that dropped the packets.
    pub table: &'static str,
    /// The chain that dropped them.
    pub chain: String,
    /// The interface by which they came in.
    pub interface: String,
    /// Their outer source; `None`: they came without a tunnel.
    pub outer: Option<IpAddr>,
    /// Their inner source, in the network.
    pub inner: IpAddr,
    /// The number of packets.
    pub packets: u64,
}

/// The holder of a subnet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// The network of the subnet.
    pub network: String,
    /// The node's name; empty if it has none, or if it is this host.
    pub node: String,
    /// The subnet.
    pub subnet: IpNet,
    /// The address that the node publishes for tunnels of that family, if it is known.
    pub published: Option<IpAddr>,
    /// True if the holder is this host.
    pub is_here: bool,
}

/// The flaw for which packets were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flaw {
    /// The packets came through the tunnel from an address that is not the peer's.
    Address,
    /// The packets had the peer's address, but came in by an interface from which no route leads back to it.
    Interface,
    /// The packets came without a tunnel, or without the interface that such a source belongs to.
    Clear,
}

impl Flaw {
    /// Returns the flaw's name as a metric's label has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Interface => "interface",
            Self::Clear => "clear",
        }
    }
}

/// Packets that claimed to be somebody's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// The flaw for which the packets were dropped.
    pub flaw: Flaw,
    /// The holder whose packets they claimed to be; `None`: no lease holds their source.
    pub of: Option<Holder>,
    /// The underlay address they came from, if they came through a tunnel.
    pub from: Option<IpAddr>,
    /// The interface by which they came in.
    pub interface: String,
}

impl Claim {
    /// Returns the claim of `sighting`, given that `holders` have the subnets.
    #[must_use]
    pub fn of(sighting: &Sighting, holders: &[Holder]) -> Self {
        // The longest prefix: a reservation may be within another's range.
        let holding = holders.iter().filter(|holder| holder.subnet.contains(&sighting.inner));
        let of = holding.max_by_key(|holder| holder.subnet.prefix_len()).cloned();
        let flaw = match sighting.outer {
            None => Flaw::Clear,
            Some(_) if sighting.chain.starts_with("forged_") => Flaw::Interface,
            Some(_) => Flaw::Address,
        };
        Self { flaw, of, from: sighting.outer, interface: text::line(&sighting.interface) }
    }

    /// Returns true if the peer was unknown when its packets came, but is known by now with the address they came from.
    fn is_settled(&self) -> bool {
        let published = self.of.as_ref().and_then(|holder| holder.published);
        self.flaw == Flaw::Address && published.is_some() && published == self.from
    }

    /// Returns the network concerned; empty if none is known.
    #[must_use]
    pub fn network(&self) -> &str {
        self.of.as_ref().map(|holder| holder.network.as_str()).unwrap_or_default()
    }

    /// Returns the peer as a metric's label has it: its name or else its subnet. A label never has anything that the
    /// sender chose freely.
    #[must_use]
    pub fn label(&self) -> String {
        match &self.of {
            None => "unleased".to_owned(),
            Some(Holder { is_here: true, .. }) => "this host".to_owned(),
            Some(holder) if holder.node.is_empty() => holder.subnet.to_string(),
            Some(holder) => text::line(&holder.node),
        }
    }

    /// Returns `packets that claimed to be …`, in one line.
    #[must_use]
    pub fn text(&self, packets: u64) -> String {
        let Self { from, interface, .. } = self;
        let whose = match &self.of {
            None => "from an address that no lease holds".to_owned(),
            Some(Holder { is_here: true, subnet, .. }) => format!("from this host's own subnet ({subnet})"),
            Some(Holder { node, subnet, .. }) if node.is_empty() => format!("from the peer of {subnet}"),
            Some(Holder { node, subnet, .. }) => format!("from {} ({subnet})", text::line(node)),
        };
        let published = self.of.as_ref().filter(|holder| !holder.is_here).and_then(|holder| holder.published);
        let how = match (self.flaw, from, published) {
            (Flaw::Clear, ..) => format!("came in by {interface}, which is not the way of such a source"),
            (Flaw::Interface, Some(from), _) => {
                format!("came from {from} in by {interface}, where no route leads back to that address")
            }
            (_, Some(from), Some(published)) => format!("came from {from} by {interface}, it publishes {published}"),
            (_, Some(from), None) => format!("came from {from} by {interface}"),
            (_, None, _) => format!("came in by {interface}"),
        };
        let noun = if packets == 1 { "packet" } else { "packets" };
        format!("{packets} {noun} that claimed to be {whose}: {how}")
    }

    /// Returns advice on where to look.
    #[must_use]
    pub fn hint(&self) -> String {
        let Self { from, interface, .. } = self;
        match (self.flaw, from, &self.of) {
            (Flaw::Address, Some(from), Some(Holder { is_here: false, node, .. })) => {
                let peer = if node.is_empty() { "that peer".to_owned() } else { text::line(node) };
                format!(
                    "if {from} is {peer}: give its agent --public-ip or --iface so that it publishes what it sends from, or take \
                     away the address translation (NAT) between the hosts; if it is not: a stranger poses as {peer} \
                     (`ip neigh show {from}`, `ip route get {from}`)"
                )
            }
            (Flaw::Address, Some(from), _) => format!(
                "{from} sends what no peer would: a host that left and does not know, one of another network with the same \
                 VNI, port or key, or a stranger (`ip neigh show {from}`, `agent peers`)"
            ),
            (Flaw::Interface, Some(from), _) => format!(
                "a container or guest behind {interface} forges, or routes differ by direction: `ip route get {from}` must leave \
                 by {interface} if that host is there"
            ),
            _ => format!(
                "a container, guest or machine behind {interface} forges; or a route, NAT or second agent sends in clear what \
                 belongs into the tunnel: `ip -d link show {interface}`, and on the peer `agent doctor`"
            ),
        }
    }

    /// Returns the note that reports this claim. `lately` is the time in which the packets came, and `others` says that
    /// there are more claims than are listed.
    fn problem(&self, packets: u64, lately: Duration, others: &str) -> Problem {
        let network = self.network();
        let network = if network.is_empty() { String::new() } else { format!("network {network}: ") };
        let message = format!("{network}in the last {} s dropped {}{others}", lately.as_secs(), self.text(packets));
        Problem::new(ProblemCode::SourceMismatch, message, self.hint(), self.object())
    }

    fn object(&self) -> String {
        self.of.as_ref().map(|holder| holder.subnet.to_string()).unwrap_or_default()
    }
}

/// Groups `sightings` by what they claimed, most packets first. Claims that have settled since are left out.
#[must_use]
pub fn claims(sightings: &[Sighting], holders: &[Holder]) -> Vec<(Claim, u64)> {
    let mut claims = BTreeMap::new();
    for sighting in sightings {
        let claim = Claim::of(sighting, holders);
        if !claim.is_settled() {
            *claims.entry(claim).or_default() += sighting.packets;
        }
    }
    let mut claims: Vec<(Claim, u64)> = claims.into_iter().collect();
    claims.sort_by_key(|(_, packets)| Reverse(*packets));
    claims
}

/// Returns the end of a list of claims that leaves out `more`, or cannot know of all (`is_cut`); `None`: it is whole.
#[must_use]
pub fn others(more: usize, is_cut: bool) -> Option<String> {
    match (more, is_cut) {
        (0, false) => None,
        (0, true) => Some("and others, more than are remembered".to_owned()),
        (more, false) => Some(format!("and {more} others likewise")),
        (more, true) => Some(format!("and {more} others likewise, and more than are remembered")),
    }
}

/// Returns true if some sightings may be missing because a set is full.
#[must_use]
pub fn are_cut(sightings: &[Sighting]) -> bool {
    let mut sets: BTreeMap<(&str, &str, IpFamily), usize> = BTreeMap::new();
    for sighting in sightings {
        *sets.entry((sighting.table, &sighting.chain, IpFamily::of(sighting.inner))).or_default() += 1;
    }
    sets.values().any(|sources| *sources >= WitnessSet::SIZE)
}

#[cfg(test)]
mod tests;
