//! The control plane an agent was told to join: an etcd itself, or a server before a store.

use std::time::Duration;

use flatnet_model::keys::NetworkKeys;
use flatnet_model::state::NetworkState;
use flatnet_model::{HostRanges, NetworkName, Owner, Publication};
use flatnet_plane::allocate::{AcquireError, Claim, ClaimRequest, UpdateError};
use flatnet_plane::client::Remote;
use flatnet_plane::networks::{NetworkError, NetworkSpec};
use flatnet_plane::plane::ControlPlane;
use flatnet_plane::plane::feed::{News, Position};
use flatnet_plane::presence::{Presence, PresenceError};
use flatnet_plane::random::Random;
use flatnet_plane::store::StoreError;
use flatnet_plane::store::etcd::EtcdStore;
use futures::stream::{BoxStream, Stream, StreamExt};

/// One of the two kinds of control plane.
pub enum Plane {
    /// An etcd, with credentials that can write it.
    Etcd(EtcdStore),
    /// A server, with this node's certificate.
    Remote(Remote),
}

macro_rules! each {
    ($self:ident, $plane:ident => $call:expr) => {
        match $self {
            Self::Etcd($plane) => $call,
            Self::Remote($plane) => $call,
        }
    };
}

impl ControlPlane for Plane {
    fn moved(&self) {
        each!(self, plane => plane.moved());
    }

    async fn acquire(
        &self,
        request: &ClaimRequest,
        state: &NetworkState,
        random: &mut impl Random,
    ) -> Result<Claim, AcquireError> {
        each!(self, plane => plane.acquire(request, state, random).await)
    }

    async fn publish(
        &self,
        keys: &NetworkKeys,
        claim: &Claim,
        publication: &Publication,
    ) -> Result<Claim, UpdateError> {
        each!(self, plane => plane.publish(keys, claim, publication).await)
    }

    async fn renew(&self, keys: &NetworkKeys, claim: &Claim) -> Result<Duration, StoreError> {
        each!(self, plane => plane.renew(keys, claim).await)
    }

    async fn release(&self, keys: &NetworkKeys, claim: &Claim) -> Result<(), StoreError> {
        each!(self, plane => plane.release(keys, claim).await)
    }

    async fn announce(&self, who: &Owner, ranges: &HostRanges) -> Result<Presence, PresenceError> {
        each!(self, plane => plane.announce(who, ranges).await)
    }

    async fn stay(&self, presence: &Presence) -> Result<Duration, StoreError> {
        each!(self, plane => plane.stay(presence).await)
    }

    async fn withdraw(&self, presence: &Presence) -> Result<(), StoreError> {
        each!(self, plane => plane.withdraw(presence).await)
    }

    async fn create_network(
        &self,
        flannel_prefix: &str,
        name: &NetworkName,
        spec: &NetworkSpec,
    ) -> Result<(), NetworkError> {
        each!(self, plane => plane.create_network(flannel_prefix, name, spec).await)
    }

    fn knows_what_was_removed(&self) -> bool {
        each!(self, plane => plane.knows_what_was_removed())
    }

    async fn restore_config(&self, keys: &NetworkKeys, value: Vec<u8>) -> Result<bool, StoreError> {
        each!(self, plane => plane.restore_config(keys, value).await)
    }

    async fn keep_identity(&self) {
        each!(self, plane => plane.keep_identity().await);
    }

    async fn feed(
        &self,
        keys: &NetworkKeys,
        position: Option<Position>,
    ) -> Result<impl Stream<Item = Result<News, StoreError>> + Send + Unpin + 'static, StoreError> {
        let stream: BoxStream<'static, _> = each!(self, plane => plane.feed(keys, position).await?.boxed());
        Ok(stream)
    }
}
