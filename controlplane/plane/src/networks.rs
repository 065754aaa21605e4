//! Creating, changing and removing networks and their permanent peers.
//!
//! Every change compares and bumps the catalog record, so overlap and VNI checks are a compare-and-swap over all
//! networks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use flatnet_model::keys::{CATALOG, NetworkKeys};
use flatnet_model::state::{Change, NetworkState};
use flatnet_model::{Lease, NetworkConfig, NetworkName, Publication, SubnetKey};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::flannel::{ConfigWarning, InvalidConfig, decode_lease, encode_lease};
use crate::store::{Compare, KeyRange, KeyValue, Store, StoreError, Txn, TxnReply, Write};

mod catalog;
mod draft;
mod error;
mod hosts;

use catalog::{Catalog, read};
pub use error::NetworkError;

/// The wishes given to `create` and `update`; `None` is the default on create and "unchanged" on update.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkSpec {
    /// `Network`.
    pub cidr: Option<Ipv4Net>,
    /// `IPv6Network`.
    pub cidr6: Option<Ipv6Net>,
    /// `SubnetLen`, or `IPv6SubnetLen` when there is no IPv4.
    pub subnet_len: Option<u8>,
    /// `SubnetMin` or `IPv6SubnetMin`, by its family.
    pub subnet_min: Option<IpAddr>,
    /// `SubnetMax` or `IPv6SubnetMax`, by its family.
    pub subnet_max: Option<IpAddr>,
    /// `Backend.Type`.
    pub backend: Option<String>,
    /// `Backend.VNI`.
    pub vni: Option<u32>,
    /// `Backend.Port`.
    pub port: Option<u16>,
    /// `Backend.Key` (GRE).
    pub key: Option<u32>,
    /// `Backend.MTU` in bytes.
    pub mtu: Option<u32>,
    /// `Backend.DirectRouting`.
    pub direct_routing: Option<bool>,
    /// Further fields of `Backend`, as a JSON object.
    pub backend_json: Option<String>,
    /// `Flatnet.ReachableFrom`; empty: nobody outside.
    pub reachable_from: Option<Vec<IpNet>>,
}

/// Ranges on a command line, separated by commas; `none` for none at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReachableFrom(pub Vec<IpNet>);

impl std::str::FromStr for ReachableFrom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" {
            return Ok(Self(Vec::new()));
        }
        let range = |text: &str| {
            let address = text.parse::<IpAddr>().ok().map(IpNet::from);
            let range = address.or_else(|| text.parse().ok());
            let range: IpNet =
                range.ok_or_else(|| format!("{text:?} is not a CIDR such as 192.168.1.0/24, nor \"none\""))?;
            match range == range.trunc() {
                true => Ok(range),
                false => Err(format!("{range} has host bits set; {} is meant", range.trunc())),
            }
        };
        text.split(',').map(range).collect::<Result<_, _>>().map(Self)
    }
}

/// One network as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkInfo {
    /// Name and keys.
    pub keys: NetworkKeys,
    /// The configuration read, or why it cannot be.
    pub config: Result<NetworkConfig, InvalidConfig>,
    /// The configuration's value as stored.
    pub config_value: Vec<u8>,
    /// The warnings about it that an operator should know.
    pub warnings: Vec<ConfigWarning>,
    /// Its leases in the order of their keys.
    pub leases: Vec<Lease>,
    /// Keys that cannot be read, and why.
    pub rejected: Vec<(String, String)>,
}

/// The choice whether hosts that hold leases, or that use a range themselves, prevent a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// They prevent it.
    No,
    /// They do not: the change is made all the same.
    Yes,
}

/// The most attempts at a change while others change networks too.
const ATTEMPTS: u32 = 10;

/// Creates a network; Type and a VNI of its own are always written. Refused while hosts use its range themselves,
/// unless forced. A route that only leads past the network, such as one to the whole of 10.0.0.0/8, does it no harm.
pub async fn create<S: Store>(
    store: &S,
    flannel_prefix: &str,
    name: &NetworkName,
    spec: &NetworkSpec,
    force: Force,
) -> Result<NetworkInfo, NetworkError> {
    let keys = NetworkKeys::new(name, flannel_prefix);
    let mut outcome_unknown = false;
    for _ in 0..ATTEMPTS {
        let catalog = Catalog::read(store, flannel_prefix).await?;
        if let Some(found) = catalog.find(name) {
            // The network is ours if an answer was lost and it is just what we would write.
            let written = draft::create(name, spec, &catalog.others(name)).map(|(value, _)| value);
            let is_ours = outcome_unknown && written.is_ok_and(|value| value == found.config_value);
            return if is_ours { Ok(found.clone()) } else { Err(NetworkError::Exists(name.clone())) };
        }
        let others = catalog.others(name);
        let (value, config) = draft::create(name, spec, &others).map_err(|source| invalid(name, source))?;
        draft::check_against(name, &config, &others)?;
        if force == Force::No {
            hosts::check(store, name, &config, None).await?;
        }
        let txn = catalog.change(Compare::ModRevision(keys.config(), 0), put(keys.config(), value));
        match store.txn(txn).await {
            Ok(TxnReply::Done(_)) => return inspect(store, flannel_prefix, name).await,
            Ok(TxnReply::Refused(_)) => {}
            Err(error) if error.can_retry() => outcome_unknown = true,
            Err(error) => return Err(error.into()),
        }
    }
    Err(NetworkError::Busy(ATTEMPTS))
}

/// Writes `value` back as the configuration of the network of `keys` if the store has none; returns true if it had
/// none.
///
/// No other network is looked at: the configuration was in force, and agents hold subnets of it.
pub async fn restore<S: Store>(store: &S, keys: &NetworkKeys, value: Vec<u8>) -> Result<bool, StoreError> {
    for _ in 0..ATTEMPTS {
        let config = store.range(&KeyRange::key(&keys.config())).await?;
        if !config.kvs.is_empty() {
            return Ok(false);
        }
        let catalog = store.range(&KeyRange::key(CATALOG)).await?.kvs.into_iter().next();
        let by_nodes_alone = catalog.as_ref().is_none_or(|kv| is_restored(&kv.value));
        let record = if by_nodes_alone { catalog::RESTORED } else { catalog::RECORD };
        let txn = Txn {
            when: vec![
                Compare::ModRevision(keys.config(), 0),
                Compare::ModRevision(CATALOG.to_owned(), catalog.map_or(0, |kv| kv.mod_revision)),
            ],
            // The changed record makes everybody who is about to create a network look again.
            then: vec![put(keys.config(), value.clone()), put(CATALOG.to_owned(), record.to_vec())],
        };
        if let TxnReply::Done(_) = store.txn(txn).await? {
            return Ok(true);
        }
    }
    let reason = "networks keep changing".to_owned();
    Err(StoreError::Unavailable { endpoint: "store".to_owned(), reason })
}

/// Returns true if the catalog's record says that [`restore`] wrote it last: nobody has looked after networks since.
#[must_use]
pub fn is_restored(record: &[u8]) -> bool {
    record == catalog::RESTORED
}

/// Reads a network from its records as a server sends them; `None` without a configuration.
#[must_use]
pub fn of_records(keys: NetworkKeys, records: Vec<flatnet_proto::controlplane::v1::Record>) -> Option<NetworkInfo> {
    let prefix = keys.all();
    let kvs: Vec<KeyValue> = records.into_iter().map(|record| crate::wire::key_value(&prefix, record)).collect();
    read(keys, &kvs).map(|(info, _)| info)
}

/// Checks that a network `name` of `config` can be beside `all` others: no range, VNI, port or key twice.
pub fn check_beside(name: &NetworkName, config: &NetworkConfig, all: &[NetworkInfo]) -> Result<(), NetworkError> {
    let others: Vec<&NetworkInfo> = all.iter().filter(|info| info.keys.network() != name).collect();
    draft::check_against(name, config, &others)
}

/// Changes a network; fields not named stay, unknown ones too.
pub async fn update<S: Store>(
    store: &S,
    flannel_prefix: &str,
    name: &NetworkName,
    spec: &NetworkSpec,
    force: Force,
) -> Result<NetworkInfo, NetworkError> {
    let keys = NetworkKeys::new(name, flannel_prefix);
    for _ in 0..ATTEMPTS {
        let catalog = Catalog::read(store, flannel_prefix).await?;
        let found = catalog.find(name).ok_or_else(|| NetworkError::NotFound(name.clone()))?;
        let others = catalog.others(name);
        let (value, config) = draft::update(name, spec, found, &others).map_err(|source| invalid(name, source))?;
        draft::check_against(name, &config, &others)?;
        let stranded = stranded(found, &config);
        if force == Force::No && !stranded.is_empty() {
            return Err(NetworkError::Strands { name: name.clone(), leases: stranded });
        }
        if force == Force::No {
            hosts::check(store, name, &config, found.config.as_ref().ok()).await?;
        }
        if value == found.config_value {
            return Ok(found.clone());
        }
        let guard = Compare::ModRevision(keys.config(), catalog.revision_of(name));
        match store.txn(catalog.change(guard, put(keys.config(), value))).await {
            Ok(TxnReply::Done(_)) => return inspect(store, flannel_prefix, name).await,
            Ok(TxnReply::Refused(_)) => {}
            // When asked again, either it happened (then nothing is left to change) or it is tried again.
            Err(error) if error.can_retry() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(NetworkError::Busy(ATTEMPTS))
}

/// Returns the leases that are inside the network now and would not be inside it any more.
fn stranded(found: &NetworkInfo, config: &NetworkConfig) -> Vec<String> {
    let mut state = NetworkState::default();
    for lease in &found.leases {
        state.apply(Change::Lease(Box::new(lease.clone())));
    }
    let held_now: BTreeSet<SubnetKey> = match &found.config {
        Ok(now) => state.resolve(now).leases.iter().map(|lease| lease.subnets).collect(),
        Err(_) => return Vec::new(),
    };
    let refused = state.resolve(config).refused;
    refused.iter().filter(|lease| held_now.contains(&lease.subnets)).map(|lease| lease.subnets.to_string()).collect()
}

/// Reads one network with its leases.
pub async fn inspect<S: Store>(
    store: &S,
    flannel_prefix: &str,
    name: &NetworkName,
) -> Result<NetworkInfo, NetworkError> {
    let keys = NetworkKeys::new(name, flannel_prefix);
    let reply = store.range(&KeyRange::prefix(&keys.all())).await?;
    read(keys, &reply.kvs).map(|(info, _)| info).ok_or_else(|| NetworkError::NotFound(name.clone()))
}

/// Lists all networks, `default` first, then by name.
pub async fn list<S: Store>(store: &S, flannel_prefix: &str) -> Result<Vec<NetworkInfo>, NetworkError> {
    Ok(Catalog::read(store, flannel_prefix).await?.networks.into_iter().map(|(info, _)| info).collect())
}

/// Removes a network with everything under its prefix; refuses while hosts hold leases unless forced.
/// Permanent peers go with it.
pub async fn remove<S: Store>(
    store: &S,
    flannel_prefix: &str,
    name: &NetworkName,
    force: Force,
) -> Result<(), NetworkError> {
    let keys = NetworkKeys::new(name, flannel_prefix);
    for attempt in 0..ATTEMPTS {
        let catalog = Catalog::read(store, flannel_prefix).await?;
        let Some(found) = catalog.find(name) else {
            // An answer may have been lost; what is left under the prefix goes all the same.
            delete_all(store, &keys).await?;
            return if attempt == 0 { Err(NetworkError::NotFound(name.clone())) } else { Ok(()) };
        };
        let subnets = KeyRange::prefix(&keys.subnets());
        let mut txn = catalog
            .change(Compare::ModRevision(keys.config(), catalog.revision_of(name)), Write::Delete(keys.config()));
        if force == Force::No {
            let held = held_by_hosts(found);
            if !held.is_empty() {
                return Err(NetworkError::InUse { name: name.clone(), leases: held });
            }
            delete_range(store, &subnets).await?;
            // The transaction fails if a host joins meanwhile, so that none is removed unseen.
            txn.when.push(Compare::Absent(subnets));
        }
        match store.txn(txn).await {
            Ok(TxnReply::Done(_)) => return Ok(delete_all(store, &keys).await?),
            Ok(TxnReply::Refused(_)) => {}
            Err(error) if error.can_retry() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(NetworkError::Busy(ATTEMPTS))
}

/// Returns the keys of leases that a host keeps alive.
fn held_by_hosts(found: &NetworkInfo) -> Vec<String> {
    found.leases.iter().filter(|lease| !is_permanent(lease)).map(|lease| lease.subnets.to_string()).collect()
}

fn is_permanent(lease: &Lease) -> bool {
    lease.owner.is_none() && lease.etcd_lease.is_none()
}

async fn delete_all<S: Store>(store: &S, keys: &NetworkKeys) -> Result<(), StoreError> {
    delete_range(store, &KeyRange::prefix(&keys.all())).await?;
    delete_range(store, &KeyRange::prefix(&keys.claims())).await
}

/// Deletes the keys in `range` that have not changed since they were read.
async fn delete_range<S: Store>(store: &S, range: &KeyRange) -> Result<(), StoreError> {
    /// The most keys in one transaction: etcd takes 128 operations (`--max-txn-ops`).
    const CHUNK: usize = 100;
    let kvs = store.range(range).await?.kvs;
    for chunk in kvs.chunks(CHUNK) {
        // A key that is not text is none of ours, and cannot be named in a transaction here.
        let known = chunk.iter().filter_map(|kv| Some((String::from_utf8(kv.key.clone()).ok()?, kv.mod_revision)));
        let (when, then) =
            known.map(|(key, revision)| (Compare::ModRevision(key.clone(), revision), Write::Delete(key))).unzip();
        // A refusal means that something changed meanwhile; the caller looks again.
        store.txn(Txn { when, then }).await?;
    }
    Ok(())
}

/// Adds a permanent peer: a lease without owner that never expires.
pub async fn add_peer<S: Store>(
    store: &S,
    flannel_prefix: &str,
    name: &NetworkName,
    subnets: SubnetKey,
    publication: &Publication,
) -> Result<Lease, NetworkError> {
    let keys = NetworkKeys::new(name, flannel_prefix);
    let value = encode_lease(publication, None);
    for _ in 0..ATTEMPTS {
        let found = inspect(store, flannel_prefix, name).await?;
        let config = found.config.clone().map_err(|source| invalid(name, source))?;
        if let Some(same) = found.leases.iter().find(|lease| lease.subnets == subnets && is_permanent(lease))
            && same.publication() == *publication
        {
            return Ok(same.clone());
        }
        check_peer(name, &config, &found.leases, subnets)?;
        let (start, end) = keys.lease_forms(&subnets);
        let mut txn = Txn {
            when: vec![Compare::Absent(KeyRange { start, end })],
            then: vec![put(keys.lease(&subnets), value.clone())],
        };
        for net in subnets.iter() {
            let claim = keys.claim(net);
            let revision = store.range(&KeyRange::key(&claim)).await?.kvs.first().map_or(0, |kv| kv.mod_revision);
            txn.when.push(Compare::ModRevision(claim.clone(), revision));
            txn.then.push(put(claim, br#"{"version":1}"#.to_vec()));
        }
        let written = KeyValue {
            key: keys.lease(&subnets).into_bytes(),
            value: value.clone(),
            create_revision: 0,
            mod_revision: 0,
            lease: None,
        };
        let mut lease =
            decode_lease(subnets, &written).map_err(|error| invalid(name, InvalidConfig(error.to_string())))?;
        match store.txn(txn).await {
            Ok(TxnReply::Done(revision)) => {
                (lease.create_revision, lease.mod_revision) = (revision, revision);
                return Ok(lease);
            }
            Ok(TxnReply::Refused(_)) => {}
            Err(error) if error.can_retry() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(NetworkError::Busy(ATTEMPTS))
}

fn check_peer(
    name: &NetworkName,
    config: &NetworkConfig,
    leases: &[Lease],
    subnets: SubnetKey,
) -> Result<(), NetworkError> {
    let inside = |net: IpNet| config.pools().any(|pool| pool.network() != net && pool.network().contains(&net));
    if !subnets.iter().all(inside) {
        return Err(NetworkError::PeerOutside { name: name.clone(), subnets });
    }
    let overlaps = |lease: &&Lease| {
        lease.subnets.iter().any(|own| subnets.iter().any(|net| own.contains(&net) || net.contains(&own)))
    };
    match leases.iter().find(overlaps) {
        Some(other) => Err(NetworkError::PeerOverlap { name: name.clone(), subnets, other: other.subnets }),
        None => Ok(()),
    }
}

/// Removes a permanent peer; a host's lease is never removed by this.
pub async fn remove_peer<S: Store>(
    store: &S,
    flannel_prefix: &str,
    name: &NetworkName,
    subnets: SubnetKey,
) -> Result<(), NetworkError> {
    let keys = NetworkKeys::new(name, flannel_prefix);
    let key = keys.lease(&subnets);
    let none = || NetworkError::NoSuchPeer { name: name.clone(), subnets };
    for attempt in 0..ATTEMPTS {
        let Some(kv) = store.range(&KeyRange::key(&key)).await?.kvs.into_iter().next() else {
            return if attempt == 0 { Err(none()) } else { Ok(()) };
        };
        // A lease whose value cannot be read has no owner either.
        let owned = decode_lease(subnets, &kv).is_ok_and(|lease| lease.owner.is_some());
        if kv.lease.is_some() || owned {
            return Err(none());
        }
        let mut then = vec![Write::Delete(key.clone())];
        then.extend(subnets.iter().map(|net| Write::Delete(keys.claim(net))));
        match store.txn(Txn { when: vec![Compare::ModRevision(key.clone(), kv.mod_revision)], then }).await {
            Ok(TxnReply::Done(_)) => return Ok(()),
            Ok(TxnReply::Refused(_)) => {}
            Err(error) if error.can_retry() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(NetworkError::Busy(ATTEMPTS))
}

fn invalid(name: &NetworkName, source: InvalidConfig) -> NetworkError {
    NetworkError::Invalid { name: name.clone(), source }
}

fn put(key: String, value: Vec<u8>) -> Write {
    Write::Put { key, value, lease: None }
}

#[cfg(test)]
mod tests;
