//! A server in this process and nodes that reach it over TLS.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flatnet_controlplane::server::{self, SOCKET, Server, ServerOptions};
use flatnet_model::keys::{FLANNEL_PREFIX, NetworkKeys};
use flatnet_model::state::{ConfigState, NetworkState};
use flatnet_model::{
    BackendData, BackendKind, HostRanges, InstanceNonce, IpFamily, NetworkName, NodeId, Owner, Publication, Vni,
    vtep_mac,
};
use flatnet_plane::allocate::{AcquireError, Claim, ClaimRequest};
use flatnet_plane::client::credentials::Credentials;
use flatnet_plane::client::{Remote, RemoteOptions, ServerAddress, channel};
use flatnet_plane::flannel::decode_config;
use flatnet_plane::plane::ControlPlane;
use flatnet_plane::random::OsRandom;
use flatnet_plane::store::memory::MemoryStore;
use flatnet_proto::controlplane::v1::admin_client::AdminClient;
use flatnet_proto::controlplane::v1::node_client::NodeClient;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use crate::support::ScratchDir;

/// The network of these tests, as flannel's JSON.
pub const CONFIG: &[u8] = br#"{"Network":"10.50.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#;

/// A server that ends with the test.
pub struct Fleet {
    pub store: MemoryStore,
    pub dir: ScratchDir,
    pub address: SocketAddr,
    pub ca_hash: String,
    authority: Option<(PathBuf, PathBuf)>,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<()>>,
}

pub fn keys() -> NetworkKeys {
    NetworkKeys::new(&NetworkName::default_network(), FLANNEL_PREFIX)
}

impl Fleet {
    /// Starts a server with the network `default`.
    pub async fn start() -> Self {
        let fleet = Self::start_empty().await;
        fleet.store.put(keys().config(), CONFIG, None);
        fleet.store.put("/flatnet/catalog", "{}", None);
        fleet
    }

    /// Starts a server with nothing in the store.
    pub async fn start_empty() -> Self {
        let (store, dir) = (MemoryStore::new(), ScratchDir::new("server"));
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (ca_hash, authority) = (String::new(), None);
        let mut fleet = Self { store, dir, authority, address: any, ca_hash, stop: None, serving: None };
        fleet.serve().await;
        fleet
    }

    /// Goes on with the authority in `certificate` and `key`, PEM files.
    pub async fn change_authority(&mut self, certificate: PathBuf, key: PathBuf) {
        self.stop().await;
        self.authority = Some((certificate, key));
        self.serve().await;
    }

    /// Serves at the same address with the same directory.
    pub async fn serve(&mut self) {
        let options = ServerOptions {
            store: Arc::new(self.store.client()),
            store_name: "memory",
            embedded: None,
            prefix: FLANNEL_PREFIX.to_owned(),
            data_dir: self.dir.path().join("data"),
            authority: self.authority.clone(),
            listen: self.address,
            http_listen: None,
        };
        let server = Server::open(options).await.unwrap();
        (self.address, self.ca_hash) = (server.address().unwrap(), server.ca_hash());
        let (stop, stopped) = oneshot::channel();
        self.stop = Some(stop);
        self.serving = Some(tokio::spawn(async move {
            server.serve(async { stopped.await.unwrap_or_default() }).await.unwrap();
        }));
    }

    /// Starts another server on the same store with the same authority, until the test ends; returns where it listens,
    /// and its administration.
    pub async fn replica(&self) -> (ServerAddress, AdminClient<Channel>) {
        let data_dir = self.dir.path().join("replica");
        std::fs::create_dir_all(data_dir.join("pki")).unwrap();
        for file in std::fs::read_dir(self.dir.path().join("data/pki")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), data_dir.join("pki").join(file.file_name())).unwrap();
        }
        let options = ServerOptions {
            store: Arc::new(self.store.client()),
            store_name: "memory",
            embedded: None,
            prefix: FLANNEL_PREFIX.to_owned(),
            data_dir: data_dir.clone(),
            authority: None,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            http_listen: None,
        };
        let server = Server::open(options).await.unwrap();
        assert_eq!(server.ca_hash(), self.ca_hash);
        let address = server.address().unwrap();
        tokio::spawn(server.serve(std::future::pending()));
        let server = ServerAddress { host: address.ip().to_string(), port: address.port() };
        (server, AdminClient::new(channel::local(&data_dir.join(SOCKET))))
    }

    /// Ends the server.
    pub async fn stop(&mut self) {
        drop(self.stop.take());
        self.serving.take().unwrap().await.unwrap();
    }

    pub async fn token(&self, uses: u32) -> String {
        server::create_token(&self.store, Duration::from_secs(3600), uses).await.unwrap().token
    }

    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(channel::local(&self.dir.path().join("data").join(SOCKET)))
    }

    pub fn server(&self) -> ServerAddress {
        ServerAddress { host: self.address.ip().to_string(), port: self.address.port() }
    }

    /// Makes a node that has not joined yet.
    pub fn newcomer(&self, number: u8, token: Option<&str>) -> Node {
        let dir = self.dir.path().join(format!("node{number}"));
        std::fs::create_dir_all(&dir).unwrap();
        let options = RemoteOptions {
            servers: vec![self.server()],
            dir: dir.clone(),
            node: NodeId::new(u128::from(number)),
            name: format!("node{number}"),
            token: token.map(str::to_owned),
            ca_hash: Some(self.ca_hash.clone()),
        };
        let owner = Owner {
            node: options.node,
            name: options.name.clone(),
            nonce: InstanceNonce::new(u128::from(number) + 1000),
        };
        Node { remote: Remote::new(options).unwrap(), owner, dir, number }
    }

    /// Makes a node that joined and is present.
    pub async fn node(&self, number: u8) -> Node {
        let token = self.token(1).await;
        let node = self.newcomer(number, Some(&token));
        node.remote.announce(&node.owner, &HostRanges::default()).await.unwrap();
        node
    }
}

/// One host.
pub struct Node {
    pub remote: Remote,
    pub owner: Owner,
    pub dir: PathBuf,
    pub number: u8,
}

impl Node {
    /// Returns the publication of the node.
    pub fn publication(&self) -> Publication {
        let vni = Vni::new(7).unwrap();
        Publication {
            public_ip: Some(Ipv4Addr::new(192, 0, 2, self.number)),
            public_ipv6: None,
            backend: BackendKind::Vxlan,
            data: BackendData::Vxlan { vni: Some(vni), mac: vtep_mac(self.owner.node, vni, IpFamily::V4) },
            data_v6: BackendData::None,
            besides: Vec::new(),
        }
    }

    pub fn request(&self) -> ClaimRequest {
        ClaimRequest {
            keys: keys(),
            owner: self.owner.clone(),
            publication: self.publication(),
            wanted: Vec::new(),
            previous: None,
            ttl: Duration::from_secs(3600),
            adopt: true,
            known: None,
        }
    }

    pub async fn acquire(&self) -> Claim {
        self.try_acquire(&self.request()).await.unwrap()
    }

    /// Returns this node as it reaches another server, with the certificate it has.
    pub fn at(&self, server: ServerAddress, ca_hash: &str) -> Self {
        let remote = Remote::new(RemoteOptions {
            servers: vec![server],
            dir: self.dir.clone(),
            node: self.owner.node,
            name: self.owner.name.clone(),
            token: None,
            ca_hash: Some(ca_hash.to_owned()),
        });
        Self { remote: remote.unwrap(), owner: self.owner.clone(), dir: self.dir.clone(), number: self.number }
    }

    pub async fn try_acquire(&self, request: &ClaimRequest) -> Result<Claim, AcquireError> {
        self.remote.acquire(request, &state(), &mut OsRandom).await
    }

    /// Makes a client with its certificate, used by hand: for calls that no agent makes.
    pub fn raw(&self, fleet: &Fleet) -> NodeClient<Channel> {
        let credentials = Credentials::read(&self.dir).unwrap().unwrap();
        NodeClient::new(channel::tls(&fleet.server(), credentials.client_config()).unwrap())
    }

    /// Makes a client with its certificate that acts as an administrator, which the node is not.
    pub fn raw_admin(&self, fleet: &Fleet) -> AdminClient<Channel> {
        let credentials = Credentials::read(&self.dir).unwrap().unwrap();
        AdminClient::new(channel::tls(&fleet.server(), credentials.client_config()).unwrap())
    }
}

/// Returns the network as an agent knows it.
fn state() -> NetworkState {
    let (config, _) = decode_config(CONFIG).unwrap();
    NetworkState { config: ConfigState::Valid(config), ..NetworkState::default() }
}
