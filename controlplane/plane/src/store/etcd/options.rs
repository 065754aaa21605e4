//! The options for reaching an etcd.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Channel, Client, ConnectOptions};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Endpoint as Transport, Uri};

use super::trust;
use crate::endpoint::{Endpoint as Address, EndpointKind, InvalidEndpoint};
use crate::store::CALL_TIMEOUT;

/// etcd's answer to a password while its authentication is off. Go's client then goes on without it, and so do we.
const AUTH_NOT_ENABLED: &str = "authentication is not enabled";

/// The time for which one of a name's addresses is tried alone (RFC 8305 §5).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// The options for reaching an etcd.
#[derive(Clone, Default)]
pub struct EtcdOptions {
    /// The servers, `http(s)://host:port`, where no scheme means http; at least one. The first is tried first.
    pub endpoints: Vec<String>,
    /// PEM of the CA that signed the servers' certificates, or of these themselves; enough on its own.
    pub ca: Option<Vec<u8>>,
    /// PEM of the client's certificate and key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// User and password.
    pub user: Option<(String, String)>,
    /// Reads all of it again, before every connection that is made.
    pub again: Option<Again>,
}

/// Reads the options again from where they came: files are replaced while a client runs.
#[derive(Clone)]
pub struct Again(Arc<dyn Fn() -> Result<EtcdOptions, String> + Send + Sync>);

impl Again {
    /// Reads the options by `read`, which returns the reason if it cannot.
    pub fn new(read: impl Fn() -> Result<EtcdOptions, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    pub(super) fn options(&self) -> Result<EtcdOptions, String> {
        (self.0)()
    }
}

/// A file of the options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// The authorities' certificates.
    Ca,
    /// Our certificate.
    Certificate,
    /// Our key.
    Key,
}

/// Options that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidOptions {
    /// The file that is to blame, if it is one.
    pub file: Option<File>,
    /// The reason.
    pub message: String,
    /// The hint what to do, with FILE for the file's name; empty: nothing in particular.
    pub hint: String,
}

impl InvalidOptions {
    pub(super) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { file: None, message: message.into(), hint: hint.into() }
    }

    pub(super) fn of(file: File, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { file: Some(file), ..Self::new(message, hint) }
    }
}

/// One server and how to speak with it.
pub(super) struct Endpoint {
    /// Scheme, host and port.
    pub(super) url: String,
    address: Address,
    transport: Transport,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl EtcdOptions {
    pub(super) fn endpoints(&self) -> Result<Vec<Endpoint>, InvalidOptions> {
        if self.endpoints.is_empty() {
            return Err(InvalidOptions::new("no etcd endpoint is given", ""));
        }
        let addresses = self.endpoints.iter().map(|text| address(text)).collect::<Result<Vec<_>, _>>()?;
        let encrypted = addresses.iter().find(|address| address.is_encrypted());
        let config = encrypted.map(|address| self.tls(address)).transpose()?;
        addresses.into_iter().map(|address| self.endpoint(address, config.as_ref())).collect()
    }

    fn endpoint(&self, address: Address, config: Option<&Arc<ClientConfig>>) -> Result<Endpoint, InvalidOptions> {
        let url = &address.url;
        let tls = match config.filter(|_| address.is_encrypted()) {
            None if self.ca.is_some() || self.identity.is_some() => {
                return Err(InvalidOptions::new(
                    format!("certificates are given but {url} is not encrypted: write https://"),
                    "",
                ));
            }
            None => None,
            Some(config) => Some((Arc::clone(config), server_name(&address)?)),
        };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let invalid =
            |_| InvalidOptions::new(format!("{url} is no address that can be spoken to"), InvalidEndpoint::HINT);
        let authority = address.authority();
        let origin: Uri = format!("{scheme}://{authority}").parse().map_err(|_| invalid(()))?;
        // The transport's URL has http because encrypting is left to the connector; the server is told the origin.
        let transport = Transport::from_shared(format!("http://{authority}")).map_err(|_| invalid(()))?;
        let transport = transport.origin(origin).connect_timeout(CALL_TIMEOUT);
        Ok(Endpoint { url: url.clone(), transport, tls, address })
    }

    fn tls(&self, address: &Address) -> Result<Arc<ClientConfig>, InvalidOptions> {
        let Some(ca) = &self.ca else {
            return Err(InvalidOptions::new(
                format!("{address} needs the CA that signed the server's certificate"),
                "--etcd-cafile CA.pem",
            ));
        };
        trust::client(ca, self.identity.as_ref().map(|(certificate, key)| (certificate.as_slice(), key.as_slice())))
    }
}

fn address(text: &str) -> Result<Address, InvalidOptions> {
    let address: Address =
        text.parse().map_err(|error: InvalidEndpoint| InvalidOptions::new(error.to_string(), InvalidEndpoint::HINT))?;
    match address.kind {
        EndpointKind::Etcd => Ok(address),
        EndpointKind::ControlPlane => Err(InvalidOptions::new(
            format!("{address} is a control plane, not an etcd"),
            "an etcd is http:// or https://",
        )),
    }
}

/// Returns the name the server's certificate must be for: a name without the dot that ends it, an address without its
/// interface.
fn server_name(address: &Address) -> Result<ServerName<'static>, InvalidOptions> {
    let host = address.host.split('%').next().unwrap_or_default().trim_end_matches('.');
    ServerName::try_from(host.to_owned()).map_err(|_| {
        InvalidOptions::new(
            format!("no certificate can be for {host:?}"),
            "name the server by a name or address of its certificate",
        )
    })
}

impl Endpoint {
    /// Makes a client of this server alone. Without a user nothing is sent yet.
    pub(super) async fn connect(&self, user: Option<&(String, String)>) -> Result<Client, etcd_client::Error> {
        match Client::from_channel(self.channel(), Some(connect_options(user))).await {
            Err(etcd_client::Error::GRpcStatus(status)) if status.message().contains(AUTH_NOT_ENABLED) => {
                Client::from_channel(self.channel(), Some(connect_options(None))).await
            }
            result => result,
        }
    }

    /// Makes a connection with the first call, and again after it broke.
    fn channel(&self) -> Channel {
        let (host, port, tls) = (self.address.host.clone(), self.address.port, self.tls.clone());
        let connector = tower::service_fn(move |_: Uri| {
            let (host, tls) = (host.clone(), tls.clone());
            async move {
                let tcp = dial(&host, port).await?;
                tcp.set_nodelay(true)?;
                let stream: Box<dyn Stream> = match tls {
                    Some((config, name)) => Box::new(TlsConnector::from(config).connect(name, tcp).await?),
                    None => Box::new(tcp),
                };
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        Channel::Tonic(self.transport.connect_with_connector_lazy(connector))
    }
}

/// A stream of bytes: TCP, with or without TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects to the first of a name's addresses that answers: a dead one must not hold up the others.
async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses = tokio::net::lookup_host((host, port)).await?;
    let tries = (0_u32..).zip(addresses).map(|(before, address)| async move {
        tokio::time::sleep(NEXT_ADDRESS_AFTER * before).await;
        TcpStream::connect(address).await
    });
    let mut tries: FuturesUnordered<_> = tries.collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    while let Some(tried) = tries.next().await {
        match tried {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn connect_options(user: Option<&(String, String)>) -> ConnectOptions {
    // No HTTP/2 pings: an etcd server drops a client that pings more often than every 5 s
    // (`--grpc-keepalive-min-time`). Calls have their deadline, and a quiet watch is probed (`watch.rs`).
    let options = ConnectOptions::new()
        // A member cut off from the majority then refuses calls rather than staying silent.
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    match user {
        Some((name, password)) => options.with_user(name, password),
        None => options,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(endpoint: &str, ca: Option<&str>) -> Result<Vec<String>, InvalidOptions> {
        let options = EtcdOptions {
            endpoints: vec![endpoint.to_owned()],
            ca: ca.map(|ca| ca.as_bytes().to_vec()),
            ..EtcdOptions::default()
        };
        Ok(options.endpoints()?.into_iter().map(|endpoint| endpoint.url).collect())
    }

    #[test]
    fn whatever_can_be_read_as_an_etcds_endpoint_can_be_spoken_to() {
        for text in
            ["10.0.0.1", "http://proj_etcd_1:2379", "HTTP://Etcd.Example.", "2001:db8::1", "http://[fe80::1%eth0]:2379"]
        {
            let url = text.parse::<Address>().unwrap().url;
            assert_eq!(connect(text, None).unwrap(), [url]);
        }
        for bad in ["", "ftp://x:1", "http://x/y", "u@h"] {
            let error = connect(bad, None).unwrap_err();
            assert!(!error.hint.is_empty() && error.file.is_none(), "{error}");
        }
        assert!(connect("grpcs://x", None).unwrap_err().to_string().contains("not an etcd"));
    }

    #[test]
    fn certificates_are_never_given_to_a_plain_connection_nor_missing_on_an_encrypted_one() {
        let key = rcgen::KeyPair::generate().unwrap();
        let ca = rcgen::CertificateParams::new(vec!["x".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
        assert!(connect("http://x:1", Some(&ca)).unwrap_err().to_string().contains("write https://"));
        assert!(connect("https://x:1", None).unwrap_err().to_string().contains("needs the CA"));
        for text in ["https://x:1", "https://proj_etcd_1", "https://[fe80::1%eth0]", "https://etcd.example."] {
            assert!(connect(text, Some(&ca)).is_ok(), "{text}");
        }
        assert_eq!(connect("https://x:1", Some("pem")).unwrap_err().file, Some(File::Ca));
    }
}
