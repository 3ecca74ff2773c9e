use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    apps::v1::{ControllerRevision, DaemonSet},
    core::v1::ServiceAccount,
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
};
use serde::{Serialize, de::DeserializeOwned};

use fairlead_crds::{NodeAgentConfig, ServiceNetworkNode};

use super::*;

fn install() -> Install {
    Install {
        image: "registry.example/fairlead@sha256:0123".to_owned(),
        api_servers: "https://192.0.2.1:6443,https://192.0.2.2:6443".to_owned(),
        image_pull_secrets: vec!["pull".to_owned()],
    }
}

/// What the types of the API make of it: a misspelt field would be lost on the way.
fn through<T: Serialize + DeserializeOwned>(object: &Value) -> Value {
    serde_json::to_value(serde_json::from_value::<T>(object.clone()).unwrap()).unwrap()
}

#[test]
fn every_object_is_one_of_the_kubernetes_api_and_misspells_nothing() {
    for Desired { owned, object } in singletons(&install()) {
        let through = match owned {
            Owned::ServiceAccount => through::<ServiceAccount>(&object),
            Owned::ClusterRole => through::<ClusterRole>(&object),
            Owned::ClusterRoleBinding => through::<ClusterRoleBinding>(&object),
            Owned::Role => through::<Role>(&object),
            Owned::RoleBinding => through::<RoleBinding>(&object),
            Owned::AdmissionPolicy => through::<ValidatingAdmissionPolicy>(&object),
            Owned::AdmissionPolicyBinding => through::<ValidatingAdmissionPolicyBinding>(&object),
            Owned::DaemonSet => through::<DaemonSet>(&object),
        };
        assert_eq!(through, object);
    }
    let (_, revision) = revision(&NodeAgentConfig::default(), 3).unwrap();
    assert_eq!(through::<ControllerRevision>(&revision), revision);
    let node = service_network_node("n", "uid", "fairlead-0");
    assert_eq!(through::<ServiceNetworkNode>(&node), node);
}

#[test]
fn every_object_carries_its_name_namespace_and_digest() {
    for Desired { owned, object } in singletons(&install()) {
        let metadata = &object["metadata"];
        assert_eq!(metadata["name"], owned.name());
        assert_eq!(metadata["namespace"].as_str(), owned.namespace());
        assert_eq!(object["kind"], owned.resource().kind);
        assert_eq!(object["apiVersion"], owned.resource().api_version);
        assert_eq!(metadata["annotations"][APPLIED_ANNOTATION].as_str().unwrap().len(), 10);
    }
}

#[test]
fn the_daemon_set() {
    let object = singletons(&install()).pop().unwrap().object;
    insta::assert_snapshot!(serde_json::to_string_pretty(&object).unwrap());
}

#[test]
fn what_agents_may_do() {
    let lines: Vec<_> = [rbac::cluster_role(), rbac::role()]
        .iter()
        .flat_map(|role| role["rules"].as_array().unwrap().clone())
        .flat_map(|rule| {
            let words = |field: &str| -> Vec<String> {
                rule[field].as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
            };
            let (groups, verbs) = (words("apiGroups").join(","), words("verbs").join(","));
            words("resources").into_iter().map(move |resource| format!("{groups}/{resource}: {verbs}"))
        })
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
    assert!(!lines.iter().any(|line| line.contains('*') || line.contains("secret") || line.contains("pods")));
}

#[test]
fn a_pod_is_outdated_by_another_image_and_not_by_another_label_of_the_daemon_set() {
    let mut other = install();
    other.image = "registry.example/fairlead@sha256:4567".to_owned();
    assert_ne!(template_digest(&install()), template_digest(&other));
    let object = daemon_set::daemon_set(&install());
    let annotations = &object["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(annotations[TEMPLATE_ANNOTATION], template_digest(&install()));
}

#[test]
fn without_pull_secrets_none_are_named() {
    let object = daemon_set::daemon_set(&Install { image_pull_secrets: Vec::new(), ..install() });
    assert!(object["spec"]["template"]["spec"].get("imagePullSecrets").is_none());
}
