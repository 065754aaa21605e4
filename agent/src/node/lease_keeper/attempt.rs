//! The keeper's calls to the store (claim, publish, keep alive) and their results.

use std::time::{Duration, SystemTime};

use flatnet_core::lease_machine::LeaseState;
use flatnet_model::state::{ConfigState, NetworkState};
use flatnet_model::{NetworkConfig, Publication, SubnetKey};
use flatnet_plane::allocate::{AcquireError, ClaimRequest, KnownLeases, UpdateError};
use flatnet_plane::plane::ControlPlane;
use flatnet_plane::random::Random;
use flatnet_plane::store::StoreError;
use flatnet_plane::watch::{Connection, Source};
use tokio::time::Instant;

use super::{LeaseKeeper, Run, problems};
use crate::report::chain;
use crate::wiring::channels::Channel;

impl<P: ControlPlane> LeaseKeeper<P> {
    pub(super) async fn acquire(
        &mut self,
        run: &mut Run,
        previous: Option<SubnetKey>,
        publication: Publication,
        config: &NetworkConfig,
    ) {
        let request = ClaimRequest {
            keys: self.keys.clone(),
            owner: self.owner.clone(),
            publication: publication.clone(),
            // The subnet that containers live in comes before what the command line wishes.
            wanted: if previous.is_some() { Vec::new() } else { self.wanted.clone() },
            previous,
            ttl: self.ttl,
            adopt: true,
            known: self.known_leases(&publication),
        };
        // A subnet that is held is claimed under the configuration it is held under. Were it left to expire because
        // somebody moved the network, this node's peers would lose it.
        let state = NetworkState { config: ConfigState::Valid(config.clone()), ..NetworkState::default() };
        let mut random = self.random.clone();
        self.writing(&publication);
        let result = self.plane.acquire(&request, &state, &mut random).await;
        let now = run.started.elapsed();
        run.unanswered = matches!(result, Err(AcquireError::Store(_)));
        match &result {
            Err(AcquireError::Store(error)) => self.say_failed(Channel::Claim, error),
            // Whatever else the answer says, the store did what it was asked.
            Ok(_) | Err(_) => self.say_succeeded(Channel::Claim),
        }
        match result {
            Ok(claim) => {
                let subnets = claim.lease.subnets;
                tracing::info!(network = %self.keys.network(), subnet = %subnets, origin = ?claim.origin, "lease held");
                let change = self.change(config);
                run.attempt_problem = self.remember(subnets, config, change.earlier());
                let bits = random.next_u64();
                run.machine.acquired(now, subnets, claim.lease.publication(), claim.lease.mod_revision, self.ttl, bits);
                run.claim = Some(claim);
                self.hold(subnets, config, change);
            }
            Err(error) => {
                run.claim = None;
                if !run.unanswered {
                    self.nothing_unread();
                }
                self.refused(run, &error, now, random.next_u64()).await;
            }
        }
    }

    /// Returns what the view knows of the leases, if the view is the store's and is being followed.
    pub(super) fn known_leases(&self, publication: &Publication) -> Option<KnownLeases> {
        let view = self.view.borrow();
        let is_whole = view.source == Source::Store && view.suspect.is_none();
        let is_followed = is_whole && view.connection == Connection::Connected;
        is_followed.then(|| KnownLeases::of(&view.state, self.owner.node, publication)).flatten()
    }

    /// Takes note of a failed attempt.
    pub(super) async fn refused(&mut self, run: &mut Run, error: &AcquireError, now: Duration, random: u64) {
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
    }

    pub(super) async fn publish_lease(&mut self, run: &mut Run, publication: Publication) {
        let Some(claim) = &run.claim else {
            // The subnet is held by name only: claiming finds the lease and its revision.
            run.machine.lost();
            return;
        };
        // The reason for publishing anew is mostly another address of this host.
        self.plane.moved();
        self.writing(&publication);
        match self.plane.publish(&self.keys, claim, &publication).await {
            Ok(claim) => {
                tracing::info!(network = %self.keys.network(), subnet = %claim.lease.subnets, "lease updated in place");
                self.say_succeeded(Channel::Publish);
                run.machine.published(claim.lease.publication(), claim.lease.mod_revision);
                run.claim = Some(claim);
            }
            Err(UpdateError::Lost(_)) => {
                self.say_succeeded(Channel::Publish);
                run.claim = None;
                run.machine.lost();
            }
            Err(UpdateError::Store(error)) => {
                self.say_failed(Channel::Publish, &error);
                run.machine.publishing_failed(run.started.elapsed(), self.random.next_u64());
            }
        }
    }

    pub(super) async fn keep_alive(&mut self, run: &mut Run) {
        let Some(claim) = &run.claim else {
            run.machine.lost();
            return;
        };
        match self.plane.renew(&self.keys, claim).await {
            Ok(ttl) => {
                self.say_succeeded(Channel::KeepAlive);
                run.machine.kept_alive(run.started.elapsed(), ttl, self.random.next_u64());
                self.holding.send_modify(|holding| {
                    if let Some(held) = &mut holding.held {
                        held.expires = Some(SystemTime::now() + ttl);
                    }
                });
            }
            Err(StoreError::LeaseGone(_)) => {
                tracing::warn!(network = %self.keys.network(), "the lease expired; claiming it again");
                self.say_succeeded(Channel::KeepAlive);
                run.claim = None;
                run.machine.lost();
            }
            Err(error) => {
                self.say_failed(Channel::KeepAlive, &error);
                run.machine.failed(run.started.elapsed(), self.random.next_u64());
            }
        }
    }

    pub(super) fn say_failed(&self, channel: Channel, error: &StoreError) {
        tracing::debug!(network = %self.keys.network(), channel = channel.as_str(), %error, "the store did not do it; trying again");
        self.channels.failed(channel, Some(&self.keys), error, Instant::now());
    }

    pub(super) fn say_succeeded(&self, channel: Channel) {
        self.channels.succeeded(channel, Some(&self.keys), Instant::now());
    }
}
