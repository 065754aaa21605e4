//! A server of a simulation: every service, and no listener. Dropping it is a crash where it stands.

use std::io::Result;
use std::net::IpAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::audit::Audit;
use super::caller::Peer;
use super::gate::Gate;
use super::witness::Witness;
use super::{Context, PKI, STREAMS, ServerError, grpc, probe, routes};
use crate::authority::Authority;
use flatnet_plane::clock;
use flatnet_plane::identity;
use flatnet_plane::store::Store;

/// Connections that are ready and not yet taken.
const READY: usize = 64;

/// The other end of a connection that a simulation makes.
#[derive(Clone, Debug)]
pub enum Stranger {
    /// Somebody on the server's machine.
    Local,
    /// A host, with the certificate it shows.
    Host(IpAddr, Option<CertificateDer<'static>>),
}

/// One server.
pub struct Replica {
    incoming: mpsc::Sender<Result<Connection>>,
    ca_hash: String,
    _tasks: JoinSet<()>,
}

impl Replica {
    /// Starts a server that gives nodes certificates for `node_lifetime`. Servers that share `dir` share its authority.
    pub async fn start<S: Store>(
        store: Arc<S>,
        prefix: &str,
        dir: &Path,
        node_lifetime: Duration,
    ) -> std::result::Result<Self, ServerError> {
        let io = |source| ServerError::Io { path: dir.to_owned(), source };
        flatnet_plane::files::create_dir(dir, 0o700).map_err(io)?;
        let authority = Authority::open(&dir.join(PKI))?;
        let ca_hash = authority.hash();
        let audit = Audit::open(dir).map_err(io)?;
        let context = Context::new(store, "memory", prefix.to_owned(), authority, (audit, Witness::open(dir)));
        let context = Arc::new(Context { node_lifetime, ..context });
        let mut tasks = JoinSet::new();
        let (registry, store) = (Arc::clone(&context.registry), Arc::clone(&context.store));
        tasks.spawn(async move { registry.run(store).await });
        tasks.spawn(probe(Arc::clone(&context)));
        let (incoming, connections) = mpsc::channel(READY);
        let routes = routes(&context).await.prepare();
        let serving = grpc(STREAMS)
            .layer(Gate::new(Arc::clone(&context.registry)))
            .add_routes(routes)
            .serve_with_incoming(ReceiverStream::new(connections));
        // Ends with the simulation's connections.
        tasks.spawn(async move { drop(serving.await) });
        Ok(Self { incoming, ca_hash, _tasks: tasks })
    }

    /// Returns `sha256:…` of the authority's certificate.
    #[must_use]
    pub fn ca_hash(&self) -> &str {
        &self.ca_hash
    }

    /// Takes a connection. Returns true if there was room for it and the certificate shown is good, which TLS would
    /// check.
    #[must_use]
    pub fn accept(&self, stream: DuplexStream, from: Stranger) -> bool {
        let peer = match from {
            Stranger::Local => Peer::Local,
            Stranger::Host(address, shown) => {
                let holder = shown.and_then(|certificate| identity::holder(&certificate));
                if holder.as_ref().is_some_and(|holder| holder.is_over(clock::now())) {
                    return false;
                }
                Peer::Remote { address, holder }
            }
        };
        self.incoming.try_send(Ok(Connection { stream, peer })).is_ok()
    }
}

struct Connection {
    stream: DuplexStream,
    peer: Peer,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
