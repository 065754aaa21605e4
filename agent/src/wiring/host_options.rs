//! The options of the host that stay the same while the agent runs.

use std::net::{IpAddr, SocketAddr};

use flatnet_core::exposure::Exposure;
use flatnet_core::underlay::Selection;
use flatnet_model::{IfName, NodeId};
use tokio::sync::watch;

/// Options that stay the same for the life of the agent.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// This node.
    pub node: NodeId,
    /// The rules by which the underlay is chosen.
    pub selection: Selection,
    /// A bridge of our own, in the first network that the command line names.
    pub bridge: Option<IfName>,
    /// True if traffic that leaves a network is masqueraded.
    pub masquerade: bool,
    /// True if a tunnel device that flanneld left is replaced.
    pub take_over: bool,
    /// The machines that may open connections into the networks besides their members.
    pub exposure: Exposure,
    /// The store's endpoints that containers must not reach; empty if they may.
    pub endpoints: watch::Receiver<Vec<SocketAddr>>,
    /// True if this process may carry tunnels for which the kernel has no module.
    pub userspace: bool,
    /// The addresses of the store's other endpoints at the start. No network may take these either.
    pub other_endpoints: Vec<IpAddr>,
}

impl HostOptions {
    /// Returns the addresses at which this host reaches the store.
    #[must_use]
    pub fn store(&self) -> Vec<IpAddr> {
        let mut all: Vec<IpAddr> = self.selection.store.iter().chain(&self.other_endpoints).copied().collect();
        all.extend(self.endpoints.borrow().iter().map(SocketAddr::ip));
        all.sort();
        all.dedup();
        all
    }
}
