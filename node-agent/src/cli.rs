//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use fairlead_crds::api_client::ApiServerList;

/// Makes Kubernetes Services work on this node through the kernel's IPVS.
///
/// Packets to a Service are recognised by one nftables table (`inet fairlead`) and scheduled by IPVS
/// virtual servers. No service address is put on any device, nothing of other software is touched, and
/// the kernel goes on forwarding while the agent is stopped, restarted or upgraded.
#[derive(Debug, Parser)]
#[command(version, about, long_about, max_term_width = 110)]
pub struct Cli {
    /// Format of log lines (standard error).
    #[arg(long, global = true, value_enum, default_value = "text", env = "FAIRLEAD_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// What is logged: a level (error, warn, info, debug, trace) or a filter such as
    /// `info,fairlead_node_agent::watch=debug`.
    #[arg(long, global = true, default_value = "info", env = "FAIRLEAD_LOG")]
    pub log: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line an entry.
    Text,
    /// One JSON object an entry.
    Json,
}

/// Verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Follow Services and keep the kernel in step with them, until told to stop.
    ///
    /// SIGTERM and SIGINT end the agent and leave the dataplane in place: Services go on working, and
    /// the next start takes over what is there. Use `cleanup` to remove it.
    ///
    /// In a container, where /proc/sys is read-only: mount the host's /proc/sys/net somewhere, and name
    /// that folder in the environment variable FAIRLEAD_PROC_SYS_NET.
    Run(RunArgs),
    /// Print what `run` would program, and program nothing. Needs no privileges.
    Plan(PlanArgs),
    /// Compare what should be programmed with what the kernel has, on a live node.
    ///
    /// Reads the agent's state directory and the kernel; needs neither the API server nor a running
    /// agent, and changes nothing. Ends with status 1 when something differs.
    Inspect(InspectArgs),
    /// Remove what Fairlead programmed, and nothing else. Connections to Services are cut.
    ///
    /// Removes the virtual servers that the agent's record names, the nftables table `inet fairlead`,
    /// Fairlead's routing rules and routes, and the state directory's files. Kernel settings
    /// (sysctls) and loaded modules are left as they are. Stop the agent first.
    Cleanup(CleanupArgs),
    /// Load the kernel modules that `run` needs, and print what came of each.
    ///
    /// For a container that may load modules, ahead of one that may not. Ends with status 0 also when a
    /// module is missing: what that means for the node is told by `run`, and in its status.
    LoadModules,
}

/// Where objects come from: the Kubernetes API, unless a folder is named.
#[derive(Args, Debug)]
pub struct SourceArgs {
    /// Folder of YAML or JSON files with Services, EndpointSlices, the Node, ServiceCIDRs and the
    /// ServiceNetwork, in place of the Kubernetes API; watched for changes.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "api_servers"])]
    pub manifests: Option<PathBuf>,
    /// Name of this node, as in the API. Needed there; with --manifests only where the folder describes
    /// more than one.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// File with address and credentials of the API server. Without it the service account of the pod
    /// is used.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Addresses of the API servers (https://HOST:PORT, separated by commas), tried in this order. They
    /// take the place of the kubeconfig's or the pod's: a Service address works only once we do.
    #[arg(long, value_name = "URLS", env = "FAIRLEAD_API_SERVERS")]
    pub api_servers: Option<ApiServerList>,
}

/// A folder of objects.
#[derive(Args, Debug)]
pub struct FolderArgs {
    /// Folder of YAML or JSON files with Services, EndpointSlices, the Node, ServiceCIDRs and the
    /// ServiceNetwork.
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// Name of this node, where the folder describes more than one.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node_name: Option<String>,
}

/// Where the agent keeps what it must remember.
#[derive(Args, Debug)]
pub struct StateArgs {
    /// Directory of the record of kernel objects made, and of the snapshot of objects followed.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/fairlead", env = "FAIRLEAD_STATE_DIR")]
    pub state_dir: PathBuf,
}

/// Arguments of `run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Source of objects.
    #[command(flatten)]
    pub source: SourceArgs,
    /// State directory.
    #[command(flatten)]
    pub state: StateArgs,
    /// Program the node although a NetworkPolicy engine or a host firewall was found that IPVS would
    /// bypass or that would drop its packets. Does not override a running kube-proxy.
    #[arg(long)]
    pub force: bool,
    /// Address of `/healthz` and `/livez`, as kube-proxy's. By default port 10256 of every address, of
    /// both families where the host speaks IPv6.
    #[arg(long, value_name = "ADDRESS")]
    pub healthz_bind_address: Option<SocketAddr>,
    /// Address of `/metrics`, `/proxyMode` and `/readyz`, as kube-proxy's.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10249")]
    pub metrics_bind_address: SocketAddr,
}

/// Arguments of `plan`.
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// Source of objects.
    #[command(flatten)]
    pub source: FolderArgs,
    /// Output format.
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

/// Arguments of `inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// State directory.
    #[command(flatten)]
    pub state: StateArgs,
    /// Output format.
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

/// Arguments of `cleanup`.
#[derive(Args, Debug)]
pub struct CleanupArgs {
    /// State directory.
    #[command(flatten)]
    pub state: StateArgs,
}

/// Output format of `plan` and `inspect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table for people.
    Text,
    /// JSON for programs.
    Json,
}
