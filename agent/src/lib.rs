//! Flatnet's agent: one per host. It leases a subnet and keeps the kernel equal to what the store says.
//!
//! The rooms, from the top down; none uses one above it:
//!
//! - [`cli`]: the command line, one file for each subcommand

//! - [`daemon`]: the process that `agent join` runs
//! - [`serve`]: what others are told, over the socket, by HTTP, in the log
//! - [`doctor`]: what is wrong with a host
//! - [`node`]: the parts of one node, generic over store and kernel
//! - [`reconciler`]: the loop; the only place that changes the kernel
//! - [`wiring`]: what the parts share and tell each other
//! - [`store`]: the way to the control plane
//! - [`files`]: everything on disk
//! - [`report`]: how commands end

pub mod cli;
pub mod daemon;
pub mod doctor;
pub mod files;
pub mod node;
pub mod reconciler;
pub mod report;
pub mod serve;
pub mod store;
pub mod wiring;
