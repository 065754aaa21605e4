//! The replacement of this node's WireGuard key while packets flow.
//!
//! The order loses nothing: the devices here get the new key first, and only then is it published. From then on this
//! node's packets wait for a handshake, which every peer starts as soon as it reads the new key. Packets that peers
//! send under the old sessions are still accepted. The other way round, peers would speak to a key that nobody has.

use std::time::Duration;

use flatnet_core::backend::Needs;
use flatnet_core::problem::Problem;
use flatnet_model::{BackendData, Lease, NodeId, WireguardKey};
use flatnet_plane::watch::Connection;
use tokio::sync::watch;

use crate::files::wireguard_key::WireguardIdentity;
use crate::wiring::context::Context;
use crate::wiring::networks::NetworkPort;

/// The time that publishing the new key may take: a pass of the reconciler and a write to the store, each well under a
/// second.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything a rotation works with.
#[derive(Clone)]
pub struct Rotation {
    /// This node.
    pub node: NodeId,
    /// The networks of this node.
    pub networks: watch::Receiver<Vec<NetworkPort>>,
    /// The key of this node.
    pub identity: WireguardIdentity,
}

/// The reason why there is no new key, or why nobody knows it yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RotationError {
    /// There is nothing to rotate.
    #[error("no network of this host is WireGuard's")]
    NoNetwork,
    /// The new key could not be published: peers would go on speaking to the old one. Nothing was changed.
    #[error("network {0}: the store does not answer, so peers would not learn the new key; nothing was changed")]
    Disconnected(String),
    /// The new key could not be made or written. Nothing was changed.
    #[error("{}", .0.message)]
    File(Problem),
    /// The devices have the new key, but the store does not.
    #[error("network {0}: the new key is in use here but not published yet; the agent goes on trying")]
    Unpublished(String),
}

impl Rotation {
    /// Makes what replaces the key of this node.
    #[must_use]
    pub fn of<P, K>(context: &Context<P, K>) -> Self {
        let setup = &context.setup;
        Self { node: setup.owner.node, networks: context.networks.clone(), identity: setup.wireguard.clone() }
    }

    /// Returns true if any network uses the key.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        self.networks.borrow().iter().any(needs_key)
    }

    /// Makes a new key, and returns it once it is published in every lease of this node.
    pub async fn run(self) -> Result<WireguardKey, RotationError> {
        let mut ports = self.networks.borrow().clone();
        ports.retain(needs_key);
        if ports.is_empty() {
            return Err(RotationError::NoNetwork);
        }
        if let Some(port) = ports.iter().find(|port| port.view.borrow().connection != Connection::Connected) {
            return Err(RotationError::Disconnected(port.name.to_string()));
        }
        let identity = self.identity.clone();
        let made = tokio::task::spawn_blocking(move || identity.rotate()).await;
        let key = made.map_err(|error| RotationError::Unpublished(error.to_string()))?.map_err(RotationError::File)?;
        let deadline = tokio::time::Instant::now() + PUBLISH_TIMEOUT;
        for port in &mut ports {
            let (node, holding) = (self.node, port.holding.clone());
            let published = port.view.wait_for(|view| {
                let held = holding.borrow().held.as_ref().map(|held| held.subnets);
                let lease = held.and_then(|held| view.state.leases.get(&held)).filter(|lease| lease.is_owned_by(node));
                // No other key than the new one, by whatever way.
                lease.is_some_and(|lease| published(lease).all(|published| published == key))
            });
            match tokio::time::timeout_at(deadline, published).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return Err(RotationError::Unpublished(port.name.to_string())),
            }
        }
        Ok(key)
    }
}

fn needs_key(port: &NetworkPort) -> bool {
    port.holding.borrow().held.as_ref().is_some_and(|held| Needs::of(held.backends()).key)
}

/// Returns the keys that `lease` publishes.
fn published(lease: &Lease) -> impl Iterator<Item = WireguardKey> {
    lease.ways().flatten().filter_map(BackendData::public_key)
}
