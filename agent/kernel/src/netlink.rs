//! rtnetlink (`NETLINK_ROUTE`), spoken synchronously.
//!
//! The kernel carries out a request inside `send()`, so by the time it returns every reply is queued: no task, no
//! channel, no waiting. What is built in [`encode`] goes through [`socket::Channel`], and what comes back is read by
//! [`parse`], which takes any bytes without panicking.
//!
//! What is *not* here: which object is ours, and in which order to write. That is [`crate::NetlinkKernel`]'s.

pub mod encode;
pub mod gre;
pub mod monitor;
pub mod parse;
pub mod socket;
pub mod wire;

#[cfg(test)]
mod tests;
