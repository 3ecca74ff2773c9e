use fairlead_crds::conditions::{READY, Truth, find, is_true};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use rstest::rstest;

use super::*;
use crate::rollout::{
    fixtures::{at, condition},
    nodes::{NodeState, Severity, Trouble},
    pods::Step,
    verdict::Verdict,
};

fn node(name: &str, trouble: Option<(Severity, &str)>) -> NodeState {
    NodeState {
        name: name.to_owned(),
        updated: trouble.is_none_or(|(severity, _)| severity == Severity::Degraded),
        moving: false,
        unreachable: matches!(trouble, Some((Severity::Unreachable, _))),
        updated_at: None,
        trouble: trouble.map(|(severity, reason)| Trouble {
            severity,
            reason: reason.to_owned(),
            message: "a sentence".to_owned(),
            since: Some(at(100)),
        }),
        version: Some("0.1.0".to_owned()),
    }
}

fn plan(nodes: Vec<NodeState>) -> Plan {
    Plan {
        singletons: Vec::new(),
        revision: Some("fairlead-1".to_owned()),
        write_revision: None,
        assignments: Vec::new(),
        nodes,
        verdict: Some(Verdict::Passed),
        relabel: None,
        last_good: Some("fairlead-1".to_owned()),
        pods: Step::Done,
        pods_total: 3,
        pods_updated: 3,
        spent: Vec::new(),
    }
}

fn three_well() -> Vec<NodeState> {
    ["a", "b", "c"].map(|name| node(name, None)).to_vec()
}

fn before() -> Previous {
    Previous { generation: Some(4), revision: Some("fairlead-1".to_owned()), ..Previous::default() }
}

fn status_of(plan: &Plan) -> ServiceNetworkStatus {
    let config = NodeAgentConfig::default();
    status(&Outcome { spec: Ok(&config), plan, failure: None }, &before(), at(1000))
}

/// Each condition as `Type=Status Reason`.
fn told(status: &ServiceNetworkStatus) -> Vec<String> {
    status.conditions.iter().map(|it| format!("{}={} {}", it.type_, it.status, it.reason)).collect()
}

fn message(status: &ServiceNetworkStatus, type_: &str) -> String {
    find(&status.conditions, type_).unwrap().message.clone()
}

#[test]
fn all_is_well() {
    let status = status_of(&plan(three_well()));
    assert_eq!(told(&status), ["Ready=True AsExpected"]);
    assert_eq!(message(&status, READY), "3 of 3 nodes run fairlead-1");
    assert_eq!(status.observed_generation, Some(4));
    assert_eq!(status.version.as_deref(), Some("0.1.0"));
    assert_eq!(status.effective.unwrap()["proxy"]["mode"], "IPVS");
    let nodes = status.nodes.unwrap();
    assert_eq!((nodes.total, nodes.updated, nodes.healthy, nodes.worst.len()), (3, 3, 3, 0));
    let component = &status.components[0];
    assert_eq!(component.name, "node-agent");
    assert!(component.available && !component.progressing && !component.degraded);
}

#[test]
fn the_status_is_the_same_as_long_as_nothing_changes() {
    let config = NodeAgentConfig::default();
    let plan =
        plan(vec![node("b", Some((Severity::Degraded, "X"))), node("a", Some((Severity::Degraded, "X")))]);
    let outcome = Outcome { spec: Ok(&config), plan: &plan, failure: None };
    let first = status(&outcome, &before(), at(1000));
    let stands = Previous {
        conditions: first.conditions.clone(),
        status: serde_json::to_value(&first).unwrap(),
        ..before()
    };
    assert_eq!(status(&outcome, &stands, at(5000)), first);
}

#[rstest]
#[case::the_first_rollout(Verdict::Moving, None, &["Ready=False RollingOut", "Reconciling=True RollingOut"])]
#[case::a_later_one(Verdict::Moving, Some("fairlead-0"), &["Ready=True RollingOut", "Reconciling=True RollingOut"])]
#[case::one_that_hangs(Verdict::Hung, Some("fairlead-0"), &["Ready=False RolloutHung", "Stalled=True RolloutHung"])]
#[case::one_that_is_over(Verdict::Passed, Some("fairlead-1"), &["Ready=True AsExpected"])]
fn a_rollout(#[case] verdict: Verdict, #[case] last_good: Option<&str>, #[case] conditions: &[&str]) {
    let mut plan = plan(three_well());
    plan.verdict = Some(verdict);
    plan.last_good = last_good.map(str::to_owned);
    assert_eq!(told(&status_of(&plan)), conditions);
}

#[test]
fn a_refused_spec_stalls_with_its_sentence_and_says_what_goes_on() {
    let plan = plan(three_well());
    let refused = InvalidSpec(vec!["spec.proxy.markBit must be 12".to_owned()]);
    let outcome = Outcome { spec: Err(&refused), plan: &plan, failure: None };
    let effective = serde_json::json!({ "effective": { "proxy": { "mode": "IPVS" } } });
    let status = status(&outcome, &Previous { status: effective, ..before() }, at(1000));
    assert_eq!(told(&status), ["Ready=False InvalidSpec", "Stalled=True InvalidSpec"]);
    assert_eq!(
        message(&status, STALLED),
        "spec.proxy.markBit must be 12; until that is mended nodes go on with fairlead-1"
    );
    assert_eq!(status.effective.unwrap()["proxy"]["mode"], "IPVS");
}

#[test]
fn one_bad_node_is_named_and_does_not_make_the_network_unready() {
    let mut nodes = three_well();
    nodes.push(node("d", Some((Severity::NotProgrammed, "KubeProxyConflict"))));
    let status = status_of(&plan(nodes));
    assert_eq!(told(&status), ["Ready=True AsExpected"]);
    assert_eq!(message(&status, READY), "3 of 4 nodes run fairlead-1; d: KubeProxyConflict, a sentence");
    assert!(status.components[0].degraded && status.components[0].available);
}

#[rstest]
#[case::one_of_three_is_tolerated(&[Severity::NotRunning], 1000, "True AsExpected")]
#[case::two_are_not(&[Severity::NotRunning, Severity::NotRunning], 1000, "False AgentsNotReady")]
#[case::a_restart_is_no_outage(&[Severity::NotRunning, Severity::NotRunning], 159, "True AsExpected")]
#[case::nodes_out_of_reach_are_not_ours(&[Severity::Unreachable, Severity::Unreachable], 1000, "True AsExpected")]
#[case::working_less_well_is_not_an_outage(&[Severity::Degraded, Severity::Degraded], 1000, "True AsExpected")]
fn agents_that_are_away(#[case] troubles: &[Severity], #[case] now: i64, #[case] ready: &str) {
    let mut nodes = three_well();
    for (slot, severity) in nodes.iter_mut().zip(troubles) {
        *slot = node(&slot.name.clone(), Some((*severity, "X")));
    }
    let config = NodeAgentConfig::default();
    let plan = plan(nodes);
    let status = status(&Outcome { spec: Ok(&config), plan: &plan, failure: None }, &before(), at(now));
    let condition = find(&status.conditions, READY).unwrap();
    assert_eq!(format!("{} {}", condition.status, condition.reason), ready);
}

#[test]
fn the_three_worst_are_named_and_the_rest_counted() {
    let troubles = [
        ("a", Severity::Pending),
        ("b", Severity::Refused),
        ("c", Severity::NotRunning),
        ("d", Severity::Refused),
        ("e", Severity::Degraded),
    ];
    let status =
        status_of(&plan(troubles.map(|(name, severity)| node(name, Some((severity, "X")))).to_vec()));
    let worst: Vec<_> = status.nodes.as_ref().unwrap().worst.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(worst, ["b", "d", "c"]);
    assert!(message(&status, READY).ends_with("c: X, a sentence; and 2 more"), "{}", message(&status, READY));
}

#[test]
fn pods_being_replaced_are_a_rollout_and_one_that_does_not_come_up_makes_it_hang() {
    let mut plan = plan(three_well());
    plan.pods_updated = 1;
    let waiting = |since| Step::Wait { for_: "pod x on a is not Ready".to_owned(), since };
    plan.pods = waiting(Some(at(401)));
    let status = status_of(&plan);
    assert_eq!(told(&status), ["Ready=True RollingOut", "Reconciling=True RollingOut"]);
    assert_eq!(
        message(&status, RECONCILING),
        "waiting: pod x on a is not Ready; 3 of 3 nodes run fairlead-1; 1 of 3 pods are of the present version"
    );
    plan.pods = waiting(Some(at(400)));
    assert_eq!(told(&status_of(&plan)), ["Ready=False RolloutHung", "Stalled=True RolloutHung"]);
    plan.pods = waiting(None);
    assert_eq!(told(&status_of(&plan)), ["Ready=True RollingOut", "Reconciling=True RollingOut"]);
}

#[test]
fn what_could_not_be_written_is_tried_again_and_told() {
    let config = NodeAgentConfig::default();
    let plan = plan(three_well());
    let failure = Some((Reason::ApplyFailed, "failed to apply DaemonSet x".to_owned()));
    let status = status(&Outcome { spec: Ok(&config), plan: &plan, failure }, &before(), at(1000));
    assert_eq!(told(&status), ["Ready=True AsExpected", "Reconciling=True ApplyFailed"]);
}

#[test]
fn what_could_not_be_read_leaves_what_was_known() {
    let known = status_of(&plan(three_well()));
    let before = Previous {
        conditions: known.conditions.clone(),
        status: serde_json::to_value(&known).unwrap(),
        ..before()
    };
    let status = failed(&before, Reason::ReadFailed, "failed to read pods".to_owned(), at(2000));
    assert_eq!(told(&status), ["Ready=True ReadFailed", "Reconciling=True ReadFailed"]);
    assert_eq!(status.nodes, known.nodes);
}

#[test]
fn a_new_rollout_begins_a_new_reconciliation_in_the_middle_of_another() {
    let config = NodeAgentConfig::default();
    let mut plan = plan(three_well());
    plan.verdict = Some(Verdict::Moving);
    let reconciling =
        |since| -> Vec<Condition> { vec![condition(RECONCILING, Truth::True, "RollingOut", "", since)] };
    let of = |revision: &str| {
        let before =
            Previous { revision: Some(revision.to_owned()), conditions: reconciling(500), ..before() };
        let status = status(&Outcome { spec: Ok(&config), plan: &plan, failure: None }, &before, at(1000));
        assert!(is_true(&status.conditions, RECONCILING));
        find(&status.conditions, RECONCILING).unwrap().last_transition_time.0
    };
    assert_eq!(of("fairlead-1"), at(500));
    assert_eq!(of("fairlead-0"), at(1000));
}

#[test]
fn the_version_is_told_once_it_runs_everywhere() {
    let mut nodes = three_well();
    nodes[1].version = Some("0.2.0".to_owned());
    assert_eq!(status_of(&plan(nodes.clone())).version, None);
    nodes[1].version = None;
    assert_eq!(status_of(&plan(nodes.clone())).version, None);
    nodes[1].unreachable = true;
    assert_eq!(status_of(&plan(nodes)).version.as_deref(), Some("0.1.0"));
}

#[test]
fn long_words_are_cut_at_the_border_of_a_character() {
    assert_eq!(cut("äöü", 6), "äöü");
    assert_eq!(cut("äöüß", 6), "ä…");
    assert_eq!(cut("", 1), "");
}
