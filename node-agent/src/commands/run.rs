//! `run`: the agent, until it is told to stop.

use std::{
    process::ExitCode,
    sync::mpsc::{self, Sender},
    thread,
};

use anyhow::{Context, Result, anyhow};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch as cell,
};

use crate::{
    agent::{Agent, Input},
    bring_up::BringUp,
    cli::RunArgs,
    metrics::{IpvsReader, Metrics},
    state::record::Record,
    status::Shared,
    watch::Manifests,
};

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
    let (inputs, queue) = mpsc::channel();
    let source = Manifests::start(&args.source.manifests, args.source.node_name.clone(), inputs.clone())
        .context("failed to start following the manifests")?;
    let shared = Shared::default();
    let (metrics, registry) = Metrics::register(shared.clone(), IpvsReader::default());
    let (ours, is_ours) = cell::channel(false);
    let bring_up = BringUp::new(args.force, inputs.clone(), ours);
    let agent = Agent::new(bring_up, record, state_dir.clone(), source.health(), shared.clone(), metrics);
    let agent = thread::Builder::new()
        .name("agent".to_owned())
        .spawn(move || agent.run(&queue))
        .context("failed to start the agent's thread")?;

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime of the HTTP endpoints")?;
    let result = runtime.block_on(serve_until_told(args, shared, registry, is_ours, &inputs));
    // The source first, so that nothing is sent to an agent that is ending.
    drop(source);
    // An agent that has ended already does not hear it.
    let _ = inputs.send(Input::Stop);
    drop(inputs);
    agent.join().map_err(|_| anyhow!("the agent's thread panicked: this is a bug"))?;
    tracing::info!("stopped; the dataplane stays in place");
    result.map(|()| ExitCode::SUCCESS)
}

async fn serve_until_told(
    _args: &RunArgs,
    _shared: Shared,
    _registry: prometheus_client::registry::Registry,
    mut _is_ours: cell::Receiver<bool>,
    _inputs: &Sender<Input>,
) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
