//! Which store to speak to, and how: the flags that `join` and the one-shot commands share.

use std::net::{IpAddr, ToSocketAddrs};
use std::path::PathBuf;

use clap::Args;
use flatnet_controlplane::cli::etcd_args::EtcdArgs;
use flatnet_controlplane::client::credentials::Credentials;
use flatnet_controlplane::client::{ServerAddress, channel};
use flatnet_controlplane::store::etcd::EtcdStore;
use flatnet_proto::agent::v1::{GetStoreRequest, Store as StoreDocument};
use flatnet_proto::controlplane::v1::admin_client::AdminClient;
use tonic::transport::Channel;

use crate::local_api;
use crate::report::{Exit, Failure, chain};

/// What is at an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointKind {
    /// An etcd server.
    Etcd,
    /// A control plane's server.
    ControlPlane,
}

/// An endpoint: scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// What is there.
    pub kind: EndpointKind,
    /// `http://host:2379`, as etcd's client takes it; `grpcs://host:7443`.
    pub url: String,
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Endpoint {
    /// Reads one endpoint; without a scheme it is http.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let invalid = |why: &str| {
            Failure::new(Exit::InvalidConfig, format!("endpoint {:?}: {why}", flatnet_model::keys::excerpt(text)))
                .hint("an endpoint looks like http://192.168.33.10:2379, https://etcd.example:2379 or grpcs://192.168.33.10:7443")
        };
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        // etcd's registered client port (IANA: etcd-client), and the one a control plane listens on by default.
        let (kind, default_port) = match scheme {
            "http" | "https" => (EndpointKind::Etcd, 2379),
            "grpcs" => (EndpointKind::ControlPlane, 7443),
            "grpc" => return Err(invalid("a control plane is spoken to over TLS only: grpcs://")),
            _ => return Err(invalid("the scheme must be http, https or grpcs")),
        };
        let rest = rest.trim_end_matches('/');
        let (host, port) = match rest.strip_prefix('[') {
            Some(bracketed) => {
                let (host, port) = bracketed.split_once(']').ok_or_else(|| invalid("'[' without ']'"))?;
                (host, port.strip_prefix(':').or_else(|| port.is_empty().then_some("")))
            }
            None => rest.split_once(':').map_or((rest, Some("")), |(host, port)| (host, Some(port))),
        };
        let port = match port {
            Some("") => default_port,
            Some(port) => {
                port.parse().ok().filter(|port| *port != 0).ok_or_else(|| invalid("the port must be in 1..=65535"))?
            }
            None => return Err(invalid("cannot read the part after ']'")),
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:%".contains(&byte);
        if host.is_empty() || !host.bytes().all(plain) {
            return Err(invalid("no host name or address"));
        }
        let shown = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        Ok(Self { kind, url: format!("{scheme}://{shown}:{port}"), host: host.to_owned(), port })
    }

    /// Its addresses, as the resolver has them now; empty if it has none. Blocks on the resolver.
    #[must_use]
    pub fn resolve(&self) -> Vec<IpAddr> {
        (self.host.as_str(), self.port)
            .to_socket_addrs()
            .map(|all| all.map(|address| address.ip()).collect())
            .unwrap_or_default()
    }
}

/// Reads a list of endpoints: at least one, separated by blanks or commas.
pub fn endpoints(texts: &[String]) -> Result<Vec<Endpoint>, Failure> {
    let all = texts.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|text| !text.is_empty());
    let all = all.map(Endpoint::parse).collect::<Result<Vec<_>, _>>()?;
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
    fn an_endpoint_without_scheme_or_port_is_plain_etcd() {
        assert_eq!(Endpoint::parse("10.0.0.1").unwrap().url, "http://10.0.0.1:2379");
        assert_eq!(Endpoint::parse("https://[fd00::1]:4001/").unwrap().url, "https://[fd00::1]:4001");
        assert_eq!(Endpoint::parse("[fd00::1]").unwrap().port, 2379);
    }

    #[test]
    fn a_bad_endpoint_says_what_is_wrong() {
        for bad in ["", "ftp://a", "http://", "a:0", "a:70000", "[::1", "a b", "http://a/path"] {
            assert_eq!(Endpoint::parse(bad).unwrap_err().exit(), Exit::InvalidConfig, "{bad}");
        }
        assert_eq!(Endpoint::parse("grpc://a:7443").unwrap_err().exit(), Exit::InvalidConfig, "never without TLS");
    }

    #[test]
    fn a_control_planes_endpoint_is_told_from_an_etcds() {
        let endpoint = Endpoint::parse("grpcs://vm0").unwrap();
        assert_eq!((endpoint.kind, endpoint.port), (EndpointKind::ControlPlane, 7443));
        assert_eq!(endpoints(&["grpcs://a,http://b".to_owned()]).unwrap_err().exit(), Exit::Usage);
        assert_eq!(servers(&endpoints(&["grpcs://a,grpcs://[fd00::1]:1".to_owned()]).unwrap()).len(), 2);
    }
}
