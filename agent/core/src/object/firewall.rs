//! Our one nftables table, and the rule that gets our packets past other people's iptables chains.

use std::fmt;
use std::net::IpAddr;

use flatnet_model::{GreKey, IfName, IpFamily, Vni};
use ipnet::IpNet;

/// The table `inet flatnet` as `nft -f` takes it, without the elements of its sets. It is only ever swapped whole, in
/// one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The text between the table's braces.
    pub body: String,
}

impl Ruleset {
    /// The table's name, in family `inet`.
    pub const TABLE: &'static str = "flatnet";

    /// The name of the second table that holds the guard while an agent runs, in family `inet`. Nobody else can flush
    /// it.
    pub const HELD: &'static str = "flatnet_held";

    /// Returns the sets that the body declares, in order.
    pub fn sets(&self) -> impl Iterator<Item = SetName> {
        let declared = self.body.lines().filter_map(|line| line.trim().strip_prefix("set ")?.split(' ').next());
        declared.filter_map(SetName::parse)
    }
}

/// The identifier by which a tunnel's packets are told from others on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TunnelId {
    /// VXLAN's network identifier.
    Vxlan(Vni),
    /// GRE's key, which may also say that there is none.
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

/// A set of our table: the pairs (outer source, inner source) that one tunnel accepts over one underlay family from
/// peers with subnets of one length. Without a tunnel there is no outer source, so only the subnet is in the set.
///
/// A set of one length is a hash table: a packet's inner source is cut to that length and looked up. A set of intervals
/// would take every length. But to remove one of n elements the kernel needs the time of n comparisons (20 ms at
/// 8,000), and to add one it copies them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetName {
    /// The tunnel's identifier.
    pub tunnel: TunnelId,
    /// Family of the outer and the inner source.
    pub family: IpFamily,
    /// Length of the peers' subnets in bits.
    pub prefix_len: u8,
}

impl SetName {
    /// Returns the set of the subnets of length `prefix_len` whose packets come without a tunnel.
    #[must_use]
    pub fn direct(family: IpFamily, prefix_len: u8) -> Self {
        Self { tunnel: TunnelId::Direct, family, prefix_len }
    }

    /// Reads a set's name as [`fmt::Display`] writes it.
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

/// One element of a set: packets from `outer` may carry packets from `inner`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerSource {
    /// The set.
    pub set: SetName,
    /// The peer's underlay address. Where there is no tunnel, it is the subnet's own first address, since the set does
    /// not have an outer source.
    pub outer: IpAddr,
    /// The peer's subnet.
    pub inner: IpNet,
}

impl PeerSource {
    /// Returns the element that accepts packets from `inner` without a tunnel.
    #[must_use]
    pub fn direct(inner: IpNet) -> Self {
        let inner = inner.trunc();
        Self { set: SetName::direct(IpFamily::of(inner.addr()), inner.prefix_len()), outer: inner.addr(), inner }
    }
}

/// The iptables variant that a rule is in. The two programs keep separate rules, and a packet passes both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IptablesVariant {
    /// `iptables-nft`: rules in nftables' table `filter`.
    Nft,
    /// `iptables-legacy`: the kernel's older `ip_tables`.
    Legacy,
}

/// The chains of the table `filter` that can drop our packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IptablesChain {
    /// Packets for this host, such as tunnel packets.
    Input,
    /// Packets passing through this host, such as containers' packets.
    Forward,
}

impl IptablesChain {
    /// Returns the chain's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
        }
    }
}

/// The key of an iptables rule of ours: variant, family, chain, and a comment that names the purpose.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IptablesKey {
    /// The variant.
    pub variant: IptablesVariant,
    /// The IP family: `iptables` or `ip6tables`.
    pub family: IpFamily,
    /// The chain at whose head the rule stands.
    pub chain: IptablesChain,
    /// The rule's comment, `flatnet:<network>`, of letters, digits, `:`, `-`, `_` and `.` only.
    pub comment: String,
}

/// A rule that accepts what it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IptablesRule {
    /// The match in iptables' own words, such as `-s 10.0.0.0/8 -d 10.0.0.0/8`, without comment and target. Each entry
    /// is one word, in the order in which `iptables -S` prints them.
    pub matches: Vec<String>,
}

impl IptablesRule {
    /// Returns the WireGuard device whose port the rule opens to everybody, if it opens one. Without the device the
    /// rule must not be there, since another program may have the port.
    #[must_use]
    pub fn device(&self) -> Option<IfName> {
        let [.., option, port] = self.matches.as_slice() else { return None };
        let port = port.parse().ok().filter(|_| option == "--dport")?;
        super::wireguard_device(port).ok()
    }
}
