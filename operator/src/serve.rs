//! HTTP: metrics and health, on one port.
//!
//! ```text
//! :10270   /metrics   /healthz   /readyz
//! ```
//!
//! The port is one of the node's (the operator runs in the host's network). 10270 is beside those of
//! the Kubernetes components, 10248 to 10260, and taken by none of them.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::Semaphore};

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
}

/// Connections at a time; more of them wait.
const CONNECTIONS: usize = 64;
/// From the beginning of a request, or of the wait for one, to the end of its headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that reads nothing holds its connection no longer than this. Others connect anew.
const LIFETIME: Duration = Duration::from_secs(60);
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// Listens.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Bind { address, source })
}

/// Serves for as long as the process lives. Whoever reaches the node reaches this port, so no connection
/// is held for long and there are never more than some.
pub async fn serve(listener: TcpListener, endpoints: Endpoints) {
    let (router, permits) = (router(endpoints), Arc::new(Semaphore::new(CONNECTIONS)));
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        tokio::spawn(async move {
            if let Ok(Err(error)) = tokio::time::timeout(LIFETIME, connection).await {
                tracing::debug!(%error, "a connection failed");
            }
            drop(permit);
        });
    }
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
