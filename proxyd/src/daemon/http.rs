//! `/healthz`, `/livez`, `/readyz` and `/metrics`.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use super::board::Board;
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
pub(super) async fn serve_health(listener: TcpListener, board: Arc<Board>) -> Result<()> {
    let ready = Arc::clone(&board);
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/healthz", get(move || std::future::ready(health(&board))))
        .route("/readyz", get(move || std::future::ready(readiness(&ready))));
    axum::serve(listener, router).await.context("serve health")
}

/// Serves metrics until the process ends.
pub(super) async fn serve_metrics(listener: TcpListener, metrics: Arc<Metrics>) -> Result<()> {
    let router = Router::new().route("/metrics", get(move || std::future::ready(scrape(&metrics))));
    axum::serve(listener, router).await.context("serve metrics")
}

/// Healthy while what was programmed last succeeded: a load balancer may send traffic here.
fn health(board: &Board) -> (StatusCode, String) {
    match board.dataplane().and_then(|dataplane| dataplane.last_error) {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("proxy: {error}\n")),
    }
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
