//! Of two operators one leads.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::*;

/// What is promised of a leader that dies in the middle of a change.
const TAKE_OVER: Duration = Duration::from_secs(25);

#[test]
fn a_leader_that_is_killed_in_the_middle_of_a_change_is_followed_by_one_that_ends_it() {
    const NODES: usize = 400;
    let simulation = Simulation::start().unwrap();
    let cluster = simulation.cluster();
    simulation.add_nodes(NODES).unwrap();
    let first = simulation.leading_operator("first", IMAGE).unwrap();
    let second = simulation.operator("second", IMAGE).unwrap();
    cluster.apply(&service_network("{}")).unwrap();
    until("every node is told", &first, || told(cluster).iter().flatten().count() == NODES);
    assert!(!second.leads());

    let writes = r#"fairlead_operator_writes_total{kind="ServiceNetworkNode",verb="apply",result="ok"}"#;
    let before = first.metric(writes).unwrap();
    cluster.apply(&service_network("{proxy: {ipvs: {scheduler: lc}}}")).unwrap();
    until("some are told of the change", &first, || first.metric(writes).unwrap() >= before + 20.0);
    first.kill().unwrap();
    let killed = Instant::now();
    let new = name(&revisions(cluster)[1]).to_owned();
    let changed = || told(cluster).iter().flatten().filter(|it| **it == new).count();
    let at_its_death = changed();
    assert!((1..NODES).contains(&at_its_death), "not in the middle of it: {at_its_death} of {NODES}");

    until("the other has told the rest", &second, || changed() == NODES);
    let took = killed.elapsed();
    println!(
        "a leader was killed with {at_its_death} of {NODES} nodes told; the other was done after {took:.1?}"
    );
    assert!(took < TAKE_OVER, "done after {took:?}\n{}", second.log());
    assert!(second.leads());
}

#[test]
fn a_leader_that_is_told_to_end_gives_way_at_once() {
    let simulation = Simulation::start().unwrap();
    let first = simulation.leading_operator("first", IMAGE).unwrap();
    let second = simulation.operator("second", IMAGE).unwrap();
    until("the standby sees the cluster", &second, || {
        second.get("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    });
    assert!(!second.leads());
    assert!(first.terminate().unwrap().success());
    let lease = || simulation.cluster().get(&format!("lease fairlead-operator -n {NAMESPACE}")).unwrap();
    let begun = Instant::now();
    until("the other leads", &second, || second.leads());
    assert!(begun.elapsed() < Duration::from_secs(8), "only after {:?}", begun.elapsed());
    let lease = lease();
    assert_eq!(lease["spec"]["holderIdentity"], "second");
    assert_eq!(lease["spec"]["leaseTransitions"], 1);
}

#[test]
fn a_leader_that_was_stopped_for_longer_than_its_lease_ends_instead_of_going_on() {
    let simulation = Simulation::start().unwrap();
    let mut first = simulation.leading_operator("first", IMAGE).unwrap();
    let second = simulation.operator("second", IMAGE).unwrap();
    first.signal(Signal::STOP).unwrap();
    until("the other leads", &second, || second.leads());
    first.signal(Signal::CONT).unwrap();
    until("the first has ended", &second, || !first.is_running().unwrap());
    assert!(first.log().contains("lost the leadership"), "{}", first.log());
    assert!(second.leads());
}
