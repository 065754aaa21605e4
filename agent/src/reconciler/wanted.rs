//! The gathering of what a pass decides from: what the store, the host and this node's leases say.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use flatnet_core::backend::Needs;
use flatnet_core::exposure::Exposure;
use flatnet_core::wanted::{self, Hold, Inputs, Joined, Wanted};
use flatnet_kernel::Kernel;
use flatnet_plane::watch::Source;

use super::Reconciler;
use crate::wiring::networks::Held;

impl<K: Kernel> Reconciler<K> {
    /// Gathers the inputs of a pass, and returns what follows from them.
    pub(super) fn want(&mut self) -> Wanted {
        let held: Vec<Option<Held>> =
            self.ports.iter_mut().map(|port| port.holding.borrow_and_update().held.clone()).collect();
        for port in &mut self.ports {
            // The view is marked as seen before it is read: what comes in between wakes the loop again.
            port.view.mark_unchanged();
        }
        let kept_from: BTreeSet<SocketAddr> = self.host.endpoints.borrow_and_update().iter().copied().collect();
        let exposure = Exposure { store: kept_from, ..self.host.exposure.clone() };
        let store = self.host.store();
        let key = self.needs().key.then(|| self.key.public());
        // Each is borrowed once: a second borrow by the same task would wait for a writer that waits for the first.
        let views: Vec<_> = self.ports.iter().map(|port| port.view.borrow()).collect();
        let networks: Vec<Joined<'_>> = self
            .ports
            .iter()
            .zip(std::iter::zip(&views, &held))
            .map(|(port, (view, held))| Joined {
                name: &port.name,
                state: &view.state,
                is_whole: view.source == Source::Store,
                held: held.as_ref().map(hold),
                bridge: port.bridge,
            })
            .collect();
        let mut wanted = wanted::want(&Inputs {
            node: self.host.node,
            facts: &self.facts,
            selection: &self.host.selection,
            underlay: self.underlay.as_ref(),
            recorded: self.underlay_record.last(),
            store: &store,
            exposure: &exposure,
            key: key.as_ref(),
            masquerade: self.host.masquerade,
            take_over: self.host.take_over,
            guards: &self.guards,
            networks: &networks,
        });
        wanted.remember(&mut self.guards);
        self.underlay.clone_from(&wanted.underlay);
        wanted
    }

    /// Returns what the networks need that this host has, or is about to have.
    pub(super) fn needs(&self) -> Needs {
        let of_ports = self.ports.iter().map(|port| {
            let held = port.holding.borrow().held.as_ref().map(|held| Needs::of(held.backends())).unwrap_or_default();
            held.and(Needs::of(port.view.borrow().state.valid_config().map(|config| &config.backend)))
        });
        of_ports.fold(Needs::default(), Needs::and)
    }
}

fn hold(held: &Held) -> Hold<'_> {
    Hold { subnets: held.subnets, config: &held.config, change: &held.change }
}
