//! What has to be done, from what was seen.
//!
//! Pure, and the heart of the operator: everything that is written follows from a plan, and a cluster
//! that is as it should be has an empty one.

use std::collections::BTreeSet;

use fairlead_crds::{
    NodeAgentConfig,
    conditions::{RECONCILING, STALLED, find},
    revision::RevisionError,
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Condition,
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt as _;
use serde_json::Value;

use crate::{
    build::{self, APPLIED_ANNOTATION, Desired, Install},
    compare::holds,
    dereference::{Observed, Previous},
    rollout::{
        PROGRESS_DEADLINE,
        assign::{Assignment, assignment},
        nodes::NodeState,
        pods::{self, Situation, Step},
        revisions::{self, Number},
        verdict::{self, Verdict},
    },
    status::Reason,
    validate::InvalidSpec,
};

/// What has to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Owned objects that are not as they should be.
    pub singletons: Vec<Desired>,
    /// The revision that nodes are to run, once there is one.
    pub revision: Option<String>,
    /// It has to be made, or made the newest.
    pub write_revision: Option<RevisionWrite>,
    /// What nodes have to be told.
    pub assignments: Vec<Assignment>,
    /// How each node fares.
    pub nodes: Vec<NodeState>,
    /// How the rollout stands; none where there is nothing to roll out.
    pub verdict: Option<Verdict>,
    /// The revision that has passed its rollout and is to be labelled so, and those that no longer are
    /// the last good one.
    pub relabel: Option<Relabel>,
    /// The last good revision once that is done.
    pub last_good: Option<String>,
    /// What happens to the pods.
    pub pods: Step,
    /// How many pods there are.
    pub pods_total: usize,
    /// How many of them are of the present template.
    pub pods_updated: usize,
    /// Revisions that nobody needs, with their versions.
    pub spent: Vec<Object>,
}

/// A write of a revision.
#[derive(Clone, Debug, PartialEq)]
pub enum RevisionWrite {
    /// It is made.
    Make(Value),
    /// It gets a higher number.
    Raise {
        /// The revision.
        name: String,
        /// The number.
        number: i64,
    },
}

/// A change of the last good revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relabel {
    /// Gets the label, unless it has it.
    pub add: Option<String>,
    /// Lose it.
    pub remove: Vec<String>,
}

/// An object as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its version.
    pub version: String,
}

/// Plans. `spec` is the config that the ServiceNetwork asks for, or why it asks for none.
pub fn plan(
    observed: &Observed,
    spec: Result<&NodeAgentConfig, &InvalidSpec>,
    install: &Install,
    now: Timestamp,
) -> Result<Plan, RevisionError> {
    let labelled = revisions::last_good(&observed.revisions);
    let (revision, write_revision) = match spec {
        Ok(config) => wanted_revision(observed, config)?,
        // Nothing changes anywhere; new nodes take what has proved itself.
        Err(_) => (kept_revision(observed, labelled.as_deref()), None),
    };
    let nodes: Vec<_> =
        observed.facts().into_iter().map(|facts| NodeState::judge(facts, revision.as_deref())).collect();
    let verdict = match (&revision, spec) {
        (Some(revision), Ok(_)) => {
            let closed = is_closed(&observed.network, revision, labelled.as_deref());
            Some(if closed { Verdict::Passed } else { judge(&observed.network, revision, &nodes, now) })
        }
        _ => None,
    };
    let good = revision.clone().filter(|_| verdict == Some(Verdict::Passed));
    let template = build::template_digest(install);
    let outdated = observed.pods.iter().filter(|pod| pods::is_outdated(pod, &template)).count();
    Ok(Plan {
        singletons: build::singletons(install).into_iter().filter(|it| !is_right(observed, it)).collect(),
        assignments: assignments(observed, revision.as_deref(), spec.is_ok(), labelled.as_deref()),
        relabel: good.as_deref().and_then(|good| relabel(observed, good)),
        last_good: good.or(labelled),
        pods: pods::next(&Situation {
            pods: &observed.pods,
            hosts: &observed.hosts(),
            template: &template,
            template_seen: observed.template_seen(),
            deleted_last: observed.deleted_last.as_deref(),
        }),
        pods_total: observed.pods.len(),
        pods_updated: observed.pods.len().saturating_sub(outdated),
        spent: spent(observed, revision.as_deref()),
        revision,
        write_revision,
        nodes,
        verdict,
    })
}

/// Whether an owned object is as it should be.
fn is_right(observed: &Observed, desired: &Desired) -> bool {
    let Some(live) = observed.owned.get(&desired.owned) else { return false };
    let applied = desired.object.pointer(&format!("/metadata/annotations/{}", escaped(APPLIED_ANNOTATION)));
    let stamped = live.annotations().get(APPLIED_ANNOTATION).map(String::as_str);
    stamped == applied.and_then(Value::as_str)
        && serde_json::to_value(&**live).is_ok_and(|live| holds(&without_type(&desired.object), &live))
}

/// The items of a list do not say of what kind they are: the list does.
fn without_type(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.retain(|field, _| field != "apiVersion" && field != "kind");
    }
    object
}

/// A name within a JSON pointer (RFC 6901).
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn wanted_revision(
    observed: &Observed,
    config: &NodeAgentConfig,
) -> Result<(Option<String>, Option<RevisionWrite>), RevisionError> {
    let (name, _) = build::revision(config, 0)?;
    let write = match revisions::number(&name, &observed.revisions) {
        Number::Right => None,
        Number::Raise(number) => Some(RevisionWrite::Raise { name: name.clone(), number }),
        Number::Make(number) => Some(RevisionWrite::Make(build::revision(config, number)?.1)),
    };
    Ok((Some(name), write))
}

/// The revision that nodes go on with under a spec that is refused.
fn kept_revision(observed: &Observed, last_good: Option<&str>) -> Option<String> {
    let rolling = observed.network.revision.as_deref();
    let there = |name: &&str| observed.revisions.iter().any(|revision| revision.name_any() == *name);
    rolling.filter(there).or(last_good).map(str::to_owned)
}

fn assignments(
    observed: &Observed,
    revision: Option<&str>,
    move_all: bool,
    last_good: Option<&str>,
) -> Vec<Assignment> {
    let Some(revision) = revision else { return Vec::new() };
    let nodes = observed.nodes.values();
    nodes
        .filter_map(|node| {
            let agent = observed.agents.get(&node.name);
            let told = agent.and_then(|agent| agent.spec.revision.as_deref());
            let target = if move_all { revision } else { told.or(last_good).unwrap_or(revision) };
            assignment(node, agent, target)
        })
        .collect()
}

/// Whether the rollout of a revision is over: it is the last good one, and nothing says that it goes
/// on. What befalls a node from then on is that node's trouble, not the rollout's.
fn is_closed(network: &Previous, revision: &str, last_good: Option<&str>) -> bool {
    let open = rollout_condition(network, RECONCILING, Reason::RollingOut).is_some()
        || rollout_condition(network, STALLED, Reason::RolloutHung).is_some();
    last_good == Some(revision) && network.revision.as_deref() == Some(revision) && !open
}

fn judge(network: &Previous, revision: &str, nodes: &[NodeState], now: Timestamp) -> Verdict {
    let deadline = SignedDuration::try_from(PROGRESS_DEADLINE).unwrap_or_default();
    let hung = rollout_condition(network, STALLED, Reason::RolloutHung);
    let reconciling = find(&network.conditions, RECONCILING);
    let began = if network.revision.as_deref() == Some(revision) {
        // Hung since the deadline passed: anything newer is progress.
        let before_it_hung = hung.and_then(|hung| hung.last_transition_time.0.checked_sub(deadline).ok());
        before_it_hung.or(reconciling.map(|it| it.last_transition_time.0)).unwrap_or(now)
    } else {
        now
    };
    verdict::judge(nodes, verdict::last_progress(began, nodes), now)
}

fn rollout_condition<'a>(network: &'a Previous, type_: &str, reason: Reason) -> Option<&'a Condition> {
    find(&network.conditions, type_).filter(|condition| condition.reason == reason.as_str())
}

fn relabel(observed: &Observed, good: &str) -> Option<Relabel> {
    let labelled = observed.revisions.iter().filter(|revision| revisions::is_last_good(revision));
    let labelled: Vec<_> = labelled.map(|revision| revision.name_any()).collect();
    let add = (!labelled.iter().any(|name| name == good)).then(|| good.to_owned());
    let remove: Vec<_> = labelled.into_iter().filter(|name| name != good).collect();
    (add.is_some() || !remove.is_empty()).then_some(Relabel { add, remove })
}

fn spent(observed: &Observed, revision: Option<&str>) -> Vec<Object> {
    let mut in_use: BTreeSet<String> = revision.map(str::to_owned).into_iter().collect();
    for agent in observed.agents.values() {
        in_use.extend(agent.spec.revision.clone());
        in_use.extend(agent.status.revision.clone());
    }
    let spent = revisions::spent(&observed.revisions, &in_use);
    spent
        .iter()
        .map(|revision| Object {
            name: revision.name_any(),
            uid: revision.uid().unwrap_or_default(),
            version: revision.resource_version().unwrap_or_default(),
        })
        .collect()
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.singletons.is_empty()
            && self.write_revision.is_none()
            && self.assignments.is_empty()
            && self.relabel.is_none()
            && self.spent.is_empty()
            && !matches!(self.pods, Step::Replace(_))
    }
}

#[cfg(test)]
mod tests;
