//! The objects that the operator owns, built from what it was installed with.
//!
//! Pure: values in, JSON out. Each object is complete as server-side apply wants it: exactly the
//! fields that Fairlead has an opinion on, in the form in which the API server gives them back.

mod admission_policy;
mod daemon_set;
mod node;
mod owned;
mod rbac;
mod revision;

use fairlead_crds::{names::AGENT, revision::digest};
use serde_json::{Value, json};

pub use self::{
    daemon_set::TEMPLATE_ANNOTATION,
    node::{owner_uid, service_network_node},
    owned::Owned,
    revision::revision,
};

/// Digest of what was applied. It tells of a field that an earlier version applied and this one does
/// not, which comparing with the live object cannot.
pub const APPLIED_ANNOTATION: &str = "fairlead.dev/applied";

/// What the operator was installed with and passes on to the agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    /// The image of operator and agents, by digest.
    pub image: String,
    /// Addresses of the API server, comma-separated.
    pub api_servers: String,
    /// Secrets by which the image is pulled.
    pub image_pull_secrets: Vec<String>,
}

/// An object that should be there.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Which of the owned objects.
    pub owned: Owned,
    /// The object as it is applied.
    pub object: Value,
}

/// Everything that has to be there once, in the order in which it is applied: identity first, what
/// runs under it last.
pub fn singletons(install: &Install) -> Vec<Desired> {
    Owned::ALL
        .into_iter()
        .map(|owned| {
            let object = match owned {
                Owned::ServiceAccount => rbac::service_account(),
                Owned::ClusterRole => rbac::cluster_role(),
                Owned::ClusterRoleBinding => rbac::cluster_role_binding(),
                Owned::Role => rbac::role(),
                Owned::RoleBinding => rbac::role_binding(),
                Owned::AdmissionPolicy => admission_policy::policy(),
                Owned::AdmissionPolicyBinding => admission_policy::binding(),
                Owned::DaemonSet => daemon_set::daemon_set(install),
            };
            Desired { owned, object: stamp(object) }
        })
        .collect()
}

/// What an agent's pod carries in [`TEMPLATE_ANNOTATION`] once it is of the present template.
pub fn template_digest(install: &Install) -> String {
    daemon_set::template_digest(install)
}

fn labels() -> Value {
    json!({
        "app.kubernetes.io/name": AGENT,
        "app.kubernetes.io/part-of": "fairlead",
        "app.kubernetes.io/managed-by": "fairlead-operator",
    })
}

fn stamp(mut object: Value) -> Value {
    let applied = digest(&object);
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("annotations".to_owned(), json!({ APPLIED_ANNOTATION: applied }));
    }
    object
}

#[cfg(test)]
mod tests;
