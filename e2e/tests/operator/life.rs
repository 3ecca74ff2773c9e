//! A ServiceNetwork is made, changed, refused, deleted and made again.

use std::time::Duration;

use fairlead_e2e::eventually;
use serde_json::json;

use super::*;

const NODES: usize = 3;

/// An operator that leads, and agents on three nodes.
struct Stage {
    simulation: Simulation,
    operator: Operator,
    _agents: fairlead_e2e::ns::Process,
}

impl Stage {
    fn set() -> Self {
        let simulation = Simulation::start().unwrap();
        simulation.add_nodes(NODES).unwrap();
        let operator = simulation.leading_operator("one", IMAGE).unwrap();
        let agents = simulation.agents(NODES, &[]).unwrap();
        Self { simulation, operator, _agents: agents }
    }

    fn cluster(&self) -> &Cluster {
        self.simulation.cluster()
    }

    /// Makes a ServiceNetwork, and brings everything up.
    fn configure(&self, spec: &str) -> Value {
        self.cluster().apply(&service_network(spec)).unwrap();
        self.simulation.tend_until_ready(NODES, PATIENCE).unwrap();
        configure(&self.simulation, &self.operator, NODES as u64, spec)
    }

    fn until(&self, what: &str, condition: impl FnMut() -> bool) {
        until(what, &self.operator, condition);
    }
}

#[test]
fn a_service_network_is_rolled_out_changed_and_changed_back() {
    let stage = Stage::set();
    let network = stage.configure("{}");
    let status = &network["status"];
    assert_eq!(status["effective"]["proxy"]["ipvs"]["scheduler"], "rr");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    let first = revisions(stage.cluster()).remove(0);
    assert_eq!(status["rollout"], json!({ "revision": name(&first), "lastGood": name(&first) }));
    assert_eq!(told(stage.cluster()), vec![Some(name(&first).to_owned()); NODES]);
    stage.until("all are healthy", || super::network(stage.cluster())["status"]["nodes"]["healthy"] == NODES);

    let network = stage.configure("{proxy: {ipvs: {scheduler: lc}}}");
    let [_, second] = revisions(stage.cluster()).try_into().unwrap();
    assert_eq!(second["data"]["proxy"]["ipvs"]["scheduler"], "lc");
    assert_eq!(network["status"]["rollout"]["lastGood"], name(&second));
    let good = "controllerrevisions -A -l fairlead.dev/last-good=true";
    assert_eq!(items(stage.cluster(), good).iter().map(name).collect::<Vec<_>>(), [name(&second)]);

    stage.configure("{}");
    let [other, again] = revisions(stage.cluster()).try_into().unwrap();
    assert_eq!((name(&other), name(&again)), (name(&second), name(&first)));
    assert_eq!(again["revision"], 3);
    let told_of = ["RollingOut", "AsExpected", "RollingOut", "AsExpected", "RollingOut", "AsExpected"];
    let told = events(stage.cluster());
    // an Event that is told again within minutes is counted on the first
    assert_eq!(told[..2], told_of[..2], "{told:?}");
}

#[test]
fn a_spec_that_only_the_operator_can_refuse_stalls_and_changes_nothing() {
    let stage = Stage::set();
    stage.configure("{}");
    let before = told(stage.cluster());

    // an API server without our rules, as after somebody has replaced the CRD by one of another version
    let mut crd = stage.cluster().get("crd servicenetworks.fairlead.dev").unwrap();
    strip_rules(&mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]);
    stage.cluster().feed(&["replace", "-f", "-"], &crd.to_string()).unwrap();
    stage.cluster().apply(&service_network("{proxy: {mode: None, markBit: 14}}")).unwrap();
    stage.until("it is stalled", || {
        condition(&network(stage.cluster()), "Stalled").as_deref() == Some("True InvalidSpec")
    });
    let refused = network(stage.cluster());
    assert_eq!(condition(&refused, "Ready").as_deref(), Some("False InvalidSpec"));
    assert_eq!(condition(&refused, "Reconciling"), None);
    assert_eq!(refused["status"]["observedGeneration"], refused["metadata"]["generation"]);
    let said = message(&refused, "Ready");
    assert!(said.contains("spec.proxy.markBit must not be set with mode None"), "{said}");
    assert!(said.contains(&format!("nodes go on with {}", before[0].as_ref().unwrap())), "{said}");
    assert_eq!(refused["status"]["effective"]["proxy"]["markBit"], 12);

    // what this version cannot even read
    stage.cluster().apply(&service_network("{proxy: {mode: Teleport}}")).unwrap();
    stage.until("it says so", || message(&network(stage.cluster()), "Ready").contains("Teleport"));
    assert_eq!((told(stage.cluster()), revisions(stage.cluster()).len()), (before.clone(), 1));

    // a node that joins meanwhile gets what works
    stage.simulation.add_named_nodes(&["late".to_owned()]).unwrap();
    stage.until("the new node is told", || told(stage.cluster()).len() == NODES + 1);
    assert_eq!(told(stage.cluster()), vec![before[0].clone(); NODES + 1]);

    stage.cluster().kubectl(&["delete", "node", "late"]).unwrap();
    stage.configure("{}");
    assert_eq!(condition(&network(stage.cluster()), "Stalled"), None);
    assert!(events(stage.cluster()).contains(&"InvalidSpec".to_owned()));
}

/// Takes out what the API server refuses by: rules, and lists of what may be said.
fn strip_rules(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.retain(|field, _| field != "x-kubernetes-validations" && field != "enum");
            fields.values_mut().for_each(strip_rules);
        }
        Value::Array(list) => list.iter_mut().for_each(strip_rules),
        _ => {}
    }
}

/// Everything that the operator writes, by kind and name, with its version; a DaemonSet's status has another writer.
fn written(cluster: &Cluster) -> Vec<String> {
    let what = [
        "servicenetworknodes".to_owned(),
        format!("controllerrevisions -n {NAMESPACE}"),
        format!("serviceaccount,role,rolebinding -n {NAMESPACE} -l app.kubernetes.io/name=fairlead-node-agent"),
        "clusterrole,clusterrolebinding,validatingadmissionpolicy,validatingadmissionpolicybinding -l app.kubernetes.io/name=fairlead-node-agent".to_owned(),
    ];
    let objects = what.iter().flat_map(|what| items(cluster, what));
    let mut written: Vec<_> = objects
        .map(|object| {
            format!("{} {} {}", object["kind"], name(&object), object["metadata"]["resourceVersion"])
        })
        .collect();
    for set in items(cluster, &format!("daemonset -n {NAMESPACE}")) {
        written.push(format!("{} {}", name(&set), set["metadata"]["generation"]));
    }
    written
}

#[test]
fn a_service_network_that_is_deleted_and_made_again_adopts_everything_unchanged() {
    let stage = Stage::set();
    stage.configure("{proxy: {ipvs: {scheduler: mh}}}");
    stage.until("all are healthy", || network(stage.cluster())["status"]["nodes"]["healthy"] == NODES);
    let before = written(stage.cluster());
    stage.cluster().kubectl(&["delete", "servicenetwork", "cluster"]).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(written(stage.cluster()), before, "without a ServiceNetwork");
    configure(&stage.simulation, &stage.operator, NODES as u64, "{proxy: {ipvs: {scheduler: mh}}}");
    assert_eq!(written(stage.cluster()), before, "after it was made again");
}

#[test]
fn a_node_that_is_made_again_is_told_again() {
    let stage = Stage::set();
    stage.configure("{}");
    let node = format!("{PREFIX}1");
    let old = stage.cluster().get(&format!("node {node}")).unwrap()["metadata"]["uid"].clone();
    stage.cluster().kubectl(&["delete", "node", &node]).unwrap();
    stage.simulation.add_named_nodes(std::slice::from_ref(&node)).unwrap();
    let new = stage.cluster().get(&format!("node {node}")).unwrap()["metadata"]["uid"].clone();
    assert_ne!(old, new);
    stage.until("its ServiceNetworkNode is the new Node's, and its agent has reported", || {
        let told = stage.cluster().get(&format!("servicenetworknode {node}")).unwrap_or_default();
        told["metadata"]["ownerReferences"][0]["uid"] == new
            && condition(&told, "Programmed").is_some_and(|it| it.starts_with("True"))
    });
}

#[test]
fn what_somebody_deletes_or_changes_is_put_right() {
    let stage = Stage::set();
    stage.configure("{}");
    let cluster = stage.cluster();
    let revision = name(&revisions(cluster)[0]).to_owned();
    for what in [
        format!("-n {NAMESPACE} delete daemonset fairlead-node-agent"),
        "delete clusterrolebinding fairlead-node-agent".to_owned(),
        "delete validatingadmissionpolicybinding fairlead-node-status".to_owned(),
        format!("-n {NAMESPACE} delete controllerrevision {revision}"),
        format!("delete servicenetworknode {PREFIX}0"),
    ] {
        cluster.kubectl(&what.split(' ').collect::<Vec<_>>()).unwrap();
    }
    let rule = r#"[{"op":"add","path":"/rules/-","value":{"apiGroups":[""],"resources":["secrets"],"verbs":["get"]}}]"#;
    let patch = ["patch", "clusterrole", "fairlead-node-agent", "--type=json", "-p", rule];
    cluster.kubectl(&patch).unwrap();
    stage.until("all is there again", || {
        let rules = cluster.get("clusterrole fairlead-node-agent").unwrap()["rules"].to_string();
        written(cluster).len() == 4 + NODES + 1 + 2 + 3 && !rules.contains("secrets")
    });
    stage.simulation.tend_until_ready(NODES, PATIENCE).unwrap();
    stage.configure("{}");
}

#[test]
fn without_its_crds_the_operator_waits_and_goes_on_when_they_are_back() {
    let stage = Stage::set();
    stage.configure("{proxy: {ipvs: {scheduler: sh}}}");
    let cluster = stage.cluster();
    let revision = name(&revisions(cluster)[0]).to_owned();
    let crds = ["servicenetworks.fairlead.dev", "servicenetworknodes.fairlead.dev"];
    cluster.kubectl(&[&["delete", "crd"], &crds[..]].concat()).unwrap();
    std::thread::sleep(Duration::from_secs(5));
    let daemon_set = format!("daemonset fairlead-node-agent -n {NAMESPACE}");
    assert!(cluster.get(&daemon_set).is_ok(), "the agents went with the CRDs");
    assert_eq!(revisions(cluster).iter().map(name).collect::<Vec<_>>(), [&revision]);

    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/crds");
    cluster.kubectl(&["apply", "--server-side", "-k", manifests]).unwrap();
    eventually("the API server serves them", PATIENCE, || cluster.get("servicenetworks").is_ok()).unwrap();
    stage.configure("{proxy: {ipvs: {scheduler: sh}}}");
    assert_eq!(revisions(cluster).iter().map(name).collect::<Vec<_>>(), [&revision]);
}

#[test]
fn a_node_that_is_not_programmed_is_named_and_the_rollout_waits_for_it() {
    let simulation = Simulation::start().unwrap();
    simulation.add_nodes(NODES).unwrap();
    let operator = simulation.leading_operator("one", IMAGE).unwrap();
    let _agents = simulation.agents(NODES, &["--fail", &format!("{PREFIX}2")]).unwrap();
    simulation.cluster().apply(&service_network("{}")).unwrap();
    simulation.tend_until_ready(NODES, PATIENCE).unwrap();
    until("two of three are updated", &operator, || {
        network(simulation.cluster())["status"]["nodes"]["updated"] == 2
    });
    let network = network(simulation.cluster());
    let worst = &network["status"]["nodes"]["worst"][0];
    assert_eq!(
        (worst["name"].as_str(), worst["reason"].as_str()),
        (Some("node-2"), Some("KubeProxyConflict"))
    );
    assert_eq!(condition(&network, "Reconciling").as_deref(), Some("True RollingOut"));
    assert_eq!(condition(&network, "Ready").as_deref(), Some("False RollingOut"));
    let said = message(&network, "Ready");
    assert!(said.contains("2 of 3 nodes") && said.contains("node-2: KubeProxyConflict"), "{said}");
    assert_eq!(network["status"]["rollout"].get("lastGood"), None);
}
