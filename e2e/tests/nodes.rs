//! What the supervisor does with nodes, shown on namespace nodes, which start in seconds.
//!
//! Needs root, and no kernel with IPVS: `cargo test --features cluster --test nodes`.

use std::path::Path;
use std::time::Duration;

use fairlead_e2e::cluster::node::{Kind, Spec};
use fairlead_e2e::cluster::{Cluster, leftovers, lifecycle};
use fairlead_e2e::eventually;

const RIG: &str = env!("CARGO_BIN_EXE_rig");

/// The status of a node's condition Ready.
fn ready(cluster: &Cluster, node: &str) -> anyhow::Result<String> {
    let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
    cluster.kubectl(&["get", "node", node, "-o", path])
}

#[test]
fn nodes_come_go_and_come_back_and_leave_nothing() {
    let rig = Path::new(RIG);
    lifecycle::prepare(&[Kind::Namespace], rig).unwrap();
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("cluster");
    let cluster = lifecycle::up(&folder, rig).unwrap();
    let id = cluster.describe().unwrap().id;

    cluster.add_nodes(&["one", "two"].map(|name| Spec::new(name, Kind::Namespace))).unwrap();
    for node in ["one", "two"] {
        assert_eq!(ready(&cluster, node).unwrap(), "True");
        assert_eq!(cluster.output_on(node, "hostname").unwrap().trim(), node);
    }
    let refused = cluster.add_node(&Spec::new("one", Kind::Namespace)).unwrap_err().to_string();
    assert!(refused.contains("already"), "{refused}");

    // a pod on each reaches the other's through the router
    let image = cluster.image("traffic").unwrap();
    for node in ["one", "two"] {
        cluster
            .apply(&format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: {node}}}, spec: {{nodeName: {node}, containers: [
                    {{name: sleep, image: {image:?}, command: [sleep, '1000']}}]}}}}"
            ))
            .unwrap();
    }
    for node in ["one", "two"] {
        cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{node}"), "--timeout=60s"]).unwrap();
    }
    let addresses = cluster.kubectl(&["get", "pod", "two", "-o", "jsonpath={.status.podIPs[*].ip}"]).unwrap();
    for address in addresses.split_whitespace() {
        cluster.kubectl(&["exec", "one", "--", "ping", "-c", "1", "-w", "10", address]).unwrap();
    }

    let place = cluster.describe().unwrap().nodes["one"].place;
    cluster.stop_node("one").unwrap();
    assert!(!cluster.describe().unwrap().nodes["one"].running);
    assert!(cluster.output_on("one", "true").unwrap_err().to_string().contains("not on"));
    assert!(cluster.stop_node("one").unwrap_err().to_string().contains("off already"));
    cluster.start_node("one").unwrap();
    assert_eq!(ready(&cluster, "one").unwrap(), "True");
    assert_eq!(cluster.describe().unwrap().nodes["one"].place, place);

    // what runs on a node when its power is cut fails, and does not keep it
    let asking = cluster.clone();
    let asked =
        std::thread::spawn(move || asking.run_on("two", &["sleep", "4321"], Duration::from_secs(1000)));
    eventually("it sleeps", Duration::from_secs(20), || cluster.output_on("two", "pgrep -x sleep").is_ok())
        .unwrap();
    cluster.remove_node("two").unwrap();
    asked.join().unwrap().unwrap_err();
    assert!(ready(&cluster, "two").unwrap_err().to_string().contains("not found"));
    assert!(!cluster.describe().unwrap().nodes.contains_key("two"));

    assert!(lifecycle::down(&folder).unwrap());
    assert_eq!(leftovers::find(&id, &folder), []);
    assert!(!folder.exists());
}
