//! The policy by which an agent writes the status of its own node and of no other.
//!
//! RBAC cannot tell agents apart, for they share a ServiceAccount; the token of a pod names its node.
//! A ValidatingAdmissionPolicy is evaluated in the API server: no webhook, which would be reached
//! through a Service that the agents program.

use fairlead_crds::names::{AGENT, NAMESPACE};
use serde_json::{Value, json};

use super::labels;

pub const NAME: &str = "fairlead-node-status";

/// The node of a bound token, since Kubernetes 1.30 (KEP-4193).
const NODE: &str = "authentication.kubernetes.io/node-name";

pub fn policy() -> Value {
    let of_an_agent = format!("request.userInfo.username == 'system:serviceaccount:{NAMESPACE}:{AGENT}'");
    let own_node = format!(
        "has(request.userInfo.extra) && '{NODE}' in request.userInfo.extra && \
         request.userInfo.extra['{NODE}'][0] == object.metadata.name"
    );
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": { "name": NAME, "labels": labels() },
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [{
                    "apiGroups": ["fairlead.dev"],
                    "apiVersions": ["*"],
                    "operations": ["CREATE", "UPDATE"],
                    "resources": ["servicenetworknodes", "servicenetworknodes/status"],
                }],
            },
            "matchConditions": [{ "name": "of-an-agent", "expression": of_an_agent }],
            "validations": [{
                "expression": own_node,
                "message": "an agent may write the status of its own node only",
                "reason": "Forbidden",
            }],
        },
    })
}

pub fn binding() -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": { "name": NAME, "labels": labels() },
        "spec": { "policyName": NAME, "validationActions": ["Deny"] },
    })
}
