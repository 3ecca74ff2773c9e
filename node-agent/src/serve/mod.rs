//! HTTP: health for load balancers and the kubelet, metrics, and what kube-proxy's users ask for.
//!
//! Owns listeners and bodies; decides nothing. The ports are kube-proxy's, so nothing may be bound
//! before the preflight knows that no kube-proxy runs.
//!
//! ```text
//! :10256            /healthz  /livez                        kube-proxy's bodies
//! 127.0.0.1:10249   /metrics  /proxyMode  /healthz  /readyz
//! ```

mod health;
mod introspection;

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd as _,
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    http::{HeaderName, StatusCode, header},
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use prometheus_client::{
    metrics::{counter::Counter, family::Family as MetricFamily},
    registry::Registry,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};

pub use self::{health::health_router, introspection::introspection_router};
use crate::{model::Family, status::Shared};

/// How long an open connection may hold up the end of the agent.
const GRACE: Duration = Duration::from_secs(1);
const BACKLOG: u32 = 1024;
/// Connections to one port at a time; more of them wait.
const CONNECTIONS: usize = 256;
/// From the beginning of a request, or of the wait for one, to the end of its headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that reads nothing holds its connection no longer than this. Others connect anew.
const LIFETIME: Duration = Duration::from_secs(60);
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

type Text = (StatusCode, [(HeaderName, &'static str); 2], String);

/// An endpoint could not be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be had.
    #[error("failed to listen on {address}: {hint}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What to do about it.
        hint: &'static str,
        /// Cause.
        source: io::Error,
    },
}

/// What the endpoints tell, computed when they are asked.
#[derive(Clone)]
pub struct Endpoints {
    /// State of the agent.
    pub shared: Shared,
    /// The families that are programmed.
    pub families: Arc<[Family]>,
    /// The proxy mode in effect, in kube-proxy's words.
    pub mode: Arc<dyn Fn() -> String + Send + Sync>,
    /// The metrics in the OpenMetrics text format. May block.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Counts of health requests.
    pub requests: HealthRequests,
}

/// Counts of health requests by status code.
#[derive(Clone, Debug, Default)]
pub struct HealthRequests {
    healthz: MetricFamily<[(&'static str, &'static str); 1], Counter>,
    livez: MetricFamily<[(&'static str, &'static str); 1], Counter>,
}

impl HealthRequests {
    /// Adds the counts to a registry whose prefix is `kubeproxy`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("proxy_healthz", "Answers to /healthz by status code", self.healthz.clone());
        registry.register("proxy_livez", "Answers to /livez by status code", self.livez.clone());
    }
}

/// Where `/healthz` is served unless an address is given: every address of the families there are.
pub fn default_health_address(ipv6: bool) -> SocketAddr {
    const PORT: u16 = 10256;
    if ipv6 { (Ipv6Addr::UNSPECIFIED, PORT).into() } else { (Ipv4Addr::UNSPECIFIED, PORT).into() }
}

/// Listens; `[::]` takes IPv4 too, whatever `net.ipv6.bindv6only` says.
pub fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restarted agent must not wait for the connections of the one before.
        socket.set_reuseaddr(true)?;
        if address.ip() == Ipv6Addr::UNSPECIFIED {
            take_ipv4_too(&socket)?;
        }
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| ServeError::Bind { address, hint: hint(&source), source })
}

fn take_ipv4_too(socket: &TcpSocket) -> io::Result<()> {
    let off: libc::c_int = 0;
    // SAFETY: the option's value is an int that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_V6ONLY,
            (&raw const off).cast(),
            libc::socklen_t::try_from(size_of_val(&off)).unwrap_or_default(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another program has it, stop that one or choose another address",
        io::ErrorKind::AddrNotAvailable => "this node has no such address, choose another",
        io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => "choose another address",
    }
}

/// Serves until `stop` turns true or its sender is gone; then open requests have a second to end.
///
/// The health port is open to everyone who reaches the node, so no connection is held for long and there
/// are never more than some.
pub async fn serve(listener: TcpListener, router: Router, stop: watch::Receiver<bool>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &permits) => accepted,
            () = stopped(stop.clone()) => break,
        };
        let (stream, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly; a connection that ended meanwhile is accepted as an error too.
                tracing::warn!(%error, "failed to accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Ok(Err(error)) = tokio::time::timeout(LIFETIME, connection).await {
                tracing::debug!(%error, "a connection failed");
            }
            drop(permit);
        });
    }
    // What is still open then is cut by the end of the runtime.
    let _ = tokio::time::timeout(GRACE, graceful.shutdown()).await;
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error says that the sender is gone, and with it the agent.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A body with headers that keep a browser from guessing.
fn answer(status: StatusCode, content_type: &'static str, body: String) -> Text {
    (status, [(header::CONTENT_TYPE, content_type), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")], body)
}

#[cfg(test)]
mod tests;
