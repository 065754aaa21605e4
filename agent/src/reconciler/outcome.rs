//! What the last pass found and did: the only thing that flows back up.

use std::collections::{BTreeMap, BTreeSet};

use flatnet_core::op::ObjectKey;
use flatnet_core::outcome::{NetworkOutcome, PeerDecision, PeerOutcome};
use flatnet_core::problem::Problem;
use flatnet_core::underlay::Underlay;
use flatnet_model::{HostRanges, NetworkConfig, NetworkName, Revision, WireguardKey};
use tokio::time::Instant;

/// What the last pass found and did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// How many passes there were; 0: none yet.
    pub passes: u64,
    /// When the last one ended.
    pub last_pass: Option<Instant>,
    /// What carries the tunnels; `None` while it is not known.
    pub underlay: Option<Underlay>,
    /// Networks without a lease: whether one may be taken. Others whose configuration in the store is not the one in force:
    /// whether it may come into force.
    pub judgements: BTreeMap<NetworkName, Judgement>,
    /// What became of each network with a lease.
    pub networks: Vec<NetworkOutcome>,
    /// Objects the kernel refused, or that depend on one, or in whose place is one that is not ours.
    pub failed: BTreeSet<ObjectKey>,
    /// What is wrong on this host.
    pub problems: Vec<Problem>,
    /// Whether the kernel is what the store said.
    pub complete: bool,
    /// The public half of the key that our WireGuard devices have; the only one to publish.
    pub wireguard: Option<WireguardKey>,
    /// The store's revision it was reconciled with.
    pub revision: Revision,
    /// What this host uses itself; `None` until it was looked at.
    pub ranges: Option<HostRanges>,
}

/// Whether this host could serve a network by a configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// The configuration that was judged.
    pub config: NetworkConfig,
    /// Why it cannot.
    pub refused: Option<Problem>,
}

/// A peer's state, as `status` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerState {
    /// Everything it takes is in the kernel.
    Programmed,
    /// Known, not looked at yet.
    Pending,
    /// The kernel refused, something that is not ours is in the way, or what it publishes cannot be used.
    Failed,
    /// Another backend's.
    Ignored,
    /// Cannot be reached the way this network works.
    Unreachable,
}

impl PeerState {
    /// For JSON and metrics.
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
    /// What became of `peer`.
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
