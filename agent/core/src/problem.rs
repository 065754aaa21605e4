//! What is wrong, said so that somebody woken at night can act on it.

mod code;

use std::fmt;

pub use code::ProblemCode;

/// One problem: stable code, one sentence, what to do, and the object concerned.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// What kind of problem.
    pub code: ProblemCode,
    /// What is wrong, in one sentence.
    pub message: String,
    /// What to do about it.
    pub hint: String,
    /// The store key, device, peer or file concerned; empty if none.
    pub object: String,
}

impl Problem {
    /// A problem that concerns `object`.
    pub fn new(
        code: ProblemCode,
        message: impl Into<String>,
        hint: impl Into<String>,
        object: impl fmt::Display,
    ) -> Self {
        Self { code, message: message.into(), hint: hint.into(), object: object.to_string() }
    }
}
