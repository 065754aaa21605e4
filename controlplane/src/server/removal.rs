//! Removing the records of a node that is drained, revoked or removed.

use flatnet_model::keys::presence as presence_key;
use flatnet_model::{EtcdLease, NodeId};
use tonic::Status;

use flatnet_plane::allocate::{self, Claim, Origin};
use flatnet_plane::networks;
use flatnet_plane::store::{KeyRange, Store, StoreError};
use flatnet_plane::wire::refusal;

/// Removes a node's leases in every network.
pub(super) async fn leases<S: Store>(store: &S, prefix: &str, node: NodeId) -> Result<(), Status> {
    let failed = |error: StoreError| refusal::store(&error);
    let all = networks::list(store, prefix).await.map_err(|error| refusal::network(&error))?;
    for network in &all {
        for lease in network.leases.iter().filter(|lease| lease.is_owned_by(node)) {
            // A lease that never expires has no lease of the store's to end.
            let etcd_lease = lease.etcd_lease.unwrap_or(EtcdLease(0));
            let claim = Claim { lease: lease.clone(), etcd_lease, origin: Origin::Refreshed };
            allocate::release(store, &network.keys, &claim).await.map_err(failed)?;
        }
    }
    Ok(())
}

/// Ends a node's presence.
pub(super) async fn presence<S: Store>(store: &S, node: NodeId) -> Result<(), Status> {
    let failed = |error: StoreError| refusal::store(&error);
    let found = store.range(&KeyRange::key(&presence_key(node))).await.map_err(failed)?.kvs.into_iter().next();
    match found.and_then(|kv| kv.lease) {
        Some(lease) => store.lease_revoke(lease).await.map_err(failed),
        None => Ok(()),
    }
}
