//! Who the agents are and what they may do: read what Services are made of, read the revisions,
//! write the status of ServiceNetworkNodes. No Pods, no Secrets, nothing by wildcard.

use fairlead_crds::names::{AGENT, NAMESPACE};
use serde_json::{Value, json};

use super::labels;

pub fn service_account() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": { "name": AGENT, "namespace": NAMESPACE, "labels": labels() },
    })
}

pub fn cluster_role() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": { "name": AGENT, "labels": labels() },
        "rules": [
            // what is programmed, and for which node
            { "apiGroups": [""], "resources": ["services", "nodes"], "verbs": ["get", "list", "watch"] },
            { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"] },
            { "apiGroups": ["networking.k8s.io"], "resources": ["servicecidrs"], "verbs": ["get", "list", "watch"] },
            // which revision is asked for, and what became of it
            { "apiGroups": ["fairlead.dev"], "resources": ["servicenetworknodes"], "verbs": ["get", "list", "watch"] },
            { "apiGroups": ["fairlead.dev"], "resources": ["servicenetworknodes/status"], "verbs": ["get", "patch"] },
            // Events on Nodes and Services, which may stand in any namespace
            { "apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"] },
        ],
    })
}

pub fn cluster_role_binding() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": { "name": AGENT, "labels": labels() },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": AGENT },
        "subjects": subjects(),
    })
}

pub fn role() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": { "name": AGENT, "namespace": NAMESPACE, "labels": labels() },
        "rules": [
            // the configuration
            { "apiGroups": ["apps"], "resources": ["controllerrevisions"], "verbs": ["get", "list"] },
        ],
    })
}

pub fn role_binding() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": { "name": AGENT, "namespace": NAMESPACE, "labels": labels() },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": AGENT },
        "subjects": subjects(),
    })
}

fn subjects() -> Value {
    json!([{ "kind": "ServiceAccount", "name": AGENT, "namespace": NAMESPACE }])
}
