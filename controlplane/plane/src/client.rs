//! The way to a control plane's server: the agent's side of the wire.
//!
//! One server is in use at a time, for everything, until it fails; then the next one. Backing off is the caller's
//! affair. Nothing runs here in the background but [`Remote::keep_certificate`], which its caller spawns.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flatnet_model::keys::NetworkKeys;
use flatnet_model::state::NetworkState;
use flatnet_model::{EtcdLease, HostRanges, NetworkName, NodeId, Owner, Publication};
use flatnet_proto::controlplane::v1 as proto;
use futures::Stream;
use proto::node_client::NodeClient;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::allocate::{AcquireError, Claim, ClaimRequest, UpdateError};
use crate::clock;
use crate::networks::{NetworkError, NetworkSpec};
use crate::plane::ControlPlane;
use crate::plane::feed::{News, Position};
use crate::presence::{Presence, PresenceError};
use crate::random::Random;
use crate::store::{CALL_TIMEOUT, StoreError};
use crate::wire::{self, refusal};

pub mod channel;
pub mod credentials;
mod enroll;
mod feed;

use channel::Transport;
use credentials::Credentials;

/// The longest answer taken, in bytes. A part of a snapshot is 64 records of 600 bytes; the rest is room for values of
/// others, which may have up to 1.5 MB each in a store.
const ANSWER_LIMIT: usize = 64 * 1024 * 1024;
/// The time for which a refused token is not tried again: a server hears ten bad ones a minute of one address.
const REFUSED_RETRY_AFTER: Duration = Duration::from_secs(15);
/// The longest an announcement takes: the server waits out another copy, 17 s and two renewals.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(30);

/// A server's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress {
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl std::fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "grpcs://[{host}]:{port}") } else { write!(f, "grpcs://{host}:{port}") }
    }
}

/// The options needed to reach a control plane as a node.
#[derive(Clone)]
pub struct RemoteOptions {
    /// The servers, at least one; any of them will do.
    pub servers: Vec<ServerAddress>,
    /// The directory of the node's key and certificate.
    pub dir: PathBuf,
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// The token it joins with, while it has no certificate.
    pub token: Option<String>,
    /// The hash of the authority it trusts, while it knows none (`sha256:…`).
    pub ca_hash: Option<String>,
}

/// A control plane reached over the network.
#[derive(Clone)]
pub struct Remote {
    inner: Arc<Inner>,
}

struct Inner {
    options: RemoteOptions,
    transport: Transport,
    state: Mutex<State>,
    /// Held while joining, which happens once, however many calls wait for it.
    joining: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    /// The index of the server in use.
    index: usize,
    channel: Option<Channel>,
    /// Counts connections, so that late news of an old one does not end a new one.
    generation: u64,
    credentials: Option<Arc<Credentials>>,
    /// The certificate request for joining: signed once, however often nobody answers.
    request: Option<Arc<[u8]>>,
    /// The time until which a refused token is not tried again, and the server's refusal.
    refused: Option<(Instant, Status)>,
}

/// A call that failed: the server, and its answer.
struct Failed {
    server: String,
    status: Box<Status>,
}

impl Remote {
    /// Reads the credentials there are; connects with the first call.
    pub fn new(options: RemoteOptions) -> Result<Self, credentials::CredentialsError> {
        Self::over(Transport::Tls, options)
    }

    /// Reads the credentials there are and connects over `transport`, with the first call.
    pub fn over(transport: Transport, options: RemoteOptions) -> Result<Self, credentials::CredentialsError> {
        let credentials = Credentials::read(&options.dir)?.filter(|found| {
            // The options name another authority, so what this one signed counts for nothing.
            let known = options.ca_hash.as_ref().is_none_or(|hash| *hash == found.authority_hash());
            known && found.is_for(options.node)
        });
        let state = State { credentials: credentials.map(Arc::new), ..State::default() };
        let (state, joining) = (Mutex::new(state), tokio::sync::Mutex::new(()));
        Ok(Self { inner: Arc::new(Inner { options, transport, state, joining }) })
    }

    /// Returns true if it can reach a control plane at all: with a certificate, or with what it takes to get one.
    #[must_use]
    pub fn can_join(&self) -> bool {
        let options = &self.inner.options;
        self.inner.credentials().is_some() || (options.token.is_some() && options.ca_hash.is_some())
    }

    /// Renews the node's certificate in time, for ever.
    pub async fn keep_certificate(self) {
        /// The pause between two looks at the certificate: often enough for a clock that was set.
        const LOOK_EVERY: Duration = Duration::from_secs(60);
        /// The least number of looks in a certificate's life: a node that was cut off for most of it has little time
        /// left.
        const LOOKS: u32 = 60;
        const SHORTEST_LOOK_EVERY: Duration = Duration::from_secs(1);
        loop {
            let lifetime = self.inner.credentials().map(|credentials| credentials.holder().lifetime);
            let wait =
                lifetime.map_or(LOOK_EVERY, |lifetime| (lifetime / LOOKS).clamp(SHORTEST_LOOK_EVERY, LOOK_EVERY));
            tokio::time::sleep(wait).await;
            let due = self.inner.credentials().is_some_and(|credentials| credentials.holder().is_due(clock::now()));
            if !due {
                continue;
            }
            match self.rotate().await {
                Ok(()) => tracing::info!("certificate renewed"),
                Err(failed) => tracing::warn!(error = failed.status.message(), "the certificate cannot be renewed yet"),
            }
        }
    }

    /// Renews the node's certificate now.
    async fn rotate(&self) -> Result<(), Failed> {
        let internal = |error: String| self.inner.failed(Status::internal(error));
        let Some(credentials) = self.inner.credentials() else { return Ok(()) };
        let csr = credentials.request().map_err(|error| internal(error.to_string()))?;
        let reply =
            self.call(CALL_TIMEOUT, async |mut client| client.rotate(proto::RotateRequest { csr }).await).await?;
        let renewed = credentials.renewed(&reply).map_err(|error| internal(error.to_string()))?;
        renewed.write(&self.inner.options.dir).map_err(|error| internal(error.to_string()))?;
        let mut state = self.inner.lock();
        state.credentials = Some(Arc::new(renewed));
        // Calls and streams on the old connection go on; new ones are made with the new certificate.
        state.channel = None;
        state.generation += 1;
        Ok(())
    }

    /// Carries out one call within `limit`.
    async fn call<T>(
        &self,
        limit: Duration,
        f: impl AsyncFnOnce(NodeClient<Channel>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Failed> {
        let mut generation = self.inner.lock().generation;
        let work = async {
            let (channel, now) = self.inner.channel().await?;
            generation = now;
            let client = NodeClient::new(channel).max_decoding_message_size(ANSWER_LIMIT);
            f(client).await.map(tonic::Response::into_inner)
        };
        let result = match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(Status::unavailable(format!("no answer within {} s", limit.as_secs()))),
        };
        result.map_err(|status| {
            let failed = self.inner.failed(status);
            self.inner.after_error(generation, &failed.status);
            failed
        })
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn credentials(&self) -> Option<Arc<Credentials>> {
        self.lock().credentials.clone()
    }

    fn server(&self, index: usize) -> Option<&ServerAddress> {
        let servers = &self.options.servers;
        servers.get(index.checked_rem(servers.len())?)
    }

    fn server_name(&self) -> String {
        let index = self.lock().index;
        self.server(index).map(ToString::to_string).unwrap_or_default()
    }

    fn failed(&self, status: Status) -> Failed {
        Failed { server: self.server_name(), status: Box::new(channel::with_causes(status)) }
    }

    /// Returns the connection in use. Makes it if there is none and, before it if need be, the node's identity.
    async fn channel(&self) -> Result<(Channel, u64), Status> {
        {
            let state = self.lock();
            if let Some(channel) = &state.channel {
                return Ok((channel.clone(), state.generation));
            }
        }
        let credentials = self.ready_credentials().await?;
        let mut state = self.lock();
        let server = self.server(state.index).ok_or_else(|| Status::failed_precondition("no server is named"))?;
        let tls = credentials.client_config();
        let channel = self.transport.channel(server, tls, Some(credentials.certificate()));
        let channel = channel.map_err(|error| Status::failed_precondition(error.to_string()))?;
        state.channel = Some(channel.clone());
        Ok((channel, state.generation))
    }

    /// Returns credentials that are good now: joins with the token if there are none.
    async fn ready_credentials(&self) -> Result<Arc<Credentials>, Status> {
        let _one = self.joining.lock().await;
        if let Some(found) = self.credentials()
            && !found.holder().is_over(clock::now())
        {
            return Ok(found);
        }
        let index = {
            let state = self.lock();
            if let Some((until, status)) = &state.refused
                && Instant::now() < *until
            {
                return Err(status.clone());
            }
            state.index
        };
        let server = self.server(index).ok_or_else(|| Status::failed_precondition("no server is named"))?;
        let joined = enroll::join(&self.options, &self.transport, server, || self.request()).await;
        let mut state = self.lock();
        match joined {
            Ok(joined) => {
                let joined = Arc::new(joined);
                state.credentials = Some(Arc::clone(&joined));
                Ok(joined)
            }
            Err(status) => {
                if status.code() != Code::Unavailable {
                    // The request was answered. The next one is made for the key that there is by then.
                    state.request = None;
                }
                if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied | Code::ResourceExhausted) {
                    state.refused = Some((Instant::now() + REFUSED_RETRY_AFTER, status.clone()));
                }
                Err(status)
            }
        }
    }

    /// Returns the certificate request with which this node joins.
    fn request(&self) -> Result<Arc<[u8]>, Status> {
        let made = self.lock().request.clone();
        if let Some(request) = made {
            return Ok(request);
        }
        let request = enroll::request(&self.options)?;
        self.lock().request = Some(Arc::clone(&request));
        Ok(request)
    }

    /// Decides from the end of a call whether the connection it used is kept.
    fn after_error(&self, generation: u64, status: &Status) {
        // A server that is there gave this answer. Its store may be away, but another server has the same store.
        let is_answer = !status.details().is_empty();
        let is_over = matches!(refusal::read_store("", status), StoreError::Unavailable { .. }) && !is_answer;
        if !is_over {
            return;
        }
        let mut state = self.lock();
        if state.generation == generation {
            state.index = (state.index + 1) % self.options.servers.len().max(1);
            state.channel = None;
            state.generation += 1;
        }
    }
}

impl Failed {
    fn store(&self) -> StoreError {
        refusal::read_store(&self.server, &self.status)
    }
}

/// Makes the error for an answer that no server of ours gives.
fn odd(server: &str) -> StoreError {
    StoreError::Rejected { endpoint: server.to_owned(), reason: "the answer makes no sense".to_owned() }
}

impl ControlPlane for Remote {
    fn moved(&self) {
        let mut state = self.inner.lock();
        state.channel = None;
        state.generation += 1;
    }

    async fn keep_identity(&self) {
        self.clone().keep_certificate().await;
    }

    async fn acquire(
        &self,
        request: &ClaimRequest,
        state: &NetworkState,
        _random: &mut impl Random,
    ) -> Result<Claim, AcquireError> {
        let config = state.valid_config().and_then(|config| crate::flannel::encode_config(config, None).ok());
        let message = proto::AcquireRequest {
            network: request.keys.network().to_string(),
            instance: Some(wire::instance(&request.owner)),
            publication: crate::flannel::encode_lease(&request.publication, Some(&request.owner)),
            wanted: request.wanted.iter().map(ToString::to_string).collect(),
            previous: request.previous.map(|subnets| subnets.to_string()).unwrap_or_default(),
            ttl_secs: request.ttl.as_secs(),
            config: config.unwrap_or_default(),
        };
        // The server itself tries a few times while others are faster.
        let reply = self.call(CALL_TIMEOUT * 2, async |mut client| client.acquire(message).await).await;
        let reply = reply.map_err(|failed| refusal::read_acquire(&failed.server, &failed.status))?;
        wire::read_claim(reply).ok_or_else(|| AcquireError::Store(odd(&self.inner.server_name())))
    }

    async fn publish(
        &self,
        keys: &NetworkKeys,
        claim: &Claim,
        publication: &Publication,
    ) -> Result<Claim, UpdateError> {
        let Some(owner) = &claim.lease.owner else { return Err(UpdateError::Lost(claim.lease.subnets)) };
        let message = proto::PublishRequest {
            network: keys.network().to_string(),
            subnets: claim.lease.subnets.to_string(),
            instance: Some(wire::instance(owner)),
            publication: crate::flannel::encode_lease(publication, Some(owner)),
        };
        let reply = self.call(CALL_TIMEOUT * 2, async |mut client| client.publish(message).await).await;
        let reply = reply.map_err(|failed| refusal::read_update(&failed.server, &failed.status))?;
        wire::read_claim(reply).ok_or_else(|| UpdateError::Store(odd(&self.inner.server_name())))
    }

    async fn renew(&self, keys: &NetworkKeys, claim: &Claim) -> Result<Duration, StoreError> {
        let message = proto::RenewRequest {
            network: keys.network().to_string(),
            subnets: claim.lease.subnets.to_string(),
            lease: claim.etcd_lease.0,
        };
        let reply = self.call(CALL_TIMEOUT, async |mut client| client.renew(message).await).await;
        reply.map(|ttl| Duration::from_secs(ttl.secs)).map_err(|failed| failed.store())
    }

    async fn release(&self, keys: &NetworkKeys, claim: &Claim) -> Result<(), StoreError> {
        let message = proto::ReleaseRequest {
            network: keys.network().to_string(),
            subnets: claim.lease.subnets.to_string(),
            lease: claim.etcd_lease.0,
        };
        let reply = self.call(CALL_TIMEOUT, async |mut client| client.release(message).await).await;
        reply.map(drop).map_err(|failed| failed.store())
    }

    async fn announce(&self, who: &Owner, ranges: &HostRanges) -> Result<Presence, PresenceError> {
        let message = wire::announce(who, ranges);
        let reply = self.call(ANNOUNCE_TIMEOUT, async |mut client| client.announce(message).await).await;
        let reply = reply.map_err(|failed| refusal::read_presence(&failed.server, &failed.status))?;
        Ok(Presence { node: who.node, lease: EtcdLease(reply.lease) })
    }

    async fn stay(&self, presence: &Presence) -> Result<Duration, StoreError> {
        let message = proto::Presence { lease: presence.lease.0 };
        let reply = self.call(CALL_TIMEOUT, async |mut client| client.stay(message).await).await;
        reply.map(|ttl| Duration::from_secs(ttl.secs)).map_err(|failed| failed.store())
    }

    async fn withdraw(&self, presence: &Presence) -> Result<(), StoreError> {
        let message = proto::Presence { lease: presence.lease.0 };
        let reply = self.call(CALL_TIMEOUT, async |mut client| client.withdraw(message).await).await;
        reply.map(drop).map_err(|failed| failed.store())
    }

    async fn create_network(
        &self,
        _flannel_prefix: &str,
        _name: &NetworkName,
        _spec: &NetworkSpec,
    ) -> Result<(), NetworkError> {
        Err(NetworkError::Store(StoreError::Denied {
            endpoint: self.inner.server_name(),
            reason: "nodes create no networks: controlplane network create, or agent network create as administrator"
                .to_owned(),
        }))
    }

    fn knows_what_was_removed(&self) -> bool {
        true
    }

    async fn restore_config(&self, keys: &NetworkKeys, value: Vec<u8>) -> Result<bool, StoreError> {
        let message = proto::RestoreNetworkRequest { network: keys.network().to_string(), config: value };
        let reply = self.call(CALL_TIMEOUT, async |mut client| client.restore_network(message).await).await;
        match reply {
            Ok(reply) => Ok(reply.written),
            // An administrator has to put it back; the configuration here stays.
            Err(failed) if failed.status.code() == Code::PermissionDenied => {
                tracing::warn!(network = %keys.network(), reason = failed.status.message(), "the configuration was not taken");
                Ok(false)
            }
            Err(failed) => Err(failed.store()),
        }
    }

    async fn feed(
        &self,
        keys: &NetworkKeys,
        position: Option<Position>,
    ) -> Result<impl Stream<Item = Result<News, StoreError>> + Send + Unpin + 'static, StoreError> {
        let message = proto::WatchRequest {
            network: keys.network().to_string(),
            position: position.as_ref().map(wire::position),
        };
        let opened = self.call(CALL_TIMEOUT, async |mut client| client.watch(message).await).await;
        let streaming = opened.map_err(|failed| failed.store())?;
        let generation = self.inner.lock().generation;
        Ok(feed::news(Arc::clone(&self.inner), generation, keys.all(), streaming))
    }
}
