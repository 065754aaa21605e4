//! The calls that nodes make, each in its own name and for its own records only.

use std::sync::Arc;

use flatnet_model::keys::{NetworkKeys, presence as presence_key};
use flatnet_model::{EtcdLease, Lease, NodeId, Owner, SubnetKey};
use flatnet_proto::controlplane::v1 as proto;
use proto::node_server::Node;
use tonic::{Request, Response, Status};

use super::caller::{self, NodeCaller};
use super::hub::Hub;
use super::{Context, registry};
use flatnet_plane::allocate::{self, Claim, Origin};
use flatnet_plane::flannel::{decode_config, decode_lease};
use flatnet_plane::identity::{self, CSR_LIMIT, Identity};
use flatnet_plane::networks;
use flatnet_plane::presence;
use flatnet_plane::store::{KeyRange, KeyValue, Store, StoreError};
use flatnet_plane::wire::{self, refusal};

mod claim;
mod watching;

use watching::WatchStream;

/// The longest configuration taken, in bytes.
pub(super) const CONFIG_LIMIT: usize = 64 * 1024;

/// The nodes' service.
pub struct NodeService<S> {
    pub(super) context: Arc<Context<S>>,
}

impl<S: Store> NodeService<S> {
    /// Returns the node that asks, if it still has its rights.
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

    /// Returns the hub of a network that is there.
    fn hub(&self, keys: &NetworkKeys) -> Result<Arc<Hub>, Status> {
        self.context.hubs.get(keys).ok_or_else(|| Status::resource_exhausted("too many networks are watched"))
    }

    /// Returns the lease on `subnets` as it is in the store, if it is the caller's.
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

    /// Returns the lease on `subnets` if it is the caller's and the store's lease `lease` is under it.
    async fn own_lease_under(
        &self,
        keys: &NetworkKeys,
        subnets: SubnetKey,
        node: NodeId,
        lease: i64,
    ) -> Result<Lease, Status> {
        let gone = || refusal::store(&StoreError::LeaseGone(lease));
        let reply = self.store().range(&KeyRange::key(&keys.lease(&subnets))).await;
        let found = reply.map_err(|error| refusal::store(&error))?.kvs.into_iter().next().ok_or_else(gone)?;
        match decode_lease(subnets, &found) {
            Ok(found_lease) if found_lease.is_owned_by(node) && found.lease == Some(EtcdLease(lease)) => {
                Ok(found_lease)
            }
            // The lease is not there any more, whoever has the subnets now. The node has to learn that by claiming them
            // again.
            Ok(_) if found.lease != Some(EtcdLease(lease)) => Err(gone()),
            _ => Err(not_yours(keys, subnets)),
        }
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
                "this server saw no networks go within the last minutes: controlplane network create puts a network back",
            ));
        }
        if self.context.witness.config(keys.network()).as_ref() != Some(&config) {
            return Err(refusal::not_allowed(
                format!("network {} is not what this server saw before the store was wiped", keys.network()),
                "controlplane network create puts a network back",
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
        let ranges = wire::ranges(message)?;
        if !self.context.registry.all().contains_key(&caller.node) {
            let known = registry::register_again(self.store(), caller.node, &owner.name, &caller.key_hash).await;
            known.map_err(|error| refusal::store(&error))?;
        }
        let held = presence::announce_from(self.store(), &owner, &ranges, Some(caller.address)).await;
        held.map(|held| held.lease).map_err(|error| refusal::presence(&error))
    }

    /// Checks that the caller's presence is under `lease`.
    async fn check_presence(&self, node: NodeId, lease: i64) -> Result<KeyValue, Status> {
        let reply = self.store().range(&KeyRange::key(&presence_key(node))).await;
        let found = reply.map_err(|error| refusal::store(&error))?.kvs.into_iter().next();
        match found {
            Some(kv) if kv.lease == Some(EtcdLease(lease)) => Ok(kv),
            _ => Err(refusal::store(&StoreError::LeaseGone(lease))),
        }
    }
}

fn not_yours(keys: &NetworkKeys, subnets: SubnetKey) -> Status {
    refusal::not_allowed(
        format!("the lease {subnets} in network {} is not this node's", keys.network()),
        "a node changes its own lease only",
    )
}

#[tonic::async_trait]
impl<S: Store> Node for NodeService<S> {
    async fn rotate(&self, request: Request<proto::RotateRequest>) -> Result<Response<proto::Credentials>, Status> {
        let caller = self.caller(&request)?;
        let csr = request.into_inner().csr;
        let same_key = csr.len() <= CSR_LIMIT && identity::request_key_hash(&csr).as_ref() == Some(&caller.key_hash);
        let result = if same_key {
            self.context.issue(&Identity::Node(caller.node), &csr, self.context.node_lifetime)
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
            Err(_) => flatnet_model::text::excerpt(&message.network),
        };
        self.context.audit.note(&caller.peer, "acquire", &object, &result);
        let reply = self.keys(&message.network).and_then(|keys| Ok(wire::claim(&keys, &result?)));
        self.context.done("acquire", reply)
    }

    async fn publish(&self, request: Request<proto::PublishRequest>) -> Result<Response<proto::AcquireReply>, Status> {
        let caller = self.caller(&request)?;
        let message = request.into_inner();
        let result = self.do_publish(&caller, &message).await;
        let object = flatnet_model::text::excerpt(&format!("{} {}", message.network, message.subnets));
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
        let object = flatnet_model::text::excerpt(&format!("{} {}", message.network, message.subnets));
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
            let kv = self.check_presence(caller.node, lease).await?;
            if presence::called_from(&kv.value) != Some(caller.address) {
                let moved = presence::moved(self.store(), caller.node, &kv, caller.address).await;
                moved.map_err(|error| refusal::store(&error))?;
            }
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
        let object = flatnet_model::text::excerpt(&message.network);
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
