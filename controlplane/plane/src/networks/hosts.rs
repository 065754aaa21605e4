//! The check whether hosts use a network's range themselves.
//!
//! It looks at what they published last, without a guard. A host that comes, or gets such a route, a moment later is no
//! reason to refuse the network, and the host's own agent reports what is in its way.

use flatnet_model::keys::NODES;
use flatnet_model::{HostRange, NetworkConfig, NetworkName, Pool};
use ipnet::IpNet;

use super::NetworkError;
use crate::presence;
use crate::store::{KeyRange, Store};

/// Refuses `config` if a present host uses a part of its ranges itself. A host's use of the ranges that the network has
/// already (`before`) is no reason.
pub(super) async fn check<S: Store>(
    store: &S,
    name: &NetworkName,
    config: &NetworkConfig,
    before: Option<&NetworkConfig>,
) -> Result<(), NetworkError> {
    let had: Vec<IpNet> = before.into_iter().flat_map(NetworkConfig::pools).flat_map(Pool::handed_out).collect();
    // Addresses that a network does not hand out are not taken by it: hosts may live there.
    let new: Vec<IpNet> = config.pools().flat_map(Pool::handed_out).filter(|net| !had.contains(net)).collect();
    if new.is_empty() {
        return Ok(());
    }
    let is_news = |found: &HostRange| !had.iter().any(|net| found.overlaps(*net));
    let mut hosts = Vec::new();
    for kv in store.range(&KeyRange::prefix(NODES)).await?.kvs {
        let Some((host, ranges)) = presence::read(&kv.value) else { continue };
        let Some(found) = new.iter().find_map(|net| ranges.overlapping(*net).find(is_news)) else { continue };
        // The node's id comes from the key, which a node cannot choose.
        let node = String::from_utf8_lossy(kv.key.strip_prefix(NODES.as_bytes()).unwrap_or_default()).into_owned();
        hosts.push(format!("{host} ({node}) {found}"));
    }
    if hosts.is_empty() {
        return Ok(());
    }
    let ranges = config.pools().map(|pool| pool.network().to_string()).collect::<Vec<_>>().join(" and ");
    Err(NetworkError::UsedByHosts { name: name.clone(), ranges, hosts })
}
