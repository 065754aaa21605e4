//! The calls an agent makes to its control plane, whichever way it reaches it: directly on a store, or through the
//! server.
//!
//! Every [`Store`] is one: the direct way. [`crate::client::Remote`] is the other; the server carries out requests with
//! the same functions, for callers it has authenticated.

use std::time::Duration;

use flatnet_model::keys::NetworkKeys;
use flatnet_model::state::NetworkState;
use flatnet_model::{HostRanges, NetworkName, Owner, Publication};
use futures::Stream;

use crate::allocate::{self, AcquireError, Claim, ClaimRequest, UpdateError};
use crate::networks::{self, Force, NetworkError, NetworkSpec};
use crate::presence::{self, Presence, PresenceError};
use crate::random::Random;
use crate::store::{Store, StoreError};

pub mod contents;
pub mod feed;

use feed::{News, Position};

/// A control plane as an agent sees it. Every call but [`Self::announce`] ends within seconds.
pub trait ControlPlane: Send + Sync + 'static {
    /// Tells that this host's address or route changed: a connection from the old one hears nothing any more. The next
    /// call makes a new one.
    fn moved(&self) {}

    /// Acquires the node's lease in a network whose configuration is in `state`: [`allocate::acquire`].
    fn acquire(
        &self,
        request: &ClaimRequest,
        state: &NetworkState,
        random: &mut impl Random,
    ) -> impl Future<Output = Result<Claim, AcquireError>> + Send;

    /// Publishes changed data of a lease held: [`allocate::update`].
    fn publish(
        &self,
        keys: &NetworkKeys,
        claim: &Claim,
        publication: &Publication,
    ) -> impl Future<Output = Result<Claim, UpdateError>> + Send;

    /// Keeps a lease alive once; returns the time it now lives. [`StoreError::LeaseGone`]: acquire again.
    fn renew(&self, keys: &NetworkKeys, claim: &Claim) -> impl Future<Output = Result<Duration, StoreError>> + Send;

    /// Gives a lease back: [`allocate::release`].
    fn release(&self, keys: &NetworkKeys, claim: &Claim) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Claims the node's presence, waiting out that of its run before, or changes what it publishes about its host:
    /// [`presence::announce`].
    fn announce(
        &self,
        who: &Owner,
        ranges: &HostRanges,
    ) -> impl Future<Output = Result<Presence, PresenceError>> + Send;

    /// Keeps the presence alive once. [`StoreError::LeaseGone`]: announce again.
    fn stay(&self, presence: &Presence) -> impl Future<Output = Result<Duration, StoreError>> + Send;

    /// Ends the presence.
    fn withdraw(&self, presence: &Presence) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Creates a network if it is not there. It is not checked against what hosts use themselves: whenever the store
    /// lost it, hosts that live in it ask for it again.
    fn create_network(
        &self,
        flannel_prefix: &str,
        name: &NetworkName,
        spec: &NetworkSpec,
    ) -> impl Future<Output = Result<(), NetworkError>> + Send;

    /// Returns true if the control plane itself tells a configuration that was lost from one that somebody removed. A
    /// configuration is then offered whatever its revision, which a wiped store may have reached again.
    fn knows_what_was_removed(&self) -> bool {
        false
    }

    /// Offers the configuration in force here to a store that lost it; returns true if it had none:
    /// [`networks::restore`].
    fn restore_config(
        &self,
        keys: &NetworkKeys,
        value: Vec<u8>,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Keeps valid, for ever, what this node shows the control plane to be let in. Ends at once where there is nothing
    /// to renew.
    fn keep_identity(&self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Opens a feed of a network: its records, then their changes. It begins with a snapshot, or resumes after
    /// `position` if the other side held the same records by then and has kept the changes since, as a server does. It
    /// ends with an error when it breaks, within 5 s also when the server falls silent.
    fn feed(
        &self,
        keys: &NetworkKeys,
        position: Option<Position>,
    ) -> impl Future<Output = Result<impl Stream<Item = Result<News, StoreError>> + Send + Unpin + 'static, StoreError>> + Send;
}

impl<S: Store> ControlPlane for S {
    fn moved(&self) {
        self.path_changed();
    }

    async fn acquire(
        &self,
        request: &ClaimRequest,
        state: &NetworkState,
        random: &mut impl Random,
    ) -> Result<Claim, AcquireError> {
        allocate::acquire(self, request, state, random).await
    }

    async fn publish(
        &self,
        keys: &NetworkKeys,
        claim: &Claim,
        publication: &Publication,
    ) -> Result<Claim, UpdateError> {
        allocate::update(self, keys, claim, publication).await
    }

    async fn renew(&self, _keys: &NetworkKeys, claim: &Claim) -> Result<Duration, StoreError> {
        allocate::keep_alive(self, claim).await
    }

    async fn release(&self, keys: &NetworkKeys, claim: &Claim) -> Result<(), StoreError> {
        allocate::release(self, keys, claim).await
    }

    async fn announce(&self, who: &Owner, ranges: &HostRanges) -> Result<Presence, PresenceError> {
        presence::announce(self, who, ranges).await
    }

    async fn stay(&self, presence: &Presence) -> Result<Duration, StoreError> {
        presence::keep_alive(self, presence).await
    }

    async fn withdraw(&self, presence: &Presence) -> Result<(), StoreError> {
        presence::withdraw(self, presence).await
    }

    async fn create_network(
        &self,
        flannel_prefix: &str,
        name: &NetworkName,
        spec: &NetworkSpec,
    ) -> Result<(), NetworkError> {
        networks::create(self, flannel_prefix, name, spec, Force::Yes).await.map(drop)
    }

    async fn restore_config(&self, keys: &NetworkKeys, value: Vec<u8>) -> Result<bool, StoreError> {
        networks::restore(self, keys, value).await
    }

    async fn feed(
        &self,
        keys: &NetworkKeys,
        _position: Option<Position>,
    ) -> Result<impl Stream<Item = Result<News, StoreError>> + Send + Unpin + 'static, StoreError> {
        feed::open(self, keys).await
    }
}
