//! Problems, worded so that somebody woken at night can act on them.

mod code;

use std::fmt;

pub use code::ProblemCode;

/// One problem: a stable code, one sentence, a hint, and the object concerned.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The kind of problem.
    pub code: ProblemCode,
    /// One sentence that says what is wrong.
    pub message: String,
    /// Advice on how to put it right.
    pub hint: String,
    /// The store key, device, peer or file concerned; empty if none.
    pub object: String,
}

impl Problem {
    /// Creates a problem that concerns `object`.
    pub fn new(
        code: ProblemCode,
        message: impl Into<String>,
        hint: impl Into<String>,
        object: impl fmt::Display,
    ) -> Self {
        Self { code, message: message.into(), hint: hint.into(), object: object.to_string() }
    }
}
