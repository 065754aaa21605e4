//! The earlier backends of a network that is changing its backend: when there is one more, and when one is no longer
//! needed.

use flatnet_controlplane::plane::ControlPlane;
use flatnet_controlplane::watch::{Connection, NetworkView, Source};
use flatnet_core::backend::Needs;
use flatnet_core::op::ObjectKey;
use flatnet_core::outcome::WayOutcome;
use flatnet_core::transition::{self, Said};
use flatnet_model::{BackendConfig, Lease, NetworkConfig, Publication, Revision, earlier_backends};

use super::LeaseKeeper;
use crate::outcome::Outcome;

impl<P: ControlPlane> LeaseKeeper<P> {
    /// Returns the earlier backends to receive by under `config`.
    pub(super) fn before(&self, config: &NetworkConfig) -> Vec<BackendConfig> {
        let (subnets, held, before) = match &self.holding.borrow().held {
            Some(held) => (held.subnets, held.config.backend.clone(), held.before.clone()),
            None => {
                let view = self.view.borrow();
                return transition::joining(config, &view.state.leases.values().collect::<Vec<_>>());
            }
        };
        let network = self.keys.network();
        if held != config.backend {
            let (old, new) = (held.kind(), config.backend.kind());
            tracing::info!(network = %network, %old, %new, "the network's backend is another one");
            return earlier_backends(&before, &held, &config.backend);
        }
        if before.is_empty() {
            return before;
        }
        let view = self.view.borrow();
        let needed = self.needed(config, &before, &view, &self.outcome.borrow());
        let holding = self.holding.borrow();
        let unread = holding.held.as_ref().map(|held| held.unread.as_slice()).unwrap_or_default();
        let read = view.state.leases.get(&subnets).filter(|lease| lease.is_owned_by(self.owner.node));
        let kept = transition::kept(&before, &needed, &Said { read, unread });
        for done in before.iter().filter(|backend| !kept.contains(backend)) {
            let backend = done.kind();
            tracing::info!(network = %network, %backend, "no host sends by the network's earlier backend any more");
        }
        kept
    }

    /// Returns those of `before` that this host goes on saying it receives by.
    fn needed(
        &self,
        config: &NetworkConfig,
        before: &[BackendConfig],
        view: &NetworkView,
        outcome: &Outcome,
    ) -> Vec<BackendConfig> {
        if view.connection != Connection::Connected || view.source != Source::Store || view.suspect.is_some() {
            return before.to_vec();
        }
        let network = outcome.networks.iter().find(|done| done.name == *self.keys.network());
        let ways = network.map(|done| done.ways.as_slice()).unwrap_or_default();
        let (own, peers): (Vec<&Lease>, Vec<&Lease>) =
            view.state.leases.values().partition(|lease| lease.is_owned_by(self.owner.node));
        let held = self.holding.borrow().held.as_ref().map(|held| held.subnets);
        let own = own.into_iter().find(|lease| held == Some(lease.subnets));
        transition::needed(before, config, own, &peers, ways)
    }

    /// Takes note of what is about to be written into the lease. Until it is read back, peers may know it or not.
    pub(super) fn writing(&self, publication: &Publication) {
        self.holding.send_if_modified(|holding| match &mut holding.held {
            // There is nothing to be careful about while there is only one way.
            Some(held) if !held.before.is_empty() || !publication.besides.is_empty() => {
                if !held.unread.contains(publication) {
                    held.unread.push(publication.clone());
                }
                true
            }
            _ => false,
        });
    }

    /// Forgets what was to be written: either it was not written, as the store answered, or it has been read.
    pub(super) fn nothing_unread(&self) {
        self.holding.send_if_modified(|holding| match &mut holding.held {
            Some(held) if !held.unread.is_empty() => {
                held.unread.clear();
                true
            }
            _ => false,
        });
    }

    /// Forgets what was written if the view shows what became of it, being as of the last answered write's `revision`
    /// or later. A write that was not answered is forgotten too: the view shows what became of it as soon as the store
    /// is followed again.
    pub(super) fn read_back(&self, revision: Revision) {
        // The view's borrow ends before the hold is written: whoever reads the hold may be waiting for the view.
        let is_read = {
            let view = self.view.borrow();
            view.source == Source::Store && view.state.revision >= revision
        };
        if is_read {
            self.nothing_unread();
        }
    }

    /// Returns the backends by which this host says it receives, that of `config` first, as the last pass left them:
    /// those that are needed and whose devices are there.
    pub(super) fn ready<'o>(
        &self,
        view: &NetworkView,
        outcome: &'o Outcome,
        config: &NetworkConfig,
    ) -> Vec<&'o WayOutcome> {
        let network = outcome.networks.iter().find(|network| network.name == *self.keys.network());
        let is_there = |way: &&WayOutcome| {
            way.devices.iter().all(|device| !outcome.failed.contains(&ObjectKey::Link(*device)))
                && (!Needs::of([&way.backend]).key || outcome.key.is_some())
        };
        let before = self.holding.borrow().held.as_ref().map(|held| held.before.clone()).unwrap_or_default();
        let needed = self.needed(config, &before, view, outcome);
        let is_done = |way: &&WayOutcome| before.contains(&way.backend) && !needed.contains(&way.backend);
        let ways = network.into_iter().flat_map(|network| &network.ways);
        let mut ready: Vec<&WayOutcome> = ways.filter(|way| is_there(way) && !is_done(way)).collect();
        ready.sort_by_key(|way| way.backend != config.backend);
        ready
    }
}
