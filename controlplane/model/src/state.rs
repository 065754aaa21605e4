//! The store's contents for the networks a node has joined: a snapshot, then changes folded into it.
//!
//! The fold keeps whatever could be read; which leases *hold* is decided over the whole ([`NetworkState::resolve`]),
//! so it does not depend on the order in which changes came.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::lease::{Lease, Revision};
use crate::net::IpFamily;
use crate::network::NetworkConfig;
use crate::subnet::SubnetKey;

/// A network's configuration as the store has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ConfigState {
    /// No key.
    #[default]
    Missing,
    /// A key that cannot be used, and why.
    Invalid(String),
    /// A usable configuration.
    Valid(NetworkConfig),
}

/// One change of one network, as read from one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The configuration was written, found unusable, or removed.
    Config(ConfigState),
    /// A lease was written.
    Lease(Box<Lease>),
    /// A lease's key is gone.
    LeaseGone(SubnetKey),
    /// A key that cannot be used. It is skipped and reported.
    Rejected {
        /// The key, shortened.
        key: String,
        /// The reason why it cannot be used.
        reason: String,
    },
    /// A key that was rejected before is gone.
    RejectedGone {
        /// The key, shortened.
        key: String,
    },
}

/// One network as the store has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkState {
    /// Its configuration.
    pub config: ConfigState,
    /// Every readable lease by its subnets.
    pub leases: BTreeMap<SubnetKey, Lease>,
    /// Keys that were skipped and why, at most [`NetworkState::REJECTED_LIMIT`] of them.
    pub rejected: BTreeMap<String, String>,
    /// The store's revision at which this state was read.
    pub revision: Revision,
}

/// A lease that was read but does not hold, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The lease.
    pub subnets: SubnetKey,
    /// The reason why it does not hold.
    pub reason: String,
}

/// The leases of a network, divided into those that hold and those that do not.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Resolution<'a> {
    /// The leases that hold, in the order of their subnets.
    pub leases: Vec<&'a Lease>,
    /// The leases that do not hold.
    pub refused: Vec<Refused>,
}

impl NetworkState {
    /// The most rejected keys kept by name; a flood of garbage must not fill memory.
    pub const REJECTED_LIMIT: usize = 100;

    /// Folds one change in.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Config(config) => self.config = config,
            Change::Lease(lease) => {
                self.leases.insert(lease.subnets, *lease);
            }
            Change::LeaseGone(subnets) => {
                self.leases.remove(&subnets);
            }
            Change::Rejected { key, reason } => {
                // A lease whose new value cannot be read keeps its last readable one: the datapath stays.
                if self.rejected.len() < Self::REJECTED_LIMIT || self.rejected.contains_key(&key) {
                    self.rejected.insert(key, reason);
                }
            }
            Change::RejectedGone { key } => {
                self.rejected.remove(&key);
            }
        }
    }

    /// Returns the usable configuration, if there is one.
    #[must_use]
    pub fn valid_config(&self) -> Option<&NetworkConfig> {
        match &self.config {
            ConfigState::Valid(config) => Some(config),
            ConfigState::Missing | ConfigState::Invalid(_) => None,
        }
    }

    /// Decides which leases hold under `config`: each is inside the network and overlaps no older one.
    #[must_use]
    pub fn resolve(&self, config: &NetworkConfig) -> Resolution<'_> {
        let mut resolution = Resolution::default();
        let mut inside = Vec::with_capacity(self.leases.len());
        for lease in self.leases.values() {
            match outside(lease, config) {
                None => inside.push(lease),
                Some(reason) => resolution.refused.push(Refused { subnets: lease.subnets, reason }),
            }
        }
        if IpFamily::BOTH.iter().any(|family| any_overlap(&inside, *family)) {
            inside.sort_by_key(|lease| (lease.create_revision, lease.subnets));
            let mut held = Held::default();
            inside.retain(|lease| match held.overlapping(lease) {
                None => {
                    held.insert(lease);
                    true
                }
                Some(other) => {
                    resolution
                        .refused
                        .push(Refused { subnets: lease.subnets, reason: format!("overlaps the older lease {other}") });
                    false
                }
            });
            inside.sort_by_key(|lease| lease.subnets);
        }
        resolution.leases = inside;
        resolution
    }
}

/// Returns the reason why `lease` is not inside the network, if it is not.
fn outside(lease: &Lease, config: &NetworkConfig) -> Option<String> {
    lease.subnets.iter().find_map(|net| match config.pool(IpFamily::of(net.addr())) {
        Some(pool) if pool.network().contains(&net) && pool.network() != net => None,
        Some(pool) => Some(format!("{net} is not inside {}", pool.network())),
        None => Some(format!("{net}: the network has no {}", IpFamily::of(net.addr()))),
    })
}

/// Returns true if any two leases overlap in `family`. Two prefixes overlap only when one contains the other, so in
/// address order an overlap shows between a prefix and the widest one before it.
fn any_overlap(leases: &[&Lease], family: IpFamily) -> bool {
    let mut nets: Vec<IpNet> = leases.iter().filter_map(|lease| lease.subnets.of(family)).collect();
    if !nets.is_sorted() {
        nets.sort_unstable();
    }
    let mut end: Option<IpAddr> = None;
    nets.iter().any(|net| {
        let overlaps = end.is_some_and(|end| net.network() <= end);
        end = end.max(Some(net.broadcast()));
        overlaps
    })
}

/// The subnets accepted so far, by first address.
#[derive(Default)]
struct Held(BTreeMap<IpAddr, IpNet>);

impl Held {
    fn insert(&mut self, lease: &Lease) {
        self.0.extend(lease.subnets.iter().map(|net| (net.network(), net)));
    }

    fn overlapping(&self, lease: &Lease) -> Option<IpNet> {
        lease.subnets.iter().find_map(|net| {
            // What is held is disjoint: only the last one that starts at or before our end can reach into us.
            let (_, other) = self.0.range(..=net.broadcast()).next_back()?;
            (other.addr().is_ipv4() == net.addr().is_ipv4() && other.broadcast() >= net.network()).then_some(*other)
        })
    }
}

#[cfg(test)]
mod tests;
