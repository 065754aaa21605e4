//! Keeps this node's lease in one network: drives [`LeaseMachine`] with what the store says and carries its actions out.
//!
//! One task a network, owned by the daemon. Dropping it between awaits loses nothing: what was claimed is found again in
//! the store by this node's identity.

mod attempt;
mod before;
mod decide;
mod give_up;
mod init;
mod problems;
mod remember;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flatnet_controlplane::allocate::Claim;
use flatnet_controlplane::plane::ControlPlane;
use flatnet_controlplane::random::NodeRandom;
use flatnet_controlplane::watch::NetworkView;
use flatnet_core::lease_machine::{Action, LeaseMachine, LeaseState};
use flatnet_core::problem::Problem;
use flatnet_model::keys::NetworkKeys;
use flatnet_model::{BackendConfig, NetworkConfig, Owner, SubnetKey};
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::channels::{Channel, Channels};
use crate::networks::{Held, Holding};
use crate::presence_keeper::Presence;
use crate::reconciler::Outcome;
use crate::report::Failure;
use crate::state_dir::StateDir;

pub(crate) use decide::fits;

/// What the daemon asks of the keeper.
#[derive(Debug)]
pub enum LeaseAsk {
    /// Give the lease back and end: a keeper without a lease that went on would claim one.
    Release(oneshot::Sender<Result<(), String>>),
    /// Give a lost subnet up and take a new one.
    Renumber(oneshot::Sender<Result<(), String>>),
}

/// Everything the keeper works with.
pub struct LeaseKeeper<P> {
    /// Where leases are.
    pub plane: Arc<P>,
    /// The network.
    pub keys: NetworkKeys,
    /// This node.
    pub owner: Owner,
    /// How long the lease outlives this agent.
    pub ttl: Duration,
    /// Subnets asked for with `--subnet`.
    pub wanted: Vec<IpNet>,
    /// Ranges to create the network with if it is not there (`--init`).
    pub init: Vec<IpNet>,
    /// Where the network `default` lives.
    pub flannel_prefix: String,
    /// Where the subnet is remembered.
    pub dir: Arc<StateDir>,
    /// What the store says.
    pub view: watch::Receiver<NetworkView>,
    /// Where the underlay is read from.
    pub outcome: watch::Receiver<Outcome>,
    /// Whether this node may act in its own name.
    pub presence: watch::Receiver<Presence>,
    /// Where is said how each way to the store fares.
    pub channels: Channels,
    /// What this node holds.
    pub holding: watch::Sender<Holding>,
    /// Ends the agent.
    pub fatal: mpsc::Sender<Failure>,
    /// What spreads waits and choices.
    pub random: NodeRandom,
}

/// What changes while the keeper runs.
struct Run {
    machine: LeaseMachine,
    claim: Option<Claim>,
    /// Whether the store did not answer the last attempt to claim: it may have been carried out.
    unanswered: bool,
    /// The configuration's problem, and that of the last attempt.
    config_problem: Option<Problem>,
    attempt_problem: Option<Problem>,
    /// When to try again to write the subnet down, if that failed.
    remember_at: Duration,
    started: Instant,
    /// How often the store had gone back when the machine was last told.
    rewinds: u64,
    followed: bool,
    /// The lease held does not say what it should.
    unpublished: bool,
}

impl<P: ControlPlane> LeaseKeeper<P> {
    /// Runs until the lease is given back, for ever without that.
    pub async fn run(mut self, mut asks: mpsc::Receiver<LeaseAsk>) {
        let previous = self.holding.borrow().held.as_ref().map(|held| held.subnets);
        let previous = previous.or_else(|| self.dir.read_subnet(self.keys.network()).ok().flatten());
        let mut run = Run {
            machine: LeaseMachine::new(previous),
            claim: None,
            unanswered: false,
            config_problem: None,
            attempt_problem: None,
            remember_at: Duration::ZERO,
            started: Instant::now(),
            rewinds: 0,
            followed: false,
            unpublished: false,
        };
        loop {
            let until = self.step(&mut run).await;
            let until = self.remember_again(&mut run, until);
            self.publish(&run);
            let timer = async {
                match until {
                    Some(until) => sleep_until(run.started + until).await,
                    None => std::future::pending().await,
                }
            };
            // People first: whatever else happened is looked at in any case.
            tokio::select! {
                biased;
                Some(ask) = asks.recv() => match ask {
                    LeaseAsk::Release(reply) => {
                        // Nothing more is written, also if that failed: whoever leaves stops this task only after the
                        // answer, and on a busy host that is late enough for a new claim, which nobody would give back.
                        let released = self.release(&mut run).await;
                        // Whoever asked may have stopped waiting.
                        let _ = reply.send(released);
                        return;
                    }
                    LeaseAsk::Renumber(reply) => drop(reply.send(self.renumber(&mut run).await)),
                },
                () = timer => {}
                Ok(()) = self.view.changed() => {}
                Ok(()) = self.outcome.changed() => {}
                Ok(()) = self.presence.changed() => {}
            }
        }
    }

    /// Does what is due; when to look again at the latest.
    async fn step(&mut self, run: &mut Run) -> Option<Duration> {
        loop {
            let init = self.init_config().await;
            let now = run.started.elapsed();
            let init = init.map(|wait| now + wait);
            let decided = self.decide(run, now);
            self.say_idle(run);
            match decided {
                (Action::Nothing { until }, _) => return until.into_iter().chain(init).min(),
                (Action::Acquire { previous, publication }, Some(config)) if self.may_act(run) => {
                    self.acquire(run, previous, publication, &config).await;
                }
                // Without a configuration the machine has nothing to publish and asks for nothing.
                (Action::Acquire { .. }, _) => return init,
                (Action::Publish(publication), _) => self.publish_lease(run, publication).await,
                (Action::KeepAlive, _) => self.keep_alive(run).await,
            }
            self.publish(run);
        }
    }

    /// Ways to the store that are not wanted now have nothing wrong with them.
    fn say_idle(&self, run: &Run) {
        let held = matches!(run.machine.state(), LeaseState::Held(_));
        let idle = [
            (Channel::Claim, held || !self.may_act(run)),
            (Channel::KeepAlive, !held),
            (Channel::Publish, !held || !run.unpublished),
        ];
        for (channel, _) in idle.into_iter().filter(|(_, idle)| *idle) {
            self.channels.idle(channel, Some(&self.keys));
        }
    }

    fn hold(&self, subnets: SubnetKey, config: &NetworkConfig, before: Vec<BackendConfig>) {
        let expires = Some(SystemTime::now() + self.ttl);
        self.holding.send_modify(|holding| {
            let unread = holding.held.take().map(|held| held.unread).unwrap_or_default();
            holding.held = Some(Held { subnets, config: config.clone(), before, unread, expires });
        });
    }

    /// Publishes what changed besides the hold itself: problems, and a configuration that came into force.
    fn publish(&self, run: &Run) {
        if let LeaseState::Held(held) = run.machine.state() {
            self.read_back(held.revision);
        }
        let mut problems: Vec<Problem> = run.config_problem.iter().chain(&run.attempt_problem).cloned().collect();
        problems.extend(self.taken(run));
        let held = self.holding.borrow().held.as_ref().map(|held| held.subnets);
        problems.extend(held.and_then(|held| problems::differs(&self.keys, &self.wanted, held)));
        let config = self.in_force(&self.view.borrow()).0;
        let admitted = config.as_ref().is_some_and(|config| self.is_admitted(config));
        let before = config.as_ref().map(|config| self.before(config)).unwrap_or_default();
        self.holding.send_if_modified(|holding| {
            let mut changed = holding.problems != problems;
            holding.problems = problems;
            match (&mut holding.held, config) {
                (Some(held), Some(config)) if held.config != config || held.before != before => {
                    self.remember_config(&config, &before);
                    (held.config, held.before) = (config, before);
                    changed = true;
                }
                // A node that knew its subnet but not the network: now it knows both, and containers use that subnet.
                (None, Some(config)) if admitted && !matches!(run.machine.state(), LeaseState::Starting) => {
                    if let Some(subnets) = run.machine.subnets().filter(|subnets| fits(&config, *subnets)) {
                        self.remember_config(&config, &before);
                        holding.held = Some(Held { subnets, config, before, unread: Vec::new(), expires: None });
                        changed = true;
                    }
                }
                _ => {}
            }
            changed
        });
    }
}

#[cfg(test)]
mod tests;
