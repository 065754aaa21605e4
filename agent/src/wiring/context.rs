//! Everything that a node is made from, and what its parts share while they run.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use flatnet_model::{HostRanges, Owner};
use flatnet_plane::random::NodeRandom;
use tokio::sync::{mpsc, watch};

use crate::files::network_record::NetworkRecord;
use crate::files::state_dir::StateDir;
use crate::files::sysctl_record::SysctlRecord;
use crate::files::underlay_record::UnderlayRecord;
use crate::files::wireguard_key::WireguardIdentity;
use crate::report::Failure;
use crate::wiring::channels::Channels;
use crate::wiring::host_options::HostOptions;
use crate::wiring::metrics::Metrics;
use crate::wiring::networks::{NetworkPort, NetworkSetup, Presence};
use crate::wiring::outcome::Outcome;

/// Everything a node is made from.
pub struct NodeSetup<P, K> {
    /// The control plane, which holds the leases.
    pub plane: Arc<P>,
    /// The kernel that is programmed.
    pub kernel: Arc<K>,
    /// The node's files.
    pub dir: Arc<StateDir>,
    /// The settings that earlier runs changed.
    pub sysctls: SysctlRecord,
    /// The node's WireGuard key.
    pub wireguard: WireguardIdentity,
    /// The record of the underlay that carried the tunnels last.
    pub underlay: UnderlayRecord,
    /// The ranges that this host uses itself, as found at the start.
    pub ranges: HostRanges,
    /// The addresses of the store's first endpoint, as far as they are known.
    pub store_at: watch::Receiver<Vec<IpAddr>>,
    /// The identity of this node in the store.
    pub owner: Owner,
    /// The options of the host that stay the same while the node runs.
    pub host: HostOptions,
    /// The networks that the command line names.
    pub networks: Vec<NetworkSetup>,
    /// The networks that were joined and left at run time.
    pub record: NetworkRecord,
    /// The time that leases outlive this node.
    pub lease_ttl: Duration,
    /// The key prefix under which the network `default` lives.
    pub flannel_prefix: String,
    /// The source of randomness that spreads waits and choices.
    pub random: NodeRandom,
}

/// What the parts of a running node share. Clones are the same node's.
pub struct Context<P, K> {
    /// What the node was made from.
    pub setup: Arc<NodeSetup<P, K>>,
    /// The joined networks.
    pub networks: watch::Receiver<Vec<NetworkPort>>,
    /// The outcome of the reconciler's last pass.
    pub outcome: watch::Receiver<Outcome>,
    /// The state of this node's presence: tells whether it may act in its own name.
    pub presence: watch::Receiver<Presence>,
    /// The record of how each way to the store fares.
    pub channels: Channels,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The sender of failures that end the agent because only an operator can put them right.
    pub fatal: mpsc::Sender<Failure>,
}

impl<P, K> Clone for Context<P, K> {
    fn clone(&self) -> Self {
        Self {
            setup: Arc::clone(&self.setup),
            networks: self.networks.clone(),
            outcome: self.outcome.clone(),
            presence: self.presence.clone(),
            channels: self.channels.clone(),
            metrics: Arc::clone(&self.metrics),
            fatal: self.fatal.clone(),
        }
    }
}
