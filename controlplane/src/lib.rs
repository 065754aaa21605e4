//! Flatnet's control plane as a library: agents use it directly on an etcd.
//!
//! - [`store`]: what is asked of a store, and the stores there are
//! - [`flannel`]: flannel's JSON, exactly
//! - [`allocate`]: a subnet by compare-and-swap
//! - [`presence`]: that a node is alive, and that it is the only one with its identity
//! - [`watch`]: snapshot, then changes
//! - [`snapshot`]: the last view as bytes for the disk
//! - [`networks`]: creating, changing and removing networks and permanent peers

pub mod allocate;
pub mod flannel;
pub mod networks;
pub mod presence;
pub mod random;
pub mod snapshot;
pub mod store;
pub mod watch;
