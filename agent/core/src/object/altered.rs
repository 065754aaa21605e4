//! Objects of ours that somebody altered in what their specification does not tell: a VXLAN device that learns, a table
//! with another rule in it.

use flatnet_model::IfName;

use super::{KernelState, Link, ObjectKey};

/// The remedy for an altered object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Altered {
    /// A change in place puts it right.
    InPlace,
    /// Only making it anew puts it right.
    Anew,
}

impl KernelState {
    /// Marks the object at `key` as altered. Nothing that could be said of an altered table would be true, so that a
    /// state has no specification of one.
    pub fn alter(&mut self, key: ObjectKey, remedy: Altered) {
        if key == ObjectKey::Ruleset {
            self.ruleset = None;
        }
        self.altered.insert(key, remedy);
    }

    /// Returns true if the object at `key` is altered, whatever its specification says.
    #[must_use]
    pub fn is_altered(&self, key: &ObjectKey) -> bool {
        self.altered.contains_key(key)
    }

    /// Returns true if the kernel can turn the link `name`, which is like `found`, into `wanted` without making the
    /// device anew.
    #[must_use]
    pub fn link_can_become(&self, name: IfName, found: &Link, wanted: &Link) -> bool {
        found.can_become(wanted) && self.altered.get(&ObjectKey::Link(name)) != Some(&Altered::Anew)
    }
}
