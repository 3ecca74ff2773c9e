//! The process: watches at once, writes once it leads, ends when it does not lead any more.

use std::{sync::Arc, time::Duration};

use fairlead_crds::{
    api_client::{self, ConfigError},
    service_network::NAME,
};
use futures::StreamExt as _;
use kube::{
    Api, Client,
    core::DynamicObject,
    runtime::{Controller, watcher},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

use crate::{
    cli::{BadTiming, Cli},
    context::{Context, Notes},
    error::chain,
    events::Events,
    leader::{Candidate, Elector, Fence},
    metrics::Metrics,
    reconcile::{error_policy, reconcile, resource},
    serve::{self, Endpoints, ServeError},
    watch::{BackOff, Caches, Trigger, debounced},
    write::Writer,
};

/// What comes within this time is looked at together.
const DEBOUNCE: Duration = Duration::from_millis(500);

/// Why the operator ends.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The arguments contradict each other.
    #[error(transparent)]
    Timing(#[from] BadTiming),
    /// There is no way to the API server.
    #[error("failed to set up the API client")]
    Client(#[from] ConfigError),
    /// Agents that know no API server would serve nothing.
    #[error(
        "no address of an API server is given: set FAIRLEAD_API_SERVERS or --api-servers to https://HOST:PORT, separated by commas"
    )]
    NoApiServer,
    /// Metrics and health cannot be served.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Signals cannot be received.
    #[error("failed to listen for SIGTERM")]
    Signal(#[source] std::io::Error),
    /// Another process leads, or may soon.
    #[error("lost the leadership: ending, so that no two operators write")]
    LostLeadership,
    /// The server ended by itself.
    #[error("metrics and health are not served any more")]
    ServerEnded,
    /// The controller ended by itself.
    #[error("the controller ended")]
    ControllerEnded,
}

/// Runs until SIGTERM or SIGINT, or until leadership is lost.
pub async fn run(cli: Cli) -> Result<(), RunError> {
    let timing = cli.leader.timing()?;
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signal)?;
    let client = client(&cli).await?;
    let (metrics, registry) = Metrics::register();
    let (trigger, looks) = debounced(DEBOUNCE);
    // Dropped at the end, and all watches with it.
    let mut tasks = JoinSet::new();
    let caches = Caches::start(&client, &trigger, &mut tasks);
    let listener = serve::bind(cli.metrics_bind_address).await?;
    let endpoints = Endpoints { registry: Arc::new(registry), caches: caches.clone() };
    let server = serve::serve(listener, endpoints);
    let (mut candidate, fence) = Candidate::new(client.clone(), Elector::new(cli.identity.clone(), timing));
    tracing::info!(identity = cli.identity, version = env!("CARGO_PKG_VERSION"), "started");

    let work = async {
        candidate.acquire().await;
        tracing::info!("leading");
        metrics.leads();
        let context = context(&cli, client, caches, fence, metrics.clone());
        tokio::select! {
            () = candidate.keep() => RunError::LostLeadership,
            () = control(context, &trigger, looks) => RunError::ControllerEnded,
        }
    };
    let end = tokio::select! {
        error = work => Err(error),
        () = server => Err(RunError::ServerEnded),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    if end.is_ok() {
        tracing::info!("told to end: releasing the lease");
        if let Err(error) = candidate.release().await {
            tracing::warn!(error = chain(&error), "lease not released, it will run out");
        }
    }
    end
}

async fn client(cli: &Cli) -> Result<Client, RunError> {
    let api_servers = cli.agents.api_servers.0.clone();
    if api_servers.is_empty() {
        return Err(RunError::NoApiServer);
    }
    let options = api_client::Options { kubeconfig: cli.kubeconfig.clone(), api_servers };
    Ok(api_client::connect(&options).await?.client)
}

fn context(cli: &Cli, client: Client, caches: Caches, fence: Fence, metrics: Metrics) -> Arc<Context> {
    Arc::new(Context {
        writer: Writer::new(client.clone(), fence, metrics.clone()),
        events: Events::new(client.clone(), cli.identity.clone()),
        install: cli.agents.install(),
        notes: Notes::default(),
        client,
        caches,
        metrics,
    })
}

async fn control(
    context: Arc<Context>,
    trigger: &Trigger,
    looks: impl futures::Stream<Item = ()> + Send + 'static,
) {
    let api: Api<DynamicObject> = Api::all_with(context.client.clone(), &resource());
    let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    // What was seen while another led.
    trigger.fire();
    Controller::new_with(api, only, resource())
        .trigger_backoff(BackOff::default())
        .reconcile_all_on(looks)
        .run(reconcile, error_policy, context)
        .for_each(|result| async {
            if let Err(error) = result {
                tracing::debug!(error = chain(&error), "controller");
            }
        })
        .await;
}
