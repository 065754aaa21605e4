//! The kernel, as the agent sees it: dump our objects, apply operations, wake on change. This is the only crate that
//! speaks netlink or nftables, enters network namespaces, or needs `unsafe`.
//!
//! It knows objects ([`flatnet_core::object`]), never leases, peers or networks, and decides nothing.

mod dependency;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
#[doc(hidden)]
pub mod fuzzing;
mod gre;
mod iptables;
mod kernel;
pub mod memory;
pub mod netlink;
pub mod netns;
pub mod nft;
mod program;
mod provider;
mod questions;
mod resolvers;
mod rtnetlink;
mod scope;
mod sysctl;
pub mod wireguard;

use std::future::Future;

use flatnet_core::object::{Dump, ObjectKey};
use flatnet_core::op::{Op, OpOutcome};
use futures::Stream;

pub use kernel::NetlinkKernel;
pub use program::search_path;
pub use questions::{Facts, Questions};
pub use scope::Scope;

/// A change in the kernel. It carries no data: it only wakes the reconciler, which looks for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// A link, address, route, neighbour or nexthop changed.
    Netlink,
    /// The nftables ruleset or an iptables chain changed.
    Firewall,
}

/// The error for a kernel that could not be read at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what} from the kernel")]
pub struct KernelError {
    /// The kind of object that was read.
    pub what: &'static str,
    /// The kernel's answer.
    #[source]
    pub source: std::io::Error,
}

/// The kernel of one network namespace.
pub trait Kernel: Send + Sync + 'static {
    /// Looks at the host, as far as `asked`.
    fn facts(&self, asked: &Questions) -> impl Future<Output = Result<Facts, KernelError>> + Send;

    /// Returns what `scope` looks at: objects of ours, and foreign ones at its keys.
    fn dump(&self, scope: &Scope) -> impl Future<Output = Result<Dump, KernelError>> + Send;

    /// Carries out `ops` in order and returns one outcome each. Operations that depend on a failed one are skipped; the
    /// others go on. At the end, what follows from the objects is brought up to date: the held copy of the guard
    /// ([`nft`]), which lives no longer than this process. To apply nothing does only that.
    fn apply(&self, ops: &[Op]) -> impl Future<Output = Vec<OpOutcome>> + Send;

    /// Wakes on every change until dropped. Ends only if the kernel's notifications break; then call it again.
    fn events(&self) -> Result<impl Stream<Item = Wake> + Send + Unpin + 'static, KernelError>;
}

/// Returns true if there is a guard of ours, current or not. This is asked after a ruleset was refused: tunnels that
/// nothing guards are to be closed. If it cannot be read, it is taken to be there: a look that fails must not close
/// tunnels.
pub async fn is_guarded(kernel: &impl Kernel) -> bool {
    match kernel.dump(&Scope::only([ObjectKey::Ruleset])).await {
        Ok(dump) => dump.state.has(&ObjectKey::Ruleset),
        Err(_) => true,
    }
}
