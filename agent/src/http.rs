//! `--http-listen`: /metrics, /healthz and /readyz.
//!
//! Health means that the reconciler's loop turns; readiness means that this host's containers can reach the others'.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics::Metrics;
use crate::status::StatusSource;

/// The loop passes at least once a minute; twice that, and a pass's own time, means that it hangs.
const STALLED: Duration = Duration::from_secs(150);

/// What the pages are made from.
#[derive(Clone)]
struct Pages {
    status: StatusSource,
    metrics: Arc<Metrics>,
}

/// Serves on `listener` for ever.
pub async fn serve(listener: TcpListener, status: StatusSource, metrics: Arc<Metrics>) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(page_metrics))
        .route("/healthz", get(page_health))
        .route("/readyz", get(page_ready))
        .with_state(Pages { status, metrics });
    axum::serve(listener, router).await
}

async fn page_metrics(State(pages): State<Pages>) -> ([(&'static str, &'static str); 1], String) {
    let text = pages.metrics.render(&pages.status.status(), &pages.status.connected(), &pages.status.expiry());
    ([("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}

async fn page_health(State(pages): State<Pages>) -> (StatusCode, String) {
    match pages.status.outcome.borrow().last_pass {
        Some(at) if at.elapsed() < STALLED => (StatusCode::OK, "ok\n".to_owned()),
        Some(at) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("the last pass ended {} s ago\n", at.elapsed().as_secs()))
        }
        None => (StatusCode::OK, "starting\n".to_owned()),
    }
}

async fn page_ready(State(pages): State<Pages>) -> (StatusCode, String) {
    let status = pages.status.status();
    let programmed = pages.status.outcome.borrow().complete;
    if status.state != "starting" && programmed {
        return (StatusCode::OK, format!("{}\n", status.state));
    }
    let problems: Vec<String> =
        status.problems.iter().map(|problem| format!("{}: {}\n", problem.code, problem.message)).collect();
    (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n{}", status.state, problems.concat()))
}
