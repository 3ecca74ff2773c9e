//! What the supervisor does with nodes, shown on namespace nodes, which start in seconds.
//!
//! Needs root, and no kernel with IPVS: `cargo test --features cluster --test power`.

use std::path::Path;
use std::time::Duration;

use fairlead_e2e::cluster::node::{Kind, Spec};
use fairlead_e2e::cluster::{Cluster, leftovers, lifecycle};
use fairlead_e2e::eventually;
use fairlead_e2e::machine::cache;

const RIG: &str = env!("CARGO_BIN_EXE_rig");

/// A cluster that is taken down, whatever becomes of the test.
struct Guard<'a>(&'a Path);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Err(error) = lifecycle::down(self.0) {
            eprintln!("{error:#}");
        }
    }
}

/// The status of a node's condition Ready.
fn ready(cluster: &Cluster, node: &str) -> anyhow::Result<String> {
    let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
    cluster.kubectl(&["get", "node", node, "-o", path])
}

/// The nodes that the router sends the packets of pods to.
fn ways_to_pods(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let namespace = cluster.router()?;
    let routes = namespace.output("ip route")? + &namespace.output("ip -6 route")?;
    let via = |line: &str| line.split_once(" via ")?.1.split(' ').next().map(ToOwned::to_owned);
    Ok(routes.lines().filter_map(via).collect())
}

#[test]
fn nodes_come_go_and_come_back_and_leave_nothing() {
    let scratch = cache::scratch().unwrap();
    let folder = scratch.path().join("cluster");
    lifecycle::prepare(&[Kind::Namespace], Path::new(RIG)).unwrap();
    let _guard = Guard(&folder);
    let cluster = lifecycle::up(&folder, Path::new(RIG)).unwrap();
    let id = cluster.describe().unwrap().id;
    let add = |name| cluster.add_node(&Spec::new(name, Kind::Namespace));

    cluster.add_nodes(&["one", "two"].map(|name| Spec::new(name, Kind::Namespace))).unwrap();
    for node in ["one", "two"] {
        assert_eq!(ready(&cluster, node).unwrap(), "True");
        assert_eq!(cluster.output_on(node, "hostname").unwrap().trim(), node);
    }
    assert!(add("one").unwrap_err().to_string().contains("already"));
    assert!(add("Three").unwrap_err().to_string().contains("lower case"));

    let place = cluster.describe().unwrap().nodes["one"].place;
    cluster.stop_node("one").unwrap();
    assert!(!cluster.describe().unwrap().nodes["one"].running);
    assert!(cluster.output_on("one", "true").unwrap_err().to_string().contains("not on"));
    assert!(cluster.stop_node("one").unwrap_err().to_string().contains("off already"));
    cluster.start_node("one").unwrap();
    assert_eq!(ready(&cluster, "one").unwrap(), "True");
    assert_eq!(cluster.describe().unwrap().nodes["one"].place, place);
    assert!(cluster.start_node("one").unwrap_err().to_string().contains("on already"));

    // what runs on a node fails when its power is cut, and does not keep it
    let asking = cluster.clone();
    let asked =
        std::thread::spawn(move || asking.run_on("two", &["sleep", "4321"], Duration::from_secs(1000)));
    eventually("it sleeps", Duration::from_secs(20), || {
        let pgrep = cluster.run_on("two", &["pgrep", "-fx", "sleep 4321"], Duration::from_secs(5));
        pgrep.is_ok_and(|output| output.status.success())
    })
    .unwrap();
    cluster.remove_node("two").unwrap();
    asked.join().unwrap().unwrap_err();
    assert!(ready(&cluster, "two").unwrap_err().to_string().contains("not found"));
    assert!(!cluster.describe().unwrap().nodes.contains_key("two"));
    assert_eq!(ways_to_pods(&cluster).unwrap(), place.address().both().map(|address| address.to_string()));

    assert!(lifecycle::down(&folder).unwrap(), "nothing was up in the end");
    assert_eq!(leftovers::find(&id, &folder), []);
    assert!(!folder.exists());
}
