//! The operator on a real API server, with simulated agents that use the agent's own client code.
//!
//! Needs root, for the control plane's namespaces: `cargo test --features cluster --test operator`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy exempts test functions, not what they call"
)]

mod api;
mod leaders;
mod life;
mod pods;
mod scale;

use std::time::Duration;

use fairlead_e2e::cluster::Cluster;
use fairlead_e2e::eventually;
use fairlead_e2e::installation::{NAMESPACE, service_network, wait_ready};
use fairlead_e2e::simulation::{IMAGE, Operator, PREFIX, Simulation};
use serde_json::Value;

/// The host is small and may be busy; no test passes by waiting longer.
const PATIENCE: Duration = Duration::from_secs(90);

/// Waits, and shows what the operator said when it is in vain.
fn until(what: &str, operator: &Operator, condition: impl FnMut() -> bool) {
    if let Err(error) = eventually(what, PATIENCE, condition) {
        panic!("{error:#}\n{}", operator.log());
    }
}

/// Applies a ServiceNetwork and waits until it holds on every node.
fn configure(simulation: &Simulation, operator: &Operator, nodes: u64, spec: &str) -> Value {
    simulation.cluster().apply(&service_network(spec)).unwrap();
    match wait_ready(simulation.cluster(), nodes, PATIENCE) {
        Ok(network) => network,
        Err(error) => panic!("{error:#}\n{}", operator.log()),
    }
}

fn network(cluster: &Cluster) -> Value {
    cluster.get("servicenetwork cluster").unwrap()
}

/// A condition of an object, as `Status Reason`.
fn condition(object: &Value, type_: &str) -> Option<String> {
    let conditions = object["status"]["conditions"].as_array()?;
    let condition = conditions.iter().find(|condition| condition["type"] == type_)?;
    Some(format!("{} {}", condition["status"].as_str()?, condition["reason"].as_str()?))
}

fn message(object: &Value, type_: &str) -> String {
    let conditions = object["status"]["conditions"].as_array().unwrap();
    let condition = conditions.iter().find(|condition| condition["type"] == type_).unwrap();
    condition["message"].as_str().unwrap().to_owned()
}

/// A list of objects, by the arguments of `kubectl get`.
fn items(cluster: &Cluster, what: &str) -> Vec<Value> {
    cluster.get(what).unwrap()["items"].as_array().unwrap().clone()
}

/// Our revisions, the oldest first.
fn revisions(cluster: &Cluster) -> Vec<Value> {
    let mut revisions =
        items(cluster, &format!("controllerrevisions -n {NAMESPACE} -l fairlead.dev/revision-of=node-agent"));
    revisions.sort_by_key(|revision| revision["revision"].as_i64());
    revisions
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

/// What every node is told to run.
fn told(cluster: &Cluster) -> Vec<Option<String>> {
    let nodes = items(cluster, "servicenetworknodes");
    nodes.iter().map(|node| node["spec"]["revision"].as_str().map(str::to_owned)).collect()
}

/// The reasons of the Events on the ServiceNetwork, in the order in which they were made.
fn events(cluster: &Cluster) -> Vec<String> {
    let mut events =
        items(cluster, "events.events.k8s.io -n default --field-selector=regarding.name=cluster");
    events.sort_by_key(|event| event["eventTime"].as_str().map(str::to_owned));
    events.iter().map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
}
