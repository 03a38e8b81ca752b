//! `/healthz`, `/livez`, `/readyz` and `/metrics`.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{any, get};
use tokio::net::TcpListener;

use super::Surroundings;
use super::board::Board;
use super::health::Report;
use super::metrics::Metrics;

/// Binds an address of the configuration.
///
/// # Errors
/// Names the address and what to do.
pub(super) async fn bind(address: SocketAddr, what: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("listen on {address} for {what}: choose another address with http.{what} or set it to null")
    })
}

/// Serves health until the process ends.
pub(super) async fn serve_health(listener: TcpListener, around: Surroundings) -> Result<()> {
    let (livez, ready) = (around.clone(), Arc::clone(&around.board));
    let router = Router::new()
        .route("/healthz", any(move || std::future::ready(healthz(&around))))
        .route("/livez", any(move || std::future::ready(alive(&livez))))
        .route("/readyz", get(move || std::future::ready(readiness(&ready))));
    axum::serve(listener, router).await.context("serve health")
}

/// Serves metrics until the process ends.
pub(super) async fn serve_metrics(listener: TcpListener, metrics: Arc<Metrics>) -> Result<()> {
    let router = Router::new().route("/metrics", get(move || std::future::ready(scrape(&metrics))));
    axum::serve(listener, router).await.context("serve metrics")
}

/// Whether load balancers may send new traffic to this node, as kube-proxy answers.
fn healthz(around: &Surroundings) -> impl IntoResponse + use<> {
    let (healthy, report) = around.health.healthz(around.board.snapshot().as_deref());
    around.metrics.health_asked("healthz", status(healthy));
    report_response(healthy, &report)
}

/// Whether the proxy keeps up; the node does not matter.
fn alive(around: &Surroundings) -> impl IntoResponse + use<> {
    let (healthy, report) = around.health.livez();
    around.metrics.health_asked("livez", status(healthy));
    report_response(healthy, &report)
}

/// The status of an answer to a health check.
pub(super) const fn status(healthy: bool) -> StatusCode {
    if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn report_response(healthy: bool, report: &Report) -> impl IntoResponse + use<> {
    let body = serde_json::to_string(report).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"));
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (status(healthy), headers, body)
}

/// Ready when every enabled part is.
fn readiness(board: &Board) -> (StatusCode, String) {
    let waiting = board.not_ready();
    if waiting.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, waiting.join("\n") + "\n")
}

fn scrape(metrics: &Metrics) -> impl IntoResponse + use<> {
    match metrics.encode() {
        Ok(text) => (
            StatusCode::OK,
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            text,
        ),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
            format!("encode metrics: {error}\n"),
        ),
    }
}
