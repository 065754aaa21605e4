//! The knowledge that the parts of one agent share about its identity and its joined networks. They tell each other by
//! `watch` channels: the latest wins.

use std::path::PathBuf;
use std::time::SystemTime;

use flatnet_core::problem::Problem;
use flatnet_core::transition::Change;
use flatnet_model::{BackendConfig, IfName, NetworkConfig, NetworkName, SubnetKey};
use flatnet_plane::watch::NetworkView;
use tokio::sync::watch;

pub use crate::files::network_record::NetworkSetup;

/// The state of this node's presence: tells whether it may act in its own name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Presence {
    /// Not known yet in this run.
    #[default]
    Unknown,
    /// The store has confirmed that there is no other copy.
    Confirmed,
}

/// This node's hold on one network, as the lease keeper publishes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Holding {
    /// The lease held; `None` until there is one.
    pub held: Option<Held>,
    /// The problems with the lease.
    pub problems: Vec<Problem>,
}

/// A subnet held, and the configuration it is held under.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// The subnet. Containers live in it: it changes only when an operator says so.
    pub subnets: SubnetKey,
    /// The configuration that is in force here: the store's, unless that would leave this subnet outside.
    pub config: NetworkConfig,
    /// The change of the network's backend that this host is in.
    pub change: Change,
    /// The time at which the lease ends unless renewed; `None` while the store has not confirmed it in this run.
    pub expires: Option<SystemTime>,
}

impl Held {
    /// Returns the backends this host receives by: the configured one, then earlier ones.
    pub fn backends(&self) -> impl Iterator<Item = &BackendConfig> {
        std::iter::once(&self.config.backend).chain(self.change.earlier())
    }
}

/// One joined network as other tasks read it.
#[derive(Clone, Debug)]
pub struct NetworkPort {
    /// The network's name.
    pub name: NetworkName,
    /// The network as the store has it.
    pub view: watch::Receiver<NetworkView>,
    /// This node's hold on the network.
    pub holding: watch::Receiver<Holding>,
    /// The bridge of our own in this network.
    pub bridge: Option<IfName>,
    /// The path of the network's env file.
    pub env_file: PathBuf,
}
