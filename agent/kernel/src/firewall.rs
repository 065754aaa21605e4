//! Our nftables table, its set elements, and our rule at the head of other people's iptables chains.

use std::collections::BTreeSet;

use flatnet_core::facts::DroppingChain;
use flatnet_core::object::KernelState;
use flatnet_core::op::{Op, OpError, OpOutcome};
use futures::Stream;

use crate::{KernelError, Scope, Wake};

/// The firewall of one network namespace.
pub struct Firewall;

impl Firewall {
    /// Opens it in the calling thread's network namespace.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    /// Adds our table, the elements of the sets in `scope` and our iptables rules to `into`.
    pub async fn dump(&self, _scope: &Scope, _into: &mut KernelState) -> Result<(), KernelError> {
        Ok(())
    }

    /// Carries out `ops` in order; one outcome each.
    pub async fn apply(&self, ops: &[Op]) -> Vec<OpOutcome> {
        ops.iter()
            .map(|op| {
                OpOutcome::Failed(OpError {
                    action: op.action,
                    object: op.object.to_string(),
                    errno: None,
                    reason: "the firewall is not supported here".to_owned(),
                })
            })
            .collect()
    }

    /// The iptables chains that can drop packets.
    pub async fn dropping_chains(&self) -> Result<BTreeSet<DroppingChain>, KernelError> {
        Ok(BTreeSet::new())
    }

    /// Wakes when the ruleset changes.
    pub fn events(&self) -> Result<impl Stream<Item = Wake> + Send + Unpin + 'static, KernelError> {
        Ok(futures::stream::pending())
    }
}
