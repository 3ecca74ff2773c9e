//! The layers of the client, as kube builds them, with our own way to dial below.

use std::time::Duration;

use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Client,
    client::{Body, ConfigExt as _, retry::RetryPolicy},
};
use tower::{BoxError, ServiceBuilder, retry::RetryLayer};

use super::{
    config::Target,
    dial::{FailOver, tcp},
};

/// From sending a request to the head of the answer, retries included. A watch answers at once.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest silence in the body of an answer. A server whose kernel acknowledges and whose process hangs
/// is noticed by nothing else; one that is well sends a bookmark a minute
/// (staging/src/k8s.io/apiserver/pkg/storage/cacher defaultBookmarkFrequency).
const SILENCE: Duration = Duration::from_secs(90);
const POOL_IDLE: Duration = Duration::from_secs(60);

pub(super) fn client(target: Target) -> kube::Result<Client> {
    let Target { config, servers } = target;
    let connector = config.rustls_https_connector_with_connector(tcp())?;
    let mut connector = TimeoutConnector::new(FailOver { servers, connector });
    connector.set_read_timeout(Some(SILENCE));
    // Counts from the request, not from when its connection was last used.
    connector.set_reset_reader_on_write(true);
    connector.set_write_timeout(Some(REQUEST_TIMEOUT));
    let http = legacy::Builder::new(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .timeout(REQUEST_TIMEOUT)
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}
