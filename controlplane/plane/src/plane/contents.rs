//! Comparing the records of a network that two sides hold, without telling each other all of them.

use std::collections::HashMap;

use flatnet_model::keys::NetworkKeys;
use ring::digest::{Context, SHA256};

use crate::store::{KeyValue, WatchEvent};

/// The fingerprint of a set of records: the sum, modulo 2⁶⁴, of a hash of each, which does not depend on the order in
/// which they came. Two different sets have the same one with a probability of 2⁻⁶⁴. A party that can choose records to
/// make two sets alike can as well write what the other side would be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(pub u64);

/// The records of one network as far as comparing them goes: 8 bytes of each, and its key.
#[derive(Clone, Debug)]
pub struct Contents {
    prefix: String,
    hashes: HashMap<Vec<u8>, u64>,
    all: Fingerprint,
}

impl Contents {
    /// Starts with no records of the network of `keys`.
    #[must_use]
    pub fn new(keys: &NetworkKeys) -> Self {
        Self { prefix: keys.all(), hashes: HashMap::new(), all: Fingerprint::default() }
    }

    /// Returns the fingerprint of all of them.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.all
    }

    /// Replaces all of them by `records`.
    pub fn replace(&mut self, records: &[KeyValue]) {
        self.hashes.clear();
        self.all = Fingerprint::default();
        for kv in records {
            self.put(kv);
        }
    }

    /// Applies one change.
    pub fn apply(&mut self, event: &WatchEvent) {
        match event {
            WatchEvent::Put(kv) => self.put(kv),
            WatchEvent::Delete { key, .. } => {
                let before = self.hashes.remove(key.as_slice()).unwrap_or_default();
                self.all.0 = self.all.0.wrapping_sub(before);
            }
        }
    }

    fn put(&mut self, kv: &KeyValue) {
        let hash = hash(&self.prefix, kv);
        let before = self.hashes.insert(kv.key.clone(), hash).unwrap_or_default();
        self.all.0 = self.all.0.wrapping_sub(before).wrapping_add(hash);
    }
}

/// Returns the first 8 bytes of SHA-256 over all parts of a record. Its key counts from the network's prefix on,
/// because the two sides may have been given different prefixes.
fn hash(prefix: &str, kv: &KeyValue) -> u64 {
    let mut context = Context::new(&SHA256);
    let key = kv.key.strip_prefix(prefix.as_bytes()).unwrap_or(&kv.key);
    for part in [key, &kv.value] {
        context.update(&part.len().to_be_bytes());
        context.update(part);
    }
    for number in [kv.create_revision, kv.mod_revision, kv.lease.map_or(0, |lease| lease.0)] {
        context.update(&number.to_be_bytes());
    }
    let digest = context.finish();
    digest.as_ref().first_chunk().copied().map_or(0, u64::from_be_bytes)
}

#[cfg(test)]
mod tests;
