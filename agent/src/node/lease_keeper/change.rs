//! The change of a network's backend: when there is one more earlier backend, and when one is no longer needed. What
//! follows from what is decided in [`flatnet_core::transition`].

use flatnet_core::backend::Needs;
use flatnet_core::op::ObjectKey;
use flatnet_core::outcome::WayOutcome;
use flatnet_core::transition::{self, Change};
use flatnet_model::{BackendConfig, Lease, NetworkConfig, Publication, Revision};
use flatnet_plane::plane::ControlPlane;
use flatnet_plane::watch::{Connection, NetworkView, Source};

use super::LeaseKeeper;
use crate::wiring::outcome::Outcome;

impl<P: ControlPlane> LeaseKeeper<P> {
    /// Returns the change that this host is in under `config`.
    pub(super) fn change(&self, config: &NetworkConfig) -> Change {
        let Some(held) = self.holding.borrow().held.clone() else {
            let view = self.view.borrow();
            return Change::joining(config, &view.state.leases.values().collect::<Vec<_>>());
        };
        let network = self.keys.network();
        if held.config.backend != config.backend {
            let (old, new) = (held.config.backend.kind(), config.backend.kind());
            tracing::info!(network = %network, %old, %new, "the network's backend is another one");
            return held.change.turned(&held.config.backend, &config.backend);
        }
        if held.change.earlier().is_empty() {
            return held.change;
        }
        let view = self.view.borrow();
        let needed = self.needed(config, &held.change, &view, &self.outcome.borrow());
        let read = view.state.leases.get(&held.subnets).filter(|lease| lease.is_owned_by(self.owner.node));
        let change = held.change.clone().without_done(&needed, read);
        for done in held.change.earlier().iter().filter(|backend| !change.earlier().contains(backend)) {
            let backend = done.kind();
            tracing::info!(network = %network, %backend, "no host sends by the network's earlier backend any more");
        }
        change
    }

    /// Returns the earlier backends that this host goes on saying it receives by.
    fn needed(
        &self,
        config: &NetworkConfig,
        change: &Change,
        view: &NetworkView,
        outcome: &Outcome,
    ) -> Vec<BackendConfig> {
        if view.connection != Connection::Connected || view.source != Source::Store || view.suspect.is_some() {
            return change.earlier().to_vec();
        }
        let network = outcome.networks.iter().find(|done| done.name == *self.keys.network());
        let ways = network.map(|done| done.ways.as_slice()).unwrap_or_default();
        let (own, peers): (Vec<&Lease>, Vec<&Lease>) =
            view.state.leases.values().partition(|lease| lease.is_owned_by(self.owner.node));
        let held = self.holding.borrow().held.as_ref().map(|held| held.subnets);
        let own = own.into_iter().find(|lease| held == Some(lease.subnets));
        transition::needed(change.earlier(), config, own, &peers, ways)
    }

    /// Takes note of what is about to be written into the lease.
    pub(super) fn writing(&self, publication: &Publication) {
        let note = |change: &mut Change| change.writing(publication);
        self.holding.send_if_modified(|holding| holding.held.as_mut().is_some_and(|held| note(&mut held.change)));
    }

    /// Forgets what was to be written: either it was not written, as the store answered, or it has been read.
    pub(super) fn nothing_unread(&self) {
        let forget = Change::nothing_unread;
        self.holding.send_if_modified(|holding| holding.held.as_mut().is_some_and(|held| forget(&mut held.change)));
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
        let is_there = |way: &WayOutcome| {
            way.devices.iter().all(|device| !outcome.failed.contains(&ObjectKey::Link(*device)))
                && (!Needs::of([&way.backend]).key || outcome.key.is_some())
        };
        let change = self.holding.borrow().held.as_ref().map(|held| held.change.clone()).unwrap_or_default();
        let needed = self.needed(config, &change, view, outcome);
        let network = outcome.networks.iter().find(|network| network.name == *self.keys.network());
        transition::ready(config, &change, &needed, network.into_iter().flat_map(|network| &network.ways), is_there)
    }
}
