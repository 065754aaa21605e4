//! What a look at the store shows of its past.

use flatnet_model::keys::{CATALOG, NetworkKeys};
use flatnet_model::{NetworkName, Revision};

use crate::networks;
use crate::store::{KeyRange, Store, StoreError};

/// What a look at the store showed.
pub(super) struct Look {
    /// It holds no network, and nobody ever wrote one: whoever changes networks leaves the catalog behind, and the network
    /// `default` may be somebody else's doing.
    pub(super) is_blank: bool,
    /// Nobody but nodes has written networks since it was blank.
    pub(super) is_restored: bool,
    /// When the catalog or the network `default` was written last.
    pub(super) written: Revision,
    /// As of when.
    pub(super) revision: Revision,
}

/// Looks whether a store holds anything of a network, and who wrote it.
pub(super) async fn look<S: Store>(store: &S, prefix: &str) -> Result<Look, StoreError> {
    let default = NetworkKeys::new(&NetworkName::default_network(), prefix);
    let config = store.range(&KeyRange::key(&default.config())).await?;
    let catalog = store.range(&KeyRange::key(CATALOG)).await?;
    Ok(Look {
        is_blank: catalog.kvs.is_empty() && config.kvs.is_empty(),
        is_restored: catalog.kvs.first().is_some_and(|kv| networks::is_restored(&kv.value)),
        written: catalog.kvs.iter().chain(&config.kvs).map(|kv| kv.mod_revision).max().unwrap_or(0),
        revision: catalog.revision,
    })
}
