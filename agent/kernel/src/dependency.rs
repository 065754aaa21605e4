//! Dependencies between operations: an operation must not be tried if what it stands on could not be made.

use std::collections::HashSet;

use flatnet_core::object::{Bond, ObjectKey};
use flatnet_core::op::{Action, Object, ObjectKind, Op, OpOutcome};

/// The state of the guard after an operation on it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    /// There was no guard, and none could be loaded.
    Missing,
    /// The guard could not be changed. The one before is still there, but knows nothing of what is new.
    Stale,
}

/// The failed operations of one `apply`, keyed by what others depend on. After a failed *change* of a device, there
/// still is a device to stand on. After a failed change of a nexthop or neighbour, it leads elsewhere.
///
/// Every operation goes through [`Failures::tried`] and [`Failures::settle`], whoever carries it out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failures {
    guard: Option<Guard>,
    /// The failed ones that something may stand on.
    failed: HashSet<ObjectKey>,
}

impl Failures {
    /// Returns the operations of a run that stand on nothing that failed, in order.
    pub(crate) fn tried<'a>(&self, run: &'a [Op]) -> Vec<&'a Op> {
        run.iter().filter(|op| !self.block(op)).collect()
    }

    /// Returns one outcome for each operation of a run, and remembers what failed. `of_tried` are the outcomes of the
    /// operations that [`Self::tried`] returned.
    pub(crate) fn settle(&mut self, run: &[Op], of_tried: impl IntoIterator<Item = OpOutcome>) -> Vec<OpOutcome> {
        let mut of_tried = of_tried.into_iter();
        let outcomes: Vec<OpOutcome> = run
            .iter()
            .map(|op| match self.block(op) {
                true => OpOutcome::Skipped,
                // The code that carries operations out owes one outcome for each.
                false => of_tried.next().unwrap_or(OpOutcome::Skipped),
            })
            .collect();
        for (op, _) in run.iter().zip(&outcomes).filter(|(_, outcome)| **outcome != OpOutcome::Done) {
            self.add(op);
        }
        outcomes
    }

    /// Carries out `ops` with `carry`, which is given what can be tried of each run and returns one outcome each.
    /// Returns one outcome for each of `ops`, and what has failed so far.
    pub(crate) fn carry(
        mut self,
        ops: &[Op],
        mut carry: impl FnMut(&[&Op]) -> Vec<OpOutcome>,
    ) -> (Vec<OpOutcome>, Self) {
        let mut outcomes = Vec::with_capacity(ops.len());
        for run in runs(ops) {
            let of_tried = match self.tried(run).as_slice() {
                [] => Vec::new(),
                tried => carry(tried),
            };
            outcomes.extend(self.settle(run, of_tried));
        }
        (outcomes, self)
    }

    /// Remembers that `op` failed or was skipped.
    fn add(&mut self, op: &Op) {
        match (&op.object, op.action) {
            (_, Action::Delete) => {}
            (Object::Ruleset { .. }, Action::Create) => self.guard = Some(Guard::Missing),
            (Object::Ruleset { .. }, _) => self.guard = Some(Guard::Stale),
            (Object::Link(_, link), Action::Change) if !(self.guard.is_some() && link.kind.is_tunnel()) => {}
            (object, _) if object.kind().carries() => drop(self.failed.insert(object.key())),
            _ => {}
        }
    }

    /// Returns true if `op` stands on something that failed. A deletion stands on nothing.
    fn block(&self, op: &Op) -> bool {
        let nothing_failed = self.guard.is_none() && self.failed.is_empty();
        if nothing_failed || op.action == Action::Delete {
            return false;
        }
        op.object.bonds().iter().any(|(parent, bond)| match parent {
            ObjectKey::Ruleset => self.guard.is_some_and(|guard| guard.blocks(op, *bond)),
            parent => self.failed.contains(parent),
        })
    }
}

impl Guard {
    /// Returns true if it keeps `op` from being tried, which stands on the guard by `bond`.
    fn blocks(self, op: &Op, bond: Bond) -> bool {
        match self {
            Self::Missing => true,
            // A tunnel that is there keeps the guard it has.
            Self::Stale => {
                bond == Bond::GoesWith || (op.object.kind() == ObjectKind::Link && op.action != Action::Change)
            }
        }
    }
}

/// Cuts operations into runs of one kind, whose members stand on none of each other, so that each may share a batch.
/// Tables, devices and settings stand alone.
pub(crate) fn runs(ops: &[Op]) -> impl Iterator<Item = &[Op]> {
    let alone = |kind| matches!(kind, ObjectKind::Ruleset | ObjectKind::Link | ObjectKind::Sysctl);
    ops.chunk_by(move |a, b| a.object.kind() == b.object.kind() && !alone(a.object.kind()))
}
