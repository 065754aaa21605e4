//! The record for the next run: the subnet, and the configuration it is held under.

use std::time::Duration;

use flatnet_core::problem::{Problem, ProblemCode};
use flatnet_model::{BackendConfig, NetworkConfig, SubnetKey};
use flatnet_plane::flannel::encode_config;

use super::{LeaseKeeper, Run};
use crate::report::chain;

/// The wait before the next try after a full disk: somebody who makes room looks whether it helped.
const REMEMBER_RETRY_AFTER: Duration = Duration::from_secs(5);

impl<S> LeaseKeeper<S> {
    /// Remembers the subnet across reboots.
    pub(super) fn remember(
        &self,
        subnets: SubnetKey,
        config: &NetworkConfig,
        earlier: &[BackendConfig],
    ) -> Option<Problem> {
        let network = self.keys.network();
        let written = self.dir.write_subnet(network, Some(subnets));
        self.remember_config(config, earlier);
        written.err().map(|error| {
            Problem::new(
                ProblemCode::SubnetUnwritable,
                format!("the subnet of network {network} cannot be remembered: {}", chain(&error)),
                "free space in the state directory; without it this node may get another subnet after its lease expired",
                network,
            )
        })
    }

    /// Tries again to write down what the disk had no room for. Returns `until`, or the time of the next try if that is
    /// earlier.
    pub(super) fn remember_again(&self, run: &mut Run, until: Option<Duration>) -> Option<Duration> {
        if run.attempt_problem.as_ref().is_none_or(|problem| problem.code != ProblemCode::SubnetUnwritable) {
            return until;
        }
        let (now, held) = (run.started.elapsed(), self.holding.borrow().held.clone());
        if let Some(held) = held.filter(|_| now >= run.remember_at) {
            run.attempt_problem = self.remember(held.subnets, &held.config, held.change.earlier());
            run.remember_at = now + REMEMBER_RETRY_AFTER;
        }
        Some(until.map_or(run.remember_at, |until| until.min(run.remember_at)))
    }

    /// Remembers the configuration in force. Should the store's be changed so that this node's subnet is outside, a
    /// restarted agent must still know what its containers live in. The earlier backends, by which peers may send, are
    /// remembered too.
    pub(super) fn remember_config(&self, config: &NetworkConfig, earlier: &[BackendConfig]) {
        let network = self.keys.network();
        let earlier = earlier.iter().map(|backend| NetworkConfig {
            backend: backend.clone(),
            before: Vec::new(),
            ..config.clone()
        });
        let lines: Result<Vec<Vec<u8>>, _> =
            std::iter::once(config.clone()).chain(earlier).map(|config| encode_config(&config, None)).collect();
        let written = lines.map(|lines| lines.join(&b'\n')).map_err(|error| error.to_string());
        if let Err(error) =
            written.and_then(|text| self.dir.write_config(network, &text).map_err(|error| chain(&error)))
        {
            tracing::warn!(network = %network, error, "the configuration in force cannot be kept");
        }
    }
}
