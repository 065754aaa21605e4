//! The flag `--init`: the network's configuration, made by the first agent that misses it.

use std::time::Duration;

use flatnet_model::state::ConfigState;
use flatnet_plane::networks::{NetworkError, NetworkSpec};
use flatnet_plane::plane::ControlPlane;
use flatnet_plane::watch::Connection;
use ipnet::IpNet;

use super::LeaseKeeper;
use crate::wiring::channels::Channel;

/// The wait before the network is created again after the store did not answer: nothing else may wake the keeper
/// meanwhile.
const CREATE_RETRY_AFTER: Duration = Duration::from_secs(1);

impl<P: ControlPlane> LeaseKeeper<P> {
    /// Creates the network if it does not exist and `--init` asks for it. Returns the wait before the next try, if one
    /// is needed.
    pub(super) async fn init_config(&mut self) -> Option<Duration> {
        let missing = {
            let view = self.view.borrow();
            view.connection == Connection::Connected
                && view.state.config == ConfigState::Missing
                && view.suspect.is_none()
        };
        if self.init.is_empty() || !missing {
            self.channels.idle(Channel::Create, Some(&self.keys));
            return None;
        }
        let mut spec = NetworkSpec::default();
        for net in &self.init {
            match net {
                IpNet::V4(net) => spec.cidr = Some(*net),
                IpNet::V6(net) => spec.cidr6 = Some(*net),
            }
        }
        match self.plane.create_network(&self.flannel_prefix, self.keys.network(), &spec).await {
            Ok(()) => {
                self.say_succeeded(Channel::Create);
                tracing::info!(network = %self.keys.network(), "network created");
            }
            // Another agent was faster.
            Err(NetworkError::Exists(_)) => {}
            Err(NetworkError::Store(error)) => {
                self.say_failed(Channel::Create, &error);
                return Some(CREATE_RETRY_AFTER);
            }
            Err(error @ NetworkError::Busy(_)) => {
                tracing::debug!(network = %self.keys.network(), %error, "the network cannot be created yet");
                return Some(CREATE_RETRY_AFTER);
            }
            Err(error) => {
                let _ = self.fatal.send(crate::report::network_failure(&error)).await;
            }
        }
        self.init.clear();
        None
    }
}
