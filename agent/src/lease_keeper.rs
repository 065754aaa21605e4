//! Keeps this node's lease in one network: drives [`LeaseMachine`] with what the store says and carries its actions out.
//!
//! One task a network, owned by the daemon. Dropping it between awaits loses nothing: what was claimed is found again in
//! the store by this node's identity.

mod problems;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flatnet_controlplane::allocate::{self, AcquireError, Claim, ClaimRequest, KnownLeases, UpdateError};
use flatnet_controlplane::flannel::encode_config;
use flatnet_controlplane::networks::{self, NetworkError, NetworkSpec};
use flatnet_controlplane::random::{NodeRandom, Random};
use flatnet_controlplane::store::{Store, StoreError};
use flatnet_controlplane::watch::{Connection, NetworkView, Source};
use flatnet_core::backend;
use flatnet_core::lease_machine::{Action, Input, LeaseMachine, LeaseState, Seen};
use flatnet_core::problem::{Problem, ProblemCode};
use flatnet_model::keys::NetworkKeys;
use flatnet_model::state::{ConfigState, NetworkState};
use flatnet_model::{IpFamily, NetworkConfig, Owner, Publication, SubnetKey};
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::networks::{Held, Holding};
use crate::presence_keeper::Presence;
use crate::reconciler::Outcome;
use crate::report::{Failure, chain};
use crate::state_dir::StateDir;

/// How long after a full disk the next try follows: somebody who makes room looks whether it helped.
const REMEMBER_AGAIN: Duration = Duration::from_secs(5);

/// What the daemon asks of the keeper.
#[derive(Debug)]
pub enum LeaseAsk {
    /// Give the lease back.
    Release(oneshot::Sender<Result<(), String>>),
    /// Give a lost subnet up and take a new one.
    Renumber(oneshot::Sender<Result<(), String>>),
}

/// Everything the keeper works with.
pub struct LeaseKeeper<S> {
    /// Where leases are.
    pub store: Arc<S>,
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
    /// The configuration's problem, and that of the last attempt.
    config_problem: Option<Problem>,
    attempt_problem: Option<Problem>,
    /// When to try again to write the subnet down, if that failed.
    remember_at: Duration,
    started: Instant,
    suspect: bool,
    followed: bool,
}

impl<S: Store> LeaseKeeper<S> {
    /// Runs for ever.
    pub async fn run(mut self, mut asks: mpsc::Receiver<LeaseAsk>) {
        let previous = self.holding.borrow().held.as_ref().map(|held| held.subnets);
        let previous = previous.or_else(|| self.dir.read_subnet(self.keys.network()).ok().flatten());
        let mut run = Run {
            machine: LeaseMachine::new(previous),
            claim: None,
            config_problem: None,
            attempt_problem: None,
            remember_at: Duration::ZERO,
            started: Instant::now(),
            suspect: false,
            followed: false,
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
                    LeaseAsk::Release(reply) => drop(reply.send(self.release(&mut run).await)),
                    LeaseAsk::Renumber(reply) => drop(reply.send(self.renumber(&mut run))),
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
            let now = run.started.elapsed();
            self.init_config().await;
            let (action, config) = self.decide(run, now);
            let config = match (action, config) {
                (Action::Nothing { until }, _) => return until,
                (action, Some(config)) => (action, config),
                // Without a configuration the machine has nothing to publish and asks for nothing.
                (_, None) => return None,
            };
            match config {
                (Action::Acquire { previous, publication }, config) => {
                    if !self.may_act() {
                        return None;
                    }
                    self.acquire(run, previous, publication, &config).await?;
                }
                (Action::Publish(publication), _) => self.publish_lease(run, publication).await?,
                (Action::KeepAlive, _) => self.keep_alive(run).await?,
                (Action::Nothing { until }, _) => return until,
            }
            self.publish(run);
        }
    }

    /// What the machine says, and the configuration it was asked under.
    fn decide(&self, run: &mut Run, now: Duration) -> (Action, Option<NetworkConfig>) {
        let view = self.view.borrow();
        let suspect = view.suspect.is_some();
        if suspect && !run.suspect {
            run.machine.store_went_back();
        }
        run.suspect = suspect;
        let followed = view.connection == Connection::Connected;
        if followed && !run.followed {
            run.machine.store_is_back();
        }
        run.followed = followed;
        let (config, problem) = in_force(&self.keys, view.state.valid_config(), self.holding.borrow().held.as_ref());
        run.config_problem = problem;
        let wanted = match self.publication(config.as_ref()) {
            Some(Ok(publication)) => Some(publication),
            Some(Err(problem)) => {
                run.config_problem = Some(problem);
                None
            }
            None => None,
        };
        let published;
        let seen = match run.machine.subnets() {
            _ if view.source != Source::Store => Seen::Nothing,
            None => Seen::Nothing,
            Some(subnets) if view.suspect.as_ref().is_some_and(|suspect| suspect.kept.contains(&subnets)) => Seen::Gone,
            Some(subnets) => match view.state.leases.get(&subnets) {
                None => Seen::Gone,
                Some(lease) if lease.is_owned_by(self.owner.node) => {
                    published = lease.publication();
                    Seen::Ours(&published)
                }
                Some(_) => Seen::Other,
            },
        };
        let input = Input { now, seen, seen_revision: view.state.revision, wanted: wanted.as_ref() };
        (run.machine.next(&input), config)
    }

    /// What to publish; `None` while that is not known, or not yet known to be servable by this host.
    fn publication(&self, config: Option<&NetworkConfig>) -> Option<Result<Publication, Problem>> {
        let outcome = self.outcome.borrow();
        let (config, underlay) = (config?, outcome.underlay.as_ref()?);
        if self.holding.borrow().held.is_none() {
            let judgement = outcome.judgements.get(self.keys.network())?;
            if judgement.config != *config {
                return None;
            }
            if let Some(problem) = &judgement.refused {
                return Some(Err(problem.clone()));
            }
        }
        Some(backend::publication(self.owner.node, self.keys.network(), config, underlay))
    }

    /// Whether a claim may be written now.
    fn may_act(&self) -> bool {
        let view = self.view.borrow();
        let followed = view.connection == Connection::Connected && view.source == Source::Store;
        followed && view.state.valid_config().is_some() && *self.presence.borrow() == Presence::Confirmed
    }

    async fn acquire(
        &mut self,
        run: &mut Run,
        previous: Option<SubnetKey>,
        publication: Publication,
        config: &NetworkConfig,
    ) -> Option<()> {
        let request = ClaimRequest {
            keys: self.keys.clone(),
            owner: self.owner.clone(),
            publication: publication.clone(),
            // What containers live in comes before what the command line wishes.
            wanted: if previous.is_some() { Vec::new() } else { self.wanted.clone() },
            previous,
            ttl: self.ttl,
            known: self.known_leases(&publication),
        };
        // What is held is claimed under the configuration it is held under: were it left to expire because somebody moved
        // the network, this node's peers would lose it.
        let state = NetworkState { config: ConfigState::Valid(config.clone()), ..NetworkState::default() };
        let mut random = self.random.clone();
        let result = allocate::acquire(self.store.as_ref(), &request, &state, &mut random).await;
        let now = run.started.elapsed();
        match result {
            Ok(claim) => {
                let subnets = claim.lease.subnets;
                tracing::info!(network = %self.keys.network(), subnet = %subnets, origin = ?claim.origin, "lease held");
                run.attempt_problem = self.remember(subnets, config);
                let bits = random.next_u64();
                run.machine.acquired(now, subnets, claim.lease.publication(), claim.lease.mod_revision, self.ttl, bits);
                run.claim = Some(claim);
                self.hold(subnets, config);
                Some(())
            }
            Err(error) => {
                run.claim = None;
                self.refused(run, &error, now, random.next_u64()).await
            }
        }
    }

    /// What the view knows of the leases, if it is the store's and is being followed.
    fn known_leases(&self, publication: &Publication) -> Option<KnownLeases> {
        let view = self.view.borrow();
        let is_whole = view.source == Source::Store && view.suspect.is_none();
        let is_followed = is_whole && view.connection == Connection::Connected;
        is_followed.then(|| KnownLeases::of(&view.state, self.owner.node, publication)).flatten()
    }

    /// Takes note of a failed attempt. `None`: end this step and wait.
    async fn refused(&mut self, run: &mut Run, error: &AcquireError, now: Duration, random: u64) -> Option<()> {
        let nothing_held = *run.machine.state() == LeaseState::Starting && self.holding.borrow().held.is_none();
        if nothing_held && let Some(failure) = problems::fatal(error) {
            // A full channel already ends the agent.
            let _ = self.fatal.send(failure).await;
        }
        let problem = problems::acquire(&self.keys, error);
        if run.attempt_problem != problem {
            tracing::warn!(network = %self.keys.network(), error = chain(error), "no lease");
        }
        run.attempt_problem = problem;
        if let AcquireError::Taken { .. } = error {
            run.machine.taken(now, random);
        } else {
            run.machine.failed(now, random);
        }
        Some(())
    }

    async fn publish_lease(&mut self, run: &mut Run, publication: Publication) -> Option<()> {
        let Some(claim) = &run.claim else {
            // Held by name only: claiming finds the lease and its revision.
            run.machine.lost();
            return Some(());
        };
        // What is published anew is mostly another address of this host.
        self.store.path_changed();
        match allocate::update(self.store.as_ref(), &self.keys, claim, &publication).await {
            Ok(claim) => {
                tracing::info!(network = %self.keys.network(), subnet = %claim.lease.subnets, "lease updated in place");
                run.machine.published(claim.lease.publication(), claim.lease.mod_revision);
                run.claim = Some(claim);
            }
            Err(UpdateError::Lost(_)) => {
                run.claim = None;
                run.machine.lost();
            }
            Err(UpdateError::Store(error)) => self.store_failed(run, &error),
        }
        Some(())
    }

    async fn keep_alive(&mut self, run: &mut Run) -> Option<()> {
        let Some(claim) = &run.claim else {
            run.machine.lost();
            return Some(());
        };
        match allocate::keep_alive(self.store.as_ref(), claim).await {
            Ok(ttl) => {
                run.machine.kept_alive(run.started.elapsed(), ttl, self.random.next_u64());
                self.holding.send_modify(|holding| {
                    if let Some(held) = &mut holding.held {
                        held.expires = Some(SystemTime::now() + ttl);
                    }
                });
            }
            Err(StoreError::LeaseGone(_)) => {
                tracing::warn!(network = %self.keys.network(), "the lease expired; claiming it again");
                run.claim = None;
                run.machine.lost();
            }
            Err(error) => self.store_failed(run, &error),
        }
        Some(())
    }

    fn store_failed(&mut self, run: &mut Run, error: &StoreError) {
        tracing::debug!(network = %self.keys.network(), %error, "the store did not take it; trying again");
        run.machine.failed(run.started.elapsed(), self.random.next_u64());
    }

    async fn release(&mut self, run: &mut Run) -> Result<(), String> {
        match run.claim.take() {
            Some(claim) => {
                allocate::release(self.store.as_ref(), &self.keys, &claim).await.map_err(|error| {
                    let network = self.keys.network();
                    format!("network {network}: the lease stays until it expires: {}", chain(&error))
                })?;
                run.machine.renumber();
                self.dir.write_subnet(self.keys.network(), None).map_err(|error| chain(&error))
            }
            None if run.machine.subnets().is_none() => Ok(()),
            None => Err(format!(
                "network {}: the lease was not confirmed by the store in this run; it stays until it expires",
                self.keys.network()
            )),
        }
    }

    fn renumber(&mut self, run: &mut Run) -> Result<(), String> {
        match run.machine.state() {
            LeaseState::TakenByOther { .. } => {}
            _ if run.attempt_problem.as_ref().is_some_and(|problem| problem.code == ProblemCode::SubnetOutside) => {}
            // Another network's loss is not this one's.
            _ => return Ok(()),
        }
        self.dir.write_subnet(self.keys.network(), None).map_err(|error| chain(&error))?;
        run.machine.renumber();
        run.claim = None;
        run.attempt_problem = None;
        self.holding.send_modify(|holding| holding.held = None);
        Ok(())
    }

    /// Creates the network if it is not there and `--init` says so.
    async fn init_config(&mut self) {
        let missing = {
            let view = self.view.borrow();
            view.connection == Connection::Connected
                && view.state.config == ConfigState::Missing
                && view.suspect.is_none()
        };
        if self.init.is_empty() || !missing {
            return;
        }
        let mut spec = NetworkSpec::default();
        for net in &self.init {
            match net {
                IpNet::V4(net) => spec.cidr = Some(*net),
                IpNet::V6(net) => spec.cidr6 = Some(*net),
            }
        }
        match networks::create(self.store.as_ref(), &self.flannel_prefix, self.keys.network(), &spec).await {
            Ok(_) => tracing::info!(network = %self.keys.network(), "network created"),
            // Another agent was faster.
            Err(NetworkError::Exists(_)) => {}
            Err(error @ (NetworkError::Store(_) | NetworkError::Busy(_))) => {
                // Tried again with the next change of the view, which brings the store's return.
                tracing::debug!(network = %self.keys.network(), %error, "the network cannot be created yet");
            }
            Err(error) => {
                let _ = self.fatal.send(crate::cli::network_failure(&error)).await;
            }
        }
        self.init.clear();
    }

    /// Remembers the subnet across reboots.
    fn remember(&self, subnets: SubnetKey, config: &NetworkConfig) -> Option<Problem> {
        let network = self.keys.network();
        let written = self.dir.write_subnet(network, Some(subnets));
        self.remember_config(config);
        written.err().map(|error| {
            Problem::new(
                ProblemCode::SubnetUnwritable,
                format!("the subnet of network {network} cannot be remembered: {}", chain(&error)),
                "free space in the state directory; without it this node may get another subnet after its lease expired",
                network,
            )
        })
    }

    /// Tries again to write down what the disk had no room for; `until`, or before that when the next try is due.
    fn remember_again(&self, run: &mut Run, until: Option<Duration>) -> Option<Duration> {
        if run.attempt_problem.as_ref().is_none_or(|problem| problem.code != ProblemCode::SubnetUnwritable) {
            return until;
        }
        let (now, held) = (run.started.elapsed(), self.holding.borrow().held.clone());
        if let Some(held) = held.filter(|_| now >= run.remember_at) {
            run.attempt_problem = self.remember(held.subnets, &held.config);
            run.remember_at = now + REMEMBER_AGAIN;
        }
        Some(until.map_or(run.remember_at, |until| until.min(run.remember_at)))
    }

    /// Remembers the configuration in force: should the store's be changed so that this node's subnet is outside, then a
    /// restarted agent must still know what its containers live in.
    fn remember_config(&self, config: &NetworkConfig) {
        let network = self.keys.network();
        let written = encode_config(config, None).map_err(|error| error.to_string());
        if let Err(error) =
            written.and_then(|json| self.dir.write_config(network, &json).map_err(|error| chain(&error)))
        {
            tracing::warn!(network = %network, error, "the configuration in force cannot be kept");
        }
    }

    fn hold(&self, subnets: SubnetKey, config: &NetworkConfig) {
        let held = Held { subnets, config: config.clone(), expires: Some(SystemTime::now() + self.ttl) };
        self.holding.send_modify(|holding| holding.held = Some(held));
    }

    /// Publishes what changed besides the hold itself: problems, and a configuration that came into force.
    fn publish(&self, run: &Run) {
        let mut problems: Vec<Problem> = run.config_problem.iter().chain(&run.attempt_problem).cloned().collect();
        if let LeaseState::TakenByOther { subnets } = run.machine.state()
            && run.attempt_problem.is_none()
        {
            problems.push(problems::taken(&self.keys, *subnets, "another node"));
        }
        let config =
            in_force(&self.keys, self.view.borrow().state.valid_config(), self.holding.borrow().held.as_ref()).0;
        self.holding.send_if_modified(|holding| {
            let mut changed = holding.problems != problems;
            holding.problems = problems;
            match (&mut holding.held, config) {
                (Some(held), Some(config)) if held.config != config => {
                    self.remember_config(&config);
                    held.config = config;
                    changed = true;
                }
                // A node that knew its subnet but not the network: now it knows both, and containers use that subnet.
                (None, Some(config)) if !matches!(run.machine.state(), LeaseState::Starting) => {
                    if let Some(subnets) = run.machine.subnets().filter(|subnets| fits(&config, *subnets)) {
                        self.remember_config(&config);
                        holding.held = Some(Held { subnets, config, expires: None });
                        changed = true;
                    }
                }
                _ => {}
            }
            changed
        });
    }
}

/// The configuration in force here: the store's, unless what this node holds would not fit it.
fn in_force(
    keys: &NetworkKeys,
    stored: Option<&NetworkConfig>,
    held: Option<&Held>,
) -> (Option<NetworkConfig>, Option<Problem>) {
    match (stored, held) {
        (Some(stored), Some(held)) if !fits(stored, held.subnets) => {
            (Some(held.config.clone()), Some(problems::changed(keys, stored, held)))
        }
        (Some(stored), _) => (Some(stored.clone()), None),
        (None, held) => (held.map(|held| held.config.clone()), None),
    }
}

/// Whether `subnets` could have been leased under `config`.
pub(crate) fn fits(config: &NetworkConfig, subnets: SubnetKey) -> bool {
    IpFamily::BOTH.into_iter().all(|family| match (config.pool(family), subnets.of(family)) {
        (Some(pool), Some(subnet)) => pool.network().contains(&subnet) && pool.subnet_len() == subnet.prefix_len(),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    })
}
