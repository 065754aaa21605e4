//! Connections: TLS handshakes that must be quick, bounded in number, and what they say of the other end.

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
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::caller::Peer;
use crate::pki;

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections of whoever showed no certificate, handshakes under way among them: each costs some 50 KB. Whoever joins is
/// done within a second.
const STRANGERS: usize = 256;
/// How long such a connection lasts at most.
const STRANGER_LIFE: Duration = Duration::from_secs(20);
/// Connections that are ready and not yet taken.
const READY: usize = 64;

/// The server's side of TLS; replaced when its certificate is renewed.
pub type SharedConfig = Arc<RwLock<Arc<ServerConfig>>>;

/// Every TLS connection that gets through its handshake.
pub fn tls(listener: TcpListener, config: SharedConfig) -> impl Stream<Item = Result<TlsConnection>> {
    let (sender, receiver) = mpsc::channel(READY);
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    tokio::spawn(async move {
        loop {
            // Nobody is accepted while too many strangers are here: they end within seconds, and the kernel's queue waits.
            let Ok(permit) = Arc::clone(&strangers).acquire_owned().await else { return };
            let (tcp, address) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of descriptors, or a connection that is gone already: the next one may do better.
                        tracing::debug!(%error, "cannot accept");
                        sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                () = sender.closed() => return,
            };
            let acceptor = TlsAcceptor::from(Arc::clone(&config.read().unwrap_or_else(PoisonError::into_inner)));
            let sender = sender.clone();
            tokio::spawn(async move {
                if let Some(connection) = shake_hands(acceptor, tcp, address.ip().to_canonical(), permit).await {
                    // Closed: the server is stopping.
                    let _ = sender.send(Ok(connection)).await;
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    address: IpAddr,
    permit: OwnedSemaphorePermit,
) -> Option<TlsConnection> {
    // Small answers wait for nothing.
    let _ = tcp.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "handshake failed");
            return None;
        }
        Err(_) => return None,
    };
    let holder = stream.get_ref().1.peer_certificates().and_then(|chain| pki::holder(chain.first()?));
    let stranger = holder.is_none().then(|| (permit, Box::pin(sleep(STRANGER_LIFE))));
    Some(TlsConnection { stream, peer: Peer::Remote { address, holder }, stranger })
}

/// One connection over TLS.
pub struct TlsConnection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    /// Of one without a certificate: its place among them, and its end.
    stranger: Option<(OwnedSemaphorePermit, Pin<Box<Sleep>>)>,
}

impl Connected for TlsConnection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl TlsConnection {
    /// An error once a stranger's time is up. Asked whatever is done next: HTTP/2 does not read while what it has to say
    /// cannot be written, and whoever never reads would stay.
    fn check_time(&mut self, cx: &mut Context<'_>) -> Result<()> {
        if let Some((_, end)) = &mut self.stranger
            && end.as_mut().poll(cx).is_ready()
        {
            return Err(Error::new(ErrorKind::TimedOut, "no certificate, and time is up"));
        }
        Ok(())
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

/// Listens on the local socket at `path`, its owner's alone.
pub fn bind_local(path: &Path) -> Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Every connection on the local socket.
pub fn local(listener: UnixListener) -> impl Stream<Item = Result<LocalConnection>> {
    futures::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| LocalConnection(stream));
        if accepted.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
        Some((accepted, listener))
    })
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
