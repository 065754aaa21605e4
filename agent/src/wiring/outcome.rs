//! The outcome of a pass of the reconciler: what it found and did. This is the only thing that flows back up.

use std::collections::{BTreeMap, BTreeSet};

use flatnet_core::backend::PublicKey;
use flatnet_core::op::ObjectKey;
use flatnet_core::outcome::{Judgement, NetworkOutcome, PeerDecision, PeerOutcome};
use flatnet_core::problem::Problem;
use flatnet_core::underlay::Underlay;
use flatnet_model::{HostRanges, NetworkName, Revision};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::wiring::part::{Changed, Report};

/// The outcome of the last pass: what it found and did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The number of passes so far; 0: none yet.
    pub passes: u64,
    /// The time at which the last pass ended.
    pub last_pass: Option<Instant>,
    /// The device and addresses that carry the tunnels; `None` while they are not known.
    pub underlay: Option<Underlay>,
    /// Judgements of configurations. For a network without a lease: whether one may be taken. For others whose
    /// configuration in the store is not the one in force: whether it may come into force.
    pub judgements: BTreeMap<NetworkName, Judgement>,
    /// The outcome for each network with a lease.
    pub networks: Vec<NetworkOutcome>,
    /// Objects that the kernel refused, that depend on a refused one, or in whose place there is one that is not ours.
    pub failed: BTreeSet<ObjectKey>,
    /// The problems on this host.
    pub problems: Vec<Problem>,
    /// True if the kernel is what the store said.
    pub complete: bool,
    /// The public half of the key that our devices have; the only one to publish.
    pub key: Option<PublicKey>,
    /// The store's revision that the kernel was reconciled with.
    pub revision: Revision,
    /// The ranges that this host uses itself; `None` until they were looked at.
    pub ranges: Option<HostRanges>,
}

/// The problems on this host are reported as the last pass found them.
impl Report for watch::Receiver<Outcome> {
    fn problems(&self, _now: Instant) -> Vec<Problem> {
        self.borrow().problems.clone()
    }

    fn changes(&self) -> Vec<Box<dyn Changed>> {
        vec![Box::new(self.clone())]
    }
}

/// A peer's state, as `status` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerState {
    /// Everything that the peer takes is in the kernel.
    Programmed,
    /// The peer is known, but not looked at yet.
    Pending,
    /// The kernel refused, something that is not ours is in the way, or what the peer publishes cannot be used.
    Failed,
    /// The peer uses another backend.
    Ignored,
    /// The peer cannot be reached the way this network works.
    Unreachable,
}

impl PeerState {
    /// Returns the name for JSON and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Programmed => "programmed",
            Self::Pending => "pending",
            Self::Failed => "failed",
            Self::Ignored => "ignored",
            Self::Unreachable => "unreachable",
        }
    }
}

impl Outcome {
    /// Returns the state of `peer` after the last pass.
    #[must_use]
    pub fn peer_state(&self, peer: &PeerOutcome) -> PeerState {
        match &peer.decision {
            PeerDecision::Ignored { .. } => PeerState::Ignored,
            PeerDecision::Unreachable { .. } => PeerState::Unreachable,
            PeerDecision::Failed { .. } => PeerState::Failed,
            PeerDecision::Programmed(_) if self.failed.is_empty() => PeerState::Programmed,
            PeerDecision::Programmed(_) if peer.keys().any(|key| self.failed.contains(&key)) => PeerState::Failed,
            PeerDecision::Programmed(_) => PeerState::Programmed,
        }
    }
}
