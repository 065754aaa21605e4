//! The earlier backends of a network that is changing its backend: when there is one more, and when one is done with.

use flatnet_controlplane::plane::ControlPlane;
use flatnet_controlplane::watch::{Connection, Source};
use flatnet_core::desired::WayOutcome;
use flatnet_core::op::ObjectKey;
use flatnet_core::transition;
use flatnet_model::{BackendConfig, NetworkConfig};

use super::LeaseKeeper;
use crate::reconciler::Outcome;

impl<P: ControlPlane> LeaseKeeper<P> {
    /// The earlier backends to receive by under `config`.
    pub(super) fn before(&self, config: &NetworkConfig) -> Vec<BackendConfig> {
        let (subnets, held, before) = match &self.holding.borrow().held {
            Some(held) => (held.subnets, held.config.backend.clone(), held.before.clone()),
            None => return Vec::new(),
        };
        let network = self.keys.network();
        if held != config.backend {
            let (old, new) = (held.kind(), config.backend.kind());
            tracing::info!(network = %network, %old, %new, "the network's backend is another one");
            return transition::changed(&before, &held, &config.backend);
        }
        if before.is_empty() {
            return before;
        }
        let ways = {
            let outcome = self.outcome.borrow();
            outcome.networks.iter().find(|done| done.name == *network).map(|done| done.ways.clone()).unwrap_or_default()
        };
        let view = self.view.borrow();
        if view.connection != Connection::Connected || view.source != Source::Store || view.suspect.is_some() {
            return before;
        }
        let is_own = |lease: &&flatnet_model::Lease| lease.is_owned_by(self.owner.node);
        let own = view.state.leases.get(&subnets).filter(is_own);
        let peers: Vec<&flatnet_model::Lease> = view.state.leases.values().filter(|lease| !is_own(lease)).collect();
        let needed = transition::needed(&before, config, own, &peers, &ways);
        for done in before.iter().filter(|backend| !needed.contains(backend)) {
            let backend = done.kind();
            tracing::info!(network = %network, %backend, "no host sends by the network's earlier backend any more");
        }
        needed
    }

    /// The backends by which this host receives, that of `config` first, as the last pass left them: those whose devices are
    /// there.
    pub(super) fn ready<'o>(&self, outcome: &'o Outcome, config: &NetworkConfig) -> Vec<&'o WayOutcome> {
        let network = outcome.networks.iter().find(|network| network.name == *self.keys.network());
        let is_there = |way: &&WayOutcome| {
            way.devices.iter().all(|device| !outcome.failed.contains(&ObjectKey::Link(*device)))
                && (!matches!(way.backend, BackendConfig::Wireguard(_)) || outcome.wireguard.is_some())
        };
        let mut ready: Vec<&WayOutcome> =
            network.into_iter().flat_map(|network| &network.ways).filter(is_there).collect();
        ready.sort_by_key(|way| way.backend != config.backend);
        ready
    }
}
