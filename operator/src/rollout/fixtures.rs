//! Nodes, agents and pods as tests see them.
#![allow(clippy::missing_panics_doc, reason = "only tests call this")]

use fairlead_crds::conditions::{ACCEPTED, HEALTHY, PROGRAMMED, Truth};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use serde_json::json;

use crate::{
    build::{TEMPLATE_ANNOTATION, service_network_node},
    watch::{AgentPod, AgentView},
};

/// A second of a clock that begins at 0.
pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A condition since a second.
pub fn condition(type_: &str, status: Truth, reason: &str, message: &str, since: i64) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: status.as_str().to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: Time(at(since)),
        observed_generation: Some(1),
    }
}

/// The ServiceNetworkNode of a node that was told one revision and runs another, all being well with it.
pub fn agent(node: &str, told: &str, runs: &str) -> AgentView {
    let mut agent: AgentView =
        serde_json::from_value(service_network_node(node, &format!("uid-{node}"), told)).unwrap();
    agent.metadata.uid = Some(format!("own-{node}"));
    agent.metadata.resource_version = Some("7".to_owned());
    agent.metadata.generation = Some(1);
    agent.status.observed_generation = Some(1);
    agent.status.revision = Some(runs.to_owned());
    agent.status.version = Some("0.1.0".to_owned());
    let well = |type_| condition(type_, Truth::True, "AsExpected", "", 100);
    agent.status.conditions = [ACCEPTED, PROGRAMMED, HEALTHY].map(well).to_vec();
    agent
}

/// The same, with another condition in place of the one of its type.
pub fn with(mut agent: AgentView, condition: Condition) -> AgentView {
    agent.status.conditions.retain(|it| it.type_ != condition.type_);
    agent.status.conditions.push(condition);
    agent
}

/// A pod of an agent.
pub fn pod(node: &str, template: &str, ready: bool) -> AgentPod {
    serde_json::from_value(json!({
        "metadata": {
            "name": format!("agent-{node}"),
            "uid": format!("pod-{node}-{template}"),
            "creationTimestamp": at(50),
            "annotations": { TEMPLATE_ANNOTATION: template },
        },
        "spec": { "nodeName": node },
        "status": {
            "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": at(60) }],
        },
    }))
    .unwrap()
}

/// The same while a container of it waits.
pub fn waiting(mut pod: AgentPod, reason: &str) -> AgentPod {
    let waiting = json!([{ "state": { "waiting": { "reason": reason } } }]);
    pod.status.container_statuses = serde_json::from_value(waiting).unwrap();
    pod
}
