//! A node's control plane: the store itself, or servers before it.

use std::sync::Arc;
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
use futures::stream::{BoxStream, Stream, StreamExt};

use crate::store::ModelStore;
use crate::trace::RunLog;

/// The way of one run of a node to its control plane.
pub enum ModelPlane {
    /// The node speaks to the store.
    Direct(ModelStore),
    /// The node speaks to servers.
    Servers {
        /// The client.
        remote: Remote,
        /// The log of what the client says.
        log: Arc<RunLog>,
    },
}

macro_rules! each {
    ($self:ident, $plane:ident => $call:expr) => {
        match $self {
            Self::Direct($plane) => $call,
            Self::Servers { remote: $plane, .. } => $call,
        }
    };
}

impl ControlPlane for ModelPlane {
    fn moved(&self) {
        each!(self, plane => plane.moved());
    }

    async fn acquire(
        &self,
        request: &ClaimRequest,
        state: &NetworkState,
        random: &mut impl Random,
    ) -> Result<Claim, AcquireError> {
        let result = each!(self, plane => plane.acquire(request, state, random).await);
        if let Self::Servers { log, .. } = self {
            let said = result.as_ref().map(|claim| claim.lease.subnets);
            log.trace.say(format!("{} acquire (had {:?}) -> {said:?}", log.name, request.previous));
        }
        result
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
        let result = each!(self, plane => plane.renew(keys, claim).await);
        if let (Self::Servers { log, .. }, Err(error)) = (self, &result) {
            log.trace.say(format!("{} renew {} -> {error}", log.name, claim.lease.subnets));
        }
        result
    }

    async fn release(&self, keys: &NetworkKeys, claim: &Claim) -> Result<(), StoreError> {
        each!(self, plane => plane.release(keys, claim).await)
    }

    async fn announce(&self, who: &Owner, ranges: &HostRanges) -> Result<Presence, PresenceError> {
        let result = each!(self, plane => plane.announce(who, ranges).await);
        if let (Self::Servers { log, .. }, Err(error)) = (self, &result) {
            log.trace.say(format!("{} announce -> {error:?}", log.name));
        }
        result
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
        let stream: BoxStream<'static, _> = match self {
            // The model's store notes by itself what is read.
            Self::Direct(store) => store.feed(keys, position).await?.boxed(),
            Self::Servers { remote, log, .. } => {
                let (log, all) = (Arc::clone(log), keys.all());
                let news = remote.feed(keys, position).await?;
                news.inspect(move |news| match news {
                    Ok(News::Snapshot(reply)) => {
                        log.trace.say(format!("{} snapshot at {}", log.name, reply.revision));
                        log.snapshots.lock().unwrap().insert(all.clone());
                    }
                    Ok(News::Resumed) => log.trace.say(format!("{} resumed", log.name)),
                    Ok(News::Batch(_)) => {}
                    Err(error) => log.trace.say(format!("{} feed broke: {error}", log.name)),
                })
                .boxed()
            }
        };
        Ok(stream)
    }
}
