//! One reconciliation: dereference, validate, plan (build), apply, status.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fairlead_crds::{
    ServiceNetwork, ServiceNetworkStatus, conditions::RECONCILING, conditions::find, revision::RevisionError,
};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Resource as _, ResourceExt as _,
    core::{ApiResource, DynamicObject},
    runtime::controller::Action,
};
use serde_json::json;

use crate::{
    apply::{Applied, apply},
    context::Context,
    dereference::{Observed, Previous},
    error::chain,
    events,
    plan::{Plan, plan},
    status::{self, Outcome, Reason},
    validate::validate,
    watch::AgentPod,
    write::{Target, WriteError},
};

/// How often one looks while something is on its way that no watch tells of: a deadline, a Node's
/// kubelet.
const WHILE_MOVING: Duration = Duration::from_secs(10);

/// A reconciliation that has to be tried again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Watches have not listed yet what they watch.
    #[error("failed to read {}", .0.join("; "))]
    Unread(Vec<String>),
    /// Nodes could not be read.
    #[error("failed to read nodes")]
    ReadNodes(#[source] kube::Error),
    /// The config cannot be written as a revision.
    #[error("failed to make a revision")]
    Revision(#[from] RevisionError),
    /// Something could not be written. Everything else was tried.
    #[error("failed to write {} objects", .0.len())]
    Write(#[source] Failures),
    /// The status could not be written.
    #[error("failed to report")]
    Status(#[source] WriteError),
}

/// Writes that failed, of which the first is told.
#[derive(Debug)]
pub struct Failures(Vec<WriteError>);

impl Failures {
    fn len(&self) -> usize {
        self.0.len()
    }
}

impl std::fmt::Display for Failures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.first() {
            Some(first) => f.write_str(&chain(first)),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failures {}

/// Reconciles the one ServiceNetwork.
pub async fn reconcile(network: Arc<DynamicObject>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let begun = Instant::now();
    let result = attempt(&network, &context).await;
    context.metrics.reconciled(result.is_ok(), begun.elapsed());
    match result {
        Ok(action) => {
            context.notes.write(|notes| notes.failures = 0);
            Ok(action)
        }
        Err(error) => Err(error),
    }
}

/// When to try again.
#[allow(clippy::needless_pass_by_value, reason = "the signature is kube's")]
pub fn error_policy(_: Arc<DynamicObject>, error: &ReconcileError, context: Arc<Context>) -> Action {
    let pause = context.notes.back_off();
    tracing::warn!(error = chain(error), ?pause, "reconciliation failed, will be tried again");
    Action::requeue(pause)
}

async fn attempt(network: &DynamicObject, context: &Context) -> Result<Action, ReconcileError> {
    let before = Previous::of(network);
    let observed = match dereference(network, context).await {
        Ok(observed) => observed,
        Err(error) => {
            let status = status::failed(&before, Reason::ReadFailed, chain(&error), Timestamp::now());
            report(network, context, &before, &status).await?;
            return Err(error);
        }
    };
    let spec = validate(network);
    let plan = plan(&observed, spec.as_ref(), &context.install, Timestamp::now())?;
    if !plan.is_empty() {
        tracing::info!(
            revision = plan.revision,
            nodes_to_tell = plan.assignments.len(),
            objects = plan.singletons.len(),
            "applying"
        );
    }
    let applied = apply(&context.writer, &plan).await;
    if let Some(pod) = &applied.replaced {
        context.notes.write(|notes| notes.deleted_last.clone_from(&pod.metadata.uid));
        let event = events::replacing(pod.object_ref(&()), node_of(pod));
        context.events.tell(&network.object_ref(&resource()), vec![event]).await;
    }
    let outcome = Outcome { spec: spec.as_ref(), plan: &plan, failure: failure(&applied, context) };
    let status = status::status(&outcome, &before, Timestamp::now());
    report(network, context, &before, &status).await?;
    if !applied.failures.is_empty() {
        return Err(ReconcileError::Write(Failures(applied.failures)));
    }
    Ok(next_look(&plan, &status))
}

async fn dereference(network: &DynamicObject, context: &Context) -> Result<Observed, ReconcileError> {
    let unread = context.caches.unsynced();
    if !unread.is_empty() {
        return Err(ReconcileError::Unread(unread));
    }
    let mut noted = context.notes.read();
    let mut observed = Observed::cached(&context.caches, network);
    observed.deleted_last = noted.deleted_last;
    observed.note_bare(&noted.bare, Timestamp::now());
    let badly_off = observed.badly_off();
    let looked = noted.reachability.look(&context.client, &badly_off).await;
    observed.unreachable = looked.map_err(ReconcileError::ReadNodes)?;
    context.notes.write(|notes| {
        notes.bare.clone_from(&observed.bare);
        notes.reachability = noted.reachability;
    });
    Ok(observed)
}

/// What failed, for the status: what could not be written, or what is not seen any more.
fn failure(applied: &Applied, context: &Context) -> Option<(Reason, String)> {
    if let Some(first) = applied.failures.first() {
        let more = match applied.failures.len() {
            1 => String::new(),
            failures => format!(", and {} more writes", failures.saturating_sub(1)),
        };
        return Some((Reason::ApplyFailed, format!("{}{more}", chain(first))));
    }
    let failing = context.caches.failing();
    (!failing.is_empty()).then(|| (Reason::ReadFailed, format!("failed to watch {}", failing.join("; "))))
}

/// Writes the status if it differs, and tells what changed.
async fn report(
    network: &DynamicObject,
    context: &Context,
    before: &Previous,
    status: &ServiceNetworkStatus,
) -> Result<(), ReconcileError> {
    if let Some(nodes) = &status.nodes {
        let rollout = status.rollout.as_ref();
        let last_good = rollout.and_then(|rollout| rollout.last_good.as_deref());
        context.metrics.state(nodes, rollout.map(|rollout| rollout.revision.as_str()), last_good);
    }
    let object = json!({
        "apiVersion": ServiceNetwork::api_version(&()),
        "kind": ServiceNetwork::kind(&()),
        // With its uid: the status of one that was deleted meanwhile is none of a new one's.
        "metadata": { "name": network.name_any(), "uid": before.uid },
        "status": status,
    });
    if object.get("status") == Some(&before.status) {
        return Ok(());
    }
    let target = Target { resource: resource(), namespace: None, name: network.name_any() };
    context.writer.apply_status(&target, &object).await.map_err(ReconcileError::Status)?;
    let revision = status.rollout.as_ref().map(|rollout| rollout.revision.as_str());
    let events = events::transitions(&before.conditions, &status.conditions, revision);
    context.events.tell(&network.object_ref(&resource()), events).await;
    Ok(())
}

fn next_look(plan: &Plan, status: &ServiceNetworkStatus) -> Action {
    let moving = find(&status.conditions, RECONCILING).is_some();
    if moving || plan.nodes.iter().any(|node| !node.healthy()) {
        Action::requeue(WHILE_MOVING)
    } else {
        Action::await_change()
    }
}

fn node_of(pod: &AgentPod) -> &str {
    pod.node().unwrap_or_default()
}

/// The API of ServiceNetworks, which are read untyped (see `validate`).
pub fn resource() -> ApiResource {
    ApiResource::erase::<ServiceNetwork>(&())
}
