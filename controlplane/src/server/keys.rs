//! The keys of the server's own records in the store.

/// Registered nodes: `<prefix><node id>`.
pub const NODES: &str = "/flatnet/controlplane/nodes/";
/// Join tokens: `<prefix><token id>`.
pub const TOKENS: &str = "/flatnet/controlplane/tokens/";
