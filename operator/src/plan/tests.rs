use std::sync::Arc;

use fairlead_crds::{
    conditions::{ACCEPTED, PROGRAMMED, Truth},
    names::LAST_GOOD_LABEL,
};
use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::core::DynamicObject;
use serde_json::json;

use super::*;
use crate::rollout::{
    assign::NodeId,
    fixtures::{agent, at, condition, pod, with},
};

fn install() -> Install {
    Install {
        image: "registry.example/fairlead@sha256:0123".to_owned(),
        api_servers: "https://192.0.2.1:6443".to_owned(),
        image_pull_secrets: Vec::new(),
    }
}

fn config(mark_bit: u8) -> NodeAgentConfig {
    let mut config = NodeAgentConfig::default();
    config.proxy.mark_bit = mark_bit;
    config
}

fn name(config: &NodeAgentConfig) -> String {
    build::revision(config, 1).unwrap().0
}

fn stored(config: &NodeAgentConfig, number: i64, good: bool) -> Arc<ControllerRevision> {
    let mut revision: ControllerRevision =
        serde_json::from_value(build::revision(config, number).unwrap().1).unwrap();
    revision.metadata.uid = Some(format!("uid-{number}"));
    revision.metadata.resource_version = Some("3".to_owned());
    if good {
        revision.labels_mut().insert(LAST_GOOD_LABEL.to_owned(), "true".to_owned());
    }
    Arc::new(revision)
}

/// A cluster of three nodes on which everything is as `config(12)` asks for, and has been for long.
fn settled() -> Observed {
    let revision = name(&config(12));
    let template = build::template_digest(&install());
    let names = ["a", "b", "c"];
    let owned = build::singletons(&install()).into_iter().map(|desired| {
        let mut live: DynamicObject = serde_json::from_value(desired.object).unwrap();
        live.metadata.generation = Some(1);
        live.data["status"] = json!({ "observedGeneration": 1, "currentNumberScheduled": 3,
            "desiredNumberScheduled": 3, "numberMisscheduled": 0, "numberReady": 3 });
        (desired.owned, Arc::new(live))
    });
    Observed {
        network: Previous {
            uid: "uid".to_owned(),
            generation: Some(1),
            revision: Some(revision.clone()),
            ..Previous::default()
        },
        nodes: names
            .map(|node| (node.to_owned(), NodeId { name: node.to_owned(), uid: format!("uid-{node}") }))
            .into(),
        agents: names.map(|node| (node.to_owned(), Arc::new(agent(node, &revision, &revision)))).into(),
        pods: names.map(|node| Arc::new(pod(node, &template, true))).to_vec(),
        revisions: vec![stored(&config(12), 1, true)],
        owned: owned.collect(),
        ..Observed::default()
    }
}

fn planned(observed: &Observed, config: &NodeAgentConfig) -> Plan {
    plan(observed, Ok(config), &install(), at(1000)).unwrap()
}

fn told(plan: &Plan) -> Vec<(&str, &str)> {
    let revision = |it: &Assignment| it.object["spec"]["revision"].as_str().unwrap().to_owned();
    let told: Vec<_> = plan.assignments.iter().map(|it| (it.node.as_str(), revision(it))).collect();
    told.into_iter()
        .map(|(node, revision)| (node, if revision == name(&config(12)) { "12" } else { "13" }))
        .collect()
}

#[test]
fn a_cluster_that_is_as_it_should_be_is_left_alone() {
    let plan = planned(&settled(), &config(12));
    assert!(plan.is_empty(), "{plan:?}");
    assert_eq!(plan.verdict, Some(Verdict::Passed));
    assert!(plan.nodes.iter().all(NodeState::healthy));
}

#[test]
fn what_a_list_tells_without_its_kind_is_as_right_as_what_a_watch_tells() {
    let mut observed = settled();
    for live in observed.owned.values_mut() {
        Arc::make_mut(live).types = None;
    }
    let plan = planned(&observed, &config(12));
    assert!(plan.is_empty(), "{plan:?}");
}

#[test]
fn a_service_network_that_was_made_again_adopts_what_runs() {
    let mut observed = settled();
    observed.network = Previous { uid: "another".to_owned(), generation: Some(1), ..Previous::default() };
    let plan = planned(&observed, &config(12));
    assert!(plan.is_empty(), "{plan:?}");
    assert_eq!(plan.verdict, Some(Verdict::Passed));
}

#[test]
fn an_empty_cluster_gets_everything() {
    let observed = Observed { nodes: settled().nodes, ..Observed::default() };
    let plan = planned(&observed, &config(12));
    assert_eq!(plan.singletons.len(), build::Owned::ALL.len());
    assert!(matches!(plan.write_revision, Some(RevisionWrite::Make(_))));
    assert_eq!(told(&plan), [("a", "12"), ("b", "12"), ("c", "12")]);
    assert_eq!((plan.verdict, plan.last_good), (Some(Verdict::Moving), None));
}

#[test]
fn what_somebody_changed_is_put_right_and_nothing_else() {
    let mut observed = settled();
    let role = Arc::make_mut(observed.owned.get_mut(&build::Owned::ClusterRole).unwrap());
    role.data["rules"].as_array_mut().unwrap().push(json!({ "apiGroups": ["*"] }));
    let set = Arc::make_mut(observed.owned.get_mut(&build::Owned::DaemonSet).unwrap());
    set.annotations_mut().insert(APPLIED_ANNOTATION.to_owned(), "of another version".to_owned());
    observed.owned.remove(&build::Owned::AdmissionPolicyBinding);
    let plan = planned(&observed, &config(12));
    let written: Vec<_> = plan.singletons.iter().map(|desired| desired.owned).collect();
    let wrong = [build::Owned::ClusterRole, build::Owned::AdmissionPolicyBinding, build::Owned::DaemonSet];
    assert_eq!(written, wrong);
}

#[test]
fn a_change_goes_to_all_nodes_at_once_and_the_last_good_revision_stays_until_it_is_through() {
    let mut observed = settled();
    let plan = planned(&observed, &config(13));
    let Some(RevisionWrite::Make(made)) = &plan.write_revision else { panic!("{plan:?}") };
    assert_eq!(made["revision"], 2);
    assert_eq!(told(&plan), [("a", "13"), ("b", "13"), ("c", "13")]);
    assert_eq!((plan.verdict, plan.relabel), (Some(Verdict::Moving), None));
    assert_eq!(plan.last_good, Some(name(&config(12))));

    // as the agents report
    let new = name(&config(13));
    observed.revisions.push(stored(&config(13), 2, false));
    observed.network.revision = Some(new.clone());
    for node in ["a", "b"] {
        observed.agents.insert(node.to_owned(), Arc::new(agent(node, &new, &new)));
    }
    observed.agents.insert("c".to_owned(), Arc::new(agent("c", &new, &name(&config(12)))));
    assert_eq!(planned(&observed, &config(13)).verdict, Some(Verdict::Moving));
    observed.agents.insert("c".to_owned(), Arc::new(agent("c", &new, &new)));
    let plan = planned(&observed, &config(13));
    assert_eq!(plan.verdict, Some(Verdict::Passed));
    let relabel = Relabel { add: Some(new.clone()), remove: vec![name(&config(12))] };
    assert_eq!((plan.relabel, plan.last_good), (Some(relabel), Some(new)));
}

#[test]
fn going_back_uses_the_revision_of_then_with_a_new_number() {
    let mut observed = settled();
    observed.revisions = vec![stored(&config(12), 1, false), stored(&config(13), 2, true)];
    observed.network.revision = Some(name(&config(13)));
    let plan = planned(&observed, &config(12));
    let raise = RevisionWrite::Raise { name: name(&config(12)), number: 3 };
    assert_eq!(plan.write_revision, Some(raise));
}

#[test]
fn a_refused_spec_moves_no_node_and_a_new_node_takes_the_last_good_revision() {
    let mut observed = settled();
    let rolling = name(&config(13));
    observed.revisions.push(stored(&config(13), 2, false));
    observed.network.revision = Some(rolling.clone());
    observed.agents.insert("b".to_owned(), Arc::new(agent("b", &rolling, &rolling)));
    observed.agents.remove("c");
    let refused = InvalidSpec(vec!["spec.proxy is wrong".to_owned()]);
    let plan = plan(&observed, Err(&refused), &install(), at(1000)).unwrap();
    assert_eq!(told(&plan), [("c", "12")]);
    assert_eq!((plan.verdict, plan.relabel, plan.write_revision), (None, None, None));
}

#[test]
fn under_a_refused_spec_and_without_a_good_revision_nobody_is_told_anything() {
    let observed = Observed { nodes: settled().nodes, ..Observed::default() };
    let refused = InvalidSpec(vec!["spec.proxy is wrong".to_owned()]);
    let plan = plan(&observed, Err(&refused), &install(), at(1000)).unwrap();
    assert_eq!((plan.revision, plan.assignments), (None, Vec::new()));
    assert_eq!(plan.singletons.len(), build::Owned::ALL.len());
}

#[test]
fn trouble_after_a_rollout_is_no_trouble_of_the_rollout() {
    let mut observed = settled();
    let revision = name(&config(12));
    for node in ["a", "b"] {
        let failing = condition(PROGRAMMED, Truth::False, "KernelError", "", 900);
        let agent = with(agent(node, &revision, &revision), failing);
        observed.agents.insert(node.to_owned(), Arc::new(agent));
    }
    let plan = planned(&observed, &config(12));
    assert_eq!(plan.verdict, Some(Verdict::Passed));
    assert_eq!(plan.nodes.iter().filter(|node| !node.healthy()).count(), 2);
}

#[test]
fn a_rollout_that_hung_goes_on_hanging_until_a_node_gets_further() {
    let mut observed = settled();
    let new = name(&config(13));
    observed.revisions.push(stored(&config(13), 2, false));
    observed.network.revision = Some(new.clone());
    observed.network.conditions = vec![condition(STALLED, Truth::True, "RolloutHung", "", 950)];
    for node in ["a", "b", "c"] {
        let refusing = condition(ACCEPTED, Truth::False, "UnknownField", "", 300);
        let agent = with(agent(node, &new, &name(&config(12))), refusing);
        observed.agents.insert(node.to_owned(), Arc::new(agent));
    }
    assert_eq!(planned(&observed, &config(13)).verdict, Some(Verdict::Hung));
    let done = with(agent("a", &new, &new), condition(PROGRAMMED, Truth::True, "", "", 960));
    observed.agents.insert("a".to_owned(), Arc::new(done));
    assert_eq!(planned(&observed, &config(13)).verdict, Some(Verdict::Moving));
    // and a change of mind begins anew
    observed.agents = settled().agents;
    assert_eq!(planned(&observed, &config(14)).verdict, Some(Verdict::Moving));
}

#[test]
fn a_node_that_was_made_anew_is_told_anew_after_the_old_word_is_gone() {
    let mut observed = settled();
    observed.nodes.insert("b".to_owned(), NodeId { name: "b".to_owned(), uid: "uid-of-another".to_owned() });
    let plan = planned(&observed, &config(12));
    assert_eq!(plan.assignments.len(), 1);
    assert_eq!(plan.assignments[0].remove_first, Some(("own-b".to_owned(), "7".to_owned())));
}
