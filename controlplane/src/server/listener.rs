//! The listeners: TLS handshakes that must be quick, connections bounded in number by whose they are, and what the
//! handshake tells of the other end.
//!
//! There are three kinds, each with places of its own: handshakes under way, connections without a certificate, and
//! nodes and administrators. Nobody stands in another kind's line. In the first two kinds, a source address that comes
//! alone finds a place however many somebody else has taken.

use std::io::{Error, ErrorKind, Result};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::caller::Peer;
use super::registry::Registry;
use flatnet_plane::identity::{self, Holder, Identity};
use flatnet_plane::seats::{Seat, Seats, descriptors, source};

/// The time the first message of a handshake, the ClientHello, may take: it is one packet.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// The time that the rest of a handshake and waiting for a place may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// The most handshakes under way at a time, some 10 KB each. Beyond, the oldest of the address that has most gives way.
/// A node's takes some milliseconds.
const PENDING: usize = 1024;
/// The most connections without a certificate. Each costs some 50 KB and what [`super::STRANGERS_STREAMS`] allow. A
/// node that joins is done within a second.
const STRANGERS: usize = 256;
/// The time such a connection lasts at most.
const STRANGER_LIFETIME: Duration = Duration::from_secs(20);
/// The most connections of one node: its own, that of before a reboot or a rotation, and some more.
const OF_A_NODE: usize = 8;
/// The most connections of one administrator's certificate: scripts that run side by side.
const OF_AN_ADMIN: usize = 64;
/// The time for which a node whose rights have ended still hears why.
const HANG_UP_AFTER: Duration = Duration::from_secs(5);
/// The most connections that are ready and not yet taken.
const READY: usize = 64;

/// The server's side of TLS; replaced when its certificate is renewed.
pub type SharedConfig = Arc<RwLock<Arc<ServerConfig>>>;

/// The numbers of connections there may be, by this process's descriptors.
struct Places {
    pending: Arc<Seats<IpAddr>>,
    strangers: Arc<Seats<IpAddr>>,
    known: Arc<Seats<Identity>>,
    /// The descriptors for handshakes: one that lost its place has its own for a moment more.
    accepted: Arc<Semaphore>,
}

impl Places {
    /// Divides `descriptors`. An eighth of them never goes to remote ends, nor does the part that the HTTP listener may
    /// have: they are for the local administrator and the store.
    fn of(descriptors: usize) -> Self {
        let remote = descriptors.saturating_sub(descriptors / 8).saturating_sub(descriptors / 10).max(8);
        let (pending, strangers) = (PENDING.min(remote / 4), STRANGERS.min(remote / 4));
        let accepted = pending + pending / 4;
        Self {
            pending: Seats::new(pending),
            strangers: Seats::new(strangers),
            known: Seats::new(remote.saturating_sub(accepted + strangers)),
            accepted: Arc::new(Semaphore::new(accepted.min(Semaphore::MAX_PERMITS))),
        }
    }
}

/// The connections that get through their handshake.
pub struct Incoming {
    /// Nodes and administrators.
    pub known: ReceiverStream<Result<TlsConnection>>,
    /// Everybody else.
    pub strangers: ReceiverStream<Result<TlsConnection>>,
}

/// Starts accepting TLS connections, and returns those that get through their handshake.
pub fn tls(listener: TcpListener, config: SharedConfig, registry: Arc<Registry>) -> Incoming {
    let (known, known_receiver) = mpsc::channel(READY);
    let (strangers, strangers_receiver) = mpsc::channel(READY);
    let places = Arc::new(Places::of(descriptors()));
    tokio::spawn(async move {
        loop {
            // A descriptor is free within moments: a handshake that loses its place ends at once.
            let Ok(accepted) = Arc::clone(&places.accepted).acquire_owned().await else { return };
            let (tcp, address) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // There are no descriptors left, or the connection is gone already: the next one may do better.
                        tracing::debug!(%error, "cannot accept");
                        sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                () = known.closed() => return,
            };
            let address = address.ip().to_canonical();
            let Some(mut seat) = places.pending.take_newest(&source(address)) else { continue };
            let config = Arc::clone(&config.read().unwrap_or_else(PoisonError::into_inner));
            let (places, registry) = (Arc::clone(&places), Arc::clone(&registry));
            let (known, strangers) = (known.clone(), strangers.clone());
            tokio::spawn(async move {
                let let_in = async {
                    let (stream, holder) = shake_hands(tcp, config, address).await?;
                    let connection = places.seat(stream, address, holder, &registry).await?;
                    let sender = if connection.is_known { &known } else { &strangers };
                    // A closed channel means that the server is stopping.
                    sender.send(Ok(connection)).await.ok()
                };
                tokio::select! {
                    _ = let_in => {}
                    () = seat.lost() => {}
                }
                drop(accepted);
            });
        }
    });
    Incoming { known: ReceiverStream::new(known_receiver), strangers: ReceiverStream::new(strangers_receiver) }
}

async fn shake_hands(
    tcp: TcpStream,
    config: Arc<ServerConfig>,
    address: IpAddr,
) -> Option<(TlsStream<TcpStream>, Option<Holder>)> {
    // Small answers must not wait to be sent together.
    let _ = tcp.set_nodelay(true);
    let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp);
    let shaken = match timeout(HELLO_TIMEOUT, hello).await {
        Ok(Ok(hello)) => timeout(HANDSHAKE_TIMEOUT, hello.into_stream(config)).await,
        Ok(Err(error)) => Ok(Err(error)),
        Err(elapsed) => Err(elapsed),
    };
    match shaken {
        Ok(Ok(stream)) => {
            let holder = stream.get_ref().1.peer_certificates().and_then(|chain| identity::holder(chain.first()?));
            Some((stream, holder))
        }
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "handshake failed");
            None
        }
        Err(_) => None,
    }
}

impl Places {
    /// Takes a place among those of its kind. A node whose rights have ended is a stranger that is told so.
    async fn seat(
        &self,
        stream: TlsStream<TcpStream>,
        address: IpAddr,
        holder: Option<Holder>,
        registry: &Arc<Registry>,
    ) -> Option<TlsConnection> {
        let known = match &holder {
            Some(Holder { identity: identity @ Identity::Node(node), key_hash, .. }) => {
                let rights = (*node, key_hash.clone());
                (!registry.is_cut(*node, key_hash)).then(|| (identity.clone(), OF_A_NODE, Some(rights)))
            }
            Some(Holder { identity: identity @ Identity::Admin(_), .. }) => Some((identity.clone(), OF_AN_ADMIN, None)),
            _ => None,
        };
        let (is_known, ends): (bool, Ends) = match known {
            Some((identity, most, rights)) => {
                // `None`: all places are taken, and nobody has more of them.
                let seat = self.known.take(&identity, most)?;
                (true, Box::pin(end_of_known(seat, rights, Arc::clone(registry))))
            }
            None => {
                let group = source(address);
                let seat = timeout(HANDSHAKE_TIMEOUT, async {
                    loop {
                        let freed = self.strangers.freed();
                        if let Some(seat) = self.strangers.take(&group, usize::MAX) {
                            return seat;
                        }
                        freed.await;
                    }
                });
                let mut seat = seat.await.ok()?;
                (false, Box::pin(async move { drop(timeout(STRANGER_LIFETIME, seat.lost()).await) }))
            }
        };
        Some(TlsConnection { stream, peer: Peer::Remote { address, holder }, is_known, ends })
    }
}

/// Ends when the place is lost, or the node's rights are.
async fn end_of_known(
    mut seat: Seat<Identity>,
    rights: Option<(flatnet_model::NodeId, String)>,
    registry: Arc<Registry>,
) {
    let cut = async {
        match rights {
            Some((node, key_hash)) => registry.cut(node, &key_hash).await,
            None => std::future::pending().await,
        }
        sleep(HANG_UP_AFTER).await;
    };
    tokio::select! {
        () = seat.lost() => {}
        () = cut => {}
    }
}

/// A future that ends when a connection's time is up.
type Ends = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One connection over TLS.
pub struct TlsConnection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    is_known: bool,
    /// Holds the connection's place, and ends with it.
    ends: Ends,
}

impl Connected for TlsConnection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl TlsConnection {
    /// Returns an error once the connection's time is up. This is checked whatever is done next: HTTP/2 does not read
    /// while what it has to say cannot be written, so a client that never reads would stay.
    fn check_time(&mut self, cx: &mut Context<'_>) -> Result<()> {
        match self.ends.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => {
                // The future must not be polled again. The place stays its own until it is dropped, which is next.
                self.ends = Box::pin(std::future::ready(()));
                Err(Error::new(ErrorKind::TimedOut, "its time is up, or its place another one's"))
            }
        }
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        self.check_time(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        self.check_time(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.check_time(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.check_time(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Listens on the local socket at `path`, which only its owner may open.
pub fn bind_local(path: &Path) -> Result<std::os::unix::net::UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Returns every connection on the local socket, in the runtime in which this is called.
pub fn local(listener: std::os::unix::net::UnixListener) -> Result<impl Stream<Item = Result<LocalConnection>>> {
    Ok(futures::stream::unfold(UnixListener::from_std(listener)?, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| LocalConnection(stream));
        if accepted.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
        Some((accepted, listener))
    }))
}

/// One connection on the local socket.
pub struct LocalConnection(UnixStream);

impl Connected for LocalConnection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer::Local
    }
}

impl AsyncRead for LocalConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for LocalConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
