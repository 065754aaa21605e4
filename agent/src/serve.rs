//! What others are told: over the local socket, by HTTP, and in the log.

pub mod http;
pub mod local_api;
pub mod problem_log;
