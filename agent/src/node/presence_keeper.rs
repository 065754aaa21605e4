//! The task that keeps this node's presence in the store: that it is alive, and that it is the only one with its
//! identity.

use std::sync::Arc;
use std::time::Duration;

use flatnet_model::{HostRanges, Owner};
use flatnet_plane::plane::ControlPlane;
use flatnet_plane::presence::{self, PRESENCE_TTL, PresenceError};
use flatnet_plane::random::{Backoff, NodeRandom};
use flatnet_plane::store::StoreError;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::Instant;

use crate::report::{Exit, Failure};
use crate::wiring::channels::{Channel, ChannelReport, Channels};
use crate::wiring::context::Context;
use crate::wiring::networks::{NetworkPort, Presence};
use crate::wiring::outcome::Outcome;
use crate::wiring::part::{Part, Stop};

/// The first wait after the store did not answer.
const FIRST_RETRY_AFTER: Duration = Duration::from_millis(50);
/// The longest wait: presence must be back well within its own time to live.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The number of renewals after which the key is looked at again. The key's lease can live on without it, when somebody
/// deleted the key or a backup was put back. A renewal needs no rights, so only looking shows that our rights are gone.
/// The key is looked at with every renewal, so that both are known within 5 s.
const RENEWALS_PER_ANNOUNCEMENT: u32 = 1;

/// The time for which the ranges this host uses must stay the same before they are announced: a route seldom comes
/// alone.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// The task that keeps the presence, and the handle by which leaving ends it.
#[derive(Debug)]
pub struct PresenceKeeper<P> {
    plane: Arc<P>,
    owner: Owner,
    fatal: mpsc::Sender<Failure>,
    random: NodeRandom,
    outcome: watch::Receiver<Outcome>,
    channels: Channels,
    /// The ranges that this host used itself at the start: the reconciler, which looks again, waits for the presence.
    first: HostRanges,
    state: watch::Sender<Presence>,
    held: Arc<Mutex<Option<presence::Presence>>>,
}

impl<P> Clone for PresenceKeeper<P> {
    fn clone(&self) -> Self {
        Self {
            plane: Arc::clone(&self.plane),
            owner: self.owner.clone(),
            fatal: self.fatal.clone(),
            random: self.random.clone(),
            outcome: self.outcome.clone(),
            channels: self.channels.clone(),
            first: self.first.clone(),
            state: self.state.clone(),
            held: Arc::clone(&self.held),
        }
    }
}

impl<P: ControlPlane> PresenceKeeper<P> {
    /// Creates a keeper that has announced nothing yet and tells `state` whether this node may act in its own name.
    pub fn new<K>(context: &Context<P, K>, state: watch::Sender<Presence>) -> Self {
        let setup = &context.setup;
        Self {
            plane: Arc::clone(&setup.plane),
            owner: setup.owner.clone(),
            fatal: context.fatal.clone(),
            random: setup.random.clone(),
            outcome: context.outcome.clone(),
            channels: context.channels.clone(),
            first: setup.ranges.clone(),
            state,
            held: Arc::default(),
        }
    }

    /// Returns the part that runs the keeper. How every way to the store fares is its report.
    #[must_use]
    pub fn part(&self, networks: watch::Receiver<Vec<NetworkPort>>) -> Part {
        let report = ChannelReport { channels: self.channels.clone(), networks };
        Part::new("presence", Stop::Speaker, self.clone().run()).reporting(report)
    }

    /// Announces this node and keeps the presence alive, for ever, and looks at the key again now and then. Ends the
    /// agent if the state directory was copied.
    async fn run(self) {
        let mut random = self.random.clone();
        let mut backoff = Backoff::new(FIRST_RETRY_AFTER, LONGEST_RETRY_AFTER);
        loop {
            match self.announce_and_keep(&mut backoff).await {
                Ok(()) => {}
                Err(PresenceError::Cloned { node, name, .. }) => {
                    let failure = Failure::new(
                        Exit::Conflict,
                        format!("another running machine ({name}) has this node's identity {node}"),
                    )
                    .hint("this machine is a copy: remove its state directory (/var/lib/flatnet) and join again as a new node");
                    // A full channel already ends the agent.
                    let _ = self.fatal.send(failure).await;
                    return;
                }
                Err(PresenceError::Store(error)) => {
                    tracing::debug!(%error, "presence cannot be announced; trying again");
                    self.channels.failed(Channel::Presence, None, &error, Instant::now());
                    if error.is_refusal() {
                        self.stay_all_the_same().await;
                    }
                    tokio::time::sleep(backoff.wait(&mut random)).await;
                }
            }
        }
    }

    async fn announce_and_keep(&self, backoff: &mut Backoff) -> Result<(), PresenceError> {
        let mut random = self.random.clone();
        let mut outcome = self.outcome.clone();
        let ranges = outcome.borrow().ranges.clone().unwrap_or_else(|| self.first.clone());
        self.channels.pending(Channel::Presence, Instant::now());
        let announced = self.plane.announce(&self.owner, &ranges).await?;
        self.channels.succeeded(Channel::Presence, None, Instant::now());
        *self.held.lock().await = Some(announced);
        self.state.send_if_modified(|state| std::mem::replace(state, Presence::Confirmed) != Presence::Confirmed);
        backoff.reset();
        for _ in 0..RENEWALS_PER_ANNOUNCEMENT {
            tokio::select! {
                () = tokio::time::sleep(PRESENCE_TTL / 3) => {}
                () = other_ranges(&mut outcome, &ranges) => return Ok(()),
            }
            // A store that is away for a moment does not end the presence; only its lease being gone does.
            while let Err(error) = self.plane.stay(&announced).await {
                if matches!(error, StoreError::LeaseGone(_)) {
                    return Err(PresenceError::Store(error));
                }
                self.channels.failed(Channel::Presence, None, &error, Instant::now());
                tokio::time::sleep(backoff.wait(&mut random)).await;
            }
            self.channels.succeeded(Channel::Presence, None, Instant::now());
            backoff.reset();
        }
        Ok(())
    }

    /// Keeps alive what was announced before. For that, etcd asks neither password nor right, so a node whose rights
    /// are gone for now does not count as dead. The result changes nothing about the refusal.
    async fn stay_all_the_same(&self) {
        let held = *self.held.lock().await;
        if let Some(held) = held
            && let Err(error) = self.plane.stay(&held).await
        {
            tracing::debug!(%error, "presence cannot be kept alive either");
        }
    }

    /// Ends the presence. Call after its part was stopped.
    pub async fn withdraw(&self) -> Result<(), StoreError> {
        match self.held.lock().await.take() {
            Some(held) => self.plane.withdraw(&held).await,
            None => Ok(()),
        }
    }
}

/// Waits until this host uses other ranges than `announced`, and until what changes with them has changed too.
async fn other_ranges(outcome: &mut watch::Receiver<Outcome>, announced: &HostRanges) {
    let changed = |outcome: &Outcome| outcome.ranges.as_ref().is_some_and(|ranges| ranges != announced);
    if outcome.wait_for(changed).await.is_err() {
        // The reconciler has ended: nobody looks any more.
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(SETTLED_AFTER).await;
}
