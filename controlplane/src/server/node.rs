//! What nodes ask, each in its own name and for its own records only.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use flatnet_model::keys::{CATALOG, NetworkKeys, presence as presence_key};
use flatnet_model::state::{ConfigState, NetworkState};
use flatnet_model::{
    BackendData, EtcdLease, IpFamily, Lease, NetworkConfig, NetworkName, NodeId, Owner, Publication, Revision,
    SubnetKey,
};
use flatnet_proto::controlplane::v1 as proto;
use futures::Stream;
use proto::node_server::Node;
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status};

use super::Context;
use super::caller::{self, NodeCaller};
use super::hub::{Hub, Watcher};
use super::registry::{self, Known};
use crate::allocate::{self, Claim, ClaimRequest, KnownLeases, Origin};
use crate::flannel::{decode_config, decode_lease};
use crate::networks;
use crate::pki::{self, CSR_LIMIT, Identity, NODE_LIFETIME};
use crate::presence;
use crate::random::OsRandom;
use crate::store::{KeyRange, KeyValue, Store, StoreError};
use crate::wire::{self, refusal};

/// How long a call waits for a network to be read the first time.
const FIRST_READ: Duration = Duration::from_secs(2);
/// A lease's shortest and longest time to live, as the agent's flag allows and as etcd does (`lease.MaxLeaseTTL`), seconds.
const TTL_SECS: std::ops::RangeInclusive<u64> = 10..=9_000_000_000;
/// The longest configuration taken, in bytes.
const CONFIG_LIMIT: usize = 64 * 1024;

/// The service.
pub struct NodeService<S> {
    pub(super) context: Arc<Context<S>>,
}

type WatchStream = Pin<Box<dyn Stream<Item = Result<proto::WatchReply, Status>> + Send>>;

impl<S: Store> NodeService<S> {
    /// The node that asks, if it still may.
    fn caller<T>(&self, request: &Request<T>) -> Result<NodeCaller, Status> {
        let caller = caller::node(request)?;
        self.context.registry.check(caller.node, &caller.key_hash)?;
        Ok(caller)
    }

    fn store(&self) -> &S {
        &self.context.store
    }

    fn keys(&self, network: &str) -> Result<NetworkKeys, Status> {
        Ok(NetworkKeys::new(&wire::network(network)?, &self.context.prefix))
    }

    fn hub(&self, keys: &NetworkKeys) -> Result<Arc<Hub>, Status> {
        self.context.hubs.get(keys).ok_or_else(|| Status::resource_exhausted("too many networks are watched"))
    }

    /// The lease on `subnets` as it is in the store, if it is the caller's.
    async fn own_lease(
        &self,
        keys: &NetworkKeys,
        subnets: SubnetKey,
        node: NodeId,
    ) -> Result<Option<(KeyValue, Lease)>, Status> {
        let reply = self.store().range(&KeyRange::key(&keys.lease(&subnets))).await;
        let found = reply.map_err(|error| refusal::store(&error))?.kvs.into_iter().next();
        let Some(kv) = found else { return Ok(None) };
        match decode_lease(subnets, &kv) {
            Ok(lease) if lease.is_owned_by(node) => Ok(Some((kv, lease))),
            _ => Err(not_yours(keys, subnets)),
        }
    }

    /// The same, if the store's lease `lease` is under it.
    async fn own_lease_under(
        &self,
        keys: &NetworkKeys,
        subnets: SubnetKey,
        node: NodeId,
        lease: i64,
    ) -> Result<Lease, Status> {
        let gone = || refusal::store(&StoreError::LeaseGone(lease));
        let (kv, found) = self.own_lease(keys, subnets, node).await?.ok_or_else(gone)?;
        if kv.lease == Some(EtcdLease(lease)) { Ok(found) } else { Err(gone()) }
    }

    async fn do_acquire(&self, caller: &NodeCaller, message: &proto::AcquireRequest) -> Result<Claim, Status> {
        let keys = self.keys(&message.network)?;
        let owner = wire::owner(caller.node, message.instance.as_ref())?;
        let previous =
            Some(message.previous.as_str()).filter(|text| !text.is_empty()).map(wire::subnets).transpose()?;
        let publication = wire::publication(&message.publication, any_subnets()?)?;
        if !TTL_SECS.contains(&message.ttl_secs) {
            return Err(Status::invalid_argument(format!("a lease lives {TTL_SECS:?} s")));
        }
        let drained = registry::is_drained(self.store(), caller.node).await.map_err(|error| refusal::store(&error))?;
        if drained {
            return Err(refusal::not_allowed(
                "this node is drained: it gets no subnets",
                "an administrator did that: controlplane node drain --undo ends it",
            ));
        }
        self.check_nobody_elses(&keys, caller.node, &publication).await?;
        let config = self.config_for(&keys, caller.node, previous, &message.config).await?;
        if let (ConfigState::Valid(config), Some(previous)) = (&config, previous)
            && !is_inside(config, previous)
        {
            // Of a family that the network has no more, the library would choose a new subnet: containers live in this one.
            return Err(refusal::acquire(&allocate::AcquireError::Moved {
                subnets: previous,
                network: keys.network().to_string(),
                expected: config.pools().map(|pool| pool.network().to_string()).collect::<Vec<_>>().join(", "),
            }));
        }
        let hub = self.hub(&keys)?;
        hub.ready(0, FIRST_READ).await;
        let request = ClaimRequest {
            known: hub.look(|state| KnownLeases::of(state, caller.node, &publication)).flatten(),
            // A lease of this host's from before: only the host itself calls from its address.
            adopt: publication.public_ip.map(std::net::IpAddr::V4) == Some(caller.address)
                || publication.public_ipv6.map(std::net::IpAddr::V6) == Some(caller.address),
            wanted: wire::wanted(&message.wanted)?,
            ttl: Duration::from_secs(message.ttl_secs),
            keys,
            owner,
            publication,
            previous,
        };
        let state = NetworkState { config, ..NetworkState::default() };
        let claim = allocate::acquire(self.store(), &request, &state, &mut OsRandom).await;
        claim.map_err(|error| refusal::acquire(&error))
    }

    /// The configuration to claim under: the store's; but what a node holds in a network that was changed meanwhile it may
    /// refresh under the one it holds it under.
    async fn config_for(
        &self,
        keys: &NetworkKeys,
        node: NodeId,
        previous: Option<SubnetKey>,
        offered: &[u8],
    ) -> Result<ConfigState, Status> {
        let reply = self.store().range(&KeyRange::key(&keys.config())).await;
        let found = reply.map_err(|error| refusal::store(&error))?.kvs.into_iter().next();
        let stored = found.and_then(|kv| decode_config(&kv.value).ok()).map(|(config, _)| config);
        let offered = Some(offered).filter(|json| !json.is_empty() && json.len() <= CONFIG_LIMIT);
        let offered = offered.and_then(|json| decode_config(json).ok()).map(|(config, _)| config);
        if let (Some(previous), Some(offered)) = (previous, &offered)
            && stored.as_ref().is_none_or(|stored| !is_inside(stored, previous))
            && matches!(self.own_lease(keys, previous, node).await, Ok(Some(_)))
        {
            return Ok(ConfigState::Valid(offered.clone()));
        }
        if let (Some(stored), Some(offered)) = (&stored, &offered)
            && !would_fit(stored, offered, previous)
        {
            // The node has not read yet that the network was changed: it would hold a subnet that is not in the network it
            // knows. It asks again.
            return Err(refusal::acquire(&allocate::AcquireError::Busy(1)));
        }
        Ok(stored.map_or(ConfigState::Missing, ConfigState::Valid))
    }

    /// Refuses a publication that would draw another host's packets: its tunnel's Ethernet address, its WireGuard key.
    async fn check_nobody_elses(
        &self,
        keys: &NetworkKeys,
        node: NodeId,
        publication: &Publication,
    ) -> Result<(), Status> {
        let hub = self.hub(keys)?;
        if !hub.ready(0, FIRST_READ).await {
            return Err(Status::unavailable("the store has not been read yet"));
        }
        let other = hub.look(|state| {
            let same = |lease: &&Lease| !lease.is_owned_by(node) && shares_identity(lease, publication);
            state.leases.values().find(same).map(|lease| lease.subnets)
        });
        match other.flatten() {
            Some(other) => Err(refusal::not_allowed(
                format!("what is published belongs to the host of {other}: its tunnel's address or key"),
                "each host has its own: a copied state directory is to be removed",
            )),
            None => Ok(()),
        }
    }

    async fn do_publish(&self, caller: &NodeCaller, message: &proto::PublishRequest) -> Result<Claim, Status> {
        let keys = self.keys(&message.network)?;
        let subnets = wire::subnets(&message.subnets)?;
        let owner = wire::owner(caller.node, message.instance.as_ref())?;
        let publication = wire::publication(&message.publication, subnets)?;
        self.check_nobody_elses(&keys, caller.node, &publication).await?;
        let lost = || refusal::update(&allocate::UpdateError::Lost(subnets));
        let (kv, mut lease) = self.own_lease(&keys, subnets, caller.node).await?.ok_or_else(lost)?;
        let etcd_lease = kv.lease.ok_or_else(lost)?;
        lease.owner = Some(owner);
        let claim = Claim { lease, etcd_lease, origin: Origin::Refreshed };
        let claim = allocate::update(self.store(), &keys, &claim, &publication).await;
        claim.map_err(|error| refusal::update(&error))
    }

    async fn do_restore(&self, caller: &NodeCaller, message: &proto::RestoreNetworkRequest) -> Result<bool, Status> {
        let keys = self.keys(&message.network)?;
        if message.config.len() > CONFIG_LIMIT {
            return Err(Status::invalid_argument("the configuration is too long"));
        }
        let (config, _) = decode_config(&message.config)
            .map_err(|error| Status::invalid_argument(format!("not a network's configuration: {error}")))?;
        let there = self.store().range(&KeyRange::key(&keys.config())).await;
        if !there.map_err(|error| refusal::store(&error))?.kvs.is_empty() {
            return Ok(false);
        }
        if !self.context.was_wiped().await.map_err(|error| refusal::store(&error))? {
            return Err(refusal::not_allowed(
                "networks are created by administrators",
                "this store was not wiped since the server started: controlplane network create puts a network back",
            ));
        }
        let all = networks::list(self.store(), &self.context.prefix).await.map_err(|error| refusal::network(&error))?;
        networks::check_beside(keys.network(), &config, &all).map_err(|error| refusal::network(&error))?;
        tracing::warn!(network = %keys.network(), node = %caller.node, "a wiped store gets its network back from a node");
        let written = networks::restore(self.store(), &keys, message.config.clone()).await;
        written.map_err(|error| refusal::store(&error))
    }

    async fn do_announce(&self, caller: &NodeCaller, message: &proto::AnnounceRequest) -> Result<EtcdLease, Status> {
        let owner: Owner = wire::owner(caller.node, message.instance.as_ref())?;
        if !self.context.registry.all().contains_key(&caller.node) {
            let known = registry::register_again(self.store(), caller.node, &owner.name, &caller.key_hash).await;
            known.map_err(|error| refusal::store(&error))?;
        }
        let held = presence::announce(self.store(), &owner).await;
        held.map(|held| held.lease).map_err(|error| refusal::presence(&error))
    }

    /// That the caller's presence is under `lease`.
    async fn check_presence(&self, node: NodeId, lease: i64) -> Result<(), Status> {
        let reply = self.store().range(&KeyRange::key(&presence_key(node))).await;
        let found = reply.map_err(|error| refusal::store(&error))?.kvs.into_iter().next();
        match found {
            Some(kv) if kv.lease == Some(EtcdLease(lease)) => Ok(()),
            _ => Err(refusal::store(&StoreError::LeaseGone(lease))),
        }
    }

    async fn do_watch(&self, caller: &NodeCaller, message: &proto::WatchRequest) -> Result<WatchStream, Status> {
        let keys = self.keys(&message.network)?;
        let position = message.position.as_ref().map(wire::read_position).transpose()?;
        // That the store answers now, and not only its old watch: a snapshot must not be older than what was seen.
        let reply = self.store().range(&KeyRange::key(&keys.config())).await.map_err(|error| refusal::store(&error))?;
        let hub = self.hub(&keys)?;
        if let Some(position) = &position
            && reply.revision >= position.revision
            && !hub.ready(position.revision, FIRST_READ).await
        {
            let refusal =
                proto::Refusal { kind: proto::refusal::Kind::StoreUnavailable.into(), ..proto::Refusal::default() };
            return Err(refusal::status(Code::Unavailable, "this replica is behind; try again", refusal));
        }
        let watching = Watching {
            watcher: hub.watch(&keys, position.as_ref()),
            known: self.context.registry.subscribe(),
            stopping: self.context.stopping.subscribe(),
            node: caller.node,
            key_hash: caller.key_hash.clone(),
        };
        Ok(Box::pin(futures::stream::unfold(Some(watching), |watching| async move {
            let mut watching = watching?;
            let item = watching.next().await;
            let rest = item.is_ok().then_some(watching);
            Some((item, rest))
        })))
    }
}

/// One watch stream: ends when its node may not any more.
struct Watching {
    watcher: Watcher,
    known: watch::Receiver<Option<Arc<Known>>>,
    /// A server that stops ends its watches: they go on at another one.
    stopping: watch::Receiver<bool>,
    node: NodeId,
    key_hash: String,
}

impl Watching {
    async fn next(&mut self) -> Result<proto::WatchReply, Status> {
        let (node, key_hash) = (self.node, self.key_hash.clone());
        let cut = |known: &Option<Arc<Known>>| {
            let found = known.as_ref().and_then(|known| known.get(&node));
            found.is_some_and(|found| found.revoked || found.key_sha256 != key_hash)
        };
        tokio::select! {
            biased;
            Ok(_) = self.known.wait_for(cut) => Err(registry::revoked(node)),
            Ok(_) = self.stopping.wait_for(|stopping| *stopping) => Err(Status::unavailable("the server is stopping")),
            news = self.watcher.next() => news.map_err(|reason| {
                let error = StoreError::Unavailable { endpoint: "the server's store".to_owned(), reason };
                refusal::store(&error)
            }),
        }
    }
}

fn not_yours(keys: &NetworkKeys, subnets: SubnetKey) -> Status {
    refusal::not_allowed(
        format!("the lease {subnets} in network {} is not this node's", keys.network()),
        "a node changes its own lease only",
    )
}

/// What a publication says does not depend on the subnets it is for.
fn any_subnets() -> Result<SubnetKey, Status> {
    wire::subnets("0.0.0.0-0")
}

/// Whether what is claimed under `stored`, `previous` if that is something, is also of the network as the node knows it.
fn would_fit(stored: &NetworkConfig, known: &NetworkConfig, previous: Option<SubnetKey>) -> bool {
    match previous {
        Some(previous) => is_inside(known, previous),
        None => (&stored.v4, &stored.v6) == (&known.v4, &known.v6),
    }
}

fn is_inside(config: &NetworkConfig, subnets: SubnetKey) -> bool {
    subnets.iter().all(|net| {
        config.pool(IpFamily::of(net.addr())).is_some_and(|pool| pool.network().contains(&net) && pool.network() != net)
    })
}

/// Whether a host with `publication` would be taken for the one of `lease`, by any of the ways to either.
fn shares_identity(lease: &Lease, publication: &Publication) -> bool {
    let theirs = lease.publication();
    ways(&theirs).any(|theirs| ways(publication).any(|ours| same_identity(theirs, ours)))
}

fn ways(publication: &Publication) -> impl Iterator<Item = &BackendData> {
    let besides = publication.besides.iter().flat_map(|besides| [&besides.data, &besides.data_v6]);
    [&publication.data, &publication.data_v6].into_iter().chain(besides)
}

fn same_identity(a: &BackendData, b: &BackendData) -> bool {
    match (a, b) {
        (BackendData::Vxlan { mac: a, .. }, BackendData::Vxlan { mac: b, .. }) => a == b,
        (BackendData::Wireguard { public_key: a, .. }, BackendData::Wireguard { public_key: b, .. }) => a == b,
        _ => false,
    }
}

#[tonic::async_trait]
impl<S: Store> Node for NodeService<S> {
    async fn rotate(&self, request: Request<proto::RotateRequest>) -> Result<Response<proto::Credentials>, Status> {
        let caller = self.caller(&request)?;
        let csr = request.into_inner().csr;
        let same_key = csr.len() <= CSR_LIMIT && pki::request_key_hash(&csr).as_ref() == Some(&caller.key_hash);
        let result = if same_key {
            self.context.issue(&Identity::Node(caller.node), &csr, NODE_LIFETIME)
        } else {
            Err(refusal::not_allowed("the request is for another key", "a certificate is renewed for its own key"))
        };
        self.context.audit.note(&caller.peer, "rotate", &caller.node.to_string(), &result);
        self.context.done("rotate", result)
    }

    async fn acquire(&self, request: Request<proto::AcquireRequest>) -> Result<Response<proto::AcquireReply>, Status> {
        let caller = self.caller(&request)?;
        let message = request.into_inner();
        let result = self.do_acquire(&caller, &message).await;
        let object = match &result {
            Ok(claim) => format!("{} {}", message.network, claim.lease.subnets),
            Err(_) => flatnet_model::keys::excerpt(&message.network),
        };
        self.context.audit.note(&caller.peer, "acquire", &object, &result);
        let reply = self.keys(&message.network).and_then(|keys| Ok(wire::claim(&keys, &result?)));
        self.context.done("acquire", reply)
    }

    async fn publish(&self, request: Request<proto::PublishRequest>) -> Result<Response<proto::AcquireReply>, Status> {
        let caller = self.caller(&request)?;
        let message = request.into_inner();
        let result = self.do_publish(&caller, &message).await;
        let object = flatnet_model::keys::excerpt(&format!("{} {}", message.network, message.subnets));
        self.context.audit.note(&caller.peer, "publish", &object, &result);
        let reply = self.keys(&message.network).and_then(|keys| Ok(wire::claim(&keys, &result?)));
        self.context.done("publish", reply)
    }

    async fn renew(&self, request: Request<proto::RenewRequest>) -> Result<Response<proto::Ttl>, Status> {
        let caller = self.caller(&request)?;
        let message = request.into_inner();
        let result = async {
            let (keys, subnets) = (self.keys(&message.network)?, wire::subnets(&message.subnets)?);
            self.own_lease_under(&keys, subnets, caller.node, message.lease).await?;
            let ttl = self.store().lease_keep_alive(EtcdLease(message.lease)).await;
            ttl.map(|ttl| proto::Ttl { secs: ttl.as_secs() }).map_err(|error| refusal::store(&error))
        };
        self.context.done("renew", result.await)
    }

    async fn release(&self, request: Request<proto::ReleaseRequest>) -> Result<Response<proto::Nothing>, Status> {
        let caller = self.caller(&request)?;
        let message = request.into_inner();
        let result = async {
            let (keys, subnets) = (self.keys(&message.network)?, wire::subnets(&message.subnets)?);
            let Some((kv, lease)) = self.own_lease(&keys, subnets, caller.node).await? else {
                return Ok(proto::Nothing {});
            };
            let etcd_lease = kv.lease.unwrap_or(EtcdLease(message.lease));
            let claim = Claim { lease, etcd_lease, origin: Origin::Refreshed };
            allocate::release(self.store(), &keys, &claim).await.map_err(|error| refusal::store(&error))?;
            Ok(proto::Nothing {})
        };
        let result = result.await;
        let object = flatnet_model::keys::excerpt(&format!("{} {}", message.network, message.subnets));
        self.context.audit.note(&caller.peer, "release", &object, &result);
        self.context.done("release", result)
    }

    async fn announce(&self, request: Request<proto::AnnounceRequest>) -> Result<Response<proto::Presence>, Status> {
        let caller = self.caller(&request)?;
        let result = self.do_announce(&caller, &request.into_inner()).await;
        self.context.done("announce", result.map(|lease| proto::Presence { lease: lease.0 }))
    }

    async fn stay(&self, request: Request<proto::Presence>) -> Result<Response<proto::Ttl>, Status> {
        let caller = self.caller(&request)?;
        let lease = request.into_inner().lease;
        let result = async {
            self.check_presence(caller.node, lease).await?;
            let ttl = self.store().lease_keep_alive(EtcdLease(lease)).await;
            ttl.map(|ttl| proto::Ttl { secs: ttl.as_secs() }).map_err(|error| refusal::store(&error))
        };
        self.context.done("stay", result.await)
    }

    async fn withdraw(&self, request: Request<proto::Presence>) -> Result<Response<proto::Nothing>, Status> {
        let caller = self.caller(&request)?;
        let lease = request.into_inner().lease;
        let result = async {
            self.check_presence(caller.node, lease).await?;
            let ended = self.store().lease_revoke(EtcdLease(lease)).await;
            ended.map(|()| proto::Nothing {}).map_err(|error| refusal::store(&error))
        };
        self.context.done("withdraw", result.await)
    }

    async fn restore_network(
        &self,
        request: Request<proto::RestoreNetworkRequest>,
    ) -> Result<Response<proto::RestoreNetworkReply>, Status> {
        let caller = self.caller(&request)?;
        let message = request.into_inner();
        let result = self.do_restore(&caller, &message).await;
        let object = flatnet_model::keys::excerpt(&message.network);
        self.context.audit.note(&caller.peer, "restore-network", &object, &result);
        self.context.done("restore_network", result.map(|written| proto::RestoreNetworkReply { written }))
    }

    type WatchStream = WatchStream;

    async fn watch(&self, request: Request<proto::WatchRequest>) -> Result<Response<WatchStream>, Status> {
        let caller = self.caller(&request)?;
        let result = self.do_watch(&caller, &request.into_inner()).await;
        self.context.done("watch", result)
    }
}

/// What a look at the store showed.
pub(super) struct Look {
    /// It holds no network, and nobody ever wrote one: whoever changes networks leaves the catalog behind, and the network
    /// `default` may be somebody else's doing.
    pub(super) is_blank: bool,
    /// Nobody but nodes has written networks since it was blank.
    pub(super) is_restored: bool,
    /// As of when.
    pub(super) revision: Revision,
}

/// Looks whether a store holds anything of a network, and who wrote it.
pub(super) async fn look<S: Store>(store: &S, prefix: &str) -> Result<Look, StoreError> {
    let default = NetworkKeys::new(&NetworkName::default_network(), prefix);
    let config = store.range(&KeyRange::key(&default.config())).await?;
    let catalog = store.range(&KeyRange::key(CATALOG)).await?;
    Ok(Look {
        is_blank: catalog.kvs.is_empty() && config.kvs.is_empty(),
        is_restored: catalog.kvs.first().is_some_and(|kv| networks::is_restored(&kv.value)),
        revision: catalog.revision,
    })
}

/// Removes a node's leases in every network.
pub(super) async fn remove_leases<S: Store>(store: &S, prefix: &str, node: NodeId) -> Result<(), Status> {
    let failed = |error: StoreError| refusal::store(&error);
    let all = networks::list(store, prefix).await.map_err(|error| refusal::network(&error))?;
    for network in &all {
        for lease in network.leases.iter().filter(|lease| lease.is_owned_by(node)) {
            // Of one that never expires there is no store's lease to end.
            let etcd_lease = lease.etcd_lease.unwrap_or(EtcdLease(0));
            let claim = Claim { lease: lease.clone(), etcd_lease, origin: Origin::Refreshed };
            allocate::release(store, &network.keys, &claim).await.map_err(failed)?;
        }
    }
    Ok(())
}

/// Ends a node's presence.
pub(super) async fn remove_presence<S: Store>(store: &S, node: NodeId) -> Result<(), Status> {
    let failed = |error: StoreError| refusal::store(&error);
    let found = store.range(&KeyRange::key(&presence_key(node))).await.map_err(failed)?.kvs.into_iter().next();
    match found.and_then(|kv| kv.lease) {
        Some(lease) => store.lease_revoke(lease).await.map_err(failed),
        None => Ok(()),
    }
}
