//! Address and credentials: from a kubeconfig, or from the pod's service account.

use std::path::PathBuf;

use http::Uri;
use kube::{
    Config,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};

use super::{ApiServer, ApiServers, Options};

/// The name in every API server's certificate.
const IN_CLUSTER_NAME: &str = "kubernetes.default.svc";

/// The client cannot be configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The kubeconfig cannot be used.
    // kube's errors tell their sources themselves.
    #[error("failed to use the kubeconfig {}: {problem}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Cause.
        problem: Box<KubeconfigError>,
    },
    /// It asks for something that is not there.
    #[error("the kubeconfig {} names the proxy {proxy}, which is not supported: give the API server's address with --api-servers, and a kubeconfig without proxy-url", path.display())]
    Proxy {
        /// The file.
        path: PathBuf,
        /// The proxy.
        proxy: Uri,
    },
    /// Neither kubeconfig nor service account.
    #[error(
        "failed to use the pod's service account ({0}): outside of a pod, name a file of credentials with --kubeconfig"
    )]
    ServiceAccount(InClusterError),
    /// No address is known.
    #[error(
        "no address of an API server is known ({0}): set KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT, or give --api-servers"
    )]
    NoServer(InClusterError),
    /// The address of the kubeconfig or of the environment.
    #[error("the API server's URL {url} cannot be used: {problem}")]
    Url {
        /// The URL.
        url: Uri,
        /// What is wrong.
        problem: &'static str,
    },
    /// Certificates and credentials.
    #[error("failed to make a client of these credentials: {0}")]
    Client(Box<kube::Error>),
}

/// What a client is made of.
pub(super) struct Target {
    pub config: Config,
    pub servers: ApiServers,
}

pub(super) async fn read(options: &Options) -> Result<Target, ConfigError> {
    match &options.kubeconfig {
        Some(path) => kubeconfig(path.clone(), &options.api_servers).await,
        None => in_cluster(&options.api_servers),
    }
}

async fn kubeconfig(path: PathBuf, servers: &[ApiServer]) -> Result<Target, ConfigError> {
    let failed = |problem| ConfigError::Kubeconfig { path: path.clone(), problem: Box::new(problem) };
    let file = Kubeconfig::read_from(&path).map_err(failed)?;
    let mut config =
        Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(failed)?;
    if let Some(proxy) = config.proxy_url.clone() {
        return Err(ConfigError::Proxy { path, proxy });
    }
    let named = server_of(&config.cluster_url)?;
    // Whichever server is dialled, its certificate must be that of the one in the file.
    config.tls_server_name.get_or_insert_with(|| named.host().to_owned());
    let fixed = config.cluster_url.path() != "/";
    Ok(target(config, servers, named, fixed))
}

fn in_cluster(servers: &[ApiServer]) -> Result<Target, ConfigError> {
    let mut config = Config::incluster_dns().map_err(ConfigError::ServiceAccount)?;
    config.tls_server_name = Some(IN_CLUSTER_NAME.to_owned());
    if let [first, ..] = servers {
        return Ok(target(config, servers, first.clone(), false));
    }
    let environment = Config::incluster_env().map_err(ConfigError::NoServer)?;
    let named = server_of(&environment.cluster_url)?;
    Ok(target(config, servers, named, false))
}

fn target(config: Config, given: &[ApiServer], named: ApiServer, fixed: bool) -> Target {
    let configured = if given.is_empty() { vec![named] } else { given.to_vec() };
    Target { config, servers: ApiServers::new(configured, fixed) }
}

fn server_of(url: &Uri) -> Result<ApiServer, ConfigError> {
    ApiServer::of(url).map_err(|problem| ConfigError::Url { url: url.clone(), problem })
}
