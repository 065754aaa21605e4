//! Our one nftables table, and the rule that gets us past other people's iptables chains.

use std::fmt;
use std::net::IpAddr;

use flatnet_model::{GreKey, IfName, IpFamily, Vni};
use ipnet::IpNet;

/// The table `inet flatnet` as `nft -f` takes it, without the elements of its sets. It is only ever swapped whole, in one
/// transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// Everything between the table's braces.
    pub body: String,
}

impl Ruleset {
    /// The table's name, in family `inet`.
    pub const TABLE: &'static str = "flatnet";

    /// The table that holds the guard a second time while an agent runs, in family `inet`: nobody else can flush it.
    pub const HELD: &'static str = "flatnet_held";

    /// The body of a table of ours that somebody changed: no ruleset that is wanted has it.
    pub const DRIFTED: &'static str = "drifted";

    /// Whether the table is as we made it.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.body != Self::DRIFTED
    }

    /// The sets that the body declares, in order.
    pub fn sets(&self) -> impl Iterator<Item = SetName> {
        let declared = self.body.lines().filter_map(|line| line.trim().strip_prefix("set ")?.split(' ').next());
        declared.filter_map(SetName::parse)
    }
}

/// What tells a tunnel's packets from those of others on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TunnelId {
    /// VXLAN's network identifier.
    Vxlan(Vni),
    /// GRE's key, or that there is none.
    Gre(GreKey),
    /// No tunnel: packets as they are, from a peer on the underlay's link.
    Direct,
}

impl fmt::Display for TunnelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vxlan(vni) => vni.fmt(f),
            Self::Gre(key) => write!(f, "gre{key}"),
            Self::Direct => f.write_str("direct"),
        }
    }
}

/// A set of our table: the pairs (outer source, inner source) that one tunnel accepts over one underlay family from peers
/// with subnets of one length. Without a tunnel there is nothing outside: only the subnet is in the set.
///
/// A set of one length is a hash table: a packet's inner source is cut to that length and looked up. A set of intervals
/// would take every length, but the kernel's time to remove one of n is that of n comparisons (20 ms at 8,000), and to
/// add one that of a copy of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetName {
    /// The tunnel's identifier.
    pub tunnel: TunnelId,
    /// Family of the outer and of the inner source.
    pub family: IpFamily,
    /// Length of the peers' subnets in bits.
    pub prefix_len: u8,
}

impl SetName {
    /// The set of the subnets of that length whose packets come without a tunnel.
    #[must_use]
    pub fn direct(family: IpFamily, prefix_len: u8) -> Self {
        Self { tunnel: TunnelId::Direct, family, prefix_len }
    }

    /// What [`fmt::Display`] writes.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (family, rest) = match (name.strip_prefix("peers4_"), name.strip_prefix("peers6_")) {
            (Some(rest), _) => (IpFamily::V4, rest),
            (None, Some(rest)) => (IpFamily::V6, rest),
            (None, None) => return None,
        };
        let (tunnel, prefix_len) = rest.split_once('_')?;
        let tunnel = match (tunnel, tunnel.strip_prefix("gre")) {
            ("direct", _) => TunnelId::Direct,
            (_, Some(key)) => TunnelId::Gre(GreKey::new(key.parse().ok()?)),
            (vni, None) => TunnelId::Vxlan(Vni::new(vni.parse().ok()?).ok()?),
        };
        let prefix_len = prefix_len.parse().ok().filter(|length| *length <= family.bits())?;
        Some(Self { tunnel, family, prefix_len })
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.family {
            IpFamily::V4 => write!(f, "peers4_{}_{}", self.tunnel, self.prefix_len),
            IpFamily::V6 => write!(f, "peers6_{}_{}", self.tunnel, self.prefix_len),
        }
    }
}

/// One element: packets from `outer` may carry packets from `inner`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerSource {
    /// The set.
    pub set: SetName,
    /// The peer's underlay address; where there is no tunnel the subnet's own first address, since the set does not have it.
    pub outer: IpAddr,
    /// The peer's subnet.
    pub inner: IpNet,
}

impl PeerSource {
    /// What may come from `inner` without a tunnel.
    #[must_use]
    pub fn direct(inner: IpNet) -> Self {
        let inner = inner.trunc();
        Self { set: SetName::direct(IpFamily::of(inner.addr()), inner.prefix_len()), outer: inner.addr(), inner }
    }
}

/// Which iptables a rule is in: the two programs keep separate rules, and a packet passes both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IptablesVariant {
    /// `iptables-nft`: rules in nftables' table `filter`.
    Nft,
    /// `iptables-legacy`: the kernel's older `ip_tables`.
    Legacy,
}

/// The chains of the table `filter` that can drop us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IptablesChain {
    /// Packets for this host: tunnel packets.
    Input,
    /// Packets passing through: containers' packets.
    Forward,
}

impl IptablesChain {
    /// The chain's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
        }
    }
}

/// What our iptables rules are told apart by: variant, family, chain, and a comment that names the purpose.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IptablesKey {
    /// The variant.
    pub variant: IptablesVariant,
    /// `iptables` or `ip6tables`.
    pub family: IpFamily,
    /// The chain at whose head the rule stands.
    pub chain: IptablesChain,
    /// Its comment, `flatnet:<network>`: letters, digits, `:`, `-`, `_`, `.` only.
    pub comment: String,
}

/// A rule that accepts what it matches; `matches` are iptables' own words, such as `-s 10.0.0.0/8 -d 10.0.0.0/8`, one
/// word an entry, without comment and target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IptablesRule {
    /// The words, in the order in which `iptables -S` prints them.
    pub matches: Vec<String>,
}

impl IptablesRule {
    /// The WireGuard device whose port it opens to everybody, if it does: without the device it must not be there, since
    /// another program may have the port.
    #[must_use]
    pub fn device(&self) -> Option<IfName> {
        let [.., option, port] = self.matches.as_slice() else { return None };
        let port = port.parse().ok().filter(|_| option == "--dport")?;
        super::wireguard_device(port).ok()
    }
}
