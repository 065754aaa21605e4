//! The HTTP listener of `--http-listen`: /metrics, /healthz and /readyz.
//!
//! Health means that the reconciler's loop turns: if it does not, restarting the agent helps. Readiness means that this
//! host's containers can reach the others': the lease is held and there for the others to see, the env files are
//! written, and the kernel refused nothing. A store that is away makes neither fail: restarting would not help, and
//! packets flow.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use flatnet_core::problem::ProblemCode;
use flatnet_plane::http_limit::Limited;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::node::status::StatusSource;
use crate::wiring::metrics::Metrics;
use crate::wiring::outcome::Outcome;

/// The idle time after which the loop counts as hanging. It passes at least once a minute; the limit is twice that and
/// a pass's own time. It also bounds the time the loop has to begin: it waits for the node's identity, 20 s at most.
const STALLED_AFTER: Duration = Duration::from_secs(150);

/// The content type of OpenMetrics 1.0, which every Prometheus since 2.5 reads.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The pulse of the reconciler's loop: tells whether it turns.
#[derive(Clone, Debug)]
pub struct Pulse {
    outcome: watch::Receiver<Outcome>,
    since: Instant,
}

impl Pulse {
    /// Creates the pulse of the loop that publishes `outcome` and is started now.
    #[must_use]
    pub fn new(outcome: watch::Receiver<Outcome>) -> Self {
        Self { outcome, since: Instant::now() }
    }

    /// Returns how long ago the last pass ended, or the loop started if there was none. `Err`: that is too long.
    pub fn check(&self) -> Result<Duration, Duration> {
        let idle = self.outcome.borrow().last_pass.unwrap_or(self.since).elapsed();
        if idle < STALLED_AFTER { Ok(idle) } else { Err(idle) }
    }
}

/// Everything the pages are made from.
#[derive(Clone)]
struct Pages {
    status: StatusSource,
    metrics: Arc<Metrics>,
    pulse: Pulse,
    env_written: watch::Receiver<bool>,
}

/// Serves on `listener` for ever. `env_written`: true once every joined network has its env file.
pub async fn serve(
    listener: TcpListener,
    status: StatusSource,
    metrics: Arc<Metrics>,
    env_written: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let pulse = Pulse::new(status.outcome.clone());
    let router = Router::new()
        .route("/metrics", get(page_metrics))
        .route("/healthz", get(page_health))
        .route("/readyz", get(page_ready))
        .with_state(Pages { status, metrics, pulse, env_written });
    axum::serve(Limited::new(listener), router).await
}

async fn page_metrics(State(pages): State<Pages>) -> ([(&'static str, &'static str); 1], String) {
    let text = pages.metrics.render(&pages.status.status(), &pages.status.gauges());
    ([("content-type", OPEN_METRICS)], text)
}

async fn page_health(State(pages): State<Pages>) -> (StatusCode, String) {
    match pages.pulse.check() {
        Ok(_) => (StatusCode::OK, "ok\n".to_owned()),
        Err(idle) => {
            let text = format!("the reconciler's last pass ended {} s ago\n", idle.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

async fn page_ready(State(pages): State<Pages>) -> (StatusCode, String) {
    let status = pages.status.status();
    let programmed = pages.status.outcome.borrow().complete && *pages.env_written.borrow();
    let unconfirmed = status.problems.iter().any(|problem| problem.code == ProblemCode::LeaseUnconfirmed.as_str());
    if status.state != "starting" && programmed && !unconfirmed {
        return (StatusCode::OK, format!("{}\n", status.state));
    }
    let problems: Vec<String> =
        status.problems.iter().map(|problem| format!("{}: {}\n", problem.code, problem.message)).collect();
    (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n{}", status.state, problems.concat()))
}

#[cfg(test)]
mod tests;
