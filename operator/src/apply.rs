//! Does what was planned: the only part of a reconciliation that writes, but for the status.
//!
//! What fails does not keep the rest from being tried, except where the rest builds on it: no node is
//! told of a revision that could not be made, and no pod is replaced while anything else fails.

use std::sync::Arc;

use fairlead_crds::{
    ServiceNetworkNode,
    names::{LAST_GOOD_LABEL, NAMESPACE},
};
use futures::StreamExt as _;
use k8s_openapi::api::{apps::v1::ControllerRevision, core::v1::Pod};
use kube::{ResourceExt as _, api::Preconditions, core::ApiResource};
use serde_json::{Value, json};

use crate::{
    plan::{Plan, Relabel, RevisionWrite},
    rollout::{assign::Assignment, pods::Step},
    watch::AgentPod,
    write::{Target, WriteError, Writer},
};

/// How many nodes are told at a time.
const AT_A_TIME: usize = 16;

/// What was done.
#[derive(Debug, Default)]
pub struct Applied {
    /// The pod that was deleted to be replaced.
    pub replaced: Option<Arc<AgentPod>>,
    /// What failed.
    pub failures: Vec<WriteError>,
}

/// Does it.
pub async fn apply(writer: &Writer, plan: &Plan) -> Applied {
    let mut failures = Vec::new();
    for desired in &plan.singletons {
        let target = Target {
            resource: desired.owned.resource(),
            namespace: desired.owned.namespace(),
            name: desired.owned.name().to_owned(),
        };
        failures.extend(writer.apply(&target, &desired.object).await.err());
    }
    match write_revision(writer, plan.write_revision.as_ref()).await {
        Ok(()) => {
            failures.extend(assign(writer, &plan.assignments).await);
            failures.extend(relabel(writer, plan.relabel.as_ref()).await);
        }
        Err(failure) => failures.push(failure),
    }
    if !failures.is_empty() {
        return Applied { replaced: None, failures };
    }
    for revision in &plan.spent {
        let seen = seen(&revision.uid, &revision.version);
        failures.extend(writer.delete(&revision_target(&revision.name), seen).await.err());
    }
    let mut replaced = None;
    if let Step::Replace(pod) = &plan.pods {
        match replace(writer, pod).await {
            Ok(()) => replaced = Some(Arc::clone(pod)),
            Err(failure) => failures.push(failure),
        }
    }
    Applied { replaced, failures }
}

async fn write_revision(writer: &Writer, write: Option<&RevisionWrite>) -> Result<(), WriteError> {
    match write {
        None => Ok(()),
        Some(RevisionWrite::Make(object)) => {
            let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
            writer.apply(&revision_target(name), object).await
        }
        Some(RevisionWrite::Raise { name, number }) => {
            writer.change(&revision_target(name), &json!({ "revision": number })).await
        }
    }
}

/// The label comes before it goes elsewhere: at no time is there no last good revision.
async fn relabel(writer: &Writer, relabel: Option<&Relabel>) -> Vec<WriteError> {
    let Some(Relabel { add, remove }) = relabel else { return Vec::new() };
    let label = |value: Value| json!({ "metadata": { "labels": { LAST_GOOD_LABEL: value } } });
    if let Some(name) = add
        && let Err(failure) = writer.change(&revision_target(name), &label("true".into())).await
    {
        return vec![failure];
    }
    let mut failures = Vec::new();
    for name in remove {
        failures.extend(writer.change(&revision_target(name), &label(Value::Null)).await.err());
    }
    failures
}

async fn assign(writer: &Writer, assignments: &[Assignment]) -> Vec<WriteError> {
    let told: Vec<_> = assignments.iter().map(|assignment| assign_one(writer, assignment)).collect();
    futures::stream::iter(told)
        .buffer_unordered(AT_A_TIME)
        .filter_map(|result| async { result.err() })
        .collect()
        .await
}

async fn assign_one(writer: &Writer, assignment: &Assignment) -> Result<(), WriteError> {
    let target = Target {
        resource: ApiResource::erase::<ServiceNetworkNode>(&()),
        namespace: None,
        name: assignment.node.clone(),
    };
    if let Some((uid, version)) = &assignment.remove_first {
        writer.delete(&target, seen(uid, version)).await?;
    }
    writer.apply(&target, &assignment.object).await
}

async fn replace(writer: &Writer, pod: &AgentPod) -> Result<(), WriteError> {
    let target =
        Target { resource: ApiResource::erase::<Pod>(&()), namespace: Some(NAMESPACE), name: pod.name_any() };
    let seen = Preconditions { uid: pod.uid(), resource_version: None };
    writer.delete(&target, seen).await
}

fn revision_target(name: &str) -> Target {
    Target {
        resource: ApiResource::erase::<ControllerRevision>(&()),
        namespace: Some(NAMESPACE),
        name: name.to_owned(),
    }
}

fn seen(uid: &str, version: &str) -> Preconditions {
    Preconditions { uid: Some(uid.to_owned()), resource_version: Some(version.to_owned()) }
}
