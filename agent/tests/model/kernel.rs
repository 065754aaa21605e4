//! A node's kernel: the one in memory, some milliseconds away. It is watched for what must never be done to it.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use flatnet_core::object::{Dump, Foreign, KernelState};
use flatnet_core::op::{Action, Object, ObjectKey, ObjectKind, Op, OpOutcome};
use flatnet_kernel::fake::FakeKernel;
use flatnet_kernel::{Facts, Kernel, KernelError, Questions, Scope, Wake};
use futures::Stream;

use crate::store::Mutant;
use crate::trace::RunLog;

/// The way of one run of a node to its kernel.
pub struct ModelKernel {
    inner: FakeKernel,
    log: Arc<RunLog>,
    mutant: Mutant,
    /// The objects that the last dump called foreign.
    foreign: Mutex<Foreign>,
    /// The objects that the mutant has "deleted".
    hidden: Mutex<BTreeSet<ObjectKey>>,
}

impl ModelKernel {
    /// Creates a way to `inner`.
    pub fn new(inner: FakeKernel, log: Arc<RunLog>, mutant: Mutant) -> Self {
        Self { inner, log, mutant, foreign: Mutex::default(), hidden: Mutex::default() }
    }

    /// Remembers what is foreign at what was looked at.
    fn note_foreign(&self, scope: &Scope, found: &Foreign) {
        let mut foreign = self.foreign.lock().unwrap();
        if scope.ours {
            *foreign = found.clone();
        } else {
            foreign.links.extend(found.links.clone());
            foreign.nexthops.extend(&found.nexthops);
            foreign.routes.extend(&found.routes);
        }
    }

    fn check(&self, ops: &[Op]) {
        let foreign = self.foreign.lock().unwrap();
        for op in ops {
            if op.action == Action::Delete && !self.log.leaving.load(Ordering::Relaxed) && !self.log.knows_all() {
                self.log.trace.violation(format!("{} deletes {} before a full snapshot", self.log.name, op.object));
            }
            let theirs = match op.object.key() {
                ObjectKey::Link(name) => foreign.links.contains_key(&name),
                ObjectKey::Nexthop(id) => foreign.nexthops.contains(&id),
                ObjectKey::Route(key) => foreign.routes.contains(&key),
                _ => false,
            };
            // A device that is adopted is somebody else's by definition.
            if theirs && op.action != Action::Adopt {
                self.log.trace.violation(format!(
                    "{} wants to {} the foreign {}",
                    self.log.name,
                    op.action.as_str(),
                    op.object
                ));
            }
        }
    }

    /// Applies operations as the mutant does: deletions are forgotten, and what was deleted is not seen.
    async fn apply_without_deletions(&self, ops: &[Op]) -> Vec<OpOutcome> {
        let mut outcomes = Vec::new();
        for op in ops {
            let key = op.object.key();
            if op.action == Action::Delete {
                self.hidden.lock().unwrap().insert(key);
                outcomes.push(OpOutcome::Done);
                continue;
            }
            let mut op = op.clone();
            if self.hidden.lock().unwrap().remove(&key) && op.action == Action::Create {
                op.action = Action::Change;
            }
            outcomes.extend(self.inner.apply(std::slice::from_ref(&op)).await);
        }
        outcomes
    }
}

impl Kernel for ModelKernel {
    async fn facts(&self, asked: &Questions) -> Result<Facts, KernelError> {
        if asked.host.is_some() {
            self.log.travel().await;
        }
        self.inner.facts(asked).await
    }

    async fn dump(&self, scope: &Scope) -> Result<Dump, KernelError> {
        self.log.travel().await;
        let mut dump = self.inner.dump(scope).await?;
        self.note_foreign(scope, &dump.foreign);
        for key in self.hidden.lock().unwrap().iter() {
            hide(&mut dump.state, key);
        }
        self.log.travel().await;
        Ok(dump)
    }

    async fn apply(&self, ops: &[Op]) -> Vec<OpOutcome> {
        if ops.is_empty() {
            return self.inner.apply(ops).await;
        }
        self.check(ops);
        self.log.travel().await;
        let cut = {
            let mut chance = self.log.chance.lock().unwrap();
            if chance.one_in(4) { chance.below(ops.len()) } else { 0 }
        };
        // The operations are applied in two halves, since a crash may come between any two of them. What depends on a
        // failed one must be skipped, so the second half follows only if all went well in the first.
        let (first, rest) = ops.split_at(cut);
        let mut outcomes = match self.mutant {
            Mutant::DesiredSideOnly => self.apply_without_deletions(ops).await,
            _ if first.is_empty() => self.inner.apply(ops).await,
            _ => self.inner.apply(first).await,
        };
        if outcomes.len() < ops.len() {
            if outcomes.iter().all(|outcome| *outcome == OpOutcome::Done) {
                self.log.travel().await;
                outcomes.extend(self.inner.apply(rest).await);
            } else {
                outcomes.extend(rest.iter().map(|_| OpOutcome::Skipped));
            }
        }
        let failed = outcomes.iter().filter(|outcome| **outcome != OpOutcome::Done).count();
        let shown: Vec<String> =
            ops.iter().take(4).map(|op| format!("{} {}", op.action.as_str(), short(&op.object))).collect();
        self.log.trace.say(format!(
            "{} kernel {} ops ({failed} not done): {}",
            self.log.name,
            ops.len(),
            shown.join("; ")
        ));
        self.log.travel().await;
        outcomes
    }

    fn events(&self) -> Result<impl Stream<Item = Wake> + Send + Unpin + 'static, KernelError> {
        self.inner.events()
    }
}

fn short(object: &Object) -> String {
    object.to_string().chars().take(70).collect()
}

fn hide(state: &mut KernelState, key: &ObjectKey) {
    // A setting is always there.
    if key.kind() != ObjectKind::Sysctl {
        state.forget(key);
    }
}
