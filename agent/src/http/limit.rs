//! A listener that holds few connections and none that idles: whoever opens many must not use up the descriptors that the
//! agent needs for the kernel and the store.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// Connections open at a time: a few scrapers and load balancers with some each; a tenth of the descriptors that a process
/// has by default (1024).
const CONNECTIONS: usize = 100;
/// How long one may say nothing: longer than the interval at which most scrapers come (15 to 60 s), so theirs stay open.
const IDLE: Duration = Duration::from_secs(90);

/// A listener that accepts no more than so many at a time; others wait in the kernel's queue.
pub struct Limited {
    inner: TcpListener,
    permits: Arc<Semaphore>,
    idle: Duration,
}

impl Limited {
    /// With the usual limits.
    pub fn new(inner: TcpListener) -> Self {
        Self::with(inner, CONNECTIONS, IDLE)
    }

    /// At most `connections`, each ended when nothing moved on it for `idle`.
    pub fn with(inner: TcpListener, connections: usize, idle: Duration) -> Self {
        Self { inner, permits: Arc::new(Semaphore::new(connections)), idle }
    }
}

impl Listener for Limited {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        let (stream, address) = Listener::accept(&mut self.inner).await;
        (Connection { stream, idle: self.idle, ends: Box::pin(sleep(self.idle)), _permit: permit }, address)
    }

    fn local_addr(&self) -> Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// One connection; it counts until it is dropped.
pub struct Connection {
    stream: TcpStream,
    idle: Duration,
    ends: Pin<Box<Sleep>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Connection {
    /// `done` is what the socket said: something moved, or it is waited for until the connection has idled too long.
    fn unless_idle<T>(&mut self, context: &mut Context<'_>, done: Poll<Result<T>>) -> Poll<Result<T>> {
        if done.is_ready() {
            let ends = Instant::now() + self.idle;
            self.ends.as_mut().reset(ends);
            return done;
        }
        ready!(self.ends.as_mut().poll(context));
        Poll::Ready(Err(Error::from(ErrorKind::TimedOut)))
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let done = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.unless_idle(context, done)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.unless_idle(context, done)
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

    async fn ask(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn whoever_holds_connections_open_keeps_others_out_only_until_they_have_idled_long_enough() {
        const HELD: Duration = Duration::from_millis(400);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pages = axum::Router::new().route("/", axum::routing::get(async || "page"));
        let served = tokio::spawn(async move { axum::serve(Limited::with(listener, 2, HELD), pages).await });
        assert!(ask(address).await.ends_with("page"));
        let began = Instant::now();
        let held = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        // Both are accepted before the next one is.
        tokio::time::sleep(HELD / 4).await;
        let answer = timeout(HELD * 20, ask(address)).await.unwrap();
        assert!(answer.ends_with("page"), "{answer}");
        assert!(began.elapsed() >= HELD / 2, "it was let in beside the two");
        drop(held);
        served.abort();
    }
}
