//! The control plane as nodes see it: an etcd, or servers that stand before a store. No server is in here, no store
//! file and no authority.
//!
//! - [`plane`]: what a node asks of the control plane, as one trait that agents are written against
//! - [`client`]: a control plane behind servers
//! - [`store`]: the trait of a store, etcd, and a store in memory
//! - [`flannel`]: flannel's JSON, exactly
//! - [`allocate`]: claiming a subnet by compare-and-swap
//! - [`presence`]: the sign that a node is alive, and the only one with its identity
//! - [`watch`]: snapshot, then changes
//! - [`snapshot`]: the last view as bytes for the disk
//! - [`networks`]: creating, changing and removing networks and permanent peers
//! - [`identity`], [`tls`]: the names in certificates, and connections with them
//! - [`wire`]: messages between nodes and servers, for both
//! - [`failure`], [`etcd_args`], [`endpoint`]: how commands end, and what they are told of a store

pub mod allocate;
pub mod client;
pub mod clock;
pub mod endpoint;
pub mod etcd_args;
pub mod failure;
pub mod files;
pub mod flannel;
#[doc(hidden)]
pub mod fuzzing;
pub mod http_limit;
pub mod identity;
pub mod log_writer;
pub mod networks;
pub mod plane;
pub mod presence;
pub mod random;
pub mod seats;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod snapshot;
pub mod store;
pub mod tls;
pub mod watch;
pub mod wire;
