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
    eventually("all nodes are healthy", patience, || all("healthy"))
        .unwrap_or_else(|error| panic!("{error:#}\n{}", operator.log()));
    println!("{nodes} nodes were healthy after {:.1?}", begun.elapsed());

    // a change on all of them
    let before = network(cluster)["status"]["rollout"]["revision"].clone();
    let writes = ["fairlead.dev", "controllerrevisions"];
    let count = || writes.map(|of| simulation.writes(of).unwrap());
    let counted = count();
    let changed = Instant::now();
    cluster.apply(&service_network("{proxy: {ipvs: {scheduler: lc}}}")).unwrap();
    eventually("the change is everywhere", patience, || {
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
    let own =
        || ["writes", "reconciles"].map(|it| operator.sum(&format!("fairlead_operator_{it}_total")).unwrap());
    let (counted, [wrote, looked]) = (count(), own());
    let begun = Instant::now();
    // kubelets write their Nodes all the time: nothing in it is news
    simulation.beat(nodes).unwrap();
    std::thread::sleep(steady.saturating_sub(begun.elapsed()));
    let took = begun.elapsed();
    assert_eq!(count(), counted, "writes within {took:?}\n{}", operator.log());
    let [writes_now, looks_now] = own();
    assert!((writes_now - wrote).abs() < 0.5, "the operator has tried to write\n{}", operator.log());
    let (looks, memory) = (looks_now - looked, operator.memory().unwrap());
    println!("no write within {took:.0?}; the operator looked {looks} times and holds {memory} MiB");
    assert!(looks <= 3.0, "{looks} looks at nothing new\n{}", operator.log());
}
