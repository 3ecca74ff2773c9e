//! The objects of which there is one each.

use fairlead_crds::names::{AGENT, NAMESPACE};
use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    apps::v1::DaemonSet,
    core::v1::ServiceAccount,
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
};
use kube::core::ApiResource;

use super::admission_policy;

/// An object that the operator owns, and of which there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owned {
    /// Who the agents are.
    ServiceAccount,
    /// What they may do in the whole cluster.
    ClusterRole,
    /// That they may.
    ClusterRoleBinding,
    /// What they may do in the namespace.
    Role,
    /// That they may.
    RoleBinding,
    /// That an agent writes the status of its own node only.
    AdmissionPolicy,
    /// That it is enforced.
    AdmissionPolicyBinding,
    /// The agents.
    DaemonSet,
}

impl Owned {
    /// All of them, in the order in which they are applied.
    pub const ALL: [Self; 8] = [
        Self::ServiceAccount,
        Self::ClusterRole,
        Self::ClusterRoleBinding,
        Self::Role,
        Self::RoleBinding,
        Self::AdmissionPolicy,
        Self::AdmissionPolicyBinding,
        Self::DaemonSet,
    ];

    /// Its API.
    pub fn resource(self) -> ApiResource {
        match self {
            Self::ServiceAccount => ApiResource::erase::<ServiceAccount>(&()),
            Self::ClusterRole => ApiResource::erase::<ClusterRole>(&()),
            Self::ClusterRoleBinding => ApiResource::erase::<ClusterRoleBinding>(&()),
            Self::Role => ApiResource::erase::<Role>(&()),
            Self::RoleBinding => ApiResource::erase::<RoleBinding>(&()),
            Self::AdmissionPolicy => ApiResource::erase::<ValidatingAdmissionPolicy>(&()),
            Self::AdmissionPolicyBinding => ApiResource::erase::<ValidatingAdmissionPolicyBinding>(&()),
            Self::DaemonSet => ApiResource::erase::<DaemonSet>(&()),
        }
    }

    /// Its namespace, if it has one.
    pub fn namespace(self) -> Option<&'static str> {
        match self {
            Self::ServiceAccount | Self::Role | Self::RoleBinding | Self::DaemonSet => Some(NAMESPACE),
            Self::ClusterRole
            | Self::ClusterRoleBinding
            | Self::AdmissionPolicy
            | Self::AdmissionPolicyBinding => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::AdmissionPolicy | Self::AdmissionPolicyBinding => admission_policy::NAME,
            _ => AGENT,
        }
    }
}
