//! One pass of the loop: look, apply what was decided, publish.

use std::collections::{BTreeMap, BTreeSet};

use flatnet_core::backend::{rival_problem, rivals_of};
use flatnet_core::diff::{Conflict, InUse};
use flatnet_core::drift::drift;
use flatnet_core::object::{Dump, KernelState, Link, Ruleset, Sysctl};
use flatnet_core::op::{Action, Object, ObjectKey, ObjectKind, Op, OpError, OpOutcome};
use flatnet_core::plan::{Plan, close_tunnels, plan};
use flatnet_core::problem::{Problem, ProblemCode};
use flatnet_core::wanted::Wanted;
use flatnet_kernel::{Kernel, KernelError, Questions, Scope};
use flatnet_model::IfName;
use tokio::time::Instant;

use super::{Known, Look, Outcome, Reconciler, departed};
use crate::report::chain;

/// The operations of a pass that were not done.
struct Undone {
    failed: BTreeSet<ObjectKey>,
    problems: Vec<Problem>,
}

impl<K: Kernel> Reconciler<K> {
    /// Makes one pass. A quick pass becomes a full one whenever the kernel's state is not known.
    pub(super) async fn pass(&mut self, look: Look) {
        let started = Instant::now();
        let (look, result) = match look {
            Look::Full => (look, self.full().await),
            // Who carries tunnels is looked for only once a network needs to know.
            Look::Quick if self.lacks_carriers() => (Look::Full, self.full().await),
            Look::Quick => {
                let wanted = self.want();
                match self.look_at_new(&wanted.desired.state).await {
                    Ok(true) => (look, Ok(self.bring_about(wanted, None).await)),
                    // If a look at some keys fails, the look at everything says why.
                    Ok(false) | Err(_) => (Look::Full, self.full().await),
                }
            }
        };
        let took = started.elapsed();
        self.metrics.pass(took.as_secs_f64());
        let complete = match result {
            Ok(complete) => complete,
            Err(error) => {
                self.unreadable(&error);
                false
            }
        };
        match look {
            Look::Full => self.pace.passed(Instant::now(), took),
            Look::Quick => self.pace.check(Instant::now()),
        }
        if let Some(underlay) = &self.underlay {
            self.underlay_record.keep(underlay, &self.host.selection.store);
        }
        if complete {
            self.pace.succeeded();
        } else {
            self.pace.failed(Instant::now());
        }
    }

    /// Looks at what is wanted and no look has been at yet: a device, a setting or a set that came with what the store
    /// says now. Returns false if the rest is not known well enough to decide from.
    async fn look_at_new(&mut self, desired: &KernelState) -> Result<bool, KernelError> {
        let Some(known) = self.known.as_mut().filter(|known| known.is_sure()) else { return Ok(false) };
        let new = scope(desired).beyond(&known.scope);
        if !new.is_empty() {
            let found = self.kernel.dump(&new).await?;
            known.dump.renew(&new.keys, &new.sets, found);
            known.scope.extend(new);
        }
        // Taking over a device changes what is known in more than its key.
        Ok(!(self.host.take_over && in_the_way_of(desired, &known.dump).next().is_some()))
    }

    /// Reads the settings whose changes nobody tells of. A pass follows if one is not as it was left.
    pub(super) async fn glance(&mut self) {
        self.pace.glanced(Instant::now());
        let Some(known) = self.known.as_ref().filter(|known| known.is_sure()) else { return };
        if known.scope.sysctls().next().is_none() {
            return;
        }
        let heard = self.hearing(&known.scope);
        let Ok(now) = self.settings(known.scope.sysctls().chain(&heard)).await else { return };
        let changed = known.scope.sysctls().any(|setting| now.get(setting) != known.dump.state.sysctls.get(setting));
        // With forwarding on, such an interface is deaf to router advertisements (see `HostFacts::accept_ra`).
        let deaf = heard.iter().any(|setting| now.get(setting).is_some_and(|value| Sysctl::is_deaf(value)));
        if changed || deaf {
            self.pace.kernel_changed(Instant::now());
        }
    }

    /// Returns the `accept_ra` settings that were raised, if IPv6 is forwarded because of us.
    fn hearing(&self, scope: &Scope) -> Vec<Sysctl> {
        if !scope.sysctls().any(|setting| setting.path() == Sysctl::FORWARD_IPV6) {
            return Vec::new();
        }
        let is_wanted = |setting: &Sysctl| scope.sysctls().any(|wanted| wanted == setting);
        self.sysctls.raised().into_iter().filter(|setting| !is_wanted(setting)).collect()
    }

    /// Returns the present values of `settings`; those that do not exist are left out.
    async fn settings(&self, settings: impl Iterator<Item = &Sysctl>) -> Result<BTreeMap<Sysctl, String>, KernelError> {
        let scope = Scope::only(settings.cloned().map(ObjectKey::Sysctl));
        Ok(if scope.is_empty() { BTreeMap::new() } else { self.kernel.dump(&scope).await?.state.sysctls })
    }

    /// Returns the operations that the next full pass would do.
    pub(super) async fn plan(&mut self) -> Result<Vec<Op>, KernelError> {
        self.look_at_host().await?;
        // What is read here counts as seen, so the pass that acts on it must come.
        self.pace.kernel_changed(Instant::now());
        let mut wanted = self.want();
        let dump = self.kernel.dump(&scope(&wanted.desired.state)).await?;
        wanted.keep(&dump.state);
        let mut ops = plan(&wanted.desired.state, &dump, wanted.prune).ops;
        ops.retain(|op| !self.unwritable.contains(&op.object.key()));
        Ok(ops)
    }

    async fn full(&mut self) -> Result<bool, KernelError> {
        self.look_at_host().await?;
        let mut wanted = self.want();
        if self.lacks_carriers() {
            // The store asked for such tunnels after the look. Without another look the network would be taken to be
            // impossible here.
            self.look_at_host().await?;
            wanted = self.want();
        }
        let scope = scope(&wanted.desired.state);
        let mut dump = self.kernel.dump(&scope).await?;
        if self.host.take_over {
            self.take_over(&wanted.desired.state, &mut dump).await?;
        }
        // Objects that were not looked at before are not known to have changed.
        let left = self.known.take().filter(|left| scope.beyond(&left.scope).is_empty());
        self.known = Some(Known { dump, scope, unsure: BTreeSet::new(), stale: false });
        Ok(self.bring_about(wanted, left).await)
    }

    /// Makes the devices of another program ours that have what a tunnel of ours needs: the plan then replaces them.
    async fn take_over(&self, desired: &KernelState, dump: &mut Dump) -> Result<(), KernelError> {
        let adopt = |(name, link): (IfName, &Link)| {
            tracing::warn!(device = %name, "replacing the tunnel device that flanneld left (--take-over)");
            Op { action: Action::Adopt, object: Object::Link(name, link.clone()) }
        };
        let ops: Vec<Op> = in_the_way_of(desired, dump).map(adopt).collect();
        if ops.is_empty() {
            return Ok(());
        }
        for (op, outcome) in ops.iter().zip(self.kernel.apply(&ops).await) {
            let result = if outcome == OpOutcome::Done { "done" } else { "failed" };
            self.metrics.op(op.object.kind(), op.action, result);
            if let OpOutcome::Failed(error) = outcome {
                tracing::warn!(%error, "a device that flanneld left stays");
            }
        }
        let keys: BTreeSet<ObjectKey> = ops.iter().map(|op| op.object.key()).collect();
        let found = self.kernel.dump(&Scope::only(keys.clone())).await?;
        dump.renew(&keys, &BTreeSet::new(), found);
        Ok(())
    }

    async fn look_at_host(&mut self) -> Result<(), KernelError> {
        let gre = self.needs().carriers;
        let asked = Questions { gre, ..Questions::host(self.host.selection.route_queries()) };
        self.facts = self.kernel.facts(&asked).await?.host;
        self.carriers_known = gre;
        let raised = self.settings(self.sysctls.raised().iter()).await?;
        self.facts.add_set_back(raised);
        if !self.host.userspace {
            self.facts.features.forbid_userspace();
        }
        Ok(())
    }

    /// Returns true if a network needs to know who carries its tunnels, and the last look did not ask.
    fn lacks_carriers(&self) -> bool {
        self.needs().carriers && !self.carriers_known
    }

    /// Makes the kernel what is wanted, starting from what is known of it. Returns true if nothing was left undone.
    /// `left`: what the last pass left, if the kernel was looked at since.
    async fn bring_about(&mut self, mut wanted: Wanted, left: Option<Known>) -> bool {
        // Taken out so that a pass that is cut off leaves `None` behind: not known.
        let Some(Known { dump: mut known, scope, .. }) = self.known.take() else { return false };
        wanted.keep(&known.state);
        let Wanted { desired, judgements, problems, prune, revision, ranges, key, .. } = wanted;
        let Plan { mut ops, conflicts, in_use } = plan(&desired.state, &known, prune);
        departed::add(&mut self.departed, &desired.state, &known.state, &mut ops);
        if let Some(left) = left {
            // Where the last pass failed, its own changes cannot be told from somebody else's. It has counted somebody
            // else's already.
            let ops = ops.iter().filter(|op| !left.unsure.contains(&op.object.key()));
            self.say_drift(drift(&left.dump.state, &known.state, ops));
        }
        self.record_settings(&ops, &desired.state, &known.state);
        let mut undone = Undone { failed: BTreeSet::new(), problems };
        self.carry_out(&ops, &desired.state, &mut known, &mut undone).await;
        self.close_unguarded(&mut known, &mut undone).await;
        let Undone { mut failed, mut problems } = undone;
        problems.extend(conflicts.iter().map(in_the_way));
        problems.extend(in_use.iter().map(still_used));
        let rivals = rivals_of(&desired.state).filter_map(|(name, _)| Some((name, known.foreign.links.get(&name)?)));
        problems.extend(rivals.map(|(name, what)| rival_problem(name, what)));
        self.metrics.objects(&known.state, &failed);
        let complete = failed.is_empty() && self.underlay.is_some();
        // Peers must not learn a key before every device has it.
        let key = match failed.iter().any(|failed| desired.state.is_keyed(failed)) {
            true => self.outcome.borrow().key,
            false => key,
        };
        self.known = Some(Known { dump: known, scope, unsure: failed.clone(), stale: false });
        // A conflicting object was not tried, and is not there either: whoever depends on it must know. Looking again
        // would change nothing.
        failed.extend(conflicts.iter().map(|conflict| conflict.object.key()));
        problems.splice(0..0, desired.problems.iter().cloned());
        problems.sort();
        problems.dedup();
        self.publish(Outcome {
            underlay: self.underlay.clone(),
            judgements,
            networks: desired.networks,
            failed,
            problems,
            complete: complete && conflicts.is_empty(),
            revision,
            ranges: Some(ranges),
            key,
            ..Outcome::default()
        });
        complete
    }

    /// Writes down the settings that `ops` are about to change.
    fn record_settings(&mut self, ops: &[Op], desired: &KernelState, known: &KernelState) {
        for op in ops {
            // A device of ours takes its settings along when it goes.
            if let (Action::Create | Action::Change, Object::Sysctl(sysctl, ours)) = (op.action, &op.object)
                && !sysctl.device().is_some_and(|device| desired.links.contains_key(&device))
                && let Some(before) = known.sysctls.get(sysctl)
            {
                self.sysctls.changing(sysctl, before, ours);
            }
        }
    }

    /// Applies `ops`, folds into `known` what was done, and adds the rest to `undone`.
    async fn carry_out(&mut self, ops: &[Op], desired: &KernelState, known: &mut Dump, undone: &mut Undone) {
        let outcomes = self.kernel.apply(ops).await;
        for (op, outcome) in ops.iter().zip(&outcomes) {
            let result = match outcome {
                OpOutcome::Done => {
                    known.apply(op);
                    "done"
                }
                OpOutcome::Failed(error) if is_dispensable(desired, op, error) => {
                    self.unwritable(op, error);
                    "failed"
                }
                OpOutcome::Failed(error) => {
                    undone.failed.insert(op.object.key());
                    undone.problems.push(refused(error));
                    "failed"
                }
                OpOutcome::Skipped => {
                    undone.failed.insert(op.object.key());
                    "skipped"
                }
            };
            self.metrics.op(op.object.kind(), op.action, result);
        }
    }

    /// Closes the tunnels if the guard was refused and there is none.
    async fn close_unguarded(&mut self, known: &mut Dump, undone: &mut Undone) {
        if !undone.failed.contains(&ObjectKey::Ruleset) || flatnet_kernel::is_guarded(&*self.kernel).await {
            return;
        }
        undone.problems.push(unguarded());
        let ops = close_tunnels(&known.state);
        let outcomes = if ops.is_empty() { Vec::new() } else { self.kernel.apply(&ops).await };
        for (op, outcome) in ops.iter().zip(&outcomes) {
            // Even where the operation worked, the device is not as it is wanted.
            undone.failed.insert(op.object.key());
            match outcome {
                OpOutcome::Done => known.apply(op),
                OpOutcome::Failed(error) => undone.problems.push(refused(error)),
                OpOutcome::Skipped => {}
            }
            let result = if *outcome == OpOutcome::Done { "done" } else { "failed" };
            self.metrics.op(op.object.kind(), op.action, result);
        }
    }

    /// Warns, once for each setting, that a setting cannot be written that can be done without.
    fn unwritable(&mut self, op: &Op, error: &OpError) {
        if self.unwritable.insert(op.object.key()) {
            tracing::warn!(%error, "a setting cannot be written; nothing depends on it");
        }
    }

    /// Reports and counts what somebody else changed.
    fn say_drift<'a>(&self, repairs: impl Iterator<Item = &'a Op>) {
        let kinds: Vec<ObjectKind> = repairs.map(|op| op.object.kind()).collect();
        if kinds.is_empty() {
            return;
        }
        kinds.iter().for_each(|kind| self.metrics.drift(*kind));
        let names = kinds.iter().collect::<BTreeSet<_>>().into_iter().map(|kind| kind.as_str());
        let names = names.collect::<Vec<_>>().join(",");
        tracing::warn!(
            objects = kinds.len(),
            kinds = names,
            "objects of ours were changed by somebody else; repairing"
        );
    }

    /// Publishes what a pass found and did. [`crate::serve::problem_log`] reports the problems.
    fn publish(&mut self, done: Outcome) {
        self.outcome.send_modify(|outcome| {
            if done.complete && !outcome.complete && !done.networks.is_empty() {
                tracing::info!(revision = done.revision, "the kernel is what the store says");
            }
            let passes = outcome.passes + 1;
            *outcome = Outcome { passes, last_pass: Some(Instant::now()), ..done };
        });
    }

    fn unreadable(&mut self, error: &KernelError) {
        if let Some(known) = &mut self.known {
            known.stale = true;
        }
        let problem = Problem::new(
            ProblemCode::KernelUnreadable,
            chain(error),
            "the agent tries again by itself; if it stays, it may lack CAP_NET_ADMIN",
            error.what,
        );
        self.outcome.send_modify(|outcome| {
            if !outcome.problems.contains(&problem) {
                tracing::error!(error = chain(error), "cannot read the kernel's state");
                outcome.problems.push(problem);
            }
            outcome.passes += 1;
            outcome.last_pass = Some(Instant::now());
            outcome.complete = false;
        });
    }
}

/// Returns what a dump must look at besides what carries our mark.
fn scope(desired: &KernelState) -> Scope {
    let links = desired.links.keys().copied().chain(rivals_of(desired).map(|(name, _)| name)).map(ObjectKey::Link);
    let sysctls = desired.sysctls.keys().cloned().map(ObjectKey::Sysctl);
    Scope::also(links.chain(sysctls)).with_sets(desired.ruleset.iter().flat_map(Ruleset::sets))
}

/// Returns the rivals of wanted devices that are there, each with the device of ours in whose way it is.
fn in_the_way_of<'a>(desired: &'a KernelState, dump: &'a Dump) -> impl Iterator<Item = (IfName, &'a Link)> {
    rivals_of(desired).filter(move |(name, _)| dump.foreign.links.contains_key(name))
}

/// Returns true if a setting could not be written, as in a container whose `/proc/sys` is read-only, and nothing is
/// lost by that.
fn is_dispensable(desired: &KernelState, op: &Op, error: &OpError) -> bool {
    matches!(&op.object, Object::Sysctl(setting, _) if is_forbidden(error) && desired.does_without(setting))
}

/// Returns true for `EPERM`, `EACCES` and `EROFS` (asm-generic/errno-base.h).
fn is_forbidden(error: &OpError) -> bool {
    matches!(error.errno, Some(1 | 13 | 30))
}

fn refused(error: &OpError) -> Problem {
    let setting = error.object.strip_prefix("sysctl ").filter(|_| is_forbidden(error));
    let hint = match setting {
        Some(setting) => format!(
            "the agent may not write it: run it privileged, or with /proc/sys writable in its container; or on the host: sysctl -w {setting}"
        ),
        None => "the agent tries again by itself; `agent doctor` looks for the usual causes".to_owned(),
    };
    Problem::new(ProblemCode::KernelRefused, error.to_string(), hint, &error.object)
}

fn unguarded() -> Problem {
    Problem::new(
        ProblemCode::Unguarded,
        "the guard of the tunnels cannot be loaded: no tunnel is opened, and those that were open are closed",
        "the refused ruleset says what nft has against it; `nft --version` must be 1.0.3 or later, and the agent tries again by itself",
        "inet flatnet",
    )
}

fn still_used(in_use: &InUse) -> Problem {
    Problem::new(
        ProblemCode::BridgeInUse,
        format!("{in_use}, and no network of this host wants it"),
        format!("it goes once these are gone; to use it as before, join with --bridge {}", in_use.bridge),
        in_use.bridge,
    )
}

fn in_the_way(conflict: &Conflict) -> Problem {
    Problem::new(
        ProblemCode::ForeignObject,
        format!("{} is not ours and in the way: {}", conflict.object, conflict.found),
        "remove or rename it; if flanneld made it, stop flanneld and join with --take-over",
        &conflict.object,
    )
}
