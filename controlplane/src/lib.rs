//! Flatnet's control plane as a library: agents use it directly on an etcd.
//!
//! - [`store`]: the trait of a store, and its implementations
//! - [`flannel`]: flannel's JSON, exactly
//! - [`allocate`]: claiming a subnet by compare-and-swap
//! - [`presence`]: the sign that a node is alive, and the only one with its identity
//! - [`plane`]: all that as one trait, which agents are written against
//! - [`watch`]: snapshot, then changes
//! - [`snapshot`]: the last view as bytes for the disk
//! - [`networks`]: creating, changing and removing networks and permanent peers

pub mod allocate;
pub mod cli;
pub mod client;
mod clock;
pub mod endpoint;
pub mod failure;
pub mod files;
pub mod flannel;
#[doc(hidden)]
pub mod fuzzing;
pub mod http_limit;
pub mod log_writer;
pub mod migrate;
pub mod networks;
pub mod pki;
pub mod plane;
pub mod presence;
pub mod random;
pub mod seats;
pub mod server;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod snapshot;
pub mod store;
pub mod tls;
pub mod watch;
pub mod wire;
