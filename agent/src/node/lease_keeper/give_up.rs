//! Giving a subnet up: to the store when leaving, or for another one.

use flatnet_core::lease_machine::LeaseState;
use flatnet_core::problem::{Problem, ProblemCode};
use flatnet_plane::allocate::{Claim, Origin};
use flatnet_plane::plane::ControlPlane;
use flatnet_plane::watch::{Connection, Source};

use super::{LeaseError, LeaseKeeper, Run};

impl<P: ControlPlane> LeaseKeeper<P> {
    /// Gives the lease back. Nothing may be claimed or published afterwards: the keeper ends.
    pub(super) async fn release(&mut self, run: &mut Run) -> Result<(), LeaseError> {
        let network = self.keys.network().clone();
        match run.claim.take().or_else(|| self.claim_in_view()) {
            Some(claim) => {
                let released = self.plane.release(&self.keys, &claim).await;
                released.map_err(|source| LeaseError::Release { network: network.clone(), source })?;
                Ok(self.dir.write_subnet(&network, None)?)
            }
            None if run.unanswered => Err(LeaseError::Unanswered(network)),
            None if run.machine.subnets().is_none() => Ok(()),
            None => Err(LeaseError::Unconfirmed(network)),
        }
    }

    /// Returns the claim that the store says this node has: made by an attempt whose answer was lost, or in an earlier
    /// run.
    fn claim_in_view(&self) -> Option<Claim> {
        let view = self.view.borrow();
        let kept = view.suspect.as_ref().map(|suspect| &suspect.kept);
        let lease = view.state.leases.values().find(|lease| {
            lease.is_owned_by(self.owner.node) && kept.is_none_or(|kept| !kept.contains(&lease.subnets))
        })?;
        let is_followed = view.source == Source::Store && view.connection == Connection::Connected;
        let etcd_lease = lease.etcd_lease.filter(|_| is_followed)?;
        Some(Claim { lease: lease.clone(), etcd_lease, origin: Origin::Refreshed })
    }

    /// Gives up subnets that cannot be kept, and takes others.
    pub(super) async fn renumber(&mut self, run: &mut Run) -> Result<(), LeaseError> {
        let has = |problem: &Option<Problem>, code| problem.as_ref().is_some_and(|problem| problem.code == code);
        match run.machine.state() {
            LeaseState::TakenByOther { .. } => {}
            _ if has(&run.attempt_problem, ProblemCode::SubnetOutside) => {}
            _ if has(&run.config_problem, ProblemCode::NetworkChanged) => {
                // The subnet is still this node's: others would be kept from it for as long as the lease lasts.
                if let Some(claim) = run.claim.clone().or_else(|| self.claim_in_view()) {
                    let (network, subnets) = (self.keys.network().clone(), claim.lease.subnets);
                    let released = self.plane.release(&self.keys, &claim).await;
                    released.map_err(|source| LeaseError::Kept { network, subnets, source })?;
                }
            }
            // The loss of another network is not this one's.
            _ => return Ok(()),
        }
        self.dir.write_subnet(self.keys.network(), None)?;
        run.machine.renumber();
        run.claim = None;
        run.attempt_problem = None;
        self.holding.send_modify(|holding| holding.held = None);
        Ok(())
    }
}
