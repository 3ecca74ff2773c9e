//! Many nodes: what a steady cluster costs the API server.

use std::time::{Duration, Instant};

use super::*;

/// How long a steady cluster is watched, in seconds.
const STEADY: &str = "FAIRLEAD_STEADY_SECONDS";
/// Of how many nodes.
const NODES: &str = "FAIRLEAD_SIMULATED_NODES";

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn a_steady_cluster_of_a_thousand_nodes_sees_no_write() {
    let (nodes, steady) = (setting(NODES, 1000), Duration::from_secs(setting(STEADY, 60) as u64));
    let simulation = Simulation::start().unwrap();
    let cluster = simulation.cluster();
    simulation.add_nodes(nodes).unwrap();
    let operator = simulation.leading_operator("one", IMAGE).unwrap();
    let _agents = simulation.agents(nodes, &[]).unwrap();
    let begun = Instant::now();
    cluster.apply(&service_network("{}")).unwrap();
    let patience = Duration::from_secs(600);
    simulation.tend_until_ready(nodes, patience).unwrap();
    let all = |field: &str| network(cluster)["status"]["nodes"][field] == nodes;
    fairlead_e2e::eventually("all nodes are healthy", patience, || all("healthy"))
        .unwrap_or_else(|error| panic!("{error:#}\n{}", operator.log()));
    println!("{nodes} nodes were healthy after {:.1?}", begun.elapsed());

    // a change on all of them
    let before = network(cluster)["status"]["rollout"]["revision"].clone();
    let writes = ["fairlead.dev", "controllerrevisions"];
    let count = || writes.map(|of| simulation.writes(of).unwrap());
    let counted = count();
    let changed = Instant::now();
    cluster.apply(&service_network("{proxy: {ipvs: {scheduler: lc}}}")).unwrap();
    fairlead_e2e::eventually("the change is everywhere", patience, || {
        let network = network(cluster);
        let rollout = &network["status"]["rollout"];
        rollout["revision"] != before && rollout["revision"] == rollout["lastGood"]
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", operator.log()));
    let cost: Vec<_> = count().iter().zip(counted).map(|(after, before)| after - before).collect();
    println!(
        "a change was on {nodes} nodes after {:.1?}, with {cost:?} writes of {writes:?}",
        changed.elapsed()
    );

    // what is still on its way
    std::thread::sleep(Duration::from_secs(15));
    let reconciles = r#"fairlead_operator_reconciles_total{result="ok"}"#;
    let (counted, looked) = (count(), operator.metric(reconciles).unwrap());
    std::thread::sleep(steady);
    assert_eq!(count(), counted, "writes within {steady:?}");
    let looks = operator.metric(reconciles).unwrap() - looked;
    println!("no write within {steady:?}; the operator looked {looks} times");
}
