//! A lease's value.
use flatnet_model::keys::NetworkKeys;
use flatnet_model::state::Change;
use flatnet_model::{Lease, Owner, Publication, SubnetKey};

use crate::store::{KeyValue, WatchEvent};

/// Why a lease's value cannot be used; the text names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidLease(pub String);

/// Reads the value of the lease on `subnets`.
pub fn decode_lease(subnets: SubnetKey, kv: &KeyValue) -> Result<Lease, InvalidLease> {
    let _ = (subnets, kv);
    todo!()
}

/// Writes a lease's value as flanneld does, with our owner, if any, as its last field.
#[must_use]
pub fn encode_lease(publication: &Publication, owner: Option<&Owner>) -> Vec<u8> {
    let _ = (publication, owner);
    todo!()
}

/// What one event means for the network of `keys`; `None` for keys that are not part of it.
#[must_use]
pub fn decode_change(keys: &NetworkKeys, event: &WatchEvent) -> Option<Change> {
    let _ = (keys, event);
    todo!()
}
