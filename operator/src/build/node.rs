//! The ServiceNetworkNode of a node.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

/// The ServiceNetworkNode that tells a node to run a revision. It goes when the Node goes, and keeps
/// nothing from going.
pub fn service_network_node(node: &str, node_uid: &str, revision: &str) -> Value {
    json!({
        "apiVersion": "fairlead.dev/v1alpha1",
        "kind": "ServiceNetworkNode",
        "metadata": {
            "name": node,
            "ownerReferences": [{
                "apiVersion": "v1",
                "kind": "Node",
                "name": node,
                "uid": node_uid,
                "controller": false,
                "blockOwnerDeletion": false,
            }],
        },
        "spec": { "revision": revision },
    })
}

/// The uid of the Node that a ServiceNetworkNode was made for.
pub fn owner_uid(metadata: &ObjectMeta) -> Option<&str> {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    owners
        .iter()
        .find(|owner| owner.kind == "Node" && owner.api_version == "v1")
        .map(|owner| owner.uid.as_str())
}
