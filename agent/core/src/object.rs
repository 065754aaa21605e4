//! Kernel objects that the agent may own. Each is a key (by which the kernel tells objects apart) and a specification
//! (what we want of the object). Leases, peers and networks are not known here.
//!
//! A [`KernelState`] is used for both sides: what is desired and what a dump found. It has only what we *set*;
//! counters, indexes and timers, which change by themselves, are left out.

mod altered;
mod firewall;
mod kinds;
mod link;
mod neighbour;
mod route;
mod rule;
mod sysctl;
mod wireguard;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

pub use altered::Altered;
pub use firewall::{IptablesChain, IptablesKey, IptablesRule, IptablesVariant, PeerSource, Ruleset, SetName, TunnelId};
pub use kinds::{Bond, Bonds, Draft, KernelState, Kind, Object, ObjectKey, ObjectKind, Visitor, each};
pub use link::{Datapath, GreLink, Link, LinkKind, VxlanLink, WireguardLink};
pub use neighbour::{FdbKey, LinkAddress, NeighbourKey};
pub use route::{Encap, NextHop, Nexthop, NexthopId, Route, RouteKey, RouteVia};
pub use rule::Rule;
pub use sysctl::Sysctl;
pub use wireguard::{WireguardPeer, WireguardPeerKey, wireguard_device};

use flatnet_model::IfName;

/// The routing protocol number that marks our routes, neighbours and nexthop objects as ours (`RTA_PROTOCOL`,
/// `NDA_PROTOCOL`, `nh_protocol`). Neither iproute2's `rt_protos` nor linux/rtnetlink.h assigns it. It is above
/// `RTPROT_STATIC`, so the kernel leaves it to user space.
pub const PROTOCOL: u8 = 91;

/// An address on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressKey {
    /// The device.
    pub device: IfName,
    /// Address and prefix length, host bits kept.
    pub address: IpNet,
}

impl KernelState {
    /// Returns true if `key` is a device that has this host's key.
    #[must_use]
    pub fn is_keyed(&self, key: &ObjectKey) -> bool {
        let ObjectKey::Link(name) = key else { return false };
        self.links.get(name).is_some_and(|link| matches!(link.kind, LinkKind::Wireguard(_)))
    }

    /// Returns true if no harm is done while `setting` has another value than is wanted here. A tunnel's guard lets no
    /// router advertisements out of the tunnel, and where forwarding is on, the kernel ignores redirects.
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

/// Keys at which the kernel has an object that is not ours. If we want an object there, that is a conflict: it is
/// reported, and the foreign object is never changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    /// Devices, each with a short description (`vxlan VNI 1`).
    pub links: BTreeMap<IfName, String>,
    /// Nexthop objects.
    pub nexthops: BTreeSet<NexthopId>,
    /// Routes in the main table.
    pub routes: BTreeSet<RouteKey>,
}

/// The objects that a dump of the kernel found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// The objects that are ours.
    pub state: KernelState,
    /// The foreign objects at keys where ours may have to be.
    pub foreign: Foreign,
    /// The bridges of ours that something is plugged into, with the ports. These are mostly links of containers, which
    /// do not belong to us.
    pub ports: BTreeMap<IfName, BTreeSet<IfName>>,
}
