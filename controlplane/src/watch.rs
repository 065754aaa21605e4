//! One network followed for ever: a snapshot, then changes.
//!
//! [`follow`] alone writes the view; whoever spawned it owns its life. Dropping its future at any await is safe.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flatnet_model::keys::NetworkKeys;
use flatnet_model::state::NetworkState;
use flatnet_model::{Revision, SubnetKey};
use tokio::sync::watch;

use crate::flannel::ConfigWarning;
use crate::store::Store;

/// Where the state comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// Nothing known yet.
    #[default]
    None,
    /// The last run's snapshot: good for keeping the datapath, never for pruning.
    Disk,
    /// A whole snapshot of the store in this run.
    Store,
}

/// Whether the store is being followed now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Connection {
    /// Not yet reached in this run.
    #[default]
    Connecting,
    /// The state is current.
    Connected,
    /// The state is the last known one.
    Lost {
        /// What the store or the network said.
        reason: String,
    },
}

/// The store seems to have been wiped or put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// What was seen, in one sentence.
    pub reason: String,
    /// Leases kept from before that the store does not have (yet): until claimed again or the grace is over.
    pub kept: BTreeSet<SubnetKey>,
    /// Whether the configuration in the view is the one from before because the store has none.
    pub kept_config: bool,
}

/// One network as last known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkView {
    /// Configuration and leases.
    pub state: NetworkState,
    /// The configuration's value as the store has it, for the snapshot on disk.
    pub config_value: Option<Vec<u8>>,
    /// Revision at which the configuration's key was created; 0 while unknown.
    pub config_created: Revision,
    /// What an operator should know about the configuration.
    pub warnings: Vec<ConfigWarning>,
    /// Where the state comes from.
    pub source: Source,
    /// Whether it is current.
    pub connection: Connection,
    /// Set while the store seems to have been wiped or put back.
    pub suspect: Option<Suspect>,
}

/// Keeps `view` equal to what the store says of the network of `keys`, for ever.
///
/// `grace`: how long leases that a wiped or restored store lacks are kept: one lease TTL.
pub async fn follow<S: Store>(store: Arc<S>, keys: NetworkKeys, grace: Duration, view: watch::Sender<NetworkView>) {
    let _ = (store, keys, grace, view);
    todo!()
}
