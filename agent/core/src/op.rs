//! Operations on kernel objects, and their outcomes.

pub use crate::object::{Object, ObjectKey, ObjectKind};

/// The change that an operation makes to its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Creates the object. The kernel must not have one at that key.
    Create,
    /// Changes the object in place.
    Change,
    /// Deletes the object and creates it anew, because the kernel cannot change it.
    Replace,
    /// Deletes the object. If it is already gone, that is success.
    Delete,
    /// Makes a foreign device ours, because an operator said so: it gets our mark, and may be changed and removed from
    /// then on. Its specification is not known before it is looked at; the operation carries that of the device for
    /// which it is to make room. If there is no such device, that is success.
    Adopt,
}

impl Action {
    /// Returns the action's name for metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Change => "change",
            Self::Replace => "replace",
            Self::Delete => "delete",
            Self::Adopt => "adopt",
        }
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// The change to make.
    pub action: Action,
    /// The object to change.
    pub object: Object,
}

/// The outcome of one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpOutcome {
    /// The operation was carried out, or the object of a deletion was already gone.
    Done,
    /// The kernel refused the operation.
    Failed(OpError),
    /// The operation was not tried, because an operation it depends on failed.
    Skipped,
}

/// The refusal of an operation by the kernel, with its reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{action} {object}: {reason}", action = .action.as_str())]
pub struct OpError {
    /// The change that was tried.
    pub action: Action,
    /// The object, as [`Object`] prints it.
    pub object: String,
    /// The error number, positive (`EEXIST` is 17); `None` when a program, not the kernel, refused.
    pub errno: Option<i32>,
    /// The kernel's or the program's own words.
    pub reason: String,
}
