//! A view as bytes for the disk: pure functions; the agent does the file I/O.

use flatnet_model::keys::NetworkKeys;

use crate::watch::NetworkView;

/// Why a snapshot cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the snapshot cannot be used: {0}")]
pub struct InvalidSnapshot(pub String);

/// `view` as versioned JSON.
#[must_use]
pub fn encode(keys: &NetworkKeys, view: &NetworkView) -> Vec<u8> {
    let _ = (keys, view);
    todo!()
}

/// Reads a snapshot of the network of `keys`: a view with [`Source::Disk`](crate::watch::Source::Disk). Leases in it
/// that cannot be read are skipped and listed as rejected.
pub fn decode(keys: &NetworkKeys, bytes: &[u8]) -> Result<NetworkView, InvalidSnapshot> {
    let _ = (keys, bytes);
    todo!()
}
