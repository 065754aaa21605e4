//! Giving a subnet up: to the store when leaving, or for another one.

use flatnet_controlplane::plane::ControlPlane;
use flatnet_core::lease_machine::LeaseState;
use flatnet_core::problem::ProblemCode;

use super::{LeaseKeeper, Run};
use crate::report::chain;

impl<P: ControlPlane> LeaseKeeper<P> {
    /// Gives the lease back. Nothing may be claimed or published afterwards: the keeper ends.
    pub(super) async fn release(&mut self, run: &mut Run) -> Result<(), String> {
        match run.claim.take() {
            Some(claim) => {
                self.plane.release(&self.keys, &claim).await.map_err(|error| {
                    let network = self.keys.network();
                    format!("network {network}: the lease stays until it expires: {}", chain(&error))
                })?;
                self.dir.write_subnet(self.keys.network(), None).map_err(|error| chain(&error))
            }
            None if run.machine.subnets().is_none() => Ok(()),
            None => Err(format!(
                "network {}: the lease was not confirmed by the store in this run; it stays until it expires",
                self.keys.network()
            )),
        }
    }

    pub(super) fn renumber(&mut self, run: &mut Run) -> Result<(), String> {
        match run.machine.state() {
            LeaseState::TakenByOther { .. } => {}
            _ if run.attempt_problem.as_ref().is_some_and(|problem| problem.code == ProblemCode::SubnetOutside) => {}
            // Another network's loss is not this one's.
            _ => return Ok(()),
        }
        self.dir.write_subnet(self.keys.network(), None).map_err(|error| chain(&error))?;
        run.machine.renumber();
        run.claim = None;
        run.attempt_problem = None;
        self.holding.send_modify(|holding| holding.held = None);
        Ok(())
    }
}
