//! The command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, ValueEnum};
use fairlead_crds::api_client::ApiServerList;

use crate::{build::Install, leader::Timing};

/// Rolls the cluster's one ServiceNetwork out to every node.
///
/// It writes the agents' DaemonSet and permissions, revisions of their configuration, and for each node
/// which revision it is to run; it reports in the ServiceNetwork's status. Of several replicas one leads.
/// Nodes go on serving Services while no operator runs.
#[derive(Debug, Parser)]
#[command(version, about, long_about, max_term_width = 110)]
pub struct Cli {
    /// Format of log lines (standard error).
    #[arg(long, value_enum, default_value = "text", env = "FAIRLEAD_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// What is logged: a level (error, warn, info, debug, trace) or a filter such as
    /// `info,fairlead_operator::watch=debug`.
    #[arg(long, default_value = "info", env = "FAIRLEAD_LOG")]
    pub log: String,
    /// Address of `/metrics`, `/healthz` and `/readyz`.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "0.0.0.0:10270",
        env = "FAIRLEAD_METRICS_BIND_ADDRESS"
    )]
    pub metrics_bind_address: SocketAddr,
    /// File with the credentials for the API server. Without it the service account of the pod is used.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of this process in the election: that of its pod.
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub identity: String,
    /// What the agents are made with.
    #[command(flatten)]
    pub agents: AgentArgs,
    /// How leadership is timed.
    #[command(flatten)]
    pub leader: LeaderArgs,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line an entry.
    Text,
    /// One JSON object an entry.
    Json,
}

/// What the agents are made with.
#[derive(Args, Debug)]
pub struct AgentArgs {
    /// The image of operator and agents, by digest.
    #[arg(long, value_name = "IMAGE", env = "FAIRLEAD_IMAGE")]
    pub image: String,
    /// Addresses of the API servers (https://HOST:PORT, separated by commas), tried in this order, for
    /// operator and agents: a Service address works only once the agents do.
    #[arg(long, value_name = "URLS", env = "FAIRLEAD_API_SERVERS")]
    pub api_servers: ApiServerList,
    /// Secrets in the namespace by which the image is pulled, comma-separated.
    #[arg(long, value_name = "NAMES", env = "FAIRLEAD_IMAGE_PULL_SECRETS", value_delimiter = ',')]
    pub image_pull_secrets: Vec<String>,
}

/// How leadership is timed.
#[derive(Args, Clone, Copy, Debug)]
pub struct LeaderArgs {
    /// Seconds after which a leader that is not heard of has lost its leadership.
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u32).range(3..=600))]
    pub lease_duration: u32,
    /// Seconds for which a leader tries to renew it. Less than the lease duration.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=600))]
    pub renew_deadline: u32,
    /// Seconds between tries. Less than the renew deadline.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=60))]
    pub retry_period: u32,
}

impl AgentArgs {
    /// As the builders want it.
    pub fn install(&self) -> Install {
        Install {
            image: self.image.clone(),
            api_servers: self.api_servers.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            image_pull_secrets: self
                .image_pull_secrets
                .iter()
                .filter(|name| !name.is_empty())
                .cloned()
                .collect(),
        }
    }
}

/// Times under which two processes could lead at once, or none could.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--lease-duration ({0} s) must be longer than --renew-deadline ({1} s), and that longer than --retry-period ({2} s)"
)]
pub struct BadTiming(u32, u32, u32);

impl LeaderArgs {
    /// The timing, if it is one.
    pub fn timing(self) -> Result<Timing, BadTiming> {
        let Self { lease_duration, renew_deadline, retry_period } = self;
        if lease_duration <= renew_deadline || renew_deadline <= retry_period {
            return Err(BadTiming(lease_duration, renew_deadline, retry_period));
        }
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        Ok(Timing {
            lease: seconds(lease_duration),
            deadline: seconds(renew_deadline),
            retry: seconds(retry_period),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_beyond_the_lease_is_refused() {
        let timing = |lease_duration, renew_deadline, retry_period| {
            LeaderArgs { lease_duration, renew_deadline, retry_period }.timing()
        };
        assert!(timing(15, 10, 2).is_ok());
        assert_eq!(timing(10, 10, 2), Err(BadTiming(10, 10, 2)));
        assert_eq!(timing(15, 2, 2), Err(BadTiming(15, 2, 2)));
    }

    #[test]
    fn no_pull_secret_is_no_secret_with_an_empty_name() {
        let arguments = [
            "x",
            "--identity",
            "a",
            "--image",
            "i",
            "--api-servers",
            "https://a",
            "--image-pull-secrets",
            "",
        ];
        assert_eq!(Cli::parse_from(arguments).agents.install().image_pull_secrets, [""; 0]);
    }
}
