//! The calls that administrators make.

use std::sync::Arc;
use std::time::Duration;

use flatnet_model::NetworkName;
use flatnet_model::keys::{self, NetworkKeys};
use flatnet_model::text;
use flatnet_proto::controlplane::v1 as proto;
use proto::admin_server::Admin;
use tonic::{Request, Response, Status};

use super::caller::{self, Peer};
use super::{Context, registry, removal, tokens};
use flatnet_plane::identity::{self, Identity};
use flatnet_plane::networks::{self, Force, NetworkError, NetworkInfo};
use flatnet_plane::store::{KeyRange, Store, StoreError};
use flatnet_plane::wire::{self, refusal};

/// A token's longest life, seconds.
const TOKEN_TTL_SECS: u64 = 30 * 24 * 3600;
/// The most nodes a token may bring in.
const TOKEN_USES: u32 = 10_000;
/// An administrator's certificate's shortest and longest life, seconds.
const ADMIN_TTL_SECS: std::ops::RangeInclusive<u64> = 3600..=10 * 365 * 24 * 3600;

/// The administrators' service.
pub struct AdminService<S> {
    pub(super) context: Arc<Context<S>>,
}

impl<S: Store> AdminService<S> {
    fn store(&self) -> &S {
        &self.context.store
    }

    /// Turns the result of a change into an answer, and writes it into the audit log.
    fn noted<T>(
        &self,
        peer: &Peer,
        action: &'static str,
        object: &str,
        result: Result<T, Status>,
    ) -> Result<Response<T>, Status> {
        self.context.audit.note(peer, action, &text::excerpt(object), &result);
        self.context.done(action, result)
    }

    fn info(&self, result: Result<NetworkInfo, NetworkError>) -> Result<NetworkName, Status> {
        result.map(|info| info.keys.network().clone()).map_err(|error| refusal::network(&error))
    }

    /// Reads a network as the store has it.
    async fn records(&self, name: &NetworkName) -> Result<proto::NetworkInfo, Status> {
        let keys = NetworkKeys::new(name, &self.context.prefix);
        let reply = self.store().range(&KeyRange::prefix(&keys.all())).await.map_err(|error| refusal::store(&error))?;
        if !reply.kvs.iter().any(|kv| kv.key == keys.config().as_bytes()) {
            return Err(refusal::network(&NetworkError::NotFound(name.clone())));
        }
        let records = reply.kvs.iter().filter_map(|kv| wire::record(&keys.all(), kv)).collect();
        Ok(proto::NetworkInfo { name: name.to_string(), records })
    }

    async fn create_token_for(&self, message: &proto::CreateTokenRequest) -> Result<proto::Token, Status> {
        let ttl = Some(message.ttl_secs).filter(|ttl| (1..=TOKEN_TTL_SECS).contains(ttl));
        let ttl = ttl.ok_or_else(|| Status::invalid_argument("a token lives 1 second to 30 days"))?;
        let uses = Some(message.uses).filter(|uses| (1..=TOKEN_USES).contains(uses));
        let uses = uses.ok_or_else(|| Status::invalid_argument("a token brings in 1 to 10,000 nodes"))?;
        let only = Some(message.node.as_str()).filter(|node| !node.is_empty()).map(wire::node).transpose()?;
        let made = tokens::create(self.store(), Duration::from_secs(ttl), uses, only).await;
        let made = made.map_err(|error| refusal::store(&error))?;
        Ok(proto::Token {
            id: made.id,
            token: made.token,
            expires: made.record.expires,
            uses_left: uses,
            node: message.node.clone(),
            ca_hash: self.context.authority.hash(),
        })
    }

    async fn nodes(&self) -> Result<Vec<proto::NodeInfo>, Status> {
        let failed = |error: StoreError| refusal::store(&error);
        let all = networks::list(self.store(), &self.context.prefix).await.map_err(|error| refusal::network(&error))?;
        let present = self.store().range(&KeyRange::prefix(keys::NODES)).await.map_err(failed)?.kvs;
        let known = self.context.registry.all();
        Ok(known
            .iter()
            .filter(|(_, found)| !found.removed)
            .map(|(id, found)| {
                let of_network = |network: &NetworkInfo| {
                    let name = network.keys.network().to_string();
                    let own = network.leases.iter().filter(|lease| lease.is_owned_by(*id));
                    own.map(|lease| proto::NodeLease { network: name.clone(), subnets: lease.subnets.to_string() })
                        .collect::<Vec<_>>()
                };
                proto::NodeInfo {
                    id: id.to_string(),
                    name: found.name.clone(),
                    joined: found.joined,
                    revoked: found.revoked,
                    drained: found.drained,
                    present: present.iter().any(|kv| kv.key == keys::presence(*id).as_bytes()),
                    leases: all.iter().flat_map(of_network).collect(),
                }
            })
            .collect())
    }

    async fn end_node(&self, id: &str, forget: bool) -> Result<proto::Nothing, Status> {
        let id = wire::node(id)?;
        let failed = |error: StoreError| refusal::store(&error);
        // The rights end first: from here on the node can write nothing that would have to be removed again.
        let known = registry::end(self.store(), id, forget).await.map_err(failed)?;
        removal::leases(self.store(), &self.context.prefix, id).await?;
        removal::presence(self.store(), id).await?;
        // An administrator who revokes a node wants it to be nobody's from now on, which it is.
        if known || !forget { Ok(proto::Nothing {}) } else { Err(Status::not_found(format!("no node {id} joined"))) }
    }

    async fn drain(&self, id: &str, undo: bool) -> Result<proto::Nothing, Status> {
        let id = wire::node(id)?;
        // This comes first: from here on the node gets no lease that would have to be removed again.
        let known = registry::change(self.store(), id, |found| found.drained = !undo).await;
        if !known.map_err(|error| refusal::store(&error))? {
            return Err(Status::not_found(format!("no node {id} joined")));
        }
        if !undo {
            removal::leases(self.store(), &self.context.prefix, id).await?;
        }
        Ok(proto::Nothing {})
    }

    async fn peer(&self, message: &proto::PeerRequest, add: bool) -> Result<proto::Nothing, Status> {
        let name = wire::network(&message.network)?;
        let subnets = wire::subnets(&message.subnets)?;
        let prefix = &self.context.prefix;
        let done = if add {
            let publication = wire::publication(&message.publication, subnets)?;
            networks::add_peer(self.store(), prefix, &name, subnets, &publication).await.map(drop)
        } else {
            networks::remove_peer(self.store(), prefix, &name, subnets).await
        };
        done.map(|()| proto::Nothing {}).map_err(|error| refusal::network(&error))
    }

    fn create_admin_for(&self, message: &proto::CreateAdminRequest) -> Result<proto::AdminCredentials, Status> {
        if !identity::is_admin_name(&message.name) || !ADMIN_TTL_SECS.contains(&message.ttl_secs) {
            return Err(Status::invalid_argument("a name of a-z, 0-9 and '-', and 1 hour to 10 years"));
        }
        let authority = &self.context.authority;
        let identity = Identity::Admin(message.name.clone());
        let made = authority.issue_with_key(&identity, Duration::from_secs(message.ttl_secs));
        let (issued, key) = made.map_err(|error| Status::internal(error.to_string()))?;
        let pem = [
            identity::pem("PRIVATE KEY", key.secret_der()),
            identity::certificate_pem(&issued.certificate),
            identity::certificate_pem(authority.certificate()),
        ];
        Ok(proto::AdminCredentials { pem: pem.concat() })
    }

    async fn status(&self) -> proto::ServerStatus {
        let context = &self.context;
        let all = networks::list(self.store(), &context.prefix).await;
        let present = self.store().range(&KeyRange::prefix(keys::NODES)).await;
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let reason = match (&all, &present) {
            (Err(error), _) => error.to_string(),
            (_, Err(error)) => error.to_string(),
            _ => String::new(),
        };
        let all = all.unwrap_or_default();
        proto::ServerStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store: context.store_name.to_owned(),
            ready: reason.is_empty(),
            reason,
            revision: present.as_ref().map_or(0, |reply| reply.revision),
            networks: count(all.len()),
            leases: count(all.iter().map(|network| network.leases.len()).sum()),
            nodes: count(context.registry.all().len()),
            present: count(present.map_or(0, |reply| reply.kvs.len())),
            watchers: count(context.hubs.watchers()),
            ca_hash: context.authority.hash(),
            ca_not_after: identity::unix_seconds(context.authority.not_after()),
        }
    }
}

#[tonic::async_trait]
impl<S: Store> Admin for AdminService<S> {
    async fn create_network(
        &self,
        request: Request<proto::ChangeNetworkRequest>,
    ) -> Result<Response<proto::NetworkInfo>, Status> {
        let peer = caller::admin(&request)?;
        let message = request.into_inner();
        let result = async {
            let (name, spec) = (wire::network(&message.name)?, wire::spec(&message)?);
            let force = if message.force { Force::Yes } else { Force::No };
            let made = networks::create(self.store(), &self.context.prefix, &name, &spec, force).await;
            self.records(&self.info(made)?).await
        };
        self.noted(&peer, "create-network", &message.name, result.await)
    }

    async fn update_network(
        &self,
        request: Request<proto::ChangeNetworkRequest>,
    ) -> Result<Response<proto::NetworkInfo>, Status> {
        let peer = caller::admin(&request)?;
        let message = request.into_inner();
        let result = async {
            let (name, spec) = (wire::network(&message.name)?, wire::spec(&message)?);
            let force = if message.force { Force::Yes } else { Force::No };
            let made = networks::update(self.store(), &self.context.prefix, &name, &spec, force).await;
            self.records(&self.info(made)?).await
        };
        self.noted(&peer, "update-network", &message.name, result.await)
    }

    async fn list_networks(&self, request: Request<proto::Nothing>) -> Result<Response<proto::NetworkList>, Status> {
        caller::admin(&request)?;
        let result = async {
            let all = networks::list(self.store(), &self.context.prefix).await;
            let all = all.map_err(|error| refusal::network(&error))?;
            let mut networks = Vec::with_capacity(all.len());
            for info in &all {
                networks.push(self.records(info.keys.network()).await?);
            }
            Ok(proto::NetworkList { networks })
        };
        self.context.done("list-networks", result.await)
    }

    async fn inspect_network(
        &self,
        request: Request<proto::NetworkRequest>,
    ) -> Result<Response<proto::NetworkInfo>, Status> {
        caller::admin(&request)?;
        let name = wire::network(&request.into_inner().name)?;
        self.context.done("inspect-network", self.records(&name).await)
    }

    async fn remove_network(
        &self,
        request: Request<proto::NetworkRequest>,
    ) -> Result<Response<proto::Nothing>, Status> {
        let peer = caller::admin(&request)?;
        let message = request.into_inner();
        let result = async {
            let force = if message.force { Force::Yes } else { Force::No };
            let name = wire::network(&message.name)?;
            let done = networks::remove(self.store(), &self.context.prefix, &name, force).await;
            done.map(|()| proto::Nothing {}).map_err(|error| refusal::network(&error))
        };
        self.noted(&peer, "remove-network", &message.name, result.await)
    }

    async fn add_peer(&self, request: Request<proto::PeerRequest>) -> Result<Response<proto::Nothing>, Status> {
        let peer = caller::admin(&request)?;
        let message = request.into_inner();
        let object = format!("{} {}", message.network, message.subnets);
        self.noted(&peer, "add-peer", &object, self.peer(&message, true).await)
    }

    async fn remove_peer(&self, request: Request<proto::PeerRequest>) -> Result<Response<proto::Nothing>, Status> {
        let peer = caller::admin(&request)?;
        let message = request.into_inner();
        let object = format!("{} {}", message.network, message.subnets);
        self.noted(&peer, "remove-peer", &object, self.peer(&message, false).await)
    }

    async fn create_token(
        &self,
        request: Request<proto::CreateTokenRequest>,
    ) -> Result<Response<proto::Token>, Status> {
        let peer = caller::admin(&request)?;
        let result = self.create_token_for(&request.into_inner()).await;
        let id = result.as_ref().map(|token| token.id.clone()).unwrap_or_default();
        self.noted(&peer, "create-token", &id, result)
    }

    async fn list_tokens(&self, request: Request<proto::Nothing>) -> Result<Response<proto::TokenList>, Status> {
        caller::admin(&request)?;
        let all = tokens::list(self.store()).await.map_err(|error| refusal::store(&error));
        let token = |(id, record): (String, tokens::TokenRecord)| proto::Token {
            id,
            token: String::new(),
            expires: record.expires,
            uses_left: record.uses_left,
            node: record.node.map(|node| node.to_string()).unwrap_or_default(),
            ca_hash: self.context.authority.hash(),
        };
        let list = all.map(|all| proto::TokenList { tokens: all.into_iter().map(token).collect() });
        self.context.done("list-tokens", list)
    }

    async fn revoke_token(&self, request: Request<proto::TokenRequest>) -> Result<Response<proto::Nothing>, Status> {
        let peer = caller::admin(&request)?;
        let id = request.into_inner().id;
        let done = tokens::revoke(self.store(), &id).await.map_err(|error| refusal::store(&error));
        let done =
            done.and_then(
                |found| {
                    if found { Ok(proto::Nothing {}) } else { Err(Status::not_found("there is no such token")) }
                },
            );
        self.noted(&peer, "revoke-token", &id, done)
    }

    async fn list_nodes(&self, request: Request<proto::Nothing>) -> Result<Response<proto::NodeList>, Status> {
        caller::admin(&request)?;
        self.context.done("list-nodes", self.nodes().await.map(|nodes| proto::NodeList { nodes }))
    }

    async fn revoke_node(&self, request: Request<proto::NodeRequest>) -> Result<Response<proto::Nothing>, Status> {
        let peer = caller::admin(&request)?;
        let id = request.into_inner().id;
        self.noted(&peer, "revoke-node", &id, self.end_node(&id, false).await)
    }

    async fn drain_node(&self, request: Request<proto::DrainNodeRequest>) -> Result<Response<proto::Nothing>, Status> {
        let peer = caller::admin(&request)?;
        let proto::DrainNodeRequest { id, undo } = request.into_inner();
        let action = if undo { "undrain-node" } else { "drain-node" };
        self.noted(&peer, action, &id, self.drain(&id, undo).await)
    }

    async fn remove_node(&self, request: Request<proto::NodeRequest>) -> Result<Response<proto::Nothing>, Status> {
        let peer = caller::admin(&request)?;
        let id = request.into_inner().id;
        self.noted(&peer, "remove-node", &id, self.end_node(&id, true).await)
    }

    async fn create_admin(
        &self,
        request: Request<proto::CreateAdminRequest>,
    ) -> Result<Response<proto::AdminCredentials>, Status> {
        let peer = caller::local(&request)?;
        let message = request.into_inner();
        self.noted(&peer, "create-admin", &message.name, self.create_admin_for(&message))
    }

    async fn get_status(&self, request: Request<proto::Nothing>) -> Result<Response<proto::ServerStatus>, Status> {
        caller::admin(&request)?;
        self.context.done("get-status", Ok(self.status().await))
    }

    async fn backup(&self, request: Request<proto::BackupRequest>) -> Result<Response<proto::Nothing>, Status> {
        let peer = caller::local(&request)?;
        let path = std::path::PathBuf::from(request.into_inner().path);
        let result = async {
            let Some(embedded) = &self.context.embedded else {
                return Err(refusal::not_allowed("this server's store is an etcd", "etcdctl snapshot save"));
            };
            if !path.is_absolute() {
                return Err(Status::invalid_argument("the path must be absolute"));
            }
            let done = embedded.backup(path.clone()).await;
            done.map(|()| proto::Nothing {}).map_err(|error| Status::failed_precondition(error.to_string()))
        };
        self.noted(&peer, "backup", &path.display().to_string(), result.await)
    }
}
