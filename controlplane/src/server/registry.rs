//! The registry: the nodes that joined, and those of them whose rights have ended. It follows the store, so that what
//! one replica revokes every other one knows within a round trip.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flatnet_model::NodeId;
use flatnet_proto::controlplane::v1::{Refusal, refusal::Kind};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tonic::{Code, Status};

use super::keys::NODES;
use flatnet_plane::clock;
use flatnet_plane::identity::unix_seconds;
use flatnet_plane::store::{Compare, KeyRange, KeyValue, Store, StoreError, Txn, TxnReply, WatchEvent, Write};
use flatnet_plane::wire::refusal;

/// The record's version.
const VERSION: u32 = 1;
/// The wait before the store is followed again.
const FOLLOW_RETRY_AFTER: Duration = Duration::from_millis(300);
/// The most attempts at changing a record while others change it.
const ATTEMPTS: u32 = 5;

/// One node's registration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The record's version.
    pub version: u32,
    /// The node's name when it joined.
    pub name: String,
    /// The hash of the key it joined with. Another key is somebody else's.
    pub key_sha256: String,
    /// Seconds since 1970.
    pub joined: i64,
    /// True if its certificates count for nothing any more.
    #[serde(default)]
    pub revoked: bool,
    /// True if it gets no leases.
    #[serde(default)]
    pub drained: bool,
    /// True if it was removed. The record is kept, so that the node comes back with a token only. A connection that it
    /// left open may outlive its certificate, so there is no time after which the record could go.
    #[serde(default)]
    pub removed: bool,
    /// The public keys of WireGuard that it published, the latest last. They stay its own: another node that has seen
    /// one cannot take its place with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wireguard_keys: Vec<String>,
}

/// The most keys of WireGuard kept of a node: two networks', each with the one before a rotation, and some more.
const WIREGUARD_KEYS: usize = 16;

impl Registration {
    /// Makes the registration of a node that joins now.
    #[must_use]
    pub fn new(name: &str, key_hash: &str) -> Self {
        let joined = unix_seconds(clock::now());
        Self {
            version: VERSION,
            name: name.to_owned(),
            key_sha256: key_hash.to_owned(),
            joined,
            revoked: false,
            drained: false,
            removed: false,
            wireguard_keys: Vec::new(),
        }
    }

    /// Encodes it for the store.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // The value has only strings and numbers, so this cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Decodes it as the store has it.
    #[must_use]
    pub fn decode(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok()
    }
}

/// Returns the key of a node's registration.
#[must_use]
pub fn key(node: NodeId) -> String {
    format!("{NODES}{node}")
}

/// The nodes that joined.
pub type Known = BTreeMap<NodeId, Arc<Registration>>;

/// The registry: everything known of all nodes.
pub struct Registry {
    /// The nodes; `None`: not read yet.
    known: watch::Sender<Option<Arc<Known>>>,
    /// Sent anew when somebody's rights may have ended. A server with a thousand watches then need not look at each of
    /// them when one more node joins.
    cut: watch::Sender<u64>,
}

impl Default for Registry {
    fn default() -> Self {
        Self { known: watch::Sender::new(None), cut: watch::Sender::new(0) }
    }
}

impl Registry {
    /// Follows the store, for ever.
    pub async fn run<S: Store>(&self, store: Arc<S>) {
        loop {
            let error = match self.session(store.as_ref()).await {
                Ok(()) => "the watch ended".to_owned(),
                Err(error) => error.to_string(),
            };
            tracing::debug!(error, "the registry of nodes is not followed");
            tokio::time::sleep(FOLLOW_RETRY_AFTER).await;
        }
    }

    async fn session<S: Store>(&self, store: &S) -> Result<(), StoreError> {
        let range = KeyRange::prefix(NODES);
        let reply = store.range(&range).await?;
        let mut known: Known = reply.kvs.iter().filter_map(entry).collect();
        self.learn(&known, true);
        let mut watch = store.watch(&range, reply.revision + 1).await?;
        while let Some(batch) = watch.next().await {
            let mut may_be_cut = false;
            for event in batch?.events {
                match event {
                    WatchEvent::Put(kv) => {
                        if let Some((node, now)) = entry(&kv) {
                            let before = known.insert(node, Arc::clone(&now));
                            may_be_cut |= now.revoked
                                || now.removed
                                || before.is_some_and(|before| before.key_sha256 != now.key_sha256);
                        }
                    }
                    WatchEvent::Delete { key, .. } => {
                        let node = node_of(&key);
                        known.retain(|known, _| Some(*known) != node);
                    }
                }
            }
            self.learn(&known, may_be_cut);
        }
        Ok(())
    }

    fn learn(&self, known: &Known, may_be_cut: bool) {
        self.known.send_replace(Some(Arc::new(known.clone())));
        if may_be_cut {
            self.cut.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// Waits until the rights of a node with a certificate for `key_hash` have ended.
    pub async fn cut(&self, node: NodeId, key_hash: &str) {
        let mut news = self.cut.subscribe();
        loop {
            if self.is_cut(node, key_hash) {
                return;
            }
            // Its sender is here.
            let _ = news.changed().await;
        }
    }

    /// Returns true if the rights of a node with a certificate for `key_hash` are known to have ended.
    pub fn is_cut(&self, node: NodeId, key_hash: &str) -> bool {
        let known = self.known.borrow();
        let found = known.as_ref().and_then(|known| known.get(&node));
        found.is_some_and(|found| found.revoked || found.removed || found.key_sha256 != key_hash)
    }

    /// Returns all nodes, also those whose rights have ended.
    #[must_use]
    pub fn all(&self) -> Arc<Known> {
        self.known.borrow().clone().unwrap_or_default()
    }

    /// Checks that a node with a certificate for `key_hash` still has its rights.
    pub fn check(&self, node: NodeId, key_hash: &str) -> Result<(), Status> {
        let known = self.known.borrow();
        let Some(known) = known.as_ref() else {
            return Err(Status::unavailable("the store has not been read yet"));
        };
        match known.get(&node) {
            Some(found) if found.removed => Err(removed(node)),
            Some(found) if found.revoked => Err(revoked(node)),
            Some(found) if found.key_sha256 != key_hash => {
                Err(refusal::not_allowed(format!("node {node} joined again with another key"), "join with a token"))
            }
            // A store that was wiped does not know the node: the authority vouches for it.
            Some(_) | None => Ok(()),
        }
    }
}

/// Makes the refusal of a node whose rights were ended.
pub fn revoked(node: NodeId) -> Status {
    let hint = "an administrator revoked it: controlplane node ls".to_owned();
    let refusal = Refusal { kind: Kind::Revoked.into(), node: node.to_string(), hint, ..Refusal::default() };
    refusal::status(Code::PermissionDenied, format!("node {node} was revoked"), refusal)
}

/// Makes the refusal of a node that was removed.
fn removed(node: NodeId) -> Status {
    refusal::not_allowed(
        format!("node {node} was removed"),
        "to have it back: agent leave --purge there, then join with a token: controlplane token create",
    )
}

fn node_of(key: &[u8]) -> Option<NodeId> {
    std::str::from_utf8(key).ok()?.strip_prefix(NODES)?.parse().ok()
}

fn entry(kv: &KeyValue) -> Option<(NodeId, Arc<Registration>)> {
    Some((node_of(&kv.key)?, Arc::new(Registration::decode(&kv.value)?)))
}

/// Registers a node that has a certificate and that the store does not know because it was wiped.
pub async fn register_again<S: Store>(store: &S, node: NodeId, name: &str, key_hash: &str) -> Result<(), StoreError> {
    let txn = Txn {
        when: vec![Compare::ModRevision(key(node), 0)],
        then: vec![Write::Put { key: key(node), value: Registration::new(name, key_hash).encode(), lease: None }],
    };
    // A refusal means that another call of the node's was faster.
    store.txn(txn).await.map(drop)
}

/// Checks that a node may hold leases. It asks the store itself, which knows before its followers do.
pub async fn check_may_hold<S: Store>(store: &S, node: NodeId) -> Result<(), Status> {
    let reply = store.range(&KeyRange::key(&key(node))).await.map_err(|error| refusal::store(&error))?;
    match reply.kvs.first().and_then(|kv| Registration::decode(&kv.value)) {
        Some(found) if found.removed => Err(removed(node)),
        Some(found) if found.revoked => Err(revoked(node)),
        Some(found) if found.drained => Err(refusal::not_allowed(
            "this node is drained: it gets no subnets",
            "an administrator did that: controlplane node drain --undo ends it",
        )),
        Some(_) | None => Ok(()),
    }
}

/// Records that WireGuard's public `key` is this node's; refused if it is another's.
pub async fn own_wireguard_key<S: Store>(store: &S, known: &Known, node: NodeId, key: &str) -> Result<(), Status> {
    let has = |found: &Registration| found.wireguard_keys.iter().any(|own| own == key);
    if known.get(&node).is_some_and(|found| has(found)) {
        return Ok(());
    }
    if let Some((other, _)) = known.iter().find(|(id, found)| **id != node && !found.removed && has(found)) {
        return Err(refusal::not_allowed(
            format!("the WireGuard key that is published belongs to node {other}"),
            "each host has its own: a copied state directory is to be removed",
        ));
    }
    let changed = change(store, node, |found| {
        if !has(found) {
            found.wireguard_keys.push(key.to_owned());
            let too_many = found.wireguard_keys.len().saturating_sub(WIREGUARD_KEYS);
            found.wireguard_keys.drain(..too_many);
        }
    });
    // A node that a wiped store does not know yet has its key recorded when it publishes again.
    changed.await.map(drop).map_err(|error| refusal::store(&error))
}

/// Ends a node's rights, also those of one that is not known, whose certificate would be good. Returns true if it was
/// known. A node that is `removed` may come back with a token.
pub async fn end<S: Store>(store: &S, node: NodeId, removed: bool) -> Result<bool, StoreError> {
    for _ in 0..ATTEMPTS {
        let kv = store.range(&KeyRange::key(&key(node))).await?.kvs.into_iter().next();
        let before = kv.as_ref().and_then(|kv| Registration::decode(&kv.value));
        let was_known = before.as_ref().is_some_and(|before| !before.removed);
        let mut now = before.unwrap_or_else(|| Registration::new("", ""));
        (now.removed, now.revoked) = (removed, !removed);
        let txn = Txn {
            when: vec![Compare::ModRevision(key(node), kv.map_or(0, |kv| kv.mod_revision))],
            then: vec![Write::Put { key: key(node), value: now.encode(), lease: None }],
        };
        if let TxnReply::Done(_) = store.txn(txn).await? {
            return Ok(was_known);
        }
    }
    Err(StoreError::Unavailable { endpoint: "store".to_owned(), reason: "the node's record keeps changing".to_owned() })
}

/// Changes a node's registration; returns true if the node is known.
pub async fn change<S: Store>(
    store: &S,
    node: NodeId,
    change: impl Fn(&mut Registration) + Send,
) -> Result<bool, StoreError> {
    for _ in 0..ATTEMPTS {
        let Some(kv) = store.range(&KeyRange::key(&key(node))).await?.kvs.into_iter().next() else {
            return Ok(false);
        };
        let mut found = Registration::decode(&kv.value).unwrap_or_else(|| Registration::new("", ""));
        if found.removed {
            return Ok(false);
        }
        change(&mut found);
        let txn = Txn {
            when: vec![Compare::ModRevision(key(node), kv.mod_revision)],
            then: vec![Write::Put { key: key(node), value: found.encode(), lease: None }],
        };
        if let TxnReply::Done(_) = store.txn(txn).await? {
            return Ok(true);
        }
    }
    Err(StoreError::Unavailable { endpoint: "store".to_owned(), reason: "the node's record keeps changing".to_owned() })
}
