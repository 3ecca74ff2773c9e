//! HTTP: metrics and health, on one port.
//!
//! ```text
//! :10270   /metrics   /healthz   /readyz
//! ```
//!
//! The port is one of the node's (the operator runs in the host's network). 10270 is beside those of
//! the Kubernetes components, 10248 to 10260, and taken by none of them.

use std::{io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::{metrics, watch::Caches};

/// What the endpoints tell.
#[derive(Clone)]
pub struct Endpoints {
    /// Metrics.
    pub registry: Arc<Registry>,
    /// Whether the operator sees the cluster. A standby has to see it too, so as to take over at once.
    pub caches: Caches,
}

/// The endpoints could not be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be had.
    #[error("failed to listen on {address}: choose another with --metrics-bind-address")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Cause.
        source: io::Error,
    },
    /// The server ended by itself.
    #[error("failed to serve HTTP")]
    Serve(#[source] io::Error),
}

/// Listens.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Bind { address, source })
}

/// Serves for as long as the process lives.
pub async fn serve(listener: TcpListener, endpoints: Endpoints) -> Result<(), ServeError> {
    axum::serve(listener, router(endpoints)).await.map_err(ServeError::Serve)
}

fn router(endpoints: Endpoints) -> Router {
    Router::new()
        .route("/metrics", get(serve_metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(serve_readyz))
        .with_state(endpoints)
}

async fn serve_metrics(State(endpoints): State<Endpoints>) -> impl IntoResponse {
    const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, OPENMETRICS)], metrics::text(&endpoints.registry))
}

async fn serve_readyz(State(endpoints): State<Endpoints>) -> (StatusCode, String) {
    match endpoints.caches.unsynced() {
        unsynced if unsynced.is_empty() => (StatusCode::OK, "ok\n".to_owned()),
        unsynced => (StatusCode::SERVICE_UNAVAILABLE, format!("not read yet:\n{}\n", unsynced.join("\n"))),
    }
}
