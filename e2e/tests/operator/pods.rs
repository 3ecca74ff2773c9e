//! Another image: pods are replaced one after another.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;

const NODES: usize = 3;
const OTHER: &str =
    "registry.example/fairlead@sha256:1111111111111111111111111111111111111111111111111111111111111111";

fn pods(cluster: &Cluster) -> Vec<Value> {
    items(cluster, &format!("pods -n {NAMESPACE} -l app.kubernetes.io/name=fairlead-node-agent"))
}

fn is_new(pod: &Value) -> bool {
    pod["spec"]["containers"][0]["image"] == OTHER
}

/// Pods that are not there for good: on their way out, or not Ready.
fn away(pods: &[Value]) -> usize {
    let stays = |pod: &&Value| {
        pod["metadata"].get("deletionTimestamp").is_none()
            && condition(pod, "Ready")
                .or_else(|| ready_without_reason(pod))
                .is_some_and(|it| it.starts_with("True"))
    };
    NODES - pods.iter().filter(stays).count()
}

fn ready_without_reason(pod: &Value) -> Option<String> {
    let conditions = pod["status"]["conditions"].as_array()?;
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready")?;
    Some(ready["status"].as_str()?.to_owned())
}

#[test]
fn another_image_replaces_pods_one_after_another_each_ready_before_the_next() {
    let simulation = Simulation::start().unwrap();
    let cluster = simulation.cluster();
    simulation.add_nodes(NODES).unwrap();
    let old = simulation.leading_operator("old", IMAGE).unwrap();
    let _agents = simulation.agents(NODES, &[]).unwrap();
    cluster.apply(&service_network("{}")).unwrap();
    simulation.tend_until_ready(NODES, PATIENCE).unwrap();
    configure(&simulation, &old, NODES as u64, "{}");
    assert!(old.terminate().unwrap().success());

    let new = simulation.leading_operator("new", OTHER).unwrap();
    until("a pod is on its way out", &new, || away(&pods(cluster)) == 1);
    // nobody makes its successor Ready: the others stay
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(away(&pods(cluster)), 1);
    let waiting = network(cluster);
    assert_eq!(condition(&waiting, "Reconciling").as_deref(), Some("True RollingOut"));
    assert_eq!(condition(&waiting, "Ready").as_deref(), Some("True RollingOut"));
    assert!(message(&waiting, "Reconciling").contains("0 of 3 pods"), "{}", message(&waiting, "Reconciling"));

    let mut most_away = 0;
    until("all pods are of the new image", &new, || {
        simulation.tend_pods().unwrap();
        let pods = pods(cluster);
        most_away = most_away.max(away(&pods));
        pods.len() == NODES && pods.iter().all(is_new)
    });
    assert_eq!(most_away, 1);
    simulation.tend_until_ready(NODES, PATIENCE).unwrap();
    let done = configure(&simulation, &new, NODES as u64, "{}");
    assert_eq!(condition(&done, "Ready").as_deref(), Some("True AsExpected"));

    let told = items(cluster, "events.events.k8s.io -n default --field-selector=reason=ReplacingAgent");
    let replaced: BTreeSet<_> = told.iter().map(|event| event["related"]["name"].as_str().unwrap()).collect();
    assert_eq!(replaced.len(), NODES);
    // no config changed: no node was told anything
    assert_eq!(revisions(cluster).len(), 1);
}
