//! Operations on kernel objects, and their outcomes.

use std::fmt;
use std::net::IpAddr;

use flatnet_model::IfName;

use crate::object::{
    AddressKey, FdbKey, IptablesKey, IptablesRule, KernelState, Link, LinkAddress, NeighbourKey, Nexthop, NexthopId,
    PeerSource, Route, RouteKey, Ruleset, Sysctl, WireguardPeer, WireguardPeerKey,
};

/// The change that an operation makes to its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Creates the object. The kernel must not have one at that key.
    Create,
    /// Changes the object in place.
    Change,
    /// Deletes the object and creates it anew, because the kernel cannot change it.
    Replace,
    /// Deletes the object. If it is already gone, that is success.
    Delete,
}

impl Action {
    /// Returns the action's name for metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Change => "change",
            Self::Replace => "replace",
            Self::Delete => "delete",
        }
    }
}

/// Declares the kinds together with the list of all of them, so that no kind can be missing from the list.
macro_rules! kinds {
    ($($variant:ident = $text:literal,)*) => {
        /// The kinds of object, for metrics, logs and drift counts.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "each is the object of that name")]
        pub enum ObjectKind {
            $($variant,)*
        }

        impl ObjectKind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Returns the kind's name for metrics and logs.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

kinds! {
    Ruleset = "ruleset",
    PeerSource = "peer_source",
    Link = "link",
    Sysctl = "sysctl",
    Address = "address",
    Neighbour = "neighbour",
    Fdb = "fdb",
    WireguardPeer = "wireguard_peer",
    Nexthop = "nexthop",
    Route = "route",
    Iptables = "iptables",
}

impl KernelState {
    /// Returns the number of objects of `kind`.
    #[must_use]
    pub fn count(&self, kind: ObjectKind) -> usize {
        match kind {
            ObjectKind::Ruleset => usize::from(self.ruleset.is_some()),
            ObjectKind::PeerSource => self.peer_sources.len(),
            ObjectKind::Link => self.links.len(),
            ObjectKind::Sysctl => self.sysctls.len(),
            ObjectKind::Address => self.addresses.len(),
            ObjectKind::Neighbour => self.neighbours.len(),
            ObjectKind::Fdb => self.fdb.len(),
            ObjectKind::WireguardPeer => self.wireguard_peers.len(),
            ObjectKind::Nexthop => self.nexthops.len(),
            ObjectKind::Route => self.routes.len(),
            ObjectKind::Iptables => self.iptables.len(),
        }
    }
}

/// An object with its specification, as an operation carries it. In a deletion, the specification is the one that the
/// dump found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "key and specification of the object of that name")]
pub enum Object {
    /// The table with all elements of its sets. It is swapped whole, in one transaction.
    Ruleset {
        ruleset: Ruleset,
        elements: Vec<PeerSource>,
    },
    PeerSource(PeerSource),
    Link(IfName, Link),
    Sysctl(Sysctl, String),
    Address(AddressKey),
    Neighbour(NeighbourKey, LinkAddress),
    Fdb(FdbKey, IpAddr),
    WireguardPeer(WireguardPeerKey, WireguardPeer),
    Nexthop(NexthopId, Nexthop),
    Route(RouteKey, Route),
    Iptables(IptablesKey, IptablesRule),
}

/// The key of an object. It is enough to tell which outcome belongs to which peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the key of the object of that name")]
pub enum ObjectKey {
    Ruleset,
    PeerSource(PeerSource),
    Link(IfName),
    Sysctl(Sysctl),
    Address(AddressKey),
    Neighbour(NeighbourKey),
    Fdb(FdbKey),
    WireguardPeer(WireguardPeerKey),
    Nexthop(NexthopId),
    Route(RouteKey),
    Iptables(IptablesKey),
}

impl ObjectKey {
    /// Returns the kind of the object.
    #[must_use]
    pub fn kind(&self) -> ObjectKind {
        match self {
            Self::Ruleset => ObjectKind::Ruleset,
            Self::PeerSource(_) => ObjectKind::PeerSource,
            Self::Link(_) => ObjectKind::Link,
            Self::Sysctl(_) => ObjectKind::Sysctl,
            Self::Address(_) => ObjectKind::Address,
            Self::Neighbour(_) => ObjectKind::Neighbour,
            Self::WireguardPeer(_) => ObjectKind::WireguardPeer,
            Self::Fdb(_) => ObjectKind::Fdb,
            Self::Nexthop(_) => ObjectKind::Nexthop,
            Self::Route(_) => ObjectKind::Route,
            Self::Iptables(_) => ObjectKind::Iptables,
        }
    }
}

impl Object {
    /// Returns the object's key.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Ruleset { .. } => ObjectKey::Ruleset,
            Self::PeerSource(source) => ObjectKey::PeerSource(*source),
            Self::Link(name, _) => ObjectKey::Link(*name),
            Self::Sysctl(sysctl, _) => ObjectKey::Sysctl(sysctl.clone()),
            Self::Address(key) => ObjectKey::Address(*key),
            Self::Neighbour(key, _) => ObjectKey::Neighbour(*key),
            Self::Fdb(key, _) => ObjectKey::Fdb(*key),
            Self::WireguardPeer(key, _) => ObjectKey::WireguardPeer(*key),
            Self::Nexthop(id, _) => ObjectKey::Nexthop(*id),
            Self::Route(key, _) => ObjectKey::Route(*key),
            Self::Iptables(key, _) => ObjectKey::Iptables(key.clone()),
        }
    }

    /// Returns the kind of the object.
    #[must_use]
    pub fn kind(&self) -> ObjectKind {
        match self {
            Self::Ruleset { .. } => ObjectKind::Ruleset,
            Self::PeerSource(_) => ObjectKind::PeerSource,
            Self::Link(..) => ObjectKind::Link,
            Self::Sysctl(..) => ObjectKind::Sysctl,
            Self::Address(_) => ObjectKind::Address,
            Self::Neighbour(..) => ObjectKind::Neighbour,
            Self::Fdb(..) => ObjectKind::Fdb,
            Self::WireguardPeer(..) => ObjectKind::WireguardPeer,
            Self::Nexthop(..) => ObjectKind::Nexthop,
            Self::Route(..) => ObjectKind::Route,
            Self::Iptables(..) => ObjectKind::Iptables,
        }
    }
}

/// Names the object as `ip`, `bridge`, `nft` or `iptables` would, for errors, `agent plan` and logs.
impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ruleset { elements, .. } => write!(f, "table inet {} ({} elements)", Ruleset::TABLE, elements.len()),
            Self::PeerSource(source) => write!(f, "element {} {{ {} . {} }}", source.set, source.outer, source.inner),
            Self::Link(name, _) => write!(f, "link {name}"),
            Self::Sysctl(sysctl, value) => write!(f, "sysctl {sysctl}={value}"),
            Self::Address(key) => write!(f, "address {} dev {}", key.address, key.device),
            Self::Neighbour(key, mac) => write!(f, "neighbour {} lladdr {mac} dev {}", key.address, key.device),
            Self::Fdb(key, dst) => write!(f, "fdb {} dst {dst} dev {}", key.mac, key.device),
            Self::WireguardPeer(key, peer) => {
                let allowed = peer.allowed.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
                write!(f, "wireguard peer {} allowed-ips {allowed} dev {}", key.public_key, key.device)
            }
            Self::Nexthop(id, nexthop) => {
                write!(f, "nexthop id {} via {} dev {}", id.0, nexthop.via.gateway, nexthop.via.device)
            }
            Self::Route(key, _) => write!(f, "route {}", key.destination),
            Self::Iptables(key, _) => {
                write!(f, "iptables ({:?}, {}) {} {}", key.variant, key.family, key.chain.as_str(), key.comment)
            }
        }
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// The change to make.
    pub action: Action,
    /// The object to change.
    pub object: Object,
}

/// The outcome of one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpOutcome {
    /// The operation was carried out, or the object of a deletion was already gone.
    Done,
    /// The kernel refused the operation.
    Failed(OpError),
    /// The operation was not tried, because an operation it depends on failed.
    Skipped,
}

/// The refusal of an operation by the kernel, with its reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{action} {object}: {reason}", action = .action.as_str())]
pub struct OpError {
    /// The change that was tried.
    pub action: Action,
    /// The object, as [`Object`] prints it.
    pub object: String,
    /// The error number, positive (`EEXIST` is 17); `None` when a program, not the kernel, refused.
    pub errno: Option<i32>,
    /// The kernel's or the program's own words.
    pub reason: String,
}
