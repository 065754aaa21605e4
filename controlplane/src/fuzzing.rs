//! Entrances for fuzzing: any bytes in the place of what a server is sent. The others are with the client's part.
//!
//! This is no interface of the crate: hidden from its documentation.

use flatnet_model::NodeId;
use flatnet_plane::store::memory::MemoryStore;
use futures::FutureExt;

/// Uses `bytes` as a token that somebody joins with: none of these is any.
pub fn token(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let store = MemoryStore::new();
    let used = crate::server::use_token(&store, &text, NodeId::new(1)).now_or_never();
    // Nothing in memory is waited for.
    assert!(used.is_some_and(|used| used.is_err()), "{text}");
}
