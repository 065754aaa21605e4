//! The server from the outside: over TLS on loopback, as nodes, strangers and administrators; each right from the wrong
//! side too.

#![expect(clippy::unwrap_used, clippy::panic, reason = "these are tests: a surprise fails them")]

#[cfg(test)]
mod support;

#[path = "server/fleet.rs"]
mod fleet;
#[path = "server/hostile.rs"]
mod hostile;
#[path = "server/joining.rs"]
mod joining;
#[path = "server/rights.rs"]
mod rights;
