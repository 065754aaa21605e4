//! Which store to speak to, and how: the flags that `join` and the one-shot commands share.

use std::path::PathBuf;

use clap::Args;
use flatnet_controlplane::cli::etcd_args::EtcdArgs;
use flatnet_controlplane::client::credentials::Credentials;
use flatnet_controlplane::client::{ServerAddress, channel};
use flatnet_controlplane::endpoint::InvalidEndpoint;
pub use flatnet_controlplane::endpoint::{Endpoint, EndpointKind};
use flatnet_controlplane::store::etcd::EtcdStore;
use flatnet_proto::agent::v1::{GetStoreRequest, Store as StoreDocument};
use flatnet_proto::controlplane::v1::admin_client::AdminClient;
use tonic::transport::Channel;

use crate::local_api;
use crate::report::{Exit, Failure, chain};

/// Reads a list of endpoints: at least one, separated by blanks or commas.
pub fn endpoints(texts: &[String]) -> Result<Vec<Endpoint>, Failure> {
    let all = texts.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|text| !text.is_empty());
    let all = all
        .map(str::parse)
        .collect::<Result<Vec<Endpoint>, InvalidEndpoint>>()
        .map_err(|error| Failure::new(Exit::InvalidConfig, error.to_string()).hint(InvalidEndpoint::HINT))?;
    match all.split_first() {
        None => Err(Failure::new(Exit::Usage, "no endpoint given").hint(
            "name the etcd or control plane to use, e.g. http://192.168.33.10:2379 or grpcs://192.168.33.10:7443",
        )),
        Some((first, rest)) if rest.iter().any(|other| other.kind != first.kind) => {
            Err(Failure::new(Exit::Usage, "the endpoints are of two kinds")
                .hint("several endpoints are servers of one etcd, or of one control plane: all http(s) or all grpcs"))
        }
        Some(_) => Ok(all),
    }
}

/// The etcd at `endpoints`, by the flags `args`. Does not need it to be there.
pub fn open(args: &EtcdArgs, endpoints: &[Endpoint]) -> Result<EtcdStore, Failure> {
    args.open(endpoints.iter().map(|endpoint| endpoint.url.clone()).collect())
}

/// What the socket tells other commands about the store.
#[must_use]
pub fn document(args: &EtcdArgs, endpoints: &[Endpoint]) -> StoreDocument {
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    StoreDocument {
        endpoints: endpoints.iter().map(|endpoint| endpoint.url.clone()).collect(),
        etcd_prefix: args.etcd_prefix.clone(),
        cafile: path(&args.etcd_cafile),
        certfile: path(&args.etcd_certfile),
        keyfile: path(&args.etcd_keyfile),
        username: args.etcd_username.clone(),
        password_file: path(&args.etcd_password_file),
    }
}

/// What a one-shot command speaks to.
pub enum Target {
    /// An etcd, and the prefix at which the network `default` lives in it.
    Etcd(EtcdStore, String),
    /// A control plane's server, as administrator.
    Server(AdminClient<Channel>),
}

/// The servers of a control plane.
#[must_use]
pub fn servers(endpoints: &[Endpoint]) -> Vec<ServerAddress> {
    endpoints.iter().map(|endpoint| ServerAddress { host: endpoint.host.clone(), port: endpoint.port }).collect()
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
    /// The store, or the server before it.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_endpoints_are_of_one_kind() {
        let parse = |text: &str| endpoints(&[text.to_owned()]);
        assert_eq!(parse("grpcs://a,http://b").unwrap_err().exit(), Exit::Usage);
        assert_eq!(parse(" , ").unwrap_err().exit(), Exit::Usage);
        assert_eq!(parse("http://a,b:x").unwrap_err().exit(), Exit::InvalidConfig);
        assert_eq!(servers(&parse("grpcs://a,grpcs://[fd00::1]:1").unwrap()).len(), 2);
        assert_eq!(parse("http://proj_etcd_1:2379, proj_etcd_2").unwrap().len(), 2);
    }
}
