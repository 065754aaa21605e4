//! The gate: it decides who is heard at all, and how much is held of what each caller sends. It judges by the
//! connection and the path, before a byte of a message is read.
//!
//! A message is collected before the service that it is for is asked. So a caller that may not call that service is
//! refused here. For a caller that may, the messages that are not whole yet are bounded in bytes and in time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Request, Response};
use flatnet_model::NodeId;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::caller::Peer;
use super::registry::Registry;
use flatnet_plane::identity::{Holder, Identity};
use flatnet_plane::seats::source;
use flatnet_plane::wire::refusal;

/// The bytes that every caller may have under way in messages that are not whole yet, whatever others do. An agent's
/// longest message, except for a network's configuration, has some 10 KB.
const SHARE: usize = 64 * 1024;
/// The bytes that a caller may have under way if others leave them: some configurations at once.
const MOST: usize = 1024 * 1024;
/// The bytes that all callers together may have beyond their shares.
const TOGETHER: usize = 32 * 1024 * 1024;
/// The most calls and streams of one identity under way: an agent has one stream a network and a few calls, on each
/// connection.
const CALLS: usize = 256;
/// The time a message may take from its first byte to its last.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The services' names in a request's path.
const NODE: &str = "flatnet.controlplane.v1.Node";
const ADMIN: &str = "flatnet.controlplane.v1.Admin";
/// The services that a caller without a certificate may call.
const FOR_STRANGERS: [&str; 4] = [
    "flatnet.controlplane.v1.Enrollment",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// The layer in front of all services.
#[derive(Clone)]
pub struct Gate {
    registry: Arc<Registry>,
    held: Arc<Held>,
}

impl Gate {
    /// Makes the gate of a server that knows its nodes by `registry`.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry, held: Arc::default() }
    }

    /// Returns who asks for `path`; `None`: an administrator on this machine.
    fn admit(&self, peer: Option<&Peer>, path: &str) -> Result<Option<Who>, Status> {
        let service = path.strip_prefix('/').and_then(|path| path.split('/').next()).unwrap_or_default();
        match peer {
            Some(Peer::Local) => Ok(None),
            Some(Peer::Remote { holder: Some(Holder { identity: Identity::Node(node), key_hash, .. }), address }) => {
                match service {
                    ADMIN => Err(refusal::not_allowed(
                        "only an administrator may do this",
                        "on the server's machine: controlplane …; elsewhere: --credentials with what `controlplane admin create` printed",
                    )),
                    NODE => self.registry.check(*node, key_hash).map(|()| Some(Who::Node(*node))),
                    // A node whose rights have ended is a stranger again.
                    _ if self.registry.check(*node, key_hash).is_err() => Ok(Some(Who::Source(source(*address)))),
                    _ => Ok(Some(Who::Node(*node))),
                }
            }
            Some(Peer::Remote { holder: Some(Holder { identity: Identity::Admin(name), .. }), .. }) => match service {
                NODE => Err(refusal::not_allowed("only a node's certificate may do this", "join with a token first")),
                _ => Ok(Some(Who::Admin(name.clone()))),
            },
            Some(Peer::Remote { address, .. }) if FOR_STRANGERS.contains(&service) => {
                Ok(Some(Who::Source(source(*address))))
            }
            Some(Peer::Remote { .. }) => Err(Status::unauthenticated(
                "without a certificate there is nothing but joining: agent join … --token …",
            )),
            None => Err(Status::internal("the connection says nothing of its other end")),
        }
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { gate: self.clone(), inner }
    }
}

/// The service behind the gate.
#[derive(Clone)]
pub struct Gated<S> {
    gate: Gate,
    inner: S,
}

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let who = self.gate.admit(request.extensions().get::<Peer>(), request.uri().path());
        let call = match who.and_then(|who| who.map(|who| Call::begin(&self.gate.held, who)).transpose()) {
            Ok(call) => call,
            Err(refused) => return Box::pin(std::future::ready(Ok(refused.into_http()))),
        };
        let Some(call) = call.map(Arc::new) else { return Box::pin(self.inner.call(request)) };
        let (told, kept) = (Arc::clone(&call), call);
        let request =
            request.map(|inner| Body::new(Heard { inner, call: told, ends: Box::pin(sleep(MESSAGE_TIMEOUT)) }));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            kept.is_heard();
            Ok(response.map(|inner| Body::new(Answer { inner, _call: kept })))
        })
    }
}

/// The caller whose messages they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Who {
    Node(NodeId),
    Admin(String),
    Source(IpAddr),
}

/// The bytes and calls held of every caller.
#[derive(Default)]
struct Held(Mutex<Table>);

#[derive(Default)]
struct Table {
    by: HashMap<Who, Usage>,
    /// The bytes beyond their shares, of all callers.
    beyond: usize,
}

#[derive(Default)]
struct Usage {
    calls: usize,
    bytes: usize,
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn change(&mut self, who: &Who, change: impl FnOnce(&mut Usage)) {
        let Some(usage) = self.by.get_mut(who) else { return };
        let before = usage.bytes.saturating_sub(SHARE);
        change(usage);
        let after = usage.bytes.saturating_sub(SHARE);
        if usage.calls == 0 {
            self.by.remove(who);
        }
        self.beyond = (self.beyond + after).saturating_sub(before);
    }
}

/// One call under way, and the bytes held of it.
struct Call {
    held: Arc<Held>,
    who: Who,
    bytes: Mutex<usize>,
}

impl Call {
    fn begin(held: &Arc<Held>, who: Who) -> Result<Self, Status> {
        let mut table = held.lock();
        let usage = table.by.entry(who.clone()).or_default();
        if usage.calls >= CALLS {
            return Err(Status::resource_exhausted(format!("{CALLS} calls of this caller are under way")));
        }
        usage.calls += 1;
        drop(table);
        Ok(Self { held: Arc::clone(held), who, bytes: Mutex::new(0) })
    }

    fn bytes(&self) -> MutexGuard<'_, usize> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts `more` bytes of the call's message that have come.
    fn hold(&self, more: usize) -> Result<(), Status> {
        let mut table = self.held.lock();
        let held = table.by.get(&self.who).map_or(0, |usage| usage.bytes);
        let now = held + more;
        let grows = now.saturating_sub(SHARE) - held.saturating_sub(SHARE);
        if now > MOST || (grows > 0 && table.beyond + grows > TOGETHER) {
            return Err(Status::resource_exhausted("too much of this caller's messages is under way"));
        }
        table.change(&self.who, |usage| usage.bytes = now);
        *self.bytes() += more;
        Ok(())
    }

    /// Marks the message as read: nothing of it is held any more.
    fn is_heard(&self) {
        let bytes = std::mem::take(&mut *self.bytes());
        self.held.lock().change(&self.who, |usage| usage.bytes = usage.bytes.saturating_sub(bytes));
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut *self.bytes());
        self.held.lock().change(&self.who, |usage| {
            usage.bytes = usage.bytes.saturating_sub(bytes);
            usage.calls = usage.calls.saturating_sub(1);
        });
    }
}

/// A message while it comes in.
struct Heard {
    inner: Body,
    call: Arc<Call>,
    ends: Pin<Box<Sleep>>,
}

impl HttpBody for Heard {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ends.as_mut().poll(cx).is_ready() {
            let text = format!("the message did not come within {} s", MESSAGE_TIMEOUT.as_secs());
            return Poll::Ready(Some(Err(Status::deadline_exceeded(text))));
        }
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(refused) = self.call.hold(data.len())
        {
            return Poll::Ready(Some(Err(refused)));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// An answer while it goes out: a stream counts while it lasts.
struct Answer {
    inner: Body,
    _call: Arc<Call>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests;
