//! Connections: TLS to a server, or its local socket.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use super::ServerAddress;
use crate::tls;

/// The longest time connecting may take, the handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A server that does not answer a ping within this time is gone. Pings are sent at the same interval, so an agent is
/// at another server within 5 s.
const PING_EVERY: Duration = Duration::from_secs(2);

/// The ways to reach servers.
#[derive(Clone, Default)]
pub enum Transport {
    /// By TLS over TCP.
    #[default]
    Tls,
    /// By the connections that a simulation makes.
    #[cfg(feature = "simulation")]
    Simulated(Arc<dyn crate::simulation::Dial>),
}

impl Transport {
    /// Makes a connection to `server` with the first call, and again after it broke. `shown` is the certificate in
    /// `config`.
    pub fn channel(
        &self,
        server: &ServerAddress,
        config: Arc<ClientConfig>,
        shown: Option<&CertificateDer<'static>>,
    ) -> Result<Channel, Box<dyn Error + Send + Sync>> {
        match self {
            Self::Tls => {
                let _in_config = shown;
                tls(server, config)
            }
            #[cfg(feature = "simulation")]
            Self::Simulated(dial) => Ok(crate::simulation::channel(dial, server, shown, PING_EVERY)),
        }
    }
}

/// Makes a connection to `server` with the first call, and again after it broke.
pub fn tls(server: &ServerAddress, config: Arc<ClientConfig>) -> Result<Channel, Box<dyn Error + Send + Sync>> {
    let connector = TlsConnector::from(config);
    let name = tls::server_name()?;
    let ServerAddress { host, port } = server.clone();
    // This URL is only for the request's header; the connector decides where it goes.
    let endpoint = Endpoint::from_shared(format!("http://{}:{port}", tls_authority(&host)))?
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (connector, name, host) = (connector.clone(), name.clone(), host.clone());
        async move {
            let connect = async {
                let tcp = TcpStream::connect((host.as_str(), port)).await?;
                tcp.set_nodelay(true)?;
                connector.connect(name, tcp).await
            };
            match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
                Ok(Ok(stream)) => Ok(TokioIo::new(stream)),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "connecting took too long")),
            }
        }
    })))
}

fn tls_authority(host: &str) -> String {
    if host.contains(':') { format!("[{}]", host.split('%').next().unwrap_or(host)) } else { host.to_owned() }
}

/// Makes a connection to the server on this machine whose socket is at `path`.
pub fn local(path: &Path) -> Channel {
    let path: PathBuf = path.to_owned();
    // A socket has no name to put into the request.
    Endpoint::from_static("http://controlplane").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    }))
}

/// Returns the same status, with the cause of the transport's failure in its message.
#[must_use]
pub fn with_causes(status: Status) -> Status {
    if !status.details().is_empty() || !matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal) {
        return status;
    }
    let mut causes = Vec::new();
    let mut next = status.source();
    while let Some(error) = next {
        causes.push(error.to_string());
        next = error.source();
    }
    causes.dedup();
    match causes.last() {
        // The transport's own layers say nothing; the last cause is what happened.
        Some(cause) => Status::new(status.code(), cause.clone()),
        None => status,
    }
}
