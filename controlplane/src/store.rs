//! The stores that a server can have: its own, in a file; an etcd; memory.

pub mod any;
pub mod embedded;
