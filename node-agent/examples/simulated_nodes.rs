//! Many agents in one process, without a kernel: each follows its own ServiceNetworkNode, reads the
//! revision it is asked to run and tells what came of it, with the agent's own code. What is simulated is
//! the dataplane, which has every revision in the kernel after a moment.
//!
//! For tests of the operator on a real API server. The Nodes and ServiceNetworkNodes are others' to make.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser;
use fairlead_crds::api_client::{self, ApiServerList, Connection};
use fairlead_node_agent::{
    backoff::jitter,
    bring_up::Refused,
    report::Reporter,
    status::{Applied, Shared},
    watch::{Change, Configured, api::OwnSource},
};
use tokio::{signal::unix, sync::watch as cell, task::JoinSet};

/// Simulates the agents of many nodes on a real API server, until SIGTERM or SIGINT.
#[derive(Parser)]
struct Args {
    /// File with address and credentials of the API server.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Addresses of the API servers, in place of the kubeconfig's.
    #[arg(long, default_value = "")]
    api_servers: ApiServerList,
    /// How many nodes.
    #[arg(long, default_value_t = 10)]
    count: usize,
    /// Their names are this and a number from 0.
    #[arg(long, default_value = "simulated-")]
    prefix: String,
    /// Longest time that a revision takes to be in the kernel, in milliseconds; each takes a random part.
    #[arg(long, default_value_t = 200)]
    delay_ms: u64,
    /// Nodes that are not programmed, as if kube-proxy ran there: names, separated by commas.
    #[arg(long, value_delimiter = ',')]
    fail: Vec<String>,
    /// Scheduler that the kernels of the failing nodes lack: with it, they fail only on revisions that
    /// have it as the default.
    #[arg(long, requires = "fail")]
    fail_scheduler: Option<String>,
    /// The version that the agents give as theirs.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    agent_version: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new("warn"))
        .with_writer(std::io::stderr)
        .init();
    let options =
        api_client::Options { kubeconfig: args.kubeconfig.clone(), api_servers: args.api_servers.0.clone() };
    let connection = api_client::connect(&options).await.context("failed to set up the API client")?;
    let failing: BTreeSet<_> = args.fail.iter().cloned().collect();
    let delay = Duration::from_millis(args.delay_ms);
    let mut nodes = Vec::with_capacity(args.count);
    let mut reporters = JoinSet::new();
    for number in 0..args.count {
        let name = format!("{}{number}", args.prefix);
        let dataplane = Simulated {
            shared: Shared::default(),
            fails: failing.contains(&name),
            fail_scheduler: args.fail_scheduler.clone(),
            delay,
        };
        nodes.push(start(&connection, &name, dataplane, &args.agent_version, &mut reporters));
    }
    println!("following {} ServiceNetworkNodes", nodes.len());
    let mut terminate = unix::signal(unix::SignalKind::terminate())?;
    let mut interrupt = unix::signal(unix::SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = reporters.join_next() => anyhow::bail!("a reporter ended: {ended:?}"),
    }
    Ok(())
}

fn start(
    connection: &Connection,
    name: &str,
    dataplane: Simulated,
    version: &str,
    reporters: &mut JoinSet<()>,
) -> OwnSource {
    let shared = dataplane.shared.clone();
    let (configs, latest) = cell::channel(None);
    let source = OwnSource::start(connection, name, None, move |changes| {
        for change in changes {
            if let Change::Config(configured) = change {
                configs.send_replace(Some(configured));
            }
        }
    });
    reporters.spawn(dataplane.run(latest));
    reporters.spawn(Reporter::new(&connection.client, name, &source, shared, version).run());
    source
}

/// In the place of the kernel.
struct Simulated {
    shared: Shared,
    fails: bool,
    fail_scheduler: Option<String>,
    delay: Duration,
}

impl Simulated {
    async fn run(self, mut latest: cell::Receiver<Option<Configured>>) {
        while latest.changed().await.is_ok() {
            tokio::time::sleep(jitter(self.delay)).await;
            let configured = latest.borrow_and_update().clone();
            if let Some(configured) = configured {
                self.program(configured);
            }
        }
    }

    fn program(&self, configured: Configured) {
        let Configured { config, revision } = configured;
        let scheduler = config.proxy.ipvs.scheduler.as_str();
        let refused = self.fails && self.fail_scheduler.as_deref().is_none_or(|lacking| lacking == scheduler);
        self.shared.update(|status| {
            status.refused = refused.then(|| Refused {
                reason: "KubeProxyConflict",
                message: "kube-proxy runs on this node (simulated)".to_owned(),
            });
            status.mode = Some(config.proxy.mode);
            if !refused {
                status.settled = true;
                status.applied = Some(Applied { revision, mode: config.proxy.mode });
            }
        });
    }
}
