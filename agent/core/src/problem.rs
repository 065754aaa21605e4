//! What is wrong, said so that somebody woken at night can act on it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One problem: stable code, one sentence, what to do, and the object concerned.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// Stable and documented, kebab-case: people alert on it.
    pub code: String,
    /// What is wrong, in one sentence.
    pub message: String,
    /// What to do about it.
    pub hint: String,
    /// The store key, device, peer or file concerned; empty if none.
    pub object: String,
}

impl Problem {
    /// A problem that concerns `object`.
    pub fn new(code: &str, message: impl Into<String>, hint: impl Into<String>, object: impl fmt::Display) -> Self {
        Self { code: code.to_owned(), message: message.into(), hint: hint.into(), object: object.to_string() }
    }
}
