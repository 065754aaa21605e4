//! A listener for HTTP that holds few connections, none that idles, and no request that does not come whole. A client
//! that opens many must not use up the descriptors that agent and server need for other things.

use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep};

use crate::seats::{Seats, descriptors, source};

/// The most connections open at a time: a few scrapers and load balancers with some each.
const CONNECTIONS: usize = 100;
/// The time for which a connection may say nothing: longer than the interval at which most scrapers come (15 to 60 s),
/// so theirs stay open.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// The longest time a request may take from its first byte to its answer's first.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A request's longest text, in bytes: it has no body.
const LONGEST: usize = 16 * 1024;

/// A listener that holds a limited number of connections at a time. One more takes the place of the oldest connection
/// of the address that has most. So a client that comes alone is served whatever others hold open.
pub struct Limited {
    inner: TcpListener,
    seats: Arc<Seats<IpAddr>>,
    idle: Duration,
    request: Duration,
}

impl Limited {
    /// Limits `inner` as usual, with no more than a tenth of the descriptors that this process may have.
    #[must_use]
    pub fn new(inner: TcpListener) -> Self {
        Self::with(inner, CONNECTIONS.min(descriptors() / 10), IDLE_TIMEOUT, REQUEST_TIMEOUT)
    }

    /// Limits `inner` to `connections`. Each is ended when nothing moved on it for `idle`, or when a request took
    /// longer than `request`.
    #[must_use]
    pub fn with(inner: TcpListener, connections: usize, idle: Duration, request: Duration) -> Self {
        Self { inner, seats: Seats::new(connections), idle, request }
    }
}

impl Listener for Limited {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.inner).await;
            let Some(mut seat) = self.seats.take_newest(&source(address.ip())) else { continue };
            let connection = Connection {
                stream,
                idle: self.idle,
                request: self.request,
                ends: Box::pin(sleep(self.idle)),
                asked: None,
                lost: Box::pin(async move { seat.lost().await }),
            };
            return (connection, address);
        }
    }

    fn local_addr(&self) -> Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// One connection; it counts until it is dropped.
pub struct Connection {
    stream: TcpStream,
    idle: Duration,
    request: Duration,
    ends: Pin<Box<Sleep>>,
    /// The time at which the request under way began to come, and its bytes so far.
    asked: Option<(Instant, usize)>,
    /// Holds the connection's place, and ends when it is lost.
    lost: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Connection {
    /// Returns an error once the connection's time is up or its place is another one's. This is checked first, because
    /// a connection that sends a byte now and then is always ready.
    fn check_time(&mut self, context: &mut Context<'_>) -> Result<()> {
        if self.ends.as_mut().poll(context).is_ready() {
            return Err(Error::from(ErrorKind::TimedOut));
        }
        if self.lost.as_mut().poll(context).is_ready() {
            self.lost = Box::pin(std::future::ready(()));
            return Err(Error::from(ErrorKind::ConnectionAborted));
        }
        Ok(())
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        self.check_time(context)?;
        let before = buffer.filled().len();
        let done = Pin::new(&mut self.stream).poll_read(context, buffer);
        let read = buffer.filled().len() - before;
        if read > 0 {
            let (since, so_far) = self.asked.unwrap_or_else(|| (Instant::now(), 0));
            if so_far + read > LONGEST {
                return Poll::Ready(Err(Error::from(ErrorKind::InvalidData)));
            }
            self.asked = Some((since, so_far + read));
            let ends = since + self.request;
            self.ends.as_mut().reset(ends);
        }
        done
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        self.check_time(context)?;
        let done = Pin::new(&mut self.stream).poll_write(context, bytes);
        if done.is_ready() {
            self.asked = None;
            let ends = Instant::now() + self.idle;
            self.ends.as_mut().reset(ends);
        }
        done
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    /// The time that a loaded machine may take; an idle one takes a millisecond.
    const SOON: Duration = Duration::from_secs(20);

    async fn serve(connections: usize, idle: Duration, request: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pages = axum::Router::new().route("/", axum::routing::get(async || "page"));
        let limited = Limited::with(listener, connections, idle, request);
        tokio::spawn(async move { axum::serve(limited, pages).await });
        address
    }

    async fn ask(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn is_closed(mut stream: TcpStream) -> bool {
        let mut rest = Vec::new();
        timeout(SOON, stream.read_to_end(&mut rest)).await.is_ok()
    }

    #[tokio::test]
    async fn whoever_holds_connections_open_keeps_nobody_out() {
        let address = serve(2, SOON * 10, SOON * 10).await;
        assert!(ask(address).await.ends_with("page"));
        let mut held = Vec::new();
        for _ in 0..50 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost:").await;
            held.push(stream);
        }
        let answer = timeout(SOON, ask(address)).await.unwrap();
        assert!(answer.ends_with("page"), "{answer}");
        assert!(is_closed(held.swap_remove(0)).await, "the oldest gave way");
    }

    #[tokio::test]
    async fn a_request_that_never_ends_and_one_too_long_and_a_silent_connection_end() {
        let address = serve(10, SOON * 10, Duration::from_millis(300)).await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        let trickle = async {
            // A byte now and then.
            while slow.write_all(b"G").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, trickle).await.expect("it is hung up on");
        let mut long = TcpStream::connect(address).await.unwrap();
        let _ = long.write_all(b"GET / HTTP/1.1\r\nX: ").await;
        let _ = long.write_all(&[b'x'; 2 * LONGEST]).await;
        assert!(is_closed(long).await);
        let address = serve(10, Duration::from_millis(100), SOON * 10).await;
        assert!(is_closed(TcpStream::connect(address).await.unwrap()).await);
    }
}
