//! `run`: the agent, until it is told to stop.

use std::{
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use axum::Router;
use fairlead_crds::ProxyMode;
use prometheus_client::registry::Registry;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch as cell,
};

use crate::{
    agent::{Agent, Input},
    bring_up::BringUp,
    cli::RunArgs,
    error::chain,
    metrics::{self, IpvsReader, Metrics},
    model::Family,
    preflight::{Host, sysctl},
    serve::{self, Endpoints, HealthRequests, health_router, introspection_router},
    state::record::Record,
    status::Shared,
    watch::Manifests,
};

/// Pause between attempts to bind a port.
const BIND_RETRY: Duration = Duration::from_secs(5);

/// Runs the agent. Three kinds of threads: the source's, the agent's loop, and this one, which
/// answers HTTP and waits for signals.
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
    let (inputs, queue) = mpsc::channel();
    let source = Manifests::start(&args.source.manifests, args.source.node_name.clone(), inputs.clone())
        .context("failed to start following the manifests")?;
    let shared = Shared::default();
    let requests = HealthRequests::default();
    let (metrics, registry) = Metrics::register(shared.clone(), IpvsReader::default(), &requests);
    let (ours, is_ours) = cell::channel(false);
    let bring_up = BringUp::new(args.force, args.metrics_bind_address, health_address, inputs.clone(), ours);
    let agent = Agent::new(bring_up, record, state_dir.clone(), source.health(), shared.clone(), metrics);
    let agent = thread::Builder::new()
        .name("agent".to_owned())
        .spawn(move || agent.run(&queue))
        .context("failed to start the agent's thread")?;

    let endpoints = endpoints(shared, registry, requests, ipv6);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime of the HTTP endpoints")?;
    let result = runtime.block_on(async {
        let (stop, stopped) = cell::channel(false);
        let health =
            answer(health_address, health_router(endpoints.clone()), is_ours.clone(), stopped.clone());
        let introspection =
            answer(args.metrics_bind_address, introspection_router(endpoints), is_ours, stopped);
        let servers = tokio::spawn(async move { tokio::join!(health, introspection) });
        let told = told_to_stop().await;
        stop.send_replace(true);
        servers.await.context("the HTTP endpoints panicked: this is a bug")?;
        told
    });
    // The source first, so that nothing is sent to an agent that is ending.
    drop(source);
    // An agent that has ended already does not hear it.
    let _ = inputs.send(Input::Stop);
    agent.join().map_err(|_| anyhow!("the agent's thread panicked: this is a bug"))?;
    tracing::info!("stopped; the dataplane stays in place");
    result.map(|()| ExitCode::SUCCESS)
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
        let served = match serve::bind(address) {
            Ok(listener) => serve::serve(listener, router.clone(), stop.clone()).await,
            Err(error) => Err(error),
        };
        match served {
            Ok(()) => return,
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
