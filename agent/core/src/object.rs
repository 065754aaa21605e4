//! Kernel objects: what the agent may own, each as a key (what the kernel tells objects apart by) and a specification
//! (what we want of it). Leases, peers and networks are not known here.
//!
//! A [`KernelState`] is used for both sides: what is desired and what a dump found. Only what we *set* is in it; counters,
//! indexes and timers, which change by themselves, are not.

mod firewall;
mod link;
mod neighbour;
mod route;
mod sysctl;
mod wireguard;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

pub use firewall::{IptablesChain, IptablesKey, IptablesRule, IptablesVariant, PeerSource, Ruleset, SetName, TunnelId};
pub use link::{Datapath, GreLink, Link, LinkKind, VxlanLink, WireguardLink};
pub use neighbour::{FdbKey, LinkAddress, NeighbourKey};
pub use route::{Encap, NextHop, Nexthop, NexthopId, Route, RouteKey, RouteVia};
pub use sysctl::Sysctl;
pub use wireguard::{WireguardPeer, WireguardPeerKey, wireguard_device};

use flatnet_model::IfName;
use std::net::IpAddr;

/// The routing protocol number that marks our routes, neighbours and nexthop objects as ours (`RTA_PROTOCOL`,
/// `NDA_PROTOCOL`, `nh_protocol`). Not taken in iproute2's `rt_protos` nor linux/rtnetlink.h; above `RTPROT_STATIC`, so
/// the kernel leaves it to user space.
pub const PROTOCOL: u8 = 91;

/// An address on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressKey {
    /// The device.
    pub device: IfName,
    /// Address and prefix length, host bits kept.
    pub address: IpNet,
}

/// Kernel objects of every kind, each under its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelState {
    /// Our one nftables table without its set elements.
    pub ruleset: Option<Ruleset>,
    /// Which outer source may carry which inner source, per set of the table.
    pub peer_sources: BTreeSet<PeerSource>,
    /// Devices.
    pub links: BTreeMap<IfName, Link>,
    /// Kernel settings that must have a value.
    pub sysctls: BTreeMap<Sysctl, String>,
    /// Addresses on our devices.
    pub addresses: BTreeSet<AddressKey>,
    /// Permanent neighbours on our devices: overlay next hop to link address.
    pub neighbours: BTreeMap<NeighbourKey, LinkAddress>,
    /// Permanent forwarding entries on our VXLAN devices: Ethernet address to underlay address.
    pub fdb: BTreeMap<FdbKey, IpAddr>,
    /// Peers of our WireGuard devices.
    pub wireguard_peers: BTreeMap<WireguardPeerKey, WireguardPeer>,
    /// Nexthop objects.
    pub nexthops: BTreeMap<NexthopId, Nexthop>,
    /// Routes in the main table.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Our rule at the head of an iptables chain that would otherwise drop us.
    pub iptables: BTreeMap<IptablesKey, IptablesRule>,
}

impl KernelState {
    /// Whether nobody is harmed while this setting has another value than is wanted here: what a tunnel's guard lets out of
    /// it are no router advertisements, and where forwarding is on no redirect is heeded.
    #[must_use]
    pub fn does_without(&self, setting: &Sysctl) -> bool {
        let Some(link) = setting.device().and_then(|device| self.links.get(&device)) else { return false };
        let is_tunnel = link.kind != LinkKind::Bridge;
        let wanted = self.sysctls.get(setting).map(String::as_str);
        match setting.path().rsplit('/').next() {
            Some("accept_redirects") => true,
            Some("accept_ra") => is_tunnel,
            Some("disable_ipv6") => is_tunnel && wanted == Some("1"),
            _ => false,
        }
    }
}

/// Keys at which the kernel has an object that is not ours. What we want there is a conflict, to be reported, never
/// changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    /// Devices, with a word on what they are (`vxlan VNI 1`).
    pub links: BTreeMap<IfName, String>,
    /// Nexthop objects.
    pub nexthops: BTreeSet<NexthopId>,
    /// Routes in the main table.
    pub routes: BTreeSet<RouteKey>,
}

/// What a dump found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// What is ours.
    pub state: KernelState,
    /// What is in our way.
    pub foreign: Foreign,
    /// Bridges of ours that something is plugged into, and what: containers, mostly, whose link is theirs and not ours.
    pub ports: BTreeMap<IfName, BTreeSet<IfName>>,
}
