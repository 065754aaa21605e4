//! That a node is alive, and that it is the only one with its identity.

use std::time::Duration;

use flatnet_model::{EtcdLease, InstanceNonce, NodeId, Owner};

use crate::store::{Store, StoreError};

/// How long a node counts as alive after its last sign.
pub const PRESENCE_TTL: Duration = Duration::from_secs(15);

/// A node's presence, held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// The node.
    pub node: NodeId,
    /// The store's lease under it: keep it alive every third of [`PRESENCE_TTL`].
    pub lease: EtcdLease,
}

/// Why presence could not be claimed.
#[derive(Debug, thiserror::Error)]
pub enum PresenceError {
    /// Another living machine has this node's identity.
    #[error("node id {node} is in use by another running machine ({name}): its state directory was copied")]
    Cloned {
        /// The identity.
        node: NodeId,
        /// The other's name.
        name: String,
        /// The other's nonce.
        nonce: InstanceNonce,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Claims the presence of `who`; waits for one [`PRESENCE_TTL`] when another copy was there.
pub async fn announce<S: Store>(store: &S, who: &Owner) -> Result<Presence, PresenceError> {
    let _ = (store, who);
    todo!()
}

/// Keeps it alive once. [`StoreError::LeaseGone`]: announce again.
pub async fn keep_alive<S: Store>(store: &S, presence: &Presence) -> Result<Duration, StoreError> {
    store.lease_keep_alive(presence.lease).await
}

/// Ends it.
pub async fn withdraw<S: Store>(store: &S, presence: &Presence) -> Result<(), StoreError> {
    store.lease_revoke(presence.lease).await
}
