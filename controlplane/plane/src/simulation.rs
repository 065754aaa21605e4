//! The simulation's replacement for TCP and TLS. The services and the clients are the real ones; what is between them
//! is up to the simulation.

use std::io::Result;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::client::ServerAddress;

pub use rustls::pki_types::CertificateDer;

/// The moment at which the time of day began to follow tokio's clock, on both clocks.
static BEGAN: OnceLock<(tokio::time::Instant, SystemTime)> = OnceLock::new();

/// Makes the time of day pass from now on as tokio's does, which a simulation lets pass as it likes.
pub fn follow_tokios_clock() {
    BEGAN.get_or_init(|| (tokio::time::Instant::now(), SystemTime::now()));
}

/// Returns the simulated time of day; the real one if nobody has begun to simulate it.
#[must_use]
pub fn time_of_day() -> SystemTime {
    let Some((instant, time)) = BEGAN.get() else { return SystemTime::now() };
    *time + tokio::time::Instant::now().saturating_duration_since(*instant)
}

/// Makes connections as one host does.
pub trait Dial: Send + Sync + 'static {
    /// Makes a connection to `server`, to which `shown` is shown.
    fn dial(
        &self,
        server: &ServerAddress,
        shown: Option<&CertificateDer<'static>>,
    ) -> BoxFuture<'static, Result<DuplexStream>>;
}

/// Makes a connection to `server` with the first call, and again after it broke; pinged every `keep_alive`.
pub fn channel(
    dial: &Arc<dyn Dial>,
    server: &ServerAddress,
    shown: Option<&CertificateDer<'static>>,
    keep_alive: Duration,
) -> Channel {
    let (dial, server, shown) = (Arc::clone(dial), server.clone(), shown.cloned());
    Endpoint::from_static("http://controlplane")
        .http2_keep_alive_interval(keep_alive)
        .keep_alive_timeout(keep_alive)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let dialed = dial.dial(&server, shown.as_ref());
            async move { dialed.await.map(TokioIo::new) }
        }))
}
