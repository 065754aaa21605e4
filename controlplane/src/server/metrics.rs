//! The server's metrics.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tonic::Code;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: &'static str,
    /// gRPC's name of the code.
    code: String,
}

/// The counters.
pub struct Metrics {
    registry: Registry,
    requests: Family<Call, Counter>,
    watchers: Gauge,
    ready: Gauge,
    nodes: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("flatnet_controlplane");
        let (requests, watchers, ready, nodes) =
            (Family::default(), Gauge::default(), Gauge::default(), Gauge::default());
        registry.register("requests", "Calls answered, by method and gRPC code", requests.clone());
        registry.register("watchers", "Watch streams open", watchers.clone());
        registry.register("store_ready", "Whether the store answers", ready.clone());
        registry.register("nodes", "Nodes registered", nodes.clone());
        Self { registry, requests, watchers, ready, nodes }
    }
}

impl Metrics {
    /// Counts one answer.
    pub fn answered(&self, method: &'static str, code: Code) {
        self.requests.get_or_create(&Call { method, code: format!("{code:?}") }).inc();
    }

    /// Writes all of them, with the current values given.
    pub fn text(&self, watchers: usize, ready: bool, nodes: usize) -> Result<String, std::fmt::Error> {
        let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.watchers.set(number(watchers));
        self.ready.set(i64::from(ready));
        self.nodes.set(number(nodes));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
