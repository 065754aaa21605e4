//! The metrics that Prometheus reads at `/metrics`. Labels are enums, networks or peers, never what a sender chose.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use flatnet_core::object::KernelState;
use flatnet_core::op::{Action, ObjectKey, ObjectKind};
use flatnet_plane::store::StoreErrorKind;
use flatnet_plane::watch::{Connection, NetworkView};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

/// The kind, action and result of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OpLabels {
    kind: &'static str,
    op: &'static str,
    result: &'static str,
}

/// A kind of object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

/// A kind of object and its status.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ObjectLabels {
    kind: &'static str,
    status: &'static str,
}

/// The reason why the watch on the store ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NetworkLabels {
    network: String,
}

/// A network's peers by backend and state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabels {
    network: String,
    backend: String,
    state: String,
}

/// A way of speaking with the store, for a network or, if that is empty, for the node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ChannelLabels {
    network: String,
    channel: &'static str,
}

/// The reason why our rules dropped packets, and the network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    network: String,
    reason: String,
}

/// The peer that dropped packets claimed to be from, the network, and what was wrong with the packets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClaimLabels {
    network: String,
    peer: String,
    reason: &'static str,
}

/// The values that are read anew for every page.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    /// The network, and true if its store is followed now.
    pub connected: Vec<(String, bool)>,
    /// The network with a confirmed lease, and the time at which that ends, in seconds since 1970.
    pub expiry: Vec<(String, f64)>,
    /// The way of speaking with the store, its network, and true if its last call went well.
    pub channels: Vec<(&'static str, String, bool)>,
    /// The network (empty: any), the reason for the drops, and the number of packets since the agent began to look.
    pub dropped: Vec<(String, String, u64)>,
    /// The network (empty: none), what was wrong, whom dropped packets claimed to be from, and the number of packets.
    /// The log that they come from bounds how many entries there are.
    pub claimed: Vec<(String, &'static str, String, u64)>,
}

/// All metrics of the agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    passes: Histogram,
    ops: Family<OpLabels, Counter>,
    drift: Family<KindLabels, Counter>,
    objects: Family<ObjectLabels, Gauge>,
    watch_restarts: Family<ReasonLabels, Counter>,
    connected: Family<NetworkLabels, Gauge>,
    channels: Family<ChannelLabels, Gauge>,
    dropped: Family<DropLabels, Counter>,
    claimed: Family<ClaimLabels, Counter>,
    peers: Family<PeerLabels, Gauge>,
    lease_expiry: Family<NetworkLabels, Gauge<f64, AtomicU64>>,
    tasks: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Creates all metrics, at zero.
    #[must_use]
    pub fn new() -> Self {
        // The buckets reach from an idle pass over a handful of objects (about 1 ms) to a cold start at 8,000 peers
        // (about 0.5 s).
        let passes = Histogram::new([0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5]);
        let mut metrics = Self {
            registry: Registry::with_prefix("flatnet"),
            passes,
            ops: Family::default(),
            drift: Family::default(),
            objects: Family::default(),
            watch_restarts: Family::default(),
            connected: Family::default(),
            channels: Family::default(),
            dropped: Family::default(),
            claimed: Family::default(),
            peers: Family::default(),
            lease_expiry: Family::default(),
            tasks: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    /// Names all of them in the registry.
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("reconcile_duration_seconds", "Time one pass of the reconciler took", self.passes.clone());
        registry.register("reconcile_ops", "Operations on kernel objects", self.ops.clone());
        registry.register("drift_repairs", "Objects of ours that somebody else changed, repaired", self.drift.clone());
        registry.register(
            "objects",
            "Kernel objects of ours: programmed, or failed because the kernel refused them",
            self.objects.clone(),
        );
        registry.register(
            "watch_restarts",
            "Times the watch on the store had to begin anew",
            self.watch_restarts.clone(),
        );
        registry.register("controlplane_connected", "1 while the store is followed", self.connected.clone());
        registry.register(
            "store_channel_ok",
            "1 while the last call of this way of speaking with the store went well",
            self.channels.clone(),
        );
        registry.register(
            "dropped_packets",
            "Packets that the agent's own rules dropped since it began to look, by reason",
            self.dropped.clone(),
        );
        registry.register(
            "source_mismatch_packets",
            "Dropped packets by the peer that they claimed to be from: they came from another address or interface, or in clear",
            self.claimed.clone(),
        );
        registry.register("peers", "Peers by backend and state", self.peers.clone());
        registry.register(
            "lease_expiry_timestamp_seconds",
            "When the lease ends unless renewed",
            self.lease_expiry.clone(),
        );
        registry.register("tasks", "Tasks of the agent's runtime that have not ended", self.tasks.clone());
    }

    /// Records that one pass took this long.
    pub fn pass(&self, seconds: f64) {
        self.passes.observe(seconds);
    }

    /// Records that one operation ended: `done`, `failed` or `skipped`.
    pub fn op(&self, kind: ObjectKind, action: Action, result: &'static str) {
        self.ops.get_or_create(&OpLabels { kind: kind.as_str(), op: action.as_str(), result }).inc();
    }

    /// Records that one object of ours had been changed by somebody else.
    pub fn drift(&self, kind: ObjectKind) {
        self.drift.get_or_create(&KindLabels { kind: kind.as_str() }).inc();
    }

    /// Records what the kernel has of ours, and which objects it refused.
    pub fn objects(&self, state: &KernelState, failed: &BTreeSet<ObjectKey>) {
        for kind in ObjectKind::ALL.iter().copied() {
            let failed = failed.iter().filter(|key| key.kind() == kind).count();
            for (status, count) in [("programmed", state.count(kind)), ("failed", failed)] {
                let labels = ObjectLabels { kind: kind.as_str(), status };
                self.objects.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }

    /// Records that the store was lost, and is watched anew.
    pub fn watch_restarted(&self, kind: StoreErrorKind) {
        self.watch_restarts.get_or_create(&ReasonLabels { reason: restart_reason(kind) }).inc();
    }

    /// Brings the gauges up to date and writes everything in OpenMetrics text.
    pub fn render(&self, status: &flatnet_proto::agent::v1::Status, now: &Gauges) -> String {
        // A network that was left has none of these.
        self.peers.clear();
        self.connected.clear();
        self.channels.clear();
        self.lease_expiry.clear();
        for network in &status.networks {
            for peer in &network.peers {
                let labels = PeerLabels {
                    network: network.name.clone(),
                    backend: peer.backend.clone(),
                    state: peer.state.clone(),
                };
                self.peers.get_or_create(&labels).inc();
            }
        }
        for (network, connected) in &now.connected {
            self.connected.get_or_create(&NetworkLabels { network: network.clone() }).set(i64::from(*connected));
        }
        for (channel, network, is_well) in &now.channels {
            let labels = ChannelLabels { network: network.clone(), channel };
            self.channels.get_or_create(&labels).set(i64::from(*is_well));
        }
        for (network, reason, packets) in &now.dropped {
            let labels = DropLabels { network: network.clone(), reason: reason.clone() };
            let counter = self.dropped.get_or_create(&labels);
            counter.inc_by(packets.saturating_sub(counter.get()));
        }
        for (network, reason, peer, packets) in &now.claimed {
            let labels = ClaimLabels { network: network.clone(), peer: peer.clone(), reason };
            let counter = self.claimed.get_or_create(&labels);
            counter.inc_by(packets.saturating_sub(counter.get()));
        }
        for (network, seconds) in &now.expiry {
            self.lease_expiry.get_or_create(&NetworkLabels { network: network.clone() }).set(*seconds);
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.tasks.set(i64::try_from(runtime.metrics().num_alive_tasks()).unwrap_or(i64::MAX));
        }
        let mut text = String::new();
        // Writing to a String cannot fail. If it did, a scraper would report the empty page as a failure.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Counts how often the store was lost in one network's view. Runs until the view's sender is gone.
pub async fn count_restarts(mut view: watch::Receiver<NetworkView>, metrics: Arc<Metrics>) {
    let mut before = Connection::Connecting;
    loop {
        let now = view.borrow_and_update().connection.clone();
        if let Connection::Lost { kind, .. } = &now
            && before == Connection::Connected
        {
            metrics.watch_restarted(*kind);
        }
        before = now;
        if view.changed().await.is_err() {
            return;
        }
    }
}

/// Returns the label of a kind of store error.
fn restart_reason(kind: StoreErrorKind) -> &'static str {
    match kind {
        StoreErrorKind::Unavailable => "unavailable",
        StoreErrorKind::Compacted => "compacted",
        StoreErrorKind::Denied => "denied",
        StoreErrorKind::Rejected => "rejected",
        StoreErrorKind::LeaseGone => "other",
    }
}

#[cfg(test)]
mod tests;
