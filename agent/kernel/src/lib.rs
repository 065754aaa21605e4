//! The kernel, as the agent sees it: dump our objects, apply operations, wake on change. This is the only crate that
//! speaks netlink or nftables, enters network namespaces, or needs `unsafe`.
//!
//! It knows objects ([`flatnet_core::object`]), never leases, peers or networks, and decides nothing.

mod dependency;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod firewall;
#[doc(hidden)]
pub mod fuzzing;
mod kernel;
pub mod memory;
pub mod netlink;
pub mod netns;
mod resolvers;
mod scope;
mod sysctl;
mod userspace;
pub mod wireguard;

use std::future::Future;
use std::net::IpAddr;

use flatnet_core::claims::Sighting;
use flatnet_core::drops::DropCount;
use flatnet_core::facts::HostFacts;
use flatnet_core::object::{Datapath, Dump, Ruleset};
use flatnet_core::op::{Op, OpOutcome};
use flatnet_core::way::{Detour, WayQuery};
use flatnet_model::{IfName, IpFamily};
use futures::Stream;

pub use kernel::NetlinkKernel;
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
    /// Looks at the host. `route_to` are addresses to look up routes for.
    fn facts(&self, route_to: &[IpAddr]) -> impl Future<Output = Result<HostFacts, KernelError>> + Send;

    /// Returns what `scope` looks at: objects of ours, and foreign ones at its keys.
    fn dump(&self, scope: &Scope) -> impl Future<Output = Result<Dump, KernelError>> + Send;

    /// Carries out `ops` in order and returns one outcome each. Operations that depend on a failed one are skipped; the
    /// others go on.
    fn apply(&self, ops: &[Op]) -> impl Future<Output = Vec<OpOutcome>> + Send;

    /// Ends a pass: brings the held copy of the guard ([`firewall`]) up to date, which lives no longer than this
    /// process. `wanted` is the ruleset that should be loaded; with `None` none should, and nothing is held. The call
    /// costs nothing where nothing is to be done.
    fn hold(&self, wanted: Option<&Ruleset>) -> impl Future<Output = ()> + Send {
        let _ = wanted;
        std::future::ready(())
    }

    /// Returns true if there is a guard of ours, current or not. This is asked after a ruleset was refused: tunnels
    /// that nothing guards are to be closed.
    fn is_guarded(&self) -> impl Future<Output = bool> + Send;

    /// Returns the counters of those rules of ours that drop.
    fn drops(&self) -> impl Future<Output = Result<Vec<DropCount>, KernelError>> + Send {
        std::future::ready(Ok(Vec::new()))
    }

    /// Returns the sources whose packets those rules dropped in the last minutes: at most some dozens for each rule, in
    /// no order.
    fn sightings(&self) -> impl Future<Output = Result<Vec<Sighting>, KernelError>> + Send {
        std::future::ready(Ok(Vec::new()))
    }

    /// Returns those of `ways` that do not follow a route of ours. Questions that the kernel cannot be asked are left
    /// out.
    fn detours(&self, ways: &[WayQuery]) -> impl Future<Output = Result<Vec<Detour>, KernelError>> + Send {
        let _ = ways;
        std::future::ready(Ok(Vec::new()))
    }

    /// Returns the datapath that can carry GRE over an underlay of `family`; `None`: there is none. Looking makes the
    /// kernel load its module, so this is asked only where a network wants it. A module that appears or goes later is
    /// noticed.
    fn gre(&self, family: IpFamily) -> impl Future<Output = Option<Datapath>> + Send;

    /// Puts our mark on a device that is not ours, because an operator said so. From then on it is ours, to be changed
    /// or removed. Returns `false` if there is no such device.
    fn adopt_link(&self, name: IfName) -> impl Future<Output = Result<bool, KernelError>> + Send;

    /// Wakes on every change until dropped. Ends only if the kernel's notifications break; then call it again.
    fn events(&self) -> Result<impl Stream<Item = Wake> + Send + Unpin + 'static, KernelError>;
}
