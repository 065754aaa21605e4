//! Moving a store's content into another one, and the rights in etcd that one node needs.

use std::collections::BTreeMap;

use flatnet_model::keys::{NetworkKeys, presence};
use flatnet_model::{EtcdLease, NetworkName, NodeId, SubnetKey};
use ipnet::IpNet;

use flatnet_plane::flannel::decode_config;
use flatnet_plane::store::{Compare, KeyRange, KeyValue, Store, StoreError, Txn, TxnReply, Write};

/// The most keys a transaction creates; etcd takes 128 operations (`--max-txn-ops`).
const CHUNK: usize = 100;

/// The reason why nothing, or not everything, was moved. What was moved stays; moving again goes on.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The other store has something else already.
    #[error("the other store is not empty: it has {0} already, with another value")]
    NotEmpty(String),
    /// A key is not text: somebody else wrote it.
    #[error("a key is not text: {0:?}")]
    OddKey(String),
    /// One of the stores could not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Copies every key with its lease's time to live; returns the number of keys. Presence is left out: nodes that are
/// alive announce themselves again.
pub async fn copy<A: Store, B: Store>(from: &A, to: &B) -> Result<usize, MigrateError> {
    let everything = KeyRange { start: "\0".to_owned(), end: "\u{10ffff}".to_owned() };
    let kvs: Vec<KeyValue> =
        from.range(&everything).await?.kvs.into_iter().filter(|kv| !kv.key.starts_with(b"/flatnet/nodes/")).collect();
    let mut leases: BTreeMap<EtcdLease, EtcdLease> = BTreeMap::new();
    for chunk in kvs.chunks(CHUNK) {
        let mut txn = Txn::default();
        for kv in chunk {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let key = String::from_utf8(kv.key.clone()).map_err(|_| MigrateError::OddKey(text(&kv.key)))?;
            match to.range(&KeyRange::key(&key)).await?.kvs.first() {
                Some(there) if there.value == kv.value => continue,
                Some(_) => return Err(MigrateError::NotEmpty(key)),
                None => {}
            }
            let lease = match kv.lease {
                None => None,
                Some(old) => match leases.get(&old) {
                    Some(new) => Some(*new),
                    None => {
                        let ttl = from.lease_keep_alive(old).await?;
                        let new = to.lease_grant(ttl).await?;
                        leases.insert(old, new);
                        Some(new)
                    }
                },
            };
            txn.when.push(Compare::ModRevision(key.clone(), 0));
            txn.then.push(Write::Put { key, value: kv.value.clone(), lease });
        }
        if !txn.then.is_empty()
            && let TxnReply::Refused(_) = to.txn(txn).await?
        {
            return Err(MigrateError::NotEmpty("something that was just written".to_owned()));
        }
    }
    Ok(kvs.len())
}

/// Makes every network's configuration anew, unchanged, in a store that was put back. From that alone, everybody who
/// knew the store before can tell what happened, even when others have written into it by the time they look. They then
/// keep the leases that it lacks until their owners have claimed them again.
pub async fn make_networks_anew<S: Store>(store: &S) -> Result<(), StoreError> {
    let everything = KeyRange { start: "\0".to_owned(), end: "\u{10ffff}".to_owned() };
    for kv in store.range(&everything).await?.kvs {
        let Ok(key) = String::from_utf8(kv.key) else { continue };
        if !key.ends_with("/config") || decode_config(&kv.value).is_err() {
            continue;
        }
        let put = Write::Put { key: key.clone(), value: kv.value, lease: kv.lease };
        for write in [Write::Delete(key), put] {
            store.txn(Txn { when: Vec::new(), then: vec![write] }).await?;
        }
    }
    Ok(())
}

/// Returns commands for `etcdctl` that reserve `subnets` for `node` and make a user who can be that node and nothing
/// else: read what is flatnet's, write the node's own lease, claims and presence.
pub fn etcd_roles(
    network: &NetworkName,
    flannel_prefix: &str,
    node: NodeId,
    subnets: &[IpNet],
) -> Result<String, String> {
    let (mut v4, mut v6) = (None, None);
    for net in subnets {
        let twice = match net {
            IpNet::V4(net) => v4.replace(*net).is_some(),
            IpNet::V6(net) => v6.replace(*net).is_some(),
        };
        if twice {
            return Err("a node has at most one subnet of each family".to_owned());
        }
    }
    let subnets = SubnetKey::new(v4, v6).map_err(|error| error.to_string())?;
    let keys = NetworkKeys::new(network, flannel_prefix);
    let role = format!("flatnet-{node}");
    let mut text = format!(
        "# Reserves {subnets} in network {network} for node {node}, and makes the user {role}.\n\
         # etcd asks for its password; give that to the node: --etcd-username {role} --etcd-password-file FILE\n\
         # --subnet {}\netcdctl role add {role}\n",
        subnets.iter().map(|net| net.to_string()).collect::<Vec<_>>().join(" --subnet "),
    );
    for prefix in [keys.all(), keys.claims(), "/flatnet/nodes/".to_owned(), "/flatnet/catalog".to_owned()] {
        text.push_str(&format!("etcdctl role grant-permission --prefix {role} read '{prefix}'\n"));
    }
    let mut own = vec![keys.lease(&subnets), keys.node_claim(node), presence(node)];
    own.extend(subnets.iter().map(|net| keys.claim(net)));
    for key in &own {
        text.push_str(&format!("etcdctl role grant-permission {role} readwrite '{key}'\n"));
    }
    for net in subnets.iter() {
        text.push_str(&format!("etcdctl put '{}' '{{\"version\":1,\"node\":\"{node}\"}}'\n", keys.claim(net)));
    }
    text.push_str(&format!("etcdctl user add {role}\netcdctl user grant-role {role} {role}\n"));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use flatnet_plane::store::memory::MemoryStore;

    #[tokio::test]
    async fn a_network_of_a_store_put_back_is_another_one_with_the_same_words() {
        let store = MemoryStore::new();
        let config = r#"{"Network":"10.1.0.0/16"}"#;
        for key in ["/coreos.com/network/config", "/elsewhere/blue/config"] {
            store.put(key, config, None);
        }
        store.put("/coreos.com/network/subnets/10.1.1.0-24", "{}", None);
        let before = store.dump();
        make_networks_anew(&store).await.unwrap();
        for (key, kv) in store.dump() {
            assert_eq!(kv.value, before[&key].value);
            let is_network = key.ends_with(b"/config");
            assert_eq!(kv.create_revision > before[&key].create_revision, is_network, "{key:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn everything_is_moved_once_and_moving_again_goes_on() {
        let (from, to) = (MemoryStore::new(), MemoryStore::new());
        let lease = from.lease_grant(Duration::from_secs(60)).await.unwrap();
        for number in 0..250 {
            from.put(format!("/k/{number:03}"), "v", (number % 2 == 0).then_some(lease));
        }
        from.put("/flatnet/nodes/x", "present", None);
        assert_eq!(copy(&from, &to).await.unwrap(), 250);
        let dump = to.dump();
        assert_eq!(dump.len(), 250);
        let leases: std::collections::BTreeSet<_> = dump.values().filter_map(|kv| kv.lease).collect();
        assert_eq!(leases.len(), 1, "what was under one lease is under one again");
        to.delete("/k/100");
        assert_eq!(copy(&from, &to).await.unwrap(), 250, "an interrupted move goes on");
        assert_eq!(to.dump().len(), 250);
        to.put("/k/101", "another", None);
        assert!(matches!(copy(&from, &to).await, Err(MigrateError::NotEmpty(key)) if key == "/k/101"));
    }
}
