//! The flags that say which store to speak to, and how. `join` and the one-shot commands share them.

use std::path::PathBuf;

use clap::Args;
use flatnet_plane::client::credentials::Credentials;
use flatnet_plane::client::{ServerAddress, channel};
use flatnet_plane::endpoint::{Endpoint, EndpointKind};
use flatnet_plane::etcd_args::EtcdArgs;
use flatnet_plane::store::etcd::EtcdStore;
use flatnet_proto::agent::v1::GetStoreRequest;
use flatnet_proto::controlplane::v1::admin_client::AdminClient;
use tonic::transport::Channel;

use crate::report::{Exit, Failure, chain};
use crate::serve::local_api;
use crate::store::store_endpoints::{endpoints, open, servers};

/// The control plane that a one-shot command speaks to.
pub enum Target {
    /// An etcd, and the prefix at which the network `default` lives in it.
    Etcd(EtcdStore, String),
    /// A control plane's server, as administrator.
    Server(AdminClient<Channel>),
}

/// The store of a one-shot command: named by flags, or else the running agent's.
#[derive(Args, Clone, Debug)]
pub struct StoreTarget {
    /// etcd or control plane to use; without it, the running agent's
    #[arg(long, value_name = "ENDPOINT", env = "FLATNET_ENDPOINT", value_delimiter = ',')]
    pub endpoint: Vec<String>,
    /// An administrator's key and certificates (PEM), for a control plane: `controlplane admin create` writes them
    #[arg(long, value_name = "FILE", env = "FLATNET_CREDENTIALS")]
    credentials: Option<PathBuf>,
    #[command(flatten)]
    store: EtcdArgs,
    #[command(flatten)]
    run_dir: super::RunDir,
}

impl StoreTarget {
    /// Opens the store, or a client of the server before it.
    pub async fn open(&self) -> Result<Target, Failure> {
        if !self.endpoint.is_empty() {
            return self.open_at(&self.store, &endpoints(&self.endpoint)?);
        }
        let run_dir = &self.run_dir.run_dir;
        let mut client = local_api::connect(run_dir).await.map_err(|failure| {
            Failure::new(Exit::Unavailable, "no --endpoint given, and no agent runs here whose store could be used")
                .hint("name the store, e.g. --endpoint http://192.168.33.10:2379")
                .caused_by(failure)
        })?;
        let reply = client.get_store(GetStoreRequest {}).await.map_err(|status| local_api::refused(&status))?;
        let document = reply.into_inner();
        let args = EtcdArgs {
            etcd_prefix: document.etcd_prefix,
            etcd_cafile: document.cafile.map(PathBuf::from),
            etcd_certfile: document.certfile.map(PathBuf::from),
            etcd_keyfile: document.keyfile.map(PathBuf::from),
            etcd_username: document.username,
            etcd_password_file: document.password_file.map(PathBuf::from),
        };
        self.open_at(&args, &endpoints(&document.endpoints)?)
    }

    fn open_at(&self, args: &EtcdArgs, endpoints: &[Endpoint]) -> Result<Target, Failure> {
        let servers = servers(endpoints);
        match (endpoints.first().map(|endpoint| endpoint.kind), servers.first()) {
            (Some(EndpointKind::ControlPlane), Some(server)) => self.open_server(server),
            _ => Ok(Target::Etcd(open(args, endpoints)?, args.etcd_prefix.clone())),
        }
    }

    fn open_server(&self, server: &ServerAddress) -> Result<Target, Failure> {
        let path = self.credentials.as_ref().ok_or_else(|| {
            Failure::new(Exit::Unsupported, "a control plane's networks are its administrators'")
                .hint("--credentials FILE, as `controlplane admin create` writes it on the server; there: controlplane network …")
        })?;
        let invalid = |error: &(dyn std::error::Error + 'static)| {
            Failure::new(Exit::InvalidConfig, format!("--credentials: cannot use {}", path.display()))
                .caused_by(chain(error))
        };
        let credentials = Credentials::of_file(path).map_err(|error| invalid(&error))?;
        let channel = channel::tls(server, credentials.client_config()).map_err(|error| invalid(error.as_ref()))?;
        Ok(Target::Server(AdminClient::new(channel)))
    }
}
