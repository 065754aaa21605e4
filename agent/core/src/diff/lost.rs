//! Objects that go with a link: when it is deleted or made anew, the kernel removes everything that stood on it.

use std::collections::BTreeSet;

use flatnet_model::{IfName, IpFamily};

use super::{Blocked, Prune};
use crate::object::{KernelState, Kind, Link, LinkKind, NexthopId, ObjectKey, ObjectKind};

/// The fate of an object that was found, if it gets no operation of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing happens to it.
    Stays,
    /// It is gone before anything is created on links.
    GoneFirst,
    /// It goes with a link that is deleted at the very end; until then it can be moved away.
    GoesLast,
}

/// The links that are deleted or made anew, and the nexthop objects on them.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// Links that are made anew, or deleted before another can be made.
    early: BTreeSet<IfName>,
    /// Links that are deleted at the end.
    late: BTreeSet<IfName>,
    /// Links that get another Ethernet address. The kernel then forgets even permanent neighbours
    /// (net/core/neighbour.c: `neigh_changeaddr`).
    readdressed: BTreeSet<IfName>,
    /// Nexthop objects on `early` links.
    early_nexthops: BTreeSet<NexthopId>,
    /// Nexthop objects on `late` links that are not moved away.
    late_nexthops: BTreeSet<NexthopId>,
}

impl Lost {
    /// Finds out what is lost between two states. `kept` are links that stay although they are not wanted.
    pub(super) fn of(
        want: &KernelState,
        have: &KernelState,
        prune: Prune,
        blocked: &Blocked,
        kept: &BTreeSet<IfName>,
    ) -> Self {
        let mut lost = Self::default();
        for (name, link) in want.links.iter().filter(|(name, _)| !blocked.link(**name)) {
            match have.links.get(name) {
                Some(found) if !have.link_can_become(*name, found, link) => {
                    lost.early.insert(*name);
                }
                Some(found) if readdresses(found, link) => {
                    lost.readdressed.insert(*name);
                }
                Some(_) => {}
                // A dump is not one instant: what it found on a link that was gone a moment later is gone too.
                None => {
                    lost.early.insert(*name);
                }
            }
        }
        if prune == Prune::Yes {
            lost.early.extend(in_the_way(want, have).map(|(_, orphan)| orphan));
            let orphans = have.links.keys().filter(|name| !want.links.contains_key(name) && !kept.contains(name));
            lost.late.extend(orphans.filter(|name| !lost.early.contains(name)));
        }
        if lost.early.is_empty() && lost.late.is_empty() {
            return lost;
        }
        for (id, nexthop) in &have.nexthops {
            match lost.link(nexthop.via.device) {
                Fate::GoneFirst => {
                    lost.early_nexthops.insert(*id);
                }
                Fate::GoesLast if !want.nexthops.contains_key(id) => {
                    lost.late_nexthops.insert(*id);
                }
                Fate::GoesLast | Fate::Stays => {}
            }
        }
        lost
    }

    /// Returns true if a link's settings are back to what the kernel gives new links.
    pub(super) fn settings(&self, device: IfName) -> bool {
        self.early.contains(&device)
    }

    /// Returns the fate of an object that was found: the fate of the one it goes with.
    pub(super) fn fate<K: Kind>(&self, key: &K::Key, spec: &K::Spec) -> Fate {
        if self.early.is_empty() && self.late.is_empty() && self.readdressed.is_empty() {
            return Fate::Stays;
        }
        match K::bonds(key, spec).parent() {
            Some(ObjectKey::Link(name)) if K::KIND == ObjectKind::Neighbour && self.readdressed.contains(name) => {
                Fate::GoneFirst
            }
            Some(ObjectKey::Link(name)) => self.link(*name),
            Some(ObjectKey::Nexthop(id)) if self.early_nexthops.contains(id) => Fate::GoneFirst,
            Some(ObjectKey::Nexthop(id)) if self.late_nexthops.contains(id) => Fate::GoesLast,
            _ => Fate::Stays,
        }
    }

    fn link(&self, device: IfName) -> Fate {
        if self.early.contains(&device) {
            Fate::GoneFirst
        } else if self.late.contains(&device) {
            Fate::GoesLast
        } else {
            Fate::Stays
        }
    }
}

/// Returns true if turning `found` into `wanted` gives it another Ethernet address.
pub(crate) fn readdresses(found: &Link, wanted: &Link) -> bool {
    wanted.mac.is_some() && found.mac != wanted.mac
}

/// Returns the orphans of ours that keep a wanted tunnel device from being made, each after the device it keeps out. A
/// VNI and port can be on one device only (drivers/net/vxlan: `vxlan_vni_in_use`). The same holds for the port of a
/// WireGuard device and for a GRE key. A device that somebody renamed is such an orphan.
pub(crate) fn in_the_way<'a>(
    want: &'a KernelState,
    have: &'a KernelState,
) -> impl Iterator<Item = (IfName, IfName)> + 'a {
    let must_be_made =
        |name: &IfName, link: &Link| have.links.get(name).is_none_or(|found| !have.link_can_become(*name, found, link));
    want.links.iter().filter(move |(name, link)| must_be_made(name, link)).flat_map(|(name, link)| {
        let orphans = have.links.iter().filter(|(other, _)| !want.links.contains_key(other));
        orphans.filter(|(_, found)| same_tunnel(link, found)).map(|(other, _)| (*name, *other))
    })
}

fn same_tunnel(a: &Link, b: &Link) -> bool {
    match (&a.kind, &b.kind) {
        (LinkKind::Vxlan(a), LinkKind::Vxlan(b)) => {
            a.vni == b.vni && a.port == b.port && IpFamily::of(a.local) == IpFamily::of(b.local)
        }
        (LinkKind::Wireguard(a), LinkKind::Wireguard(b)) => a.port == b.port,
        // net/ipv4/ip_tunnel.c: `ip_tunnel_find`; net/ipv6/ip6_gre.c: `collect_md_tun`.
        (LinkKind::Gre(a), LinkKind::Gre(b)) => a.key == b.key && a.datapath == b.datapath,
        (LinkKind::Gre6(a), LinkKind::Gre6(b)) => a == b,
        (LinkKind::Vxlan(_) | LinkKind::Bridge | LinkKind::Wireguard(_) | LinkKind::Gre(_) | LinkKind::Gre6(_), _) => {
            false
        }
    }
}

/// Returns true if `found` needs no change. If no Ethernet address is asked for, any will do.
pub(super) fn same_link(found: &Link, wanted: &Link) -> bool {
    found.kind == wanted.kind
        && found.mtu == wanted.mtu
        && found.up == wanted.up
        && (wanted.mac.is_none() || found.mac == wanted.mac)
}
