//! `127.0.0.1:10249`: metrics and state, for those on the node.

use axum::{Router, extract::State, http::StatusCode, routing::get};
use serde::Serialize;

use super::{Endpoints, Text, answer};
use crate::status::NotReady;

const PLAIN: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The endpoints of the metrics port.
pub fn introspection_router(endpoints: Endpoints) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/proxyMode", get(proxy_mode))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(endpoints)
}

async fn metrics(State(endpoints): State<Endpoints>) -> Text {
    // A scrape reads IPVS counters from the kernel, which blocks.
    match tokio::task::spawn_blocking(move || (endpoints.metrics)()).await {
        Ok(text) => answer(StatusCode::OK, OPEN_METRICS, text),
        Err(error) => {
            tracing::error!(%error, "failed to collect the metrics");
            let text = "failed to collect the metrics, see the log\n".to_owned();
            answer(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, text)
        }
    }
}

async fn proxy_mode(State(endpoints): State<Endpoints>) -> Text {
    answer(StatusCode::OK, PLAIN, (endpoints.mode)())
}

/// That this process answers, and no more, as kube-proxy's.
async fn healthz() -> Text {
    answer(StatusCode::OK, PLAIN, "ok".to_owned())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Readiness {
    ready: bool,
    not_ready: Vec<NotReady>,
}

/// Whether Services work on this node, and if not, why.
async fn readyz(State(endpoints): State<Endpoints>) -> Text {
    let not_ready = endpoints.shared.read().not_ready();
    let readiness = Readiness { ready: not_ready.is_empty(), not_ready };
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    answer(status, "application/json", serde_json::to_string(&readiness).unwrap_or_default())
}
