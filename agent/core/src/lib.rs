//! The agent's decisions, as pure functions: they take host facts and cluster state and return kernel objects and
//! operations.
//!
//! Nothing here reads a clock, a file, a socket or the kernel, and nothing here is async: values and `now` go in,
//! values come out. So every decision can be tested without a network.
//!
//! ```text
//! facts + networks ──▶ desired() ──▶ KernelState ─┐
//!                         dump   ──▶ KernelState ─┴▶ diff() ──▶ plan() ──▶ ordered Ops
//! ```

pub mod apply;
pub mod backend;
pub mod claims;
pub mod desired;
pub mod diff;
pub mod docker_opts;
pub mod drift;
pub mod drops;
pub mod env_file;
pub mod exposure;
pub mod facts;
pub mod firewall;
pub mod handshakes;
pub mod host_ranges;
pub mod lease_machine;
pub mod object;
pub mod op;
pub mod outcome;
pub mod plan;
pub mod problem;
pub mod takeover;
pub mod transition;
pub mod underlay;
pub mod wanted;
pub mod way;

#[cfg(test)]
mod fixture;
