//! The decision about what to do next: the machine is asked, with what the view says of this node's subnets.

use std::time::Duration;

use flatnet_core::backend::{self, Needs};
use flatnet_core::lease_machine::{Action, Input, LeaseState, Seen};
use flatnet_core::outcome::Judgement;
use flatnet_core::problem::{Problem, ProblemCode};
use flatnet_core::transition;
use flatnet_model::keys::NetworkKeys;
use flatnet_model::{BackendConfig, IpFamily, Lease, NetworkConfig, Publication, SubnetKey};
use flatnet_plane::allocate::Holder;
use flatnet_plane::plane::ControlPlane;
use flatnet_plane::watch::{Connection, NetworkView, Source};
use tokio::time::Instant;

use super::{LeaseKeeper, Run, problems};
use crate::wiring::networks::{Held, Presence};

impl<P: ControlPlane> LeaseKeeper<P> {
    /// Returns the action that the machine asks for, and the configuration it was asked under.
    pub(super) fn decide(&self, run: &mut Run, now: Duration) -> (Action, Option<NetworkConfig>) {
        let view = self.view.borrow();
        if view.rewinds != std::mem::replace(&mut run.rewinds, view.rewinds) {
            run.machine.store_went_back();
        }
        let followed = view.connection == Connection::Connected;
        if followed && !run.followed {
            run.machine.store_is_back();
            self.channels.store_is_back(&self.keys, Instant::now());
        }
        run.followed = followed;
        let (config, problem) = self.in_force(&view);
        let said = std::mem::replace(&mut run.config_problem, problem);
        let wanted = match self.publication(&view, config.as_ref()) {
            Some(Ok(publication)) => Some(publication),
            Some(Err(problem)) => {
                run.config_problem = Some(problem);
                None
            }
            None => None,
        };
        if let Some(problem) = run.config_problem.as_ref().filter(|now| said.as_ref() != Some(*now)) {
            problems::say(problem);
        }
        let published = self.own_lease(&view, run).map(Lease::publication);
        let seen = match run.machine.subnets() {
            Some(subnets) => self.seen(&view, subnets, published.as_ref()),
            None => Seen::Nothing,
        };
        let input = Input {
            now,
            seen,
            seen_revision: view.state.revision,
            followed: followed && view.source == Source::Store,
            wanted: wanted.as_ref(),
        };
        let action = run.machine.next(&input);
        run.unpublished = match run.machine.state() {
            LeaseState::Held(held) => wanted.as_ref().is_some_and(|wanted| *wanted != held.published),
            LeaseState::Starting | LeaseState::Lost { .. } | LeaseState::TakenByOther { .. } => false,
        };
        run.forget_what_no_longer_holds(config.is_some(), view.state.valid_config().is_some());
        (action, config)
    }

    /// Returns the configuration in force here, and the problem that keeps the store's from being in force.
    pub(super) fn in_force(&self, view: &NetworkView) -> (Option<NetworkConfig>, Option<Problem>) {
        let (holding, outcome) = (self.holding.borrow(), self.outcome.borrow());
        let judged = outcome.judgements.get(self.keys.network());
        in_force(&self.keys, view.state.valid_config(), holding.held.as_ref(), judged)
    }

    /// Returns true if the reconciler found that this host can serve `config`.
    pub(super) fn is_admitted(&self, config: &NetworkConfig) -> bool {
        let outcome = self.outcome.borrow();
        let judged = outcome.judgements.get(self.keys.network());
        judged.is_some_and(|judged| judged.config == *config && judged.refused.is_none())
    }

    /// Returns what the view says of this node's `subnets`. `published`: what it says of this node's lease on them, if
    /// it has that.
    fn seen<'p>(&self, view: &NetworkView, subnets: SubnetKey, published: Option<&'p Publication>) -> Seen<'p> {
        let kept = view.suspect.as_ref().is_some_and(|suspect| suspect.kept.contains(&subnets));
        if view.source != Source::Store || self.is_unreadable(view, subnets) {
            Seen::Nothing
        } else if kept {
            Seen::Gone
        } else if let Some(published) = published {
            Seen::Ours(published)
        } else if self.holder(view, subnets).is_some() {
            Seen::Other
        } else {
            Seen::Gone
        }
    }

    /// Returns this node's lease on the subnets it uses, as the view has it.
    fn own_lease<'v>(&self, view: &'v NetworkView, run: &Run) -> Option<&'v Lease> {
        let lease = view.state.leases.get(&run.machine.subnets()?)?;
        lease.is_owned_by(self.owner.node).then_some(lease)
    }

    /// Returns true if a key in the way of `subnets` holds nothing readable: then nobody can say whose they are.
    fn is_unreadable(&self, view: &NetworkView, subnets: SubnetKey) -> bool {
        let prefix = self.keys.subnets();
        let mut names = view.state.rejected.keys().filter_map(|key| key.strip_prefix(&prefix)?.parse().ok());
        names.any(|other: SubnetKey| overlap(subnets, other))
    }

    /// Returns who else has any of `subnets`, if somebody has.
    fn holder(&self, view: &NetworkView, subnets: SubnetKey) -> Option<Holder> {
        let kept = |lease: &Lease| view.suspect.as_ref().is_some_and(|suspect| suspect.kept.contains(&lease.subnets));
        let mut others = view.state.leases.values().filter(|lease| !lease.is_owned_by(self.owner.node));
        others.find(|lease| overlap(subnets, lease.subnets) && !kept(lease)).map(Holder::of)
    }

    /// Returns the problem that somebody else has this node's subnets, unless the last attempt to claim them has
    /// reported it.
    pub(super) fn taken(&self, run: &Run) -> Option<Problem> {
        let LeaseState::TakenByOther { subnets } = run.machine.state() else { return None };
        if run.attempt_problem.as_ref().is_some_and(|problem| problem.code == ProblemCode::SubnetLost) {
            return None;
        }
        let holder = self.holder(&self.view.borrow(), *subnets);
        Some(problems::taken(&self.keys, *subnets, holder.as_ref().map_or("another node", |holder| &holder.name)))
    }

    /// Returns what to publish; `None` while that is not known, or while it is not known whether this host can serve
    /// it.
    fn publication(&self, view: &NetworkView, config: Option<&NetworkConfig>) -> Option<Result<Publication, Problem>> {
        let outcome = self.outcome.borrow();
        let (config, underlay) = (config?, outcome.underlay.as_ref()?);
        if self.holding.borrow().held.is_none() {
            let judgement = outcome.judgements.get(self.keys.network())?;
            if judgement.config != *config {
                return None;
            }
            if let Some(problem) = &judgement.refused {
                if matches!(problem.code, ProblemCode::WireguardUnsupported | ProblemCode::ModuleMissing) {
                    // Only an operator can put this right, and there is nothing yet that goes on meanwhile. An error
                    // here means a full channel, which already ends the agent.
                    let _ = self.fatal.try_send(problems::unsupported(problem));
                }
                return Some(Err(problem.clone()));
            }
        }
        let ready = self.ready(view, &outcome, config);
        if ready.iter().any(|way| way.backend != config.backend) {
            // The network changes its backend: peers are told by which backends this host receives by now.
            let (node, key, name) = (self.owner.node, outcome.key, self.keys.network());
            return Some(transition::publication(node, key, name, config, underlay, &ready));
        }
        if Needs::of([&config.backend]).key && outcome.key.is_none() {
            // The reconciler says why there is no key yet.
            return None;
        }
        Some(backend::publication(self.owner.node, outcome.key, self.keys.network(), config, underlay))
    }

    /// Returns true if a claim may be written now. Without a configuration nobody claims anything new. A lease that the
    /// store has of this node is all the same found and kept alive, as it would be had the agent not been restarted.
    pub(super) fn may_act(&self, run: &Run) -> bool {
        let view = self.view.borrow();
        let followed = view.connection == Connection::Connected && view.source == Source::Store;
        let allowed = view.state.valid_config().is_some() || self.own_lease(&view, run).is_some();
        followed && allowed && *self.presence.borrow() == Presence::Confirmed
    }
}

impl Run {
    /// Forgets what the last attempt met once it is over.
    fn forget_what_no_longer_holds(&mut self, in_force: bool, stored: bool) {
        let taken = matches!(self.machine.state(), LeaseState::TakenByOther { .. });
        self.attempt_problem.take_if(|problem| is_over(problem.code, taken, in_force, stored));
    }
}

/// Returns true if what the last attempt met is over: somebody else's subnet is free again, or there is nothing to
/// attempt. `taken`: somebody else has it; `in_force`: this host has a configuration, be it an earlier one; `stored`:
/// the store has one that can be read, without which nobody claims anything.
pub(super) fn is_over(met: ProblemCode, taken: bool, in_force: bool, stored: bool) -> bool {
    match met {
        ProblemCode::SubnetLost => !taken,
        // The disk's problem, not the store's.
        ProblemCode::SubnetUnwritable => !in_force,
        _ => !stored,
    }
}

fn overlap(a: SubnetKey, b: SubnetKey) -> bool {
    a.iter().any(|a| b.iter().any(|b| a.contains(&b) || b.contains(&a)))
}

/// Returns the configuration in force here. It is the store's, unless what this node holds would not fit it, or this
/// host could not serve it (`judged`: what the reconciler says of it): containers live on what is held. Until that is
/// known the present one stays in force.
pub(super) fn in_force(
    keys: &NetworkKeys,
    stored: Option<&NetworkConfig>,
    held: Option<&Held>,
    judged: Option<&Judgement>,
) -> (Option<NetworkConfig>, Option<Problem>) {
    match (stored, held) {
        (Some(stored), Some(held)) if !fits(stored, held.subnets) => {
            (Some(held.config.clone()), Some(problems::changed(keys, stored, held)))
        }
        (Some(NetworkConfig { backend: BackendConfig::Unsupported(kind), .. }), Some(held)) => {
            (Some(held.config.clone()), Some(problems::backend_changed(keys, kind.as_str(), held)))
        }
        (Some(stored), Some(held)) if *stored != held.config => {
            match judged.filter(|judged| judged.config == *stored) {
                Some(Judgement { refused: None, .. }) => (Some(stored.clone()), None),
                Some(Judgement { refused: Some(why), .. }) => {
                    (Some(held.config.clone()), Some(problems::not_in_force(keys, why)))
                }
                None => (Some(held.config.clone()), None),
            }
        }
        (Some(stored), _) => (Some(stored.clone()), None),
        (None, held) => (held.map(|held| held.config.clone()), None),
    }
}

/// Returns true if `subnets` could have been leased under `config`.
pub(crate) fn fits(config: &NetworkConfig, subnets: SubnetKey) -> bool {
    IpFamily::BOTH.into_iter().all(|family| match (config.pool(family), subnets.of(family)) {
        (Some(pool), Some(subnet)) => pool.network().contains(&subnet) && pool.subnet_len() == subnet.prefix_len(),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    })
}
