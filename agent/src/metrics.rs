//! What Prometheus reads at `/metrics`. Labels are enums or network names, never addresses.

use std::sync::atomic::AtomicU64;

use flatnet_core::op::{Action, ObjectKind};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Kind, action and result of an operation.
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

/// All metrics of the agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    passes: Histogram,
    ops: Family<OpLabels, Counter>,
    drift: Family<KindLabels, Counter>,
    connected: Family<NetworkLabels, Gauge>,
    peers: Family<PeerLabels, Gauge>,
    lease_expiry: Family<NetworkLabels, Gauge<f64, AtomicU64>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    #[must_use]
    pub fn new() -> Self {
        // From an idle pass over a handful of objects (about 1 ms) to a cold start at 8,000 peers (about 0.5 s).
        let passes = Histogram::new([0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5]);
        let mut metrics = Self {
            registry: Registry::with_prefix("flatnet"),
            passes,
            ops: Family::default(),
            drift: Family::default(),
            connected: Family::default(),
            peers: Family::default(),
            lease_expiry: Family::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("reconcile_duration_seconds", "Time one pass of the reconciler took", metrics.passes.clone());
        registry.register("reconcile_ops", "Operations on kernel objects", metrics.ops.clone());
        registry.register(
            "drift_repairs",
            "Objects of ours that somebody else changed, repaired",
            metrics.drift.clone(),
        );
        registry.register("controlplane_connected", "1 while the store is followed", metrics.connected.clone());
        registry.register("peers", "Peers by backend and state", metrics.peers.clone());
        registry.register(
            "lease_expiry_timestamp_seconds",
            "When the lease ends unless renewed",
            metrics.lease_expiry.clone(),
        );
        metrics
    }

    /// One pass took this long.
    pub fn pass(&self, seconds: f64) {
        self.passes.observe(seconds);
    }

    /// One operation ended: `done`, `failed` or `skipped`.
    pub fn op(&self, kind: ObjectKind, action: Action, result: &'static str) {
        self.ops.get_or_create(&OpLabels { kind: kind.as_str(), op: action.as_str(), result }).inc();
    }

    /// One object of ours had been changed by somebody else.
    pub fn drift(&self, kind: ObjectKind) {
        self.drift.get_or_create(&KindLabels { kind: kind.as_str() }).inc();
    }

    /// Brings the gauges up to date and writes everything in OpenMetrics text.
    pub fn render(
        &self,
        status: &flatnet_proto::agent::v1::Status,
        connected: &[(String, bool)],
        expiry: &[(String, f64)],
    ) -> String {
        self.peers.clear();
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
        for (network, connected) in connected {
            self.connected.get_or_create(&NetworkLabels { network: network.clone() }).set(i64::from(*connected));
        }
        for (network, seconds) in expiry {
            self.lease_expiry.get_or_create(&NetworkLabels { network: network.clone() }).set(*seconds);
        }
        let mut text = String::new();
        // Writing to a String cannot fail; were it to, an empty page is what a scraper reports as such.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
