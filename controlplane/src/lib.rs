//! Flatnet's control plane: servers before a store, for nodes that are not to write it themselves.
//!
//! What nodes see of it is `flatnet_plane`: the plane, the stores, flannel's layout, leases. Here is what only a server
//! has.
//!
//! - [`server`]: the services, who may call them, and what each may
//! - [`store`]: the embedded store, in a file
//! - [`authority`]: the built-in certificate authority
//! - [`migrate`]: from an etcd into a store
//! - [`cli`]: the commands

pub mod authority;
pub mod cli;
#[doc(hidden)]
pub mod fuzzing;
pub mod migrate;
pub mod server;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod store;
