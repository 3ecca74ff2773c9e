//! `ServiceNetwork.status`: what is told of a reconciliation.
//!
//! Pure. `conditions` decides what holds, `summary` counts and words it. The status is written only
//! when it differs from what stands there, so nothing in it may change by itself: no clock, no order
//! that is left to chance.

mod conditions;
mod reason;
mod summary;

use fairlead_crds::{
    NodeAgentConfig, RelatedObject, RolloutStatus, ServiceNetworkStatus,
    conditions::{RECONCILING, STALLED, update},
    names::{AGENT, NAMESPACE},
};
use k8s_openapi::jiff::Timestamp;

pub use self::{reason::Reason, summary::cut};
use crate::{dereference::Previous, plan::Plan, validate::InvalidSpec};

/// What came of doing what was planned.
#[derive(Clone, Debug)]
pub struct Outcome<'a> {
    /// The config that the spec comes to, or why it comes to none.
    pub spec: Result<&'a NodeAgentConfig, &'a InvalidSpec>,
    /// What was planned.
    pub plan: &'a Plan,
    /// What failed, and its sentence.
    pub failure: Option<(Reason, String)>,
}

/// The status after a reconciliation.
pub fn status(outcome: &Outcome<'_>, before: &Previous, now: Timestamp) -> ServiceNetworkStatus {
    let Outcome { spec, plan, .. } = outcome;
    let wanted = conditions::wanted(outcome, now);
    // A new rollout is a new reconciliation, however the one before it ended: its deadline counts from
    // here.
    let same = before.revision == plan.revision;
    let earlier: Vec<_> = before
        .conditions
        .iter()
        .filter(|condition| same || ![RECONCILING, STALLED].contains(&condition.type_.as_str()))
        .cloned()
        .collect();
    let kept = || before.typed().and_then(|status| status.effective);
    ServiceNetworkStatus {
        observed_generation: before.generation,
        conditions: update(&earlier, wanted, before.generation, now),
        effective: spec.ok().and_then(|config| serde_json::to_value(config).ok()).or_else(kept),
        rollout: plan
            .revision
            .clone()
            .map(|revision| RolloutStatus { revision, last_good: plan.last_good.clone() }),
        nodes: Some(summary::nodes(&plan.nodes)),
        components: vec![conditions::node_agent(outcome, now)],
        version: summary::version(&plan.nodes),
        related_objects: related_objects(),
    }
}

/// The status where nothing could be read: what was known stays, with the reason.
pub fn failed(before: &Previous, reason: Reason, message: String, now: Timestamp) -> ServiceNetworkStatus {
    let mut status = before.typed().unwrap_or_default();
    let wanted = conditions::failed(&before.conditions, reason, message);
    status.conditions = update(&before.conditions, wanted, before.generation, now);
    status.observed_generation = before.generation;
    status
}

fn related_objects() -> Vec<RelatedObject> {
    let object = |group: &str, resource: &str, namespace: Option<&str>, name: &str| RelatedObject {
        group: group.to_owned(),
        resource: resource.to_owned(),
        namespace: namespace.map(str::to_owned),
        name: name.to_owned(),
    };
    vec![
        object("", "namespaces", None, NAMESPACE),
        object("apps", "daemonsets", Some(NAMESPACE), AGENT),
        object("apps", "controllerrevisions", Some(NAMESPACE), ""),
        object("fairlead.dev", "servicenetworknodes", None, ""),
    ]
}

#[cfg(test)]
mod tests;
