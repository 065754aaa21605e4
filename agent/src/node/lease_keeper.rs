//! The keeper of this node's lease in one network: drives [`LeaseMachine`] with what the store says, and carries its
//! actions out.
//!
//! There is one task per network, owned by the daemon. Dropping it between awaits loses nothing: what was claimed is
//! found again in the store by this node's identity.

mod attempt;
mod change;
mod decide;
mod give_up;
mod init;
mod problems;
mod remember;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flatnet_core::lease_machine::{Action, LeaseMachine, LeaseState};
use flatnet_core::problem::Problem;
use flatnet_core::transition::Change;
use flatnet_model::keys::NetworkKeys;
use flatnet_model::{NetworkConfig, NetworkName, Owner, SubnetKey};
use flatnet_plane::allocate::Claim;
use flatnet_plane::plane::ControlPlane;
use flatnet_plane::random::NodeRandom;
use flatnet_plane::store::StoreError;
use flatnet_plane::watch::NetworkView;
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::files::state_dir::{StateDir, StateDirError};
use crate::report::Failure;
use crate::wiring::channels::{Channel, Channels};
use crate::wiring::context::Context;
use crate::wiring::networks::{Held, Holding, NetworkPort, NetworkSetup, Presence};
use crate::wiring::outcome::Outcome;
use crate::wiring::part::{Part, Stop};

pub(crate) use decide::fits;

/// The requests of the daemon to the keeper.
#[derive(Debug)]
pub enum LeaseAsk {
    /// Give the lease back and end. A keeper without a lease that went on would claim one.
    Release(oneshot::Sender<Result<(), LeaseError>>),
    /// Give a lost subnet up and take a new one.
    Renumber(oneshot::Sender<Result<(), LeaseError>>),
}

/// The reason why a lease was not given back, or a lost subnet not given up.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The store did not take the lease back.
    #[error("network {network}: the lease stays until it expires")]
    Release {
        /// The network.
        network: NetworkName,
        /// The store's answer.
        #[source]
        source: StoreError,
    },
    /// The store did not take back a lease that was to be replaced.
    #[error("network {network}: the subnet {subnets} is kept")]
    Kept {
        /// The network.
        network: NetworkName,
        /// The subnet.
        subnets: SubnetKey,
        /// The store's answer.
        #[source]
        source: StoreError,
    },
    /// Nobody knows whether there is a lease.
    #[error(
        "network {0}: the store did not answer the last attempt to claim a lease; if it was carried out, that lease stays until it expires"
    )]
    Unanswered(NetworkName),
    /// There may be a lease of an earlier run.
    #[error("network {0}: the lease was not confirmed by the store in this run; it stays until it expires")]
    Unconfirmed(NetworkName),
    /// The subnet is given up in the store, but not on disk.
    #[error(transparent)]
    File(#[from] StateDirError),
    /// The keeper was still waiting for the store.
    #[error("the store did not answer in time; the lease stays until it expires")]
    NoAnswer,
}

/// Everything the keeper works with.
pub struct LeaseKeeper<P> {
    /// The control plane, which holds the leases.
    pub plane: Arc<P>,
    /// The network.
    pub keys: NetworkKeys,
    /// This node.
    pub owner: Owner,
    /// The time that the lease outlives this agent.
    pub ttl: Duration,
    /// The subnets asked for with `--subnet`.
    pub wanted: Vec<IpNet>,
    /// The ranges to create the network with if it does not exist (`--init`).
    pub init: Vec<IpNet>,
    /// The key prefix under which the network `default` lives.
    pub flannel_prefix: String,
    /// The state directory, in which the subnet is remembered.
    pub dir: Arc<StateDir>,
    /// The network as the store has it.
    pub view: watch::Receiver<NetworkView>,
    /// The reconciler's outcome, from which the underlay is read.
    pub outcome: watch::Receiver<Outcome>,
    /// The state of this node's presence: tells whether it may act in its own name.
    pub presence: watch::Receiver<Presence>,
    /// The record of how each way to the store fares.
    pub channels: Channels,
    /// The hold of this node on the network.
    pub holding: watch::Sender<Holding>,
    /// The sender of failures that end the agent.
    pub fatal: mpsc::Sender<Failure>,
    /// The source of randomness that spreads waits and choices.
    pub random: NodeRandom,
}

/// The number of questions that may wait for a keeper. People and scripts ask, one at a time.
const ASKS: usize = 8;

/// Makes the part that keeps the lease in one network. It publishes its hold in `holding`, and tells `fatal` what only
/// an operator can put right.
pub fn part<P: ControlPlane, K>(
    context: &Context<P, K>,
    network: &NetworkSetup,
    port: &NetworkPort,
    holding: watch::Sender<Holding>,
    fatal: mpsc::Sender<Failure>,
) -> (Part, mpsc::Sender<LeaseAsk>) {
    let (asks, receiver) = mpsc::channel(ASKS);
    let setup = &context.setup;
    let keeper = LeaseKeeper {
        plane: Arc::clone(&setup.plane),
        keys: network.keys.clone(),
        owner: setup.owner.clone(),
        ttl: setup.lease_ttl,
        wanted: network.wanted.clone(),
        init: network.init.clone(),
        flannel_prefix: setup.flannel_prefix.clone(),
        dir: Arc::clone(&setup.dir),
        view: port.view.clone(),
        outcome: context.outcome.clone(),
        presence: context.presence.clone(),
        channels: context.channels.clone(),
        holding,
        fatal,
        random: setup.random.clone(),
    };
    (Part::new("lease", Stop::Speaker, keeper.run(receiver)), asks)
}

/// The state that changes while the keeper runs.
struct Run {
    machine: LeaseMachine,
    claim: Option<Claim>,
    /// True if the store did not answer the last attempt to claim: it may have been carried out.
    unanswered: bool,
    /// The configuration's problem, and below it that of the last attempt.
    config_problem: Option<Problem>,
    attempt_problem: Option<Problem>,
    /// The time to try again to write the subnet down, if that failed.
    remember_at: Duration,
    started: Instant,
    /// The number of times the store had gone back when the machine was last told.
    rewinds: u64,
    followed: bool,
    /// True if the lease held does not say what it should.
    unpublished: bool,
}

impl<P: ControlPlane> LeaseKeeper<P> {
    /// Runs until the lease is given back, and for ever if it is not.
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
            // People come first: whatever else happened is looked at in any case.
            tokio::select! {
                biased;
                Some(ask) = asks.recv() => match ask {
                    LeaseAsk::Release(reply) => {
                        // Nothing more is written, even if the release failed. Whoever leaves stops this task only
                        // after the answer. On a busy host that is late enough for a new claim, which nobody would give
                        // back.
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

    /// Does what is due. Returns when to look again at the latest.
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

    /// Tells the channels which ways to the store are not wanted now: nothing is wrong with those.
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

    fn hold(&self, subnets: SubnetKey, config: &NetworkConfig, change: Change) {
        let expires = Some(SystemTime::now() + self.ttl);
        let held = Some(Held { subnets, config: config.clone(), change, expires });
        self.holding.send_modify(|holding| holding.held = held);
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
        let change = config.as_ref().map(|config| self.change(config)).unwrap_or_default();
        self.holding.send_if_modified(|holding| {
            let mut changed = holding.problems != problems;
            holding.problems = problems;
            match (&mut holding.held, config) {
                (Some(held), Some(config)) if held.config != config || held.change != change => {
                    self.remember_config(&config, change.earlier());
                    (held.config, held.change) = (config, change);
                    changed = true;
                }
                // A node that knew its subnet but not the network now knows both, and containers use that subnet.
                (None, Some(config)) if admitted && !matches!(run.machine.state(), LeaseState::Starting) => {
                    if let Some(subnets) = run.machine.subnets().filter(|subnets| fits(&config, *subnets)) {
                        self.remember_config(&config, change.earlier());
                        holding.held = Some(Held { subnets, config, change, expires: None });
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
