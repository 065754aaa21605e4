//! The kernel, as the agent sees it: dump what is ours, apply operations, wake on change. The only place that speaks
//! netlink or nftables, enters network namespaces, or needs `unsafe`.
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
mod sysctl;
mod userspace;
pub mod wireguard;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;

use flatnet_core::claims::Sighting;
use flatnet_core::drops::DropCount;
use flatnet_core::facts::HostFacts;
use flatnet_core::object::{Datapath, Dump, Ruleset, SetName, Sysctl};
use flatnet_core::op::{Op, OpOutcome};
use flatnet_core::way::{Detour, WayQuery};
use flatnet_model::{IfName, IpFamily};
use futures::Stream;

pub use kernel::NetlinkKernel;

/// What a dump looks at beyond what carries our mark: names that we want and somebody else may have, settings we want.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Devices wanted: a device of that name that is not ours is reported as foreign.
    pub links: Vec<IfName>,
    /// Settings wanted: their present values are reported.
    pub sysctls: Vec<Sysctl>,
    /// Sets of our table whose elements are read.
    pub sets: Vec<SetName>,
}

/// Something changed in the kernel. Carries no data: it only wakes the reconciler, which looks for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// A link, address, route, neighbour or nexthop.
    Netlink,
    /// The nftables ruleset, or an iptables chain.
    Firewall,
}

/// Why the kernel could not be read at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what} from the kernel")]
pub struct KernelError {
    /// Which kind of object.
    pub what: &'static str,
    /// What the kernel said.
    #[source]
    pub source: std::io::Error,
}

/// The kernel of one network namespace.
pub trait Kernel: Send + Sync + 'static {
    /// Looks at the host; `route_to`: addresses to look up routes for.
    fn facts(&self, route_to: &[IpAddr]) -> impl Future<Output = Result<HostFacts, KernelError>> + Send;

    /// Everything that is ours, and what is in the way of `scope`.
    fn dump(&self, scope: &Scope) -> impl Future<Output = Result<Dump, KernelError>> + Send;

    /// The present values of `settings`; those that do not exist are left out. Cheap: the kernel tells of few settings when
    /// they change, so the others are read again and again.
    fn settings(
        &self,
        settings: &[Sysctl],
    ) -> impl Future<Output = Result<BTreeMap<Sysctl, String>, KernelError>> + Send;

    /// Carries out `ops` in order; one outcome each. What depends on a failed one is skipped, the rest goes on.
    fn apply(&self, ops: &[Op]) -> impl Future<Output = Vec<OpOutcome>> + Send;

    /// Ends a pass: brings up to date what lives no longer than this process, the held copy of the guard ([`firewall`]).
    /// `wanted`: the ruleset that should be loaded; `None`: none should, and nothing is held. Costs nothing where nothing
    /// is to be done.
    fn hold(&self, wanted: Option<&Ruleset>) -> impl Future<Output = ()> + Send {
        let _ = wanted;
        std::future::ready(())
    }

    /// Whether there is a guard of ours, current or not. Asked after a ruleset was refused: tunnels that nothing guards are
    /// to be closed.
    fn is_guarded(&self) -> impl Future<Output = bool> + Send;

    /// The counters of those rules of ours that drop.
    fn drops(&self) -> impl Future<Output = Result<Vec<DropCount>, KernelError>> + Send {
        std::future::ready(Ok(Vec::new()))
    }

    /// Whose packets those rules dropped in the last minutes: some dozens for each of them at most, in no order.
    fn sightings(&self) -> impl Future<Output = Result<Vec<Sighting>, KernelError>> + Send {
        std::future::ready(Ok(Vec::new()))
    }

    /// Those of `ways` that are not by a route of ours. What the kernel cannot be asked is left out.
    fn detours(&self, ways: &[WayQuery]) -> impl Future<Output = Result<Vec<Detour>, KernelError>> + Send {
        let _ = ways;
        std::future::ready(Ok(Vec::new()))
    }

    /// Who can carry GRE over an underlay of `family`; `None`: nobody. Looking makes the kernel load its module, so it is
    /// asked only where a network wants it; a module that appears or goes later is noticed.
    fn gre(&self, family: IpFamily) -> impl Future<Output = Option<Datapath>> + Send;

    /// Puts our mark on a device that is not ours, because an operator said so: from then on it is ours, to be changed or
    /// removed. `false`: there is no such device.
    fn adopt_link(&self, name: IfName) -> impl Future<Output = Result<bool, KernelError>> + Send;

    /// Wakes on every change until dropped. Ends only if the kernel's notifications break; then call it again.
    fn events(&self) -> Result<impl Stream<Item = Wake> + Send + Unpin + 'static, KernelError>;
}
