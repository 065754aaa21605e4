//! All networks of a store, read together with the revision that changes with every one of them.

use flatnet_model::keys::{CATALOG, NETWORKS, NetworkKeys};
use flatnet_model::state::Change;
use flatnet_model::{NetworkName, Revision};

use super::{NetworkInfo, put};
use crate::flannel::{decode_change, decode_config};
use crate::store::{Compare, KeyRange, KeyValue, Store, StoreError, Txn, WatchEvent, Write};

/// The catalog's record: its revision changes with the networks.
pub(super) const RECORD: &[u8] = br#"{"version":1}"#;
/// The catalog's record while nobody but nodes has written networks since the store was blank.
pub(super) const RESTORED: &[u8] = br#"{"version":1,"restored":true}"#;

pub(super) struct Catalog {
    /// Revision of the catalog record; 0: there is none yet.
    revision: Revision,
    /// Each network with the revision of its configuration: `default` first, then by name.
    pub(super) networks: Vec<(NetworkInfo, Revision)>,
}

impl Catalog {
    /// Reads the record first: a change after that makes a transaction that names it fail.
    pub(super) async fn read<S: Store>(store: &S, flannel_prefix: &str) -> Result<Self, StoreError> {
        let record = store.range(&KeyRange::key(CATALOG)).await?;
        let default = NetworkKeys::new(&NetworkName::default_network(), flannel_prefix);
        let default_kvs = store.range(&KeyRange::prefix(&default.all())).await?.kvs;
        let further = store.range(&KeyRange::prefix(NETWORKS)).await?.kvs;
        let mut networks: Vec<_> = read(default, &default_kvs).into_iter().collect();
        // Keys come in order, so those of one network are together.
        let name = |kv: &KeyValue| network_name(&kv.key);
        for kvs in further.chunk_by(|a, b| name(a) == name(b)) {
            if let Some(name) = kvs.first().and_then(name) {
                networks.extend(read(NetworkKeys::new(&name, flannel_prefix), kvs));
            }
        }
        Ok(Self { revision: record.kvs.first().map_or(0, |kv| kv.mod_revision), networks })
    }

    pub(super) fn find(&self, name: &NetworkName) -> Option<&NetworkInfo> {
        self.networks.iter().map(|(info, _)| info).find(|info| info.keys.network() == name)
    }

    pub(super) fn others(&self, name: &NetworkName) -> Vec<&NetworkInfo> {
        self.networks.iter().map(|(info, _)| info).filter(|info| info.keys.network() != name).collect()
    }

    /// Returns the revision of a network's configuration; 0: there is none.
    pub(super) fn revision_of(&self, name: &NetworkName) -> Revision {
        self.networks.iter().find(|(info, _)| info.keys.network() == name).map_or(0, |(_, revision)| *revision)
    }

    /// Makes a transaction that holds only if no network changed since.
    pub(super) fn change(&self, guard: Compare, write: Write) -> Txn {
        Txn {
            when: vec![Compare::ModRevision(CATALOG.to_owned(), self.revision), guard],
            then: vec![write, put(CATALOG.to_owned(), RECORD.to_vec())],
        }
    }
}

/// Returns the name of the network that this key, one of those under [`NETWORKS`], belongs to.
fn network_name(key: &[u8]) -> Option<NetworkName> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(NETWORKS)?;
    // `default` lives elsewhere; a network of that name here would be a second one.
    rest.split('/').next()?.parse().ok().filter(|name: &NetworkName| !name.is_default())
}

/// Reads one network from the keys under its prefix, and the revision of its configuration; `None` without a
/// configuration.
pub(super) fn read(keys: NetworkKeys, kvs: &[KeyValue]) -> Option<(NetworkInfo, Revision)> {
    let config = kvs.iter().find(|kv| kv.key == keys.config().as_bytes())?;
    let (decoded, warnings) = match decode_config(&config.value) {
        Ok((config, warnings)) => (Ok(config), warnings),
        Err(error) => (Err(error), Vec::new()),
    };
    let (mut leases, mut rejected) = (Vec::new(), Vec::new());
    for kv in kvs {
        match decode_change(&keys, &WatchEvent::Put(kv.clone())) {
            Some(Change::Lease(lease)) => leases.push(*lease),
            Some(Change::Rejected { key, reason }) => rejected.push((key, reason)),
            _ => {}
        }
    }
    let config_value = config.value.clone();
    Some((NetworkInfo { keys, config: decoded, config_value, warnings, leases, rejected }, config.mod_revision))
}
