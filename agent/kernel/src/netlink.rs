//! rtnetlink (`NETLINK_ROUTE`), spoken synchronously.
//!
//! The kernel carries out a request inside `send()`, so by the time it returns every reply is queued: no task, no
//! channel, no waiting. [`encode`] builds requests, [`socket::Channel`] exchanges them, and [`parse`] reads the
//! answers; it takes any bytes without panicking.
//!
//! [`crate::NetlinkKernel`], not this module, knows which object is ours, and in which order to write.

pub mod encode;
pub mod gre;
pub mod monitor;
pub mod parse;
pub mod socket;
pub mod wire;

#[cfg(test)]
mod tests;
