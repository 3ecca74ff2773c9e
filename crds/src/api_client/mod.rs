//! The client of the API server that operator and agent share.
//!
//! Owns how an API server is reached: by which addresses, as whom, and when a silent one is given up.
//! Knows no kind of object.
//!
//! kube's client trusts one address and waits for ever on a connection whose packets are dropped. Here
//! a connection is dialled to the first of several API servers that answers, and ends within 20 s when
//! the other end is gone:
//!
//! ```text
//! kube::Client -> request time-out -> retry (429, 503, 504) -> token -> pool of connections (HTTP/1.1)
//!                                                                           |
//!              ApiServers (configured, then learned; sticky) -> dial: TCP with keepalive -> TLS
//! ```
//!
//! HTTP/1.1 gives each watch a connection of its own, whose keepalive is TCP's: nothing above it has to
//! notice a dead server.

mod config;
mod dial;
mod servers;
mod stack;

use std::path::PathBuf;

use kube::Client;

pub use self::{
    config::ConfigError,
    dial::Unreachable,
    servers::{ApiServer, ApiServerList, ApiServers, InvalidApiServer},
};

/// How to reach the API server.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// File with address and credentials. Without it the service account of the pod is used.
    pub kubeconfig: Option<PathBuf>,
    /// Addresses that hold in place of the kubeconfig's or the pod environment's, in the order in which
    /// they are tried.
    pub api_servers: Vec<ApiServer>,
}

/// A client, and the API servers it knows.
#[derive(Clone)]
pub struct Connection {
    /// The client. Cheap to clone.
    pub client: Client,
    /// Where it dials; more addresses can be taught.
    pub servers: ApiServers,
}

/// Makes a client. Dials nothing yet: that the API server cannot be reached shows with the first request.
///
/// Must be called in a tokio runtime, on which the client does its work.
pub async fn connect(options: &Options) -> Result<Connection, ConfigError> {
    let target = config::read(options).await?;
    let servers = target.servers.clone();
    let client = stack::client(target).map_err(|source| ConfigError::Client(Box::new(source)))?;
    Ok(Connection { client, servers })
}

/// What went wrong with a request, in one sentence without the layers it passed through.
pub fn explain(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        let reason = if status.reason.is_empty() { "no reason given" } else { &status.reason };
        return format!("the API server answered {} ({reason}): {}", status.code, status.message);
    }
    let mut cause: &(dyn std::error::Error + 'static) = error;
    loop {
        if cause.is::<tower::timeout::error::Elapsed>() {
            return format!("the API server did not answer within {} s", stack::REQUEST_TIMEOUT.as_secs());
        }
        if cause.is::<Unreachable>() {
            return cause.to_string();
        }
        match cause.source() {
            Some(source) => cause = source,
            None => return format!("the connection to the API server failed: {cause}"),
        }
    }
}

#[cfg(test)]
mod tests;
