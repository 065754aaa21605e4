//! Looks at the store, for what they show of its past.

use flatnet_model::keys::{CATALOG, NetworkKeys};
use flatnet_model::{NetworkName, Revision};

use flatnet_plane::networks;
use flatnet_plane::store::{KeyRange, Store, StoreError};

/// The result of a look at the store.
pub(super) struct Look {
    /// True if it holds no network and nobody ever wrote one. Whoever changes networks leaves the catalog behind, and
    /// the network `default` may be somebody else's doing.
    pub(super) is_blank: bool,
    /// True if nobody but nodes has written networks since it was blank.
    pub(super) is_restored: bool,
    /// The revision of the last write of the catalog or of the network `default`.
    pub(super) written: Revision,
    /// The store's revision at the look.
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
