//! The providers of a kernel: each owns some kinds of object, looks at them, carries out what is asked of them, answers
//! questions about them and tells of their changes. To add one, add a folder and a line in [`crate::kernel`].

use flatnet_core::object::{Dump, Object};
use flatnet_core::op::{Op, OpOutcome};
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::dependency::Failures;
use crate::{Facts, KernelError, Questions, Scope, Wake};

/// One part of a kernel. No method has a body here: a provider that has nothing to say of something says that.
pub(crate) trait Provider: Send + Sync {
    /// Returns true if operations on such an object are this provider's.
    fn carries(&self, object: &Object) -> bool;

    /// Adds its answers to what is asked.
    fn facts<'a>(&'a self, asked: &'a Questions, facts: &'a mut Facts) -> BoxFuture<'a, Result<(), KernelError>>;

    /// Adds what `scope` looks at to what the providers before this one found. More than that does no harm.
    fn dump<'a>(&'a self, scope: &'a Scope, dump: &'a mut Dump) -> BoxFuture<'a, Result<(), KernelError>>;

    /// Carries out `ops`, which are its own, a part of the plan `all`. Returns one outcome each. What depends on
    /// `failures` is skipped, and what fails is added to them.
    fn apply<'a>(&'a self, ops: &'a [Op], all: &'a [Op], failures: &'a mut Failures) -> BoxFuture<'a, Vec<OpOutcome>>;

    /// Takes note of operations that any provider carried out.
    fn follow(&self, ops: &[Op], outcomes: &[OpOutcome]);

    /// Ends an apply: brings up to date what follows from the objects.
    fn settle(&self) -> BoxFuture<'_, ()>;

    /// Wakes on every change of its objects; `None`: another provider tells of them.
    fn events(&self) -> Result<Option<BoxStream<'static, Wake>>, KernelError>;
}

/// Returns a future for a method with nothing to do.
pub(crate) fn nothing<'a, T: Default + Send + 'a>() -> BoxFuture<'a, T> {
    Box::pin(std::future::ready(T::default()))
}

/// Returns a future for a method with nothing to find.
pub(crate) fn no_answer<'a>() -> BoxFuture<'a, Result<(), KernelError>> {
    Box::pin(std::future::ready(Ok(())))
}
