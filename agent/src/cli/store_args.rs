//! Which store to speak to, and how: the flags that `join` and the one-shot commands share.

use std::net::{IpAddr, ToSocketAddrs};
use std::path::PathBuf;

use clap::Args;
use flatnet_controlplane::store::etcd::{EtcdOptions, EtcdStore};
use flatnet_proto::agent::v1::{GetStoreRequest, Store as StoreDocument};

use crate::local_api;
use crate::report::{Exit, Failure};

/// How to authenticate the store and to it.
#[derive(Args, Clone, Debug, Default)]
pub struct StoreArgs {
    /// Where the network `default` lives in etcd
    #[arg(long, value_name = "PREFIX", env = "FLATNET_ETCD_PREFIX", default_value = flatnet_model::keys::FLANNEL_PREFIX)]
    pub etcd_prefix: String,
    /// CA certificate (PEM) that signed etcd's certificate
    #[arg(long, value_name = "FILE", env = "FLATNET_ETCD_CAFILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// Our certificate (PEM) for etcd
    #[arg(long, value_name = "FILE", env = "FLATNET_ETCD_CERTFILE", requires = "etcd_keyfile")]
    pub etcd_certfile: Option<PathBuf>,
    /// The key (PEM) of that certificate
    #[arg(long, value_name = "FILE", env = "FLATNET_ETCD_KEYFILE", requires = "etcd_certfile")]
    pub etcd_keyfile: Option<PathBuf>,
    /// etcd user name
    #[arg(long, value_name = "NAME", env = "FLATNET_ETCD_USERNAME", requires = "etcd_password_file")]
    pub etcd_username: Option<String>,
    /// File with the password of that user
    #[arg(long, value_name = "FILE", env = "FLATNET_ETCD_PASSWORD_FILE", requires = "etcd_username")]
    pub etcd_password_file: Option<PathBuf>,
}

/// An etcd endpoint: scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `http://host:2379`, as etcd's client takes it.
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
                .hint("an endpoint looks like http://192.168.33.10:2379 or https://etcd.example:2379")
        };
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        match scheme {
            "http" | "https" => {}
            "grpc" | "grpcs" => {
                return Err(Failure::new(
                    Exit::Unsupported,
                    format!("endpoint {text:?}: this version joins an etcd, not a control plane"),
                )
                .hint("name an etcd endpoint, e.g. http://192.168.33.10:2379"));
            }
            _ => return Err(invalid("the scheme must be http or https")),
        }
        let rest = rest.trim_end_matches('/');
        let (host, port) = match rest.strip_prefix('[') {
            Some(bracketed) => {
                let (host, port) = bracketed.split_once(']').ok_or_else(|| invalid("'[' without ']'"))?;
                (host, port.strip_prefix(':').or_else(|| port.is_empty().then_some("")))
            }
            None => rest.split_once(':').map_or((rest, Some("")), |(host, port)| (host, Some(port))),
        };
        let port = match port {
            // etcd's registered client port (IANA: etcd-client).
            Some("") => 2379,
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
        Ok(Self { url: format!("{scheme}://{shown}:{port}"), host: host.to_owned(), port })
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
    if all.is_empty() {
        return Err(
            Failure::new(Exit::Usage, "no endpoint given").hint("name the etcd to use, e.g. http://192.168.33.10:2379")
        );
    }
    Ok(all)
}

impl StoreArgs {
    /// A store at `endpoints` with these credentials. Does not need the store to be there.
    pub fn open(&self, endpoints: &[Endpoint]) -> Result<EtcdStore, Failure> {
        let file = |flag, path: &Option<PathBuf>| path.as_ref().map(|path| read_file(flag, path)).transpose();
        let certificate = file("etcd-certfile", &self.etcd_certfile)?;
        let key = file("etcd-keyfile", &self.etcd_keyfile)?;
        let password = file("etcd-password-file", &self.etcd_password_file)?;
        let password = password.map(|bytes| String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_owned());
        let options = EtcdOptions {
            endpoints: endpoints.iter().map(|endpoint| endpoint.url.clone()).collect(),
            ca: file("etcd-cafile", &self.etcd_cafile)?,
            identity: certificate.zip(key),
            user: self.etcd_username.clone().zip(password),
        };
        EtcdStore::connect(options).map_err(|error| {
            Failure::new(Exit::InvalidConfig, error.to_string())
                .hint("check the endpoints and the --etcd-… flags: certificates and keys are PEM files")
        })
    }

    /// What the socket tells other commands about the store.
    #[must_use]
    pub fn document(&self, endpoints: &[Endpoint]) -> StoreDocument {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        StoreDocument {
            endpoints: endpoints.iter().map(|endpoint| endpoint.url.clone()).collect(),
            etcd_prefix: self.etcd_prefix.clone(),
            cafile: path(&self.etcd_cafile),
            certfile: path(&self.etcd_certfile),
            keyfile: path(&self.etcd_keyfile),
            username: self.etcd_username.clone(),
            password_file: path(&self.etcd_password_file),
        }
    }
}

/// The store of a one-shot command: named by flags, or else the running agent's.
#[derive(Args, Clone, Debug)]
pub struct StoreTarget {
    /// etcd to use; without it, the running agent's
    #[arg(long, value_name = "ENDPOINT", env = "FLATNET_ENDPOINT", value_delimiter = ',')]
    pub endpoint: Vec<String>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    run_dir: super::RunDir,
}

impl StoreTarget {
    /// The store, and the prefix at which the network `default` lives in it.
    pub async fn open(&self) -> Result<(EtcdStore, String), Failure> {
        if !self.endpoint.is_empty() {
            return Ok((self.store.open(&endpoints(&self.endpoint)?)?, self.store.etcd_prefix.clone()));
        }
        let run_dir = &self.run_dir.run_dir;
        let mut client = local_api::connect(run_dir).await.map_err(|failure| {
            Failure::new(Exit::Unavailable, "no --endpoint given, and no agent runs here whose store could be used")
                .hint("name the store, e.g. --endpoint http://192.168.33.10:2379")
                .caused_by(failure)
        })?;
        let reply = client.get_store(GetStoreRequest {}).await.map_err(|status| local_api::refused(&status))?;
        let document = reply.into_inner();
        let args = StoreArgs {
            etcd_prefix: document.etcd_prefix,
            etcd_cafile: document.cafile.map(PathBuf::from),
            etcd_certfile: document.certfile.map(PathBuf::from),
            etcd_keyfile: document.keyfile.map(PathBuf::from),
            etcd_username: document.username,
            etcd_password_file: document.password_file.map(PathBuf::from),
        };
        Ok((args.open(&endpoints(&document.endpoints)?)?, args.etcd_prefix))
    }
}

/// Reads a file named by a flag.
pub fn read_file(flag: &str, path: &PathBuf) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| {
        Failure::new(Exit::InvalidConfig, format!("--{flag}: cannot read {}", path.display())).caused_by(error)
    })
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
        assert_eq!(Endpoint::parse("grpcs://a:7443").unwrap_err().exit(), Exit::Unsupported);
    }
}
