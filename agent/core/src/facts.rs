//! Facts about the host: with the store, everything that decisions here are made from.

use std::collections::BTreeSet;
use std::net::IpAddr;

use flatnet_model::{IfName, IpFamily, Mtu};
use ipnet::IpNet;

use crate::object::{Datapath, IptablesChain, IptablesVariant, Sysctl};

/// The facts that one look at the host found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Every interface.
    pub interfaces: Vec<Interface>,
    /// Addresses that will not stay, or are not usable yet: temporary ones (RFC 8981), deprecated, tentative. Nobody
    /// should be told of these.
    pub passing: BTreeSet<IpAddr>,
    /// The routes by which this host would send to the addresses it was asked about, in their order; `None`: no route.
    pub routes: Vec<(IpAddr, Option<RouteTo>)>,
    /// The interface of the default route with the lowest metric, per family.
    pub default_route: Vec<(IpFamily, IfName)>,
    /// The next hops of the host's default routes, in whatever form: a VPN that takes everything has two routes, each
    /// for half of the addresses.
    pub gateways: Vec<IpAddr>,
    /// Destinations of this host's routes in the main table, at most the first few thousand. Default routes and our own
    /// routes are left out.
    pub destinations: Vec<Destination>,
    /// Interfaces with an address that lead to other machines: network cards, and bonds and VLANs on them. Bridges and
    /// the like, on which containers or virtual machines hang, are not among them.
    pub uplinks: BTreeSet<IfName>,
    /// The resolvers that this host asks for names.
    pub resolvers: Vec<IpAddr>,
    /// iptables chains that have a policy or rule that could drop packets.
    pub dropping_chains: BTreeSet<DroppingChain>,
    /// The features of this kernel.
    pub features: Features,
    /// The `accept_ra` settings of the interfaces that turning on forwarding would make deaf to router advertisements.
    /// On these an advertisement gave this host its default route, the setting is 1 and not 2, and nobody has turned
    /// forwarding on yet. A host that forwarded before is deaf to them by its owner's will.
    pub accept_ra: Vec<Sysctl>,
}

impl HostFacts {
    /// Returns the interface called `name`.
    #[must_use]
    pub fn interface(&self, name: IfName) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }

    /// Adds settings of [`Self::accept_ra`] that we had raised and that `now` shows to be as they were. Somebody set
    /// them back, or plugged the interface in again. It was we who turned forwarding on.
    pub fn add_set_back(&mut self, now: impl IntoIterator<Item = (Sysctl, String)>) {
        let back = now.into_iter().filter(|(_, value)| Sysctl::is_deaf(value)).map(|(setting, _)| setting);
        self.accept_ra.extend(back);
        self.accept_ra.sort();
        self.accept_ra.dedup();
    }
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The interface's name.
    pub name: IfName,
    /// True if the interface is administratively up and has a carrier.
    pub up: bool,
    /// True for the loopback.
    pub loopback: bool,
    /// MTU in bytes, or 65,535 if it is larger (a loopback's is); `None`: it is too small for anything.
    pub mtu: Option<Mtu>,
    /// Addresses with their prefix, host bits kept; link-local ones are left out. They are in the kernel's order,
    /// except that addresses alone in their prefix, as floating ones mostly are, come after the others. The addresses
    /// in [`HostFacts::passing`] come last.
    pub addresses: Vec<IpNet>,
    /// True if the interface is one of ours.
    pub ours: bool,
}

/// The destination of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The destination's prefix.
    pub net: IpNet,
    /// The interface the route leads into; if it has several next hops, the first one's.
    pub device: Option<IfName>,
}

/// The way by which packets to an address leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteTo {
    /// The interface.
    pub device: IfName,
    /// The source address the kernel would choose.
    pub source: Option<IpAddr>,
    /// MTU of the route, if it has one of its own (`RTAX_MTU`).
    pub mtu: Option<Mtu>,
}

/// An iptables chain that can drop packets: it has a policy of DROP, or a rule that drops or rejects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DroppingChain {
    /// The iptables variant.
    pub variant: IptablesVariant,
    /// The IP family: `iptables` or `ip6tables`.
    pub family: IpFamily,
    /// The chain.
    pub chain: IptablesChain,
}

/// The features of this kernel, found by trying.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// True if the kernel has nexthop objects (Linux 5.3).
    pub nexthop_objects: bool,
    /// True if IPv6 is compiled in and was not disabled at boot.
    pub ipv6: bool,
    /// The datapath that can carry WireGuard; `None`: there is none (no module, and no /dev/net/tun).
    pub wireguard: Option<Datapath>,
    /// The datapaths that can carry GRE tunnels, per underlay family. They are looked for only where a network wants
    /// them.
    pub gre: GreSupport,
}

impl Features {
    /// Leaves out what only user space can carry, where it may not.
    pub fn forbid_userspace(&mut self) {
        for carrier in [&mut self.wireguard, &mut self.gre.v4, &mut self.gre.v6] {
            carrier.take_if(|carrier| *carrier == Datapath::Userspace);
        }
    }
}

/// The datapaths that can carry GRE tunnels, per underlay family; `None`: there is none, or it was not looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GreSupport {
    /// The datapath over IPv4 (`ip_gre`).
    pub v4: Option<Datapath>,
    /// The datapath over IPv6 (`ip6_gre`).
    pub v6: Option<Datapath>,
}

impl GreSupport {
    /// Returns the datapath over `family`.
    #[must_use]
    pub fn of(&self, family: IpFamily) -> Option<Datapath> {
        match family {
            IpFamily::V4 => self.v4,
            IpFamily::V6 => self.v6,
        }
    }
}
