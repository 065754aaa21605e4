//! What a dump looks at: everything that is ours, or some keys only.

use std::collections::BTreeSet;

use flatnet_core::object::{Dump, ObjectKey, ObjectKind, PeerSource, SetName, Sysctl};
use flatnet_model::IfName;

/// The objects that a dump looks at. A look at some keys finds at them exactly what a look at everything finds, and
/// costs no more than the tables of the kernel in which these keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// True if everything that carries our mark is looked at.
    pub ours: bool,
    /// Keys that are looked at in any case. A device of such a name that is not ours is reported as foreign, and such a
    /// setting with its value.
    pub keys: BTreeSet<ObjectKey>,
    /// The sets of our table of which all elements are read.
    pub sets: BTreeSet<SetName>,
}

impl Default for Scope {
    fn default() -> Self {
        Self { ours: true, keys: BTreeSet::new(), sets: BTreeSet::new() }
    }
}

impl Scope {
    /// Everything that is ours, and `keys`.
    #[must_use]
    pub fn also(keys: impl IntoIterator<Item = ObjectKey>) -> Self {
        Self { keys: keys.into_iter().collect(), ..Self::default() }
    }

    /// Nothing but `keys`.
    #[must_use]
    pub fn only(keys: impl IntoIterator<Item = ObjectKey>) -> Self {
        Self { ours: false, ..Self::also(keys) }
    }

    /// The same, and all elements of `sets`.
    #[must_use]
    pub fn with_sets(mut self, sets: impl IntoIterator<Item = SetName>) -> Self {
        self.sets.extend(sets);
        self
    }

    /// Returns the keys and sets that are looked at here and were not in `earlier`, which looked at everything of ours.
    #[must_use]
    pub fn beyond(&self, earlier: &Self) -> Self {
        Self {
            ours: self.ours && !earlier.ours,
            keys: self.keys.difference(&earlier.keys).cloned().collect(),
            sets: self.sets.difference(&earlier.sets).copied().collect(),
        }
    }

    /// Returns true if nothing is looked at.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.ours && self.keys.is_empty() && self.sets.is_empty()
    }

    /// Adds what `other` looks at.
    pub fn extend(&mut self, other: Self) {
        self.ours |= other.ours;
        self.keys.extend(other.keys);
        self.sets.extend(other.sets);
    }

    /// Returns the settings that are looked at.
    pub fn sysctls(&self) -> impl Iterator<Item = &Sysctl> {
        self.keys.iter().filter_map(|key| if let ObjectKey::Sysctl(setting) = key { Some(setting) } else { None })
    }

    /// Returns true if objects of `kind` are looked at.
    pub(crate) fn has_kind(&self, kind: ObjectKind) -> bool {
        let by_key = || self.keys.iter().any(|key| key.kind() == kind);
        self.ours || by_key() || (kind == ObjectKind::PeerSource && !self.sets.is_empty())
    }

    /// Returns true if a device of that name is looked at whether it is ours or not.
    pub(crate) fn has_link(&self, name: IfName) -> bool {
        self.keys.contains(&ObjectKey::Link(name))
    }

    /// Returns the sets in which elements are looked at.
    pub(crate) fn sets_read(&self) -> BTreeSet<SetName> {
        let of_key = |key: &ObjectKey| if let ObjectKey::PeerSource(source) = key { Some(source.set) } else { None };
        self.sets.iter().copied().chain(self.keys.iter().filter_map(of_key)).collect()
    }

    fn has_source(&self, source: PeerSource) -> bool {
        self.sets.contains(&source.set) || self.keys.contains(&ObjectKey::PeerSource(source))
    }

    /// Takes out of `dump` what is not looked at.
    pub(crate) fn narrow(&self, dump: &mut Dump) {
        let Dump { state, foreign, ports } = dump;
        foreign.links.retain(|name, _| self.has_link(*name));
        state.sysctls.retain(|setting, _| self.keys.contains(&ObjectKey::Sysctl(setting.clone())));
        state.peer_sources.retain(|source| self.has_source(*source));
        if self.ours {
            return;
        }
        state.retain(|key| match key {
            ObjectKey::PeerSource(source) => self.has_source(*source),
            key => self.keys.contains(key),
        });
        foreign.nexthops.retain(|id| self.keys.contains(&ObjectKey::Nexthop(*id)));
        foreign.routes.retain(|key| self.keys.contains(&ObjectKey::Route(*key)));
        ports.retain(|bridge, _| self.has_link(*bridge));
    }
}
