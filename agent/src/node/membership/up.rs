//! Waiting until packets can flow in a network that was joined.

use std::time::Duration;

use flatnet_core::op::ObjectKey;
use flatnet_core::problem::Problem;
use flatnet_model::state::ConfigState;
use flatnet_plane::plane::ControlPlane;
use flatnet_plane::watch::{Connection, NetworkView};
use flatnet_proto::agent::v1::{Network as Document, Status};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{JoinError, Joining, Membership, network};
use crate::report::Failure;
use crate::wiring::networks::NetworkPort;
use crate::wiring::outcome::Outcome;
use crate::wiring::part::Report;

/// The longest that joining waits for packets to flow. It takes some tens of milliseconds; an election of the store
/// takes 1 to 2 s.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);

impl<P: ControlPlane, K: Send + Sync + 'static> Membership<P, K> {
    /// Waits until packets can flow in the network of `port`, or until it is known what keeps them. `failures`: those
    /// that end the attempt.
    pub(super) async fn wait_until_up(
        &self,
        port: &NetworkPort,
        failures: &mut Option<mpsc::Receiver<Failure>>,
    ) -> Result<Joining, JoinError> {
        let (mut port, mut outcome, mut written) = (port.clone(), self.context.outcome.clone(), self.written.clone());
        let deadline = Instant::now() + JOIN_TIMEOUT;
        loop {
            if let Some(failure) = failures.as_mut().and_then(|failures| failures.try_recv().ok()) {
                return Err(JoinError::Refused(failure));
            }
            outcome.mark_unchanged();
            written.mark_unchanged();
            let problems = self.problems(&mut port)?;
            if is_up(&port, &outcome.borrow()) && written.borrow().contains(&port.name) {
                return Ok(Joining { up: true, problems, document: self.document(&port) });
            }
            let is_held = port.holding.borrow().held.is_some();
            if (!problems.is_empty() && !is_held) || Instant::now() >= deadline {
                let problems = self.all_problems(&port);
                return Ok(Joining { up: false, problems, document: self.document(&port) });
            }
            tokio::select! {
                changed = outcome.changed() => changed.map_err(|_| JoinError::Stopping)?,
                changed = written.changed() => changed.map_err(|_| JoinError::Stopping)?,
                changed = port.view.changed() => changed.map_err(|_| JoinError::Stopping)?,
                changed = port.holding.changed() => changed.map_err(|_| JoinError::Stopping)?,
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }

    /// Returns the problems that do not pass by themselves within moments. An error says that there is no such network.
    fn problems(&self, port: &mut NetworkPort) -> Result<Vec<Problem>, JoinError> {
        let (view, holding) = (port.view.borrow_and_update(), port.holding.borrow_and_update());
        if is_missing(&view) {
            return Err(JoinError::NoSuchNetwork(port.name.clone()));
        }
        let is_invalid = matches!(view.state.config, ConfigState::Invalid(_));
        let refused = matches!(view.connection, Connection::Lost { kind, .. } if kind.is_refusal());
        let problems = holding.problems.clone();
        drop((view, holding));
        Ok(if is_invalid || refused { self.all_problems(port) } else { problems })
    }

    /// Returns all problems of the network, and those on this host if it is not programmed.
    fn all_problems(&self, port: &NetworkPort) -> Vec<Problem> {
        let mut problems = network::report(&self.context, port).problems(Instant::now());
        let outcome = self.context.outcome.borrow();
        if !is_up(port, &outcome) && port.holding.borrow().held.is_some() {
            problems.extend(outcome.problems.iter().cloned());
        }
        problems
    }

    fn document(&self, port: &NetworkPort) -> Document {
        let mut status = Status::default();
        network::report(&self.context, port).status(&mut status);
        status.networks.pop().unwrap_or_default()
    }
}

/// Returns true if the store is followed and has no such network.
fn is_missing(view: &NetworkView) -> bool {
    view.connection == Connection::Connected && view.state.config == ConfigState::Missing && view.suspect.is_none()
}

/// Returns true if the lease is confirmed and everything that carries packets is in the kernel.
fn is_up(port: &NetworkPort, outcome: &Outcome) -> bool {
    let is_confirmed = port.holding.borrow().held.as_ref().is_some_and(|held| held.expires.is_some());
    let programmed = outcome.networks.iter().find(|network| network.name == port.name);
    is_confirmed
        && programmed.is_some_and(|network| {
            let is_refused = |key: &ObjectKey| matches!(key, ObjectKey::Link(name) if network.devices.contains(name));
            network.mtu.is_some() && !outcome.failed.iter().any(is_refused)
        })
}
