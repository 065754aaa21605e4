//! What the host is like: everything decided here from, besides the store.

use std::collections::BTreeSet;
use std::net::IpAddr;

use flatnet_model::{IfName, IpFamily, Mtu};
use ipnet::IpNet;

use crate::object::{Datapath, IptablesChain, IptablesVariant, Sysctl};

/// The host as one look at it found it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Every interface.
    pub interfaces: Vec<Interface>,
    /// Addresses that will not stay, or are no good yet: temporary ones (RFC 8981), deprecated, tentative. Nobody should be
    /// told of these.
    pub passing: BTreeSet<IpAddr>,
    /// Which way this host would send to the addresses it was asked about, in their order; `None`: no route.
    pub routes: Vec<(IpAddr, Option<RouteTo>)>,
    /// Interface of the default route with the lowest metric, per family.
    pub default_route: Vec<(IpFamily, IfName)>,
    /// The next hops of its default routes, by whatever name: a VPN that takes everything has two halves of one.
    pub gateways: Vec<IpAddr>,
    /// Where this host's routes lead, besides default routes and ours: of the main table, the first few thousand.
    pub destinations: Vec<Destination>,
    /// Interfaces with an address that lead to other machines: network cards, bonds and VLANs of those. Not so bridges and
    /// the like, on which containers or virtual machines hang.
    pub uplinks: BTreeSet<IfName>,
    /// Whom this host asks for names.
    pub resolvers: Vec<IpAddr>,
    /// iptables chains that have a policy or rule that could drop packets.
    pub dropping_chains: BTreeSet<DroppingChain>,
    /// What this kernel can do.
    pub features: Features,
    /// `accept_ra` of the interfaces on which a router advertisement gave this host its default route, where that is 1 and
    /// nobody has turned forwarding on yet: they stop hearing them once it is on, unless this is 2. A host that forwarded
    /// before is deaf to them by its owner's will.
    pub accept_ra: Vec<Sysctl>,
}

impl HostFacts {
    /// The interface called `name`.
    #[must_use]
    pub fn interface(&self, name: IfName) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: IfName,
    /// Administratively up and with a carrier.
    pub up: bool,
    /// Whether it is the loopback.
    pub loopback: bool,
    /// MTU in bytes, 65,535 if it is larger (a loopback's is); `None`: too small for anything.
    pub mtu: Option<Mtu>,
    /// Addresses with their prefix, host bits kept; link-local ones left out. In the kernel's order but for those that are
    /// alone in their prefix, as floating ones mostly are, after the others; and last, those in [`HostFacts::passing`].
    pub addresses: Vec<IpNet>,
    /// Whether it is one of ours.
    pub ours: bool,
}

/// The destination of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Its prefix.
    pub net: IpNet,
    /// The interface it leads into; of several ways the first.
    pub device: Option<IfName>,
}

/// Which way packets to an address leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteTo {
    /// The interface.
    pub device: IfName,
    /// The source address the kernel would choose.
    pub source: Option<IpAddr>,
    /// MTU of the route, if it has one of its own (`RTAX_MTU`).
    pub mtu: Option<Mtu>,
}

/// An iptables chain that can drop packets: a policy of DROP, or a rule that drops or rejects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DroppingChain {
    /// Which iptables.
    pub variant: IptablesVariant,
    /// `iptables` or `ip6tables`.
    pub family: IpFamily,
    /// The chain.
    pub chain: IptablesChain,
}

/// What this kernel can do, found by trying.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Nexthop objects (Linux 5.3).
    pub nexthop_objects: bool,
    /// IPv6 is compiled in and not disabled at boot.
    pub ipv6: bool,
    /// Who can carry WireGuard; `None`: nobody (no module, and no /dev/net/tun).
    pub wireguard: Option<Datapath>,
    /// How GRE tunnels can be made, per underlay family; looked for only where a network wants them.
    pub gre: GreSupport,
}

/// How GRE tunnels can be made over each underlay family; `None`: not at all, or not looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GreSupport {
    /// Over IPv4 (`ip_gre`).
    pub v4: Option<Datapath>,
    /// Over IPv6 (`ip6_gre`).
    pub v6: Option<Datapath>,
}

impl GreSupport {
    /// Over `family`.
    #[must_use]
    pub fn of(&self, family: IpFamily) -> Option<Datapath> {
        match family {
            IpFamily::V4 => self.v4,
            IpFamily::V6 => self.v6,
        }
    }
}
