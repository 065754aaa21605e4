//! The way to the control plane: what it is, and at which addresses.

pub mod plane;
pub mod store_address;
pub mod store_endpoints;
