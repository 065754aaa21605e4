//! Drift: the operations that repair what somebody else changed. They are the ones at whose key the kernel no longer
//! holds what the last pass left.

use crate::object::KernelState;
use crate::op::Op;

/// Filters `ops` down to repairs: operations whose object was `left` in one state and `found` in another. Objects that
/// are newly wanted (a new peer, another MTU of the underlay) are at keys where both states are the same.
pub fn drift<'a>(
    left: &'a KernelState,
    found: &'a KernelState,
    ops: impl IntoIterator<Item = &'a Op>,
) -> impl Iterator<Item = &'a Op> {
    ops.into_iter().filter(|op| !left.same_at(found, &op.object.key()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Altered, Sysctl};
    use crate::op::{Action, Object};

    #[test]
    fn only_what_changed_behind_our_back_is_drift() {
        let with = |values: &[(&str, &str)]| KernelState {
            sysctls: values.iter().map(|(path, value)| (Sysctl::new(*path), (*value).to_owned())).collect(),
            ..KernelState::default()
        };
        let ops: Vec<Op> = ["net/a", "net/b", "net/c"]
            .map(|path| Op { action: Action::Change, object: Object::Sysctl(Sysctl::new(path), "1".to_owned()) })
            .into();
        let left = with(&[("net/a", "1"), ("net/b", "0"), ("net/c", "1")]);
        let found = with(&[("net/a", "0"), ("net/b", "0")]);
        assert_eq!(drift(&left, &found, &ops).collect::<Vec<_>>(), [&ops[0], &ops[2]]);
        let mut altered = left.clone();
        altered.alter(ops[1].object.key(), Altered::InPlace);
        assert_eq!(drift(&left, &altered, &ops).collect::<Vec<_>>(), [&ops[1]]);
    }
}
