//! Dials the first API server that answers.

use std::{
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use tower::{Service, ServiceExt as _};

use super::{ApiServer, ApiServers};

/// Connect and TLS handshake of one server.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the other end may be silent, be it that data is not acknowledged or that probes are not:
/// after 10 s of silence a probe is sent every 2 s, and once 18 s have passed the connection ends
/// (net/ipv4/tcp_timer.c tcp_keepalive_timer), so within 20 s in all.
const USER_TIMEOUT: Duration = Duration::from_secs(18);
const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);

/// TCP connections that end when the other end is gone.
pub(super) fn tcp() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(DIAL_TIMEOUT));
    connector.set_keepalive(Some(KEEPALIVE_AFTER));
    connector.set_keepalive_interval(Some(KEEPALIVE_EVERY));
    connector.set_tcp_user_timeout(Some(USER_TIMEOUT));
    connector
}

/// No API server answered.
#[derive(Debug)]
pub struct Unreachable {
    failures: Vec<(ApiServer, String)>,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no API server can be reached: ")?;
        for (index, (server, problem)) in self.failures.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{server} ({problem})")?;
        }
        Ok(())
    }
}

impl Error for Unreachable {}

/// A connector that pays no attention to the host of the URL it is given.
#[derive(Clone)]
pub(super) struct FailOver<C> {
    pub servers: ApiServers,
    pub connector: C,
}

impl<C> Service<Uri> for FailOver<C>
where
    C: Service<Uri> + Clone + Send + 'static,
    C::Response: Send,
    C::Error: Into<Box<dyn Error + Send + Sync>> + Send,
    C::Future: Send,
{
    type Response = C::Response;
    type Error = Unreachable;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Unreachable>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Unreachable>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _url: Uri) -> Self::Future {
        let Self { servers, connector } = self.clone();
        Box::pin(async move {
            let mut failures = Vec::new();
            for server in servers.list() {
                let dial = connector.clone().oneshot(server.uri());
                let problem = match tokio::time::timeout(DIAL_TIMEOUT, dial).await {
                    Ok(Ok(stream)) => {
                        if servers.answered(&server) {
                            tracing::info!(%server, "connected to an API server");
                        }
                        return Ok(stream);
                    }
                    Ok(Err(error)) => innermost(error.into().as_ref()),
                    Err(_elapsed) => format!("no answer within {} s", DIAL_TIMEOUT.as_secs()),
                };
                failures.push((server, problem));
            }
            Err(Unreachable { failures })
        })
    }
}

/// The layers above say "tcp connect error" and the like.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
