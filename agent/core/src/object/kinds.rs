//! The kinds of kernel object, each declared once: its key and specification, what it stands on, and how it is called.
//!
//! The tables of a [`KernelState`], the draft of one, [`Object`] and [`ObjectKey`], counts, what goes along when
//! something goes, and the order of a plan come from these declarations. Objects are built in the order of the
//! declarations and taken down in the opposite one, so a kind is declared behind those it stands on. To add a kind, add
//! a declaration here, and what carries it out in the kernel crate.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use flatnet_model::IfName;

use super::{
    AddressKey, Altered, FdbKey, IptablesKey, IptablesRule, Link, LinkAddress, NeighbourKey, Nexthop, NexthopId,
    PeerSource, Route, RouteKey, RouteVia, Rule, Ruleset, Sysctl, WireguardPeer, WireguardPeerKey,
};

/// The way in which an object stands on another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bond {
    /// The kernel takes it along when the other one goes, and cannot make it without.
    GoesWith,
    /// It must not be made where the other one could not be: it would lead elsewhere, or be open to anybody.
    Needs,
}

/// The objects that one object stands on, two at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bonds([Option<(ObjectKey, Bond)>; 2]);

impl Bonds {
    /// It stands on `key`, and goes with it.
    #[must_use]
    pub fn goes_with(key: ObjectKey) -> Self {
        Self([Some((key, Bond::GoesWith)), None])
    }

    /// It needs `key`.
    #[must_use]
    pub fn needs(key: ObjectKey) -> Self {
        Self([Some((key, Bond::Needs)), None])
    }

    /// It needs `key` as well.
    #[must_use]
    pub fn and_needs(mut self, key: Option<ObjectKey>) -> Self {
        self.0[1] = key.map(|key| (key, Bond::Needs));
        self
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &(ObjectKey, Bond)> {
        self.0.iter().flatten()
    }

    /// The object that takes this one along.
    #[must_use]
    pub fn parent(&self) -> Option<&ObjectKey> {
        self.iter().find(|(_, bond)| *bond == Bond::GoesWith).map(|(key, _)| key)
    }
}

/// A kind of object as a type, for code that is the same for all of them.
pub trait Kind {
    /// The part that the kernel tells its objects apart by.
    type Key: Ord + Clone + 'static;
    /// The part that is wanted of them; `()` where being there is all.
    type Spec: PartialEq + Clone + 'static;
    /// The kind as a value.
    const KIND: ObjectKind;

    /// The objects of a state, in the order of their keys.
    fn pairs(state: &KernelState) -> impl Iterator<Item = (&Self::Key, &Self::Spec)>;

    /// Returns the bonds of an object.
    fn bonds(key: &Self::Key, spec: &Self::Spec) -> Bonds;

    /// The object.
    fn object(key: &Self::Key, spec: &Self::Spec) -> Object;
}

/// Something done for every kind, in the order in which they are built.
pub trait Visitor {
    /// Does it for one of them.
    fn visit<K: Kind>(&mut self);
}

/// A map from keys to specifications, or a set of keys.
trait Table {
    type Key;
    type Spec;
    fn pairs(&self) -> impl Iterator<Item = (&Self::Key, &Self::Spec)>;
    fn retain(&mut self, keep: impl FnMut(&Self::Key, &Self::Spec) -> bool);
}

impl<K: Ord, V> Table for BTreeMap<K, V> {
    type Key = K;
    type Spec = V;

    fn pairs(&self) -> impl Iterator<Item = (&K, &V)> {
        self.iter()
    }

    fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        Self::retain(self, |key, spec| keep(key, spec));
    }
}

impl<K: Ord> Table for BTreeSet<K> {
    type Key = K;
    type Spec = ();

    fn pairs(&self) -> impl Iterator<Item = (&K, &())> {
        self.iter().map(|key| (key, &()))
    }

    fn retain(&mut self, mut keep: impl FnMut(&K, &()) -> bool) {
        Self::retain(self, |key| keep(key, &()));
    }
}

macro_rules! table {
    ($key:ty) => { BTreeSet<$key> };
    ($key:ty, $spec:ty) => { BTreeMap<$key, $spec> };
}

macro_rules! entry {
    ($key:ty) => {
        $key
    };
    ($key:ty, $spec:ty) => {
        ($key, $spec)
    };
}

macro_rules! spec {
    () => {
        ()
    };
    ($spec:ty) => {
        $spec
    };
}

/// Declares the kinds. The ruleset is there by itself, first: it is one object, and its elements go with it.
macro_rules! kinds {
    ($(
        $(#[$doc:meta])*
        $kind:ident = $name:literal in $table:ident ($key:ident: $key_type:ty $(, $spec:ident: $spec_type:ty)?)
            says ($($text:tt)*)
            on [$($parent:ident),*] $bonds:expr;
    )*) => {
        /// The kinds of object, in the order in which they are built; for metrics, logs and drift counts.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "each is the object of that name")]
        pub enum ObjectKind {
            Ruleset,
            $($kind,)*
        }

        impl ObjectKind {
            /// Every kind, in that order.
            pub const ALL: &'static [Self] = &[Self::Ruleset, $(Self::$kind,)*];

            /// The name in metrics and logs.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    Self::Ruleset => "ruleset",
                    $(Self::$kind => $name,)*
                }
            }

            /// The kinds that its objects stand on.
            #[must_use]
            pub fn parents(self) -> &'static [Self] {
                match self {
                    Self::Ruleset => &[],
                    $(Self::$kind => &[$(Self::$parent),*],)*
                }
            }
        }

        /// An object with its specification, as an operation carries it. In a deletion the specification is what the
        /// dump found.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "key and specification of the object of that name")]
        pub enum Object {
            /// The table with all elements of its sets: swapped whole, in one transaction.
            Ruleset {
                ruleset: Ruleset,
                elements: Vec<PeerSource>,
            },
            $($kind($key_type $(, $spec_type)?),)*
        }

        /// The key of an object of any kind: enough to tell which outcome belongs to which peer.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "the key of the object of that name")]
        pub enum ObjectKey {
            Ruleset,
            $($kind($key_type),)*
        }

        impl ObjectKey {
            /// The kind of the object.
            #[must_use]
            pub fn kind(&self) -> ObjectKind {
                match self {
                    Self::Ruleset => ObjectKind::Ruleset,
                    $(Self::$kind(_) => ObjectKind::$kind,)*
                }
            }
        }

        impl Object {
            /// Returns its key.
            #[must_use]
            pub fn key(&self) -> ObjectKey {
                match self {
                    Self::Ruleset { .. } => ObjectKey::Ruleset,
                    $(Self::$kind(key, ..) => ObjectKey::$kind(key.clone()),)*
                }
            }

            /// Returns its kind.
            #[must_use]
            pub fn kind(&self) -> ObjectKind {
                match self {
                    Self::Ruleset { .. } => ObjectKind::Ruleset,
                    $(Self::$kind(..) => ObjectKind::$kind,)*
                }
            }

            /// Returns its bonds.
            #[must_use]
            pub fn bonds(&self) -> Bonds {
                match self {
                    Self::Ruleset { .. } => Bonds::default(),
                    $(Self::$kind($key $(, $spec)?) => {
                        let _ = (&$key $(, &$spec)?);
                        $bonds
                    })*
                }
            }
        }

        /// Names the object as `ip`, `bridge`, `nft` or `iptables` would, for errors, `agent plan` and logs.
        impl fmt::Display for Object {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    Self::Ruleset { elements, .. } => {
                        write!(f, "table inet {} ({} elements)", Ruleset::TABLE, elements.len())
                    }
                    $(Self::$kind($key $(, $spec)?) => {
                        let _ = (&$key $(, &$spec)?);
                        write!(f, $($text)*)
                    })*
                }
            }
        }

        /// Kernel objects of every kind, each under its key.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct KernelState {
            /// Our one nftables table without its set elements.
            pub ruleset: Option<Ruleset>,
            $($(#[$doc])* pub $table: table!($key_type $(, $spec_type)?),)*
            /// The objects that are there and that somebody altered. What is desired has none.
            pub altered: BTreeMap<ObjectKey, Altered>,
        }

        /// A desired state being made: plain lists, because building each map once from a list is several times faster
        /// than tens of thousands of insertions.
        #[derive(Debug, Default)]
        pub struct Draft {
            /// See [`KernelState::ruleset`].
            pub ruleset: Option<Ruleset>,
            $($(#[$doc])* pub $table: Vec<entry!($key_type $(, $spec_type)?)>,)*
        }

        impl Draft {
            /// The finished state.
            #[must_use]
            pub fn into_state(self) -> KernelState {
                KernelState {
                    ruleset: self.ruleset,
                    $($table: self.$table.into_iter().collect(),)*
                    altered: BTreeMap::new(),
                }
            }
        }

        impl KernelState {
            /// Returns the number of objects of `kind`.
            #[must_use]
            pub fn count(&self, kind: ObjectKind) -> usize {
                match kind {
                    ObjectKind::Ruleset => usize::from(self.has(&ObjectKey::Ruleset)),
                    $(ObjectKind::$kind => self.$table.len(),)*
                }
            }

            /// Returns true if there is an object at `key`.
            #[must_use]
            pub fn has(&self, key: &ObjectKey) -> bool {
                match key {
                    ObjectKey::Ruleset => self.ruleset.is_some() || self.is_altered(key),
                    $(ObjectKey::$kind(key) => self.$table.get(key).is_some(),)*
                }
            }

            /// Returns true if both states have nothing at `key`, or both an object of the same specification, altered
            /// or not.
            #[must_use]
            pub fn same_at(&self, other: &Self, key: &ObjectKey) -> bool {
                let same = match key {
                    ObjectKey::Ruleset => self.ruleset == other.ruleset,
                    $(ObjectKey::$kind(key) => self.$table.get(key) == other.$table.get(key),)*
                };
                same && self.altered.get(key) == other.altered.get(key)
            }

            /// Puts `object` there, and nothing else that the kernel would do on that occasion.
            pub(crate) fn put(&mut self, object: &Object) {
                if !self.altered.is_empty() {
                    self.altered.remove(&object.key());
                }
                match object {
                    Object::Ruleset { ruleset, elements } => {
                        self.ruleset = Some(ruleset.clone());
                        self.peer_sources = elements.iter().copied().collect();
                    }
                    $(Object::$kind($key $(, $spec)?) => {
                        let _ = self.$table.insert($key.clone() $(, $spec.clone())?);
                    })*
                }
            }

            /// Adds what `other` has, in the place of what is there under the same keys.
            pub fn extend(&mut self, other: Self) {
                self.ruleset = other.ruleset.or_else(|| self.ruleset.take());
                $(self.$table.extend(other.$table);)*
                other.altered.into_iter().for_each(|(key, remedy)| self.alter(key, remedy));
            }

            /// Keeps the objects at those keys only for which `keep` returns true.
            pub fn retain(&mut self, keep: impl Fn(&ObjectKey) -> bool) {
                self.ruleset = self.ruleset.take().filter(|_| keep(&ObjectKey::Ruleset));
                $(Table::retain(&mut self.$table, |key, _| keep(&ObjectKey::$kind(key.clone())));)*
                self.altered.retain(|key, _| keep(key));
            }

            /// Takes away what is at `key`, and all that the kernel takes along.
            pub fn forget(&mut self, key: &ObjectKey) {
                self.altered.remove(key);
                match key {
                    ObjectKey::Ruleset => self.ruleset = None,
                    $(ObjectKey::$kind(key) => drop(self.$table.remove(key)),)*
                }
                self.forget_children(key);
            }

            /// Takes away what stands on `gone`, and what stands on that.
            pub fn forget_children(&mut self, gone: &ObjectKey) {
                let mut also = Vec::new();
                $(
                    if ObjectKind::$kind.parents().contains(&gone.kind()) {
                        let altered = &mut self.altered;
                        Table::retain(&mut self.$table, |key, spec| {
                            let stays = <marker::$kind as Kind>::bonds(key, spec).parent() != Some(gone);
                            if !stays && !altered.is_empty() {
                                altered.remove(&ObjectKey::$kind(key.clone()));
                            }
                            if !stays && ObjectKind::$kind.carries() {
                                also.push(ObjectKey::$kind(key.clone()));
                            }
                            stays
                        });
                    }
                )*
                also.iter().for_each(|key| self.forget_children(key));
            }
        }

        /// Does something for every kind but the ruleset, in the order in which they are built.
        pub fn each(visitor: &mut impl Visitor) {
            $(visitor.visit::<marker::$kind>();)*
        }

        /// The kinds as types.
        mod marker {
            $(pub struct $kind;)*
        }

        $(
            impl Kind for marker::$kind {
                type Key = $key_type;
                type Spec = spec!($($spec_type)?);
                const KIND: ObjectKind = ObjectKind::$kind;

                fn pairs(state: &KernelState) -> impl Iterator<Item = (&Self::Key, &Self::Spec)> {
                    Table::pairs(&state.$table)
                }

                fn bonds($key: &Self::Key, spec: &Self::Spec) -> Bonds {
                    let _ = (&$key, &spec);
                    $(
                        let $spec = spec;
                        let _ = &$spec;
                    )?
                    $bonds
                }

                fn object($key: &Self::Key, spec: &Self::Spec) -> Object {
                    let _ = &spec;
                    $(let $spec = spec;)?
                    Object::$kind($key.clone() $(, $spec.clone())?)
                }
            }
        )*
    };
}

kinds! {
    /// Elements of the sets of the table: this outer source may carry that inner source.
    PeerSource = "peer_source" in peer_sources (source: PeerSource)
        says ("element {} {{ {} . {} }}", source.set, source.outer, source.inner)
        on [Ruleset] Bonds::goes_with(ObjectKey::Ruleset);
    /// Devices. A tunnel without its guard would decapsulate anybody's packets.
    Link = "link" in links (name: IfName, link: Link)
        says ("link {name}")
        on [Ruleset] if link.kind.is_tunnel() { Bonds::needs(ObjectKey::Ruleset) } else { Bonds::default() };
    /// Kernel settings that must have a value. A host does not become a router with nothing that judges.
    Sysctl = "sysctl" in sysctls (sysctl: Sysctl, value: String)
        says ("sysctl {sysctl}={value}")
        on [Link, Ruleset] match sysctl.device() {
            Some(device) => on_device(device),
            None => Bonds::needs(ObjectKey::Ruleset),
        };
    /// Addresses on our devices.
    Address = "address" in addresses (key: AddressKey)
        says ("address {} dev {}", key.address, key.device)
        on [Link] on_device(key.device);
    /// Permanent neighbours on our devices: overlay next hop to link address.
    Neighbour = "neighbour" in neighbours (key: NeighbourKey, mac: LinkAddress)
        says ("neighbour {} lladdr {mac} dev {}", key.address, key.device)
        on [Link] on_device(key.device);
    /// Permanent forwarding entries on our VXLAN devices: Ethernet address to underlay address.
    Fdb = "fdb" in fdb (key: FdbKey, to: IpAddr)
        says ("fdb {} dst {to} dev {}", key.mac, key.device)
        on [Link] on_device(key.device);
    /// Peers of our WireGuard devices.
    WireguardPeer = "wireguard_peer" in wireguard_peers (key: WireguardPeerKey, peer: WireguardPeer)
        says (
            "wireguard peer {} allowed-ips {} dev {}",
            key.public_key,
            peer.allowed.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            key.device
        )
        on [Link] on_device(key.device);
    /// Nexthop objects.
    Nexthop = "nexthop" in nexthops (id: NexthopId, nexthop: Nexthop)
        says ("nexthop id {} via {} dev {}", id.0, nexthop.via.gateway, nexthop.via.device)
        on [Link, Neighbour] nexthop.via.bonds();
    /// Routes.
    Route = "route" in routes (key: RouteKey, route: Route)
        says ("route {key}")
        on [Nexthop, Link, Neighbour] match &route.via {
            RouteVia::Object(id) => Bonds::goes_with(ObjectKey::Nexthop(*id)),
            RouteVia::Hop(hop) => hop.bonds(),
            RouteVia::Encap(encap) => on_device(encap.device),
            RouteVia::Unreachable => Bonds::default(),
        };
    /// Rules of routing. What they lead to is there before them, and goes after them.
    Rule = "rule" in rules (rule: Rule)
        says ("rule {rule}")
        on [] Bonds::default();
    /// Our rule at the head of an iptables chain that would otherwise drop us: nobody is let past with nothing that
    /// judges.
    Iptables = "iptables" in iptables (key: IptablesKey, rule: IptablesRule)
        says ("iptables ({:?}, {}) {} {}", key.variant, key.family, key.chain.as_str(), key.comment)
        on [Ruleset, Link] Bonds::needs(ObjectKey::Ruleset).and_needs(rule.device().map(ObjectKey::Link));
}

/// Returns the bonds of an object that goes with a device.
fn on_device(device: IfName) -> Bonds {
    Bonds::goes_with(ObjectKey::Link(device))
}

impl super::NextHop {
    /// Returns the bonds of an object that sends packets this way: it goes with the device and needs the neighbour.
    fn bonds(&self) -> Bonds {
        let neighbour = NeighbourKey { device: self.device, address: self.gateway };
        on_device(self.device).and_needs(Some(ObjectKey::Neighbour(neighbour)))
    }
}

impl ObjectKind {
    /// Returns true if objects of any kind stand on those of this one.
    #[must_use]
    pub fn carries(self) -> bool {
        Self::ALL.iter().any(|kind| kind.parents().contains(&self))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{IptablesChain, IptablesVariant};
    use super::*;
    use crate::fixture;

    /// The state that two networks want, and a rule for a chain that drops.
    fn every_kind() -> KernelState {
        let of = |backend: flatnet_model::BackendConfig| {
            let peers = [fixture::peer("10.100.2.0-24", 2, &backend)];
            let config = fixture::config(Some("10.100.0.0/16"), None, backend);
            fixture::one(&config, "10.100.1.0-24", &peers).state
        };
        let (mut state, wireguard) = (of(fixture::vxlan()), of(fixture::wireguard()));
        state.wireguard_peers = wireguard.wireguard_peers;
        let key = IptablesKey {
            variant: IptablesVariant::Nft,
            family: flatnet_model::IpFamily::V4,
            chain: IptablesChain::Input,
            comment: "flatnet:default".to_owned(),
        };
        let matches = ["-p", "udp", "--dport", "51820"].map(str::to_owned).to_vec();
        state.iptables.insert(key, IptablesRule { matches });
        let family = flatnet_model::IpFamily::V4;
        state.rules.insert(Rule { priority: 90, family, mark: None, from: None, to: None, iif: None, table: 9_100 });
        state
    }

    /// Built in the order of the declarations, so nothing stands on what comes later.
    #[test]
    fn a_kind_is_declared_behind_those_it_stands_on() {
        for kind in ObjectKind::ALL {
            assert!(kind.parents().iter().all(|parent| parent < kind), "{kind:?}");
        }
    }

    /// Every kind's parents are among those it declares: what goes with them is looked for there only.
    #[test]
    fn bonds_are_of_declared_kinds() {
        struct Check<'a>(&'a KernelState, usize);
        impl Visitor for Check<'_> {
            fn visit<K: Kind>(&mut self) {
                for (key, spec) in K::pairs(self.0) {
                    self.1 += 1;
                    for (parent, _) in K::bonds(key, spec).iter() {
                        assert!(K::KIND.parents().contains(&parent.kind()), "{:?} on {parent:?}", K::KIND);
                    }
                    assert_eq!(K::object(key, spec).bonds(), K::bonds(key, spec));
                }
            }
        }
        let state = every_kind();
        let mut check = Check(&state, 0);
        each(&mut check);
        assert!(check.1 >= ObjectKind::ALL.len() - 1);
        assert!(ObjectKind::ALL.iter().all(|kind| state.count(*kind) > 0), "the fixture lacks a kind");
    }
}
