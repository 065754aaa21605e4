//! `--http-listen`: /metrics, /healthz and /readyz.
//!
//! Health means that the process answers. Readiness means that its store does: a load balancer should send agents to
//! another replica, and restarting this one would not help.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use super::Context;
use flatnet_plane::http_limit::Limited;
use flatnet_plane::store::Store;

/// OpenMetrics 1.0, which every Prometheus since 2.5 reads.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until it is dropped.
pub async fn serve<S: Store>(listener: TcpListener, context: Arc<Context<S>>) {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz::<S>))
        .route("/metrics", get(metrics::<S>))
        .with_state(context);
    if let Err(error) = axum::serve(Limited::new(listener), router).await {
        tracing::error!(%error, "the HTTP listener broke");
    }
}

async fn readyz<S: Store>(State(context): State<Arc<Context<S>>>) -> (StatusCode, String) {
    match &*context.ready.borrow() {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn metrics<S: Store>(
    State(context): State<Arc<Context<S>>>,
) -> Result<([(&'static str, &'static str); 1], String), StatusCode> {
    let ready = context.ready.borrow().is_ok();
    let text = context.metrics.text(context.hubs.watchers(), ready, context.registry.all().len());
    text.map(|text| ([("content-type", OPEN_METRICS)], text)).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}
