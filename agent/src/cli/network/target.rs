//! The network commands, the same on an etcd and on a control plane's server.

use flatnet_model::keys::{FLANNEL_PREFIX, NetworkKeys};
use flatnet_model::{NetworkName, Publication, SubnetKey};
use flatnet_plane::client::channel::with_causes;
use flatnet_plane::networks::{self, Force, NetworkInfo, NetworkSpec};
use flatnet_plane::wire::{self, refusal};
use flatnet_proto::controlplane::v1 as proto;
use tonic::Status;

use crate::cli::store_args::Target;
use crate::report::{Exit, Failure, network_failure};

impl Target {
    pub(super) async fn create(
        self,
        name: &NetworkName,
        spec: &NetworkSpec,
        force: Force,
    ) -> Result<NetworkInfo, Failure> {
        match self {
            Self::Etcd(store, prefix) => {
                networks::create(&store, &prefix, name, spec, force).await.map_err(|e| network_failure(&e))
            }
            Self::Server(mut client) => {
                let message = wire::change_request(name, spec, force == Force::Yes);
                info(client.create_network(message).await.map_err(said)?.into_inner())
            }
        }
    }

    pub(super) async fn update(
        self,
        name: &NetworkName,
        spec: &NetworkSpec,
        force: Force,
    ) -> Result<NetworkInfo, Failure> {
        match self {
            Self::Etcd(store, prefix) => {
                networks::update(&store, &prefix, name, spec, force).await.map_err(|e| network_failure(&e))
            }
            Self::Server(mut client) => {
                let message = wire::change_request(name, spec, force == Force::Yes);
                info(client.update_network(message).await.map_err(said)?.into_inner())
            }
        }
    }

    pub(super) async fn list(self) -> Result<Vec<NetworkInfo>, Failure> {
        match self {
            Self::Etcd(store, prefix) => networks::list(&store, &prefix).await.map_err(|e| network_failure(&e)),
            Self::Server(mut client) => {
                let reply = client.list_networks(proto::Nothing {}).await.map_err(said)?;
                reply.into_inner().networks.into_iter().map(info).collect()
            }
        }
    }

    pub(super) async fn inspect(&self, name: &NetworkName) -> Result<NetworkInfo, Failure> {
        match self {
            Self::Etcd(store, prefix) => networks::inspect(store, prefix, name).await.map_err(|e| network_failure(&e)),
            Self::Server(client) => {
                let message = proto::NetworkRequest { name: name.to_string(), force: false };
                info(client.clone().inspect_network(message).await.map_err(said)?.into_inner())
            }
        }
    }

    pub(super) async fn remove(self, name: &NetworkName, force: Force) -> Result<(), Failure> {
        match self {
            Self::Etcd(store, prefix) => {
                networks::remove(&store, &prefix, name, force).await.map_err(|e| network_failure(&e))
            }
            Self::Server(mut client) => {
                let message = proto::NetworkRequest { name: name.to_string(), force: force == Force::Yes };
                client.remove_network(message).await.map(drop).map_err(said)
            }
        }
    }

    pub(super) async fn add_peer(
        self,
        name: &NetworkName,
        subnets: SubnetKey,
        publication: &Publication,
    ) -> Result<(), Failure> {
        match self {
            Self::Etcd(store, prefix) => {
                let added = networks::add_peer(&store, &prefix, name, subnets, publication).await;
                added.map(drop).map_err(|e| network_failure(&e))
            }
            Self::Server(mut client) => {
                let publication = flatnet_plane::flannel::encode_lease(publication, None);
                client.add_peer(peer(name, subnets, publication)).await.map(drop).map_err(said)
            }
        }
    }

    pub(super) async fn remove_peer(self, name: &NetworkName, subnets: SubnetKey) -> Result<(), Failure> {
        match self {
            Self::Etcd(store, prefix) => {
                networks::remove_peer(&store, &prefix, name, subnets).await.map_err(|e| network_failure(&e))
            }
            Self::Server(mut client) => {
                client.remove_peer(peer(name, subnets, Vec::new())).await.map(drop).map_err(said)
            }
        }
    }
}

fn peer(name: &NetworkName, subnets: SubnetKey, publication: Vec<u8>) -> proto::PeerRequest {
    proto::PeerRequest { network: name.to_string(), subnets: subnets.to_string(), publication }
}

/// Converts a network as the server sent it. The place of its keys in the store is the server's affair.
fn info(network: proto::NetworkInfo) -> Result<NetworkInfo, Failure> {
    let odd = || Failure::new(Exit::Internal, "the server's answer makes no sense");
    let name: NetworkName = network.name.parse().map_err(|_| odd())?;
    networks::of_records(NetworkKeys::new(&name, FLANNEL_PREFIX), network.records).ok_or_else(odd)
}

/// Converts the server's error status to a failure.
fn said(status: Status) -> Failure {
    let status = with_causes(status);
    let exit = Exit::of_code(status.code());
    let hint = refusal::details(&status).hint;
    let failure = Failure::new(exit, status.message());
    match exit {
        Exit::Unavailable if hint.is_empty() => {
            failure.hint("check the endpoint, and that the control plane runs there")
        }
        _ if hint.is_empty() => failure,
        _ => failure.hint(hint),
    }
}
