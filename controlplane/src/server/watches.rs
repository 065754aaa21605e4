//! The number of networks that each node watches, and its limits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use flatnet_model::{NetworkName, NodeId};
use tonic::Status;

/// The most networks a node may watch at a time: an agent has a device, a port and rules for each it joins.
const NETWORKS: usize = 64;
/// The most streams on one network: that of before a connection was lost, and the one after.
const STREAMS: usize = 16;

type Counts = HashMap<NodeId, HashMap<NetworkName, usize>>;

/// The watches of all nodes.
#[derive(Default)]
pub struct Watches(Arc<Mutex<Counts>>);

/// One stream; it counts until it is dropped.
pub struct Place {
    counts: Arc<Mutex<Counts>>,
    node: NodeId,
    network: NetworkName,
}

impl Watches {
    /// Takes a place for one more stream.
    pub fn take(&self, node: NodeId, network: &NetworkName) -> Result<Place, Status> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_node = counts.entry(node).or_default();
        let networks = of_node.len();
        let streams = of_node.get(network).copied().unwrap_or(0);
        if streams >= STREAMS || (streams == 0 && networks >= NETWORKS) {
            return Err(Status::resource_exhausted(format!(
                "a node watches {NETWORKS} networks at most, by {STREAMS} streams each"
            )));
        }
        of_node.insert(network.clone(), streams + 1);
        Ok(Place { counts: Arc::clone(&self.0), node, network: network.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(of_node) = counts.get_mut(&self.node) else { return };
        if let Some(streams) = of_node.get_mut(&self.network) {
            *streams -= 1;
            if *streams == 0 {
                of_node.remove(&self.network);
            }
        }
        if of_node.is_empty() {
            counts.remove(&self.node);
        }
    }
}
