//! The leases that identities in tunnels belong to (an Ethernet address, a key), of which each is at one place only.

use std::collections::HashMap;
use std::hash::Hash;

use flatnet_model::{Lease, Revision, SubnetKey};

/// The oldest lease that publishes each identity, and the place where that lease's host is. The older lease holds, so
/// that a newcomer cannot take over a peer's traffic by publishing its identity.
pub(super) struct Identities<I, P>(HashMap<I, (Revision, SubnetKey, P)>);

impl<I: Eq + Hash, P: Ord + Copy> Identities<I, P> {
    /// Collects what leases publish: identities, each with the lease and its place.
    pub(super) fn of<'a>(published: impl IntoIterator<Item = (I, &'a Lease, P)>) -> Self {
        let mut claims = HashMap::new();
        for (identity, lease, place) in published {
            let claim = (lease.create_revision, lease.subnets, place);
            claims
                .entry(identity)
                .and_modify(|held: &mut (Revision, SubnetKey, P)| *held = claim.min(*held))
                .or_insert(claim);
        }
        Self(claims)
    }

    /// Returns the older claim on `identity` that contradicts `peer`, which is at `place`, having it.
    pub(super) fn older(&self, identity: &I, peer: &Lease, place: P) -> Option<(SubnetKey, P)> {
        let (_, subnets, at) = *self.0.get(identity)?;
        (subnets != peer.subnets && at != place).then_some((subnets, at))
    }
}
