//! Join tokens, `<id>.<secret>`. The store has the id and the secret's hash, under a lease that ends with the token.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flatnet_model::{EtcdLease, NodeId, Revision};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::keys::TOKENS;
use super::registry::{self, Registration};
use flatnet_plane::clock;
use flatnet_plane::identity::{sha256, unix_seconds};
use flatnet_plane::seats::source;
use flatnet_plane::store::{Compare, KeyRange, KeyValue, Store, StoreError, Txn, TxnReply, Write};
use flatnet_plane::wire::refusal;

/// The record's version.
const VERSION: u32 = 1;
/// The id's length in bytes: enough to be another one each time.
const ID_BYTES: usize = 5;
/// The secret's length in bytes: 160 bits are not guessed, so a plain hash is enough to keep.
const SECRET_BYTES: usize = 20;
/// The longest token looked at, in bytes.
const LIMIT: usize = 128;
/// The most attempts at a use while other replicas use the same token: a whole fleet may start with one.
const ATTEMPTS: u32 = 50;

/// A token as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    version: u32,
    /// SHA-256 of the secret, hexadecimal.
    secret_sha256: String,
    /// Seconds since 1970.
    pub expires: i64,
    /// The number of nodes it may still bring in.
    pub uses_left: u32,
    /// The one node it is for, if any, which may come with another key.
    #[serde(default)]
    pub node: Option<NodeId>,
}

/// A new token: its id, the whole of it, and its record.
#[derive(Debug)]
pub struct NewToken {
    /// The part that is no secret.
    pub id: String,
    /// `<id>.<secret>`.
    pub token: String,
    /// The record that is stored.
    pub record: TokenRecord,
}

/// Makes a token.
pub async fn create<S: Store>(
    store: &S,
    ttl: Duration,
    uses: u32,
    node: Option<NodeId>,
) -> Result<NewToken, StoreError> {
    let random = |bytes: &mut [u8]| {
        getrandom::fill(bytes).map_err(|error| StoreError::Rejected {
            endpoint: "this system".to_owned(),
            reason: format!("it gives no random numbers: {error}"),
        })
    };
    let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
    random(&mut id)?;
    random(&mut secret)?;
    let (id, secret) = (hex(&id), hex(&secret));
    let expires = unix_seconds(clock::now() + ttl);
    let secret_sha256 = sha256(secret.as_bytes());
    let record = TokenRecord { version: VERSION, secret_sha256, expires, uses_left: uses, node };
    let lease = store.lease_grant(ttl).await?;
    let key = format!("{TOKENS}{id}");
    let value = serde_json::to_vec(&record).unwrap_or_default();
    let txn = Txn {
        when: vec![Compare::ModRevision(key.clone(), 0)],
        then: vec![Write::Put { key, value, lease: Some(lease) }],
    };
    store.txn(txn).await?;
    Ok(NewToken { token: format!("{id}.{secret}"), id, record })
}

/// Lists the tokens that can still be used.
pub async fn list<S: Store>(store: &S) -> Result<Vec<(String, TokenRecord)>, StoreError> {
    let kvs = store.range(&KeyRange::prefix(TOKENS)).await?.kvs;
    let entry = |kv: &KeyValue| {
        let id = std::str::from_utf8(&kv.key).ok()?.strip_prefix(TOKENS)?.to_owned();
        Some((id, serde_json::from_slice(&kv.value).ok()?))
    };
    Ok(kvs.iter().filter_map(entry).collect())
}

/// Ends a token; returns true if it was there.
pub async fn revoke<S: Store>(store: &S, id: &str) -> Result<bool, StoreError> {
    let key = format!("{TOKENS}{id}");
    let found = store.range(&KeyRange::key(&key)).await?.kvs.into_iter().next();
    let Some(found) = found else { return Ok(false) };
    store.txn(Txn { when: Vec::new(), then: vec![Write::Delete(key)] }).await?;
    if let Some(lease) = found.lease {
        store.lease_revoke(lease).await?;
    }
    Ok(true)
}

/// The line of the nodes that have a good token: each waits for the one before to have used it, and takes over the
/// record that one left. Otherwise a fleet that starts with one token would contend for its record, and read it anew
/// for each node.
pub type Line = tokio::sync::Mutex<Option<Found>>;

/// A token as it is in the store.
#[derive(Clone, Debug)]
pub struct Found {
    id: String,
    record: TokenRecord,
    lease: Option<EtcdLease>,
    revision: Revision,
}

impl Found {
    /// Reads the record that `token` names, if its secret is right, its time is not over and it is one for `node`.
    async fn read<S: Store>(store: &S, token: &str, node: NodeId) -> Result<Self, Status> {
        let (id, secret) = token.split_once('.').filter(|_| token.len() <= LIMIT).ok_or_else(bad)?;
        if id.len() != 2 * ID_BYTES || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let found = store.range(&KeyRange::key(&format!("{TOKENS}{id}"))).await;
        let found = found.map_err(|error| refusal::store(&error))?.kvs.into_iter().next();
        let record = found.as_ref().and_then(|kv| serde_json::from_slice::<TokenRecord>(&kv.value).ok());
        // The hash is compared also when there is no record, so that both take the same time.
        let expected = record.as_ref().map_or_else(|| sha256(b""), |record| record.secret_sha256.clone());
        let matches = is_same(&expected, &sha256(secret.as_bytes()));
        let (Some(kv), Some(record), true) = (found, record, matches) else { return Err(bad()) };
        let for_node = record.node.is_none_or(|only| only == node);
        if record.expires <= unix_seconds(clock::now()) || !for_node {
            return Err(bad());
        }
        Ok(Self { id: id.to_owned(), record, lease: kv.lease, revision: kv.mod_revision })
    }
}

/// Makes the refusal of a bad token. It has the same words whatever is wrong, so that nobody learns which ids there
/// are.
fn bad() -> Status {
    Status::new(Code::Unauthenticated, "the token is not valid: wrong, used up, or over")
}

/// Uses `token` for `node`, which comes with the key of `key_hash`: registers the node in the same transaction. A node
/// with a good token waits in `line` while others use theirs; one with a bad token keeps nobody waiting.
pub async fn use_for<S: Store>(
    store: &S,
    line: &Line,
    token: &str,
    node: NodeId,
    name: &str,
    key_hash: &str,
) -> Result<(), Status> {
    let mut found = Found::read(store, token, node).await?;
    let mut known = registration(store, node).await?;
    let mut before = line.lock().await;
    if let Some(left) = before.take().filter(|left| left.id == found.id && left.revision > found.revision) {
        found = left;
    }
    for _ in 0..ATTEMPTS {
        if has_joined(known.as_ref().map(|(_, registered)| registered), &found, node, key_hash)? {
            // The answer to an earlier use was lost: that takes no second use.
            return Ok(());
        }
        found.record.uses_left = found.record.uses_left.checked_sub(1).ok_or_else(bad)?;
        let (key, node_key) = (format!("{TOKENS}{}", found.id), registry::key(node));
        let mut joins = Registration::new(name, key_hash);
        // The host is the same one, with the tunnels' keys it had.
        joins.wireguard_keys = known.as_ref().map(|(_, before)| before.wireguard_keys.clone()).unwrap_or_default();
        let txn = Txn {
            when: vec![
                Compare::ModRevision(key.clone(), found.revision),
                Compare::ModRevision(node_key.clone(), known.map_or(0, |(revision, _)| revision)),
            ],
            then: vec![
                Write::Put { key, value: serde_json::to_vec(&found.record).unwrap_or_default(), lease: found.lease },
                Write::Put { key: node_key, value: joins.encode(), lease: None },
            ],
        };
        match store.txn(txn).await {
            Ok(TxnReply::Done(revision)) => {
                *before = Some(Found { revision, ..found });
                return Ok(());
            }
            // Another replica used the token, or the token was revoked.
            Ok(TxnReply::Refused(_)) => {
                found = Found::read(store, token, node).await?;
                known = registration(store, node).await?;
            }
            Err(StoreError::LeaseGone(_)) => return Err(bad()),
            Err(error) => return Err(refusal::store(&error)),
        }
    }
    Err(Status::unavailable("too many join with this token at once; try again"))
}

/// Returns true if `node` has joined with the key of `key_hash` already, and an error if it may not join with it. The
/// registration of a node that was removed counts for nothing.
fn has_joined(registered: Option<&Registration>, found: &Found, node: NodeId, key_hash: &str) -> Result<bool, Status> {
    let Some(registered) = registered.filter(|registered| !registered.removed) else { return Ok(false) };
    let is_same_key = registered.key_sha256 == key_hash;
    if is_same_key && !registered.revoked {
        return Ok(true);
    }
    if registered.revoked && found.record.node.is_none() {
        return Err(registry::revoked(node));
    }
    if !is_same_key && found.record.node.is_none() {
        return Err(refusal::not_allowed(
            format!("node {node} joined with another key before"),
            "if its state was lost: controlplane node rm, or a token for it: controlplane token create --node",
        ));
    }
    Ok(false)
}

async fn registration<S: Store>(store: &S, node: NodeId) -> Result<Option<(i64, Registration)>, Status> {
    let reply = store.range(&KeyRange::key(&registry::key(node))).await.map_err(|error| refusal::store(&error))?;
    let found = reply.kvs.into_iter().next();
    Ok(found.map(|kv| {
        let registered = Registration::decode(&kv.value).unwrap_or_else(|| Registration::new("", ""));
        (kv.mod_revision, registered)
    }))
}

/// Compares in a time that does not tell where they differ.
fn is_same(a: &str, b: &str) -> bool {
    let differ = a.bytes().zip(b.bytes()).fold(0_u8, |differ, (a, b)| std::hint::black_box(differ | (a ^ b)));
    a.len() == b.len() && differ == 0
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The addresses that tried bad tokens lately. Each address is heard a few times a minute.
#[derive(Default)]
pub struct Failures(Mutex<Window>);

struct Window {
    began: Instant,
    /// An IPv6 network of /64 counts as one address: its owner has 2^64.
    by_address: HashMap<Option<IpAddr>, u32>,
}

impl Default for Window {
    fn default() -> Self {
        Self { began: Instant::now(), by_address: HashMap::new() }
    }
}

/// The time within which failures are counted together.
const FAILURES_WINDOW: Duration = Duration::from_secs(60);
/// The failures an address may have in that time: a person who mistypes has fewer.
const FAILURES: u32 = 10;
/// The most addresses told apart; beyond, all others count as one.
const ADDRESSES: usize = 4096;

impl Failures {
    /// Checks that one more try of `address` is heard.
    pub fn may_try(&self, address: Option<IpAddr>) -> Result<(), Status> {
        let window = self.settled();
        match window.by_address.get(&window.key(address)) {
            Some(count) if *count >= FAILURES => {
                Err(Status::resource_exhausted("too many bad tokens from this address; wait a minute"))
            }
            _ => Ok(()),
        }
    }

    /// Counts a try of `address` that failed.
    pub fn failed(&self, address: Option<IpAddr>) {
        let mut window = self.settled();
        let key = window.key(address);
        *window.by_address.entry(key).or_default() += 1;
    }

    fn settled(&self) -> std::sync::MutexGuard<'_, Window> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.began.elapsed() >= FAILURES_WINDOW {
            *window = Window::default();
        }
        window
    }
}

impl Window {
    fn key(&self, address: Option<IpAddr>) -> Option<IpAddr> {
        let address = address.map(source);
        address.filter(|_| self.by_address.len() < ADDRESSES || self.by_address.contains_key(&address))
    }
}

#[cfg(test)]
mod tests;
