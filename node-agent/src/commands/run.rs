//! `run`: the agent, until it is told to stop.

use std::{
    net::SocketAddr,
    path::Path,
    process::ExitCode,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use axum::Router;
use fairlead_crds::{
    ProxyMode,
    api_client::{self, ApiServers},
};
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch as cell,
};

use crate::{
    agent::{Agent, Input},
    bring_up::BringUp,
    cli::{RunArgs, SourceArgs},
    error::chain,
    memory,
    metrics::{self, IpvsReader, Metrics},
    model::Family,
    preflight::{Host, sysctl},
    report::Reporter,
    serve::{self, Endpoints, HealthRequests, health_router, introspection_router},
    state::{record::Record, snapshot::Snapshot},
    status::Shared,
    watch::{self, ApiSource, Configured, Manifests, SourceHealth},
};

/// Pause between attempts to bind a port.
const BIND_RETRY: Duration = Duration::from_secs(5);

/// Runs the agent. Three kinds of threads: the agent's loop, that of a manifests folder, and this one,
/// which follows the API, answers HTTP and waits for signals.
pub fn run(args: &RunArgs) -> Result<ExitCode> {
    let state_dir = &args.state.state_dir;
    let record = Record::open(state_dir).context("failed to take over the agent's record")?;
    if record.damaged_lines > 0 {
        tracing::error!(
            lines = record.damaged_lines,
            "the record is damaged: virtual servers it named are kept if wanted, and otherwise left behind"
        );
    }
    let ipv6 = sysctl::serves_ipv6(&Host::default());
    let health_address = args.healthz_bind_address.unwrap_or_else(|| serve::default_health_address(ipv6));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime of the API client and the HTTP endpoints")?;
    let (inputs, queue) = mpsc::channel();
    let mut source = runtime.block_on(Source::start(&args.source, state_dir, inputs.clone()))?;
    let shared = Shared::default();
    let requests = HealthRequests::default();
    let (metrics, registry) =
        Metrics::register(shared.clone(), source.health(), IpvsReader::default(), &requests);
    let (ours, is_ours) = cell::channel(false);
    let bring_up = BringUp::new(args.force, args.metrics_bind_address, health_address, inputs.clone(), ours);
    let agent = Agent::new(bring_up, record, state_dir.clone(), source.health(), shared.clone(), metrics);
    let agent = thread::Builder::new()
        .name("agent".to_owned())
        .spawn(move || agent.run(&queue))
        .context("failed to start the agent's thread")?;

    let endpoints = endpoints(shared.clone(), registry, requests, ipv6);
    let result = runtime.block_on(async {
        let (stop, stopped) = cell::channel(false);
        let health =
            answer(health_address, health_router(endpoints.clone()), is_ours.clone(), stopped.clone());
        let introspection =
            answer(args.metrics_bind_address, introspection_router(endpoints), is_ours, stopped);
        let servers = tokio::spawn(async move { tokio::join!(health, introspection) });
        if let Some(reporter) = source.reporter(shared) {
            tokio::spawn(reporter.run());
        }
        let told = tokio::select! {
            told = told_to_stop() => told,
            () = source.ended() => Err(anyhow!("a task that follows the API ended: this is a bug")),
        };
        stop.send_replace(true);
        servers.await.context("the HTTP endpoints panicked: this is a bug")?;
        // The source first, so that nothing is sent to an agent that is ending.
        drop(source);
        told
    });
    // An agent that has ended already does not hear it.
    let _ = inputs.send(Input::Stop);
    agent.join().map_err(|_| anyhow!("the agent's thread panicked: this is a bug"))?;
    tracing::info!("stopped; the dataplane stays in place");
    result.map(|()| ExitCode::SUCCESS)
}

/// Where objects come from.
enum Source {
    Manifests(Manifests),
    Api { source: ApiSource, client: Client, node: String },
}

impl Source {
    async fn start(args: &SourceArgs, state_dir: &Path, inputs: mpsc::Sender<Input>) -> Result<Self> {
        if let Some(folder) = &args.manifests {
            let source = Manifests::start(folder, args.node_name.clone(), inputs)
                .context("failed to start following the manifests")?;
            return Ok(Self::Manifests(source));
        }
        let node = args.node_name.as_deref().filter(|name| !name.is_empty()).ok_or_else(|| {
            anyhow!(
                "the name of this node is not known: give --node-name, or set NODE_NAME (in a pod: from spec.nodeName)"
            )
        })?;
        let options = api_client::Options {
            kubeconfig: args.kubeconfig.clone(),
            api_servers: args.api_servers.clone().unwrap_or_default().0,
        };
        let connection = api_client::connect(&options).await.context("failed to set up the API client")?;
        let running = remembered(state_dir, &connection.servers);
        let source = ApiSource::start(&connection, node, running, move |changes| {
            // An agent that has ended needs no changes.
            let _ = inputs.send(Input::Changes(changes));
        });
        Ok(Self::Api { source, client: connection.client, node: node.to_owned() })
    }

    fn health(&self) -> SourceHealth {
        match self {
            Self::Manifests(source) => source.health(),
            Self::Api { source, .. } => source.health(),
        }
    }

    /// What tells the cluster of this node; a folder has nobody to tell.
    fn reporter(&self, shared: Shared) -> Option<Reporter> {
        let Self::Api { source, client, node } = self else { return None };
        let version = env!("CARGO_PKG_VERSION");
        Some(Reporter::new(client, node, source.own(), shared, version))
    }

    /// Waits for the end that a source should not have.
    async fn ended(&mut self) {
        match self {
            Self::Manifests(_) => std::future::pending().await,
            Self::Api { source, .. } => source.ended().await,
        }
    }
}

/// What the last run knew: the configuration, and where API servers were.
fn remembered(state_dir: &Path, servers: &ApiServers) -> Option<Configured> {
    // That it is damaged is told when it is needed for more.
    let snapshot = Snapshot::read(state_dir).ok()??;
    servers.learn(watch::api::api_servers(snapshot.slices.iter()));
    let running = snapshot.configured();
    drop(snapshot);
    memory::give_back();
    running
}

fn endpoints(shared: Shared, registry: Registry, requests: HealthRequests, ipv6: bool) -> Endpoints {
    let mode = shared.clone();
    Endpoints {
        shared,
        families: if ipv6 { Family::ALL.into() } else { [Family::V4].into() },
        mode: Arc::new(move || match mode.read().mode {
            Some(ProxyMode::IPVS) | None => "ipvs".to_owned(),
            Some(ProxyMode::None) => "none".to_owned(),
        }),
        metrics: Arc::new(move || metrics::render(&registry)),
        requests,
    }
}

/// Serves once nobody else programs this node; a port that cannot be had is tried again.
async fn answer(
    address: SocketAddr,
    router: Router,
    mut is_ours: cell::Receiver<bool>,
    mut stop: cell::Receiver<bool>,
) {
    loop {
        tokio::select! {
            // An error says that the agent has ended.
            ours = is_ours.wait_for(|ours| *ours) => if ours.is_err() { return },
            _ = stop.wait_for(|stop| *stop) => return,
        }
        match serve::bind(address) {
            Ok(listener) => return serve::serve(listener, router, stop).await,
            Err(error) => tracing::error!(error = chain(&error), "trying again"),
        }
        tokio::select! {
            () = tokio::time::sleep(BIND_RETRY) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

async fn told_to_stop() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
