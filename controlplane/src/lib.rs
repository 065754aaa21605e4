//! Flatnet's control plane as a library: agents use it directly on an etcd.
//!
//! - [`store`]: what is asked of a store, and the stores there are
//! - [`flannel`]: flannel's JSON, exactly
//! - [`allocate`]: a subnet by compare-and-swap
//! - [`watch`]: snapshot, then changes
//! - [`networks`]: creating, changing and removing networks and permanent peers

pub mod store;
