//! The parts of Pods, Nodes and ServiceNetworkNodes that the operator looks at.
//!
//! Smaller than the whole objects, and lenient: a value that a newer agent writes and this version
//! does not know must not take the whole list away, as it would with the full types.

use k8s_openapi::{
    api::core::v1::{Affinity, Node, Pod},
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time},
};
use kube::Resource;
use serde::{Deserialize, Serialize};

use fairlead_crds::ServiceNetworkNode;

/// What a node is to run and says it runs.
#[derive(Clone, Debug, Default, PartialEq, Resource, Serialize, Deserialize)]
#[resource(inherit = ServiceNetworkNode)]
#[serde(rename_all = "camelCase")]
pub struct AgentView {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// By the operator.
    #[serde(default)]
    pub spec: AgentSpec,
    /// By the agent.
    #[serde(default)]
    pub status: AgentStatus,
}

/// What a node is to run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentSpec {
    /// Name of the revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

/// What a node says it runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// The generation of the spec that the agent has seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The revision in effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Version of the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Versions of configuration that it understands.
    #[serde(default)]
    pub config_versions: Vec<String>,
    /// Accepted, Programmed, Healthy.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// A pod of the agents.
#[derive(Clone, Debug, Default, Resource, Serialize, Deserialize)]
#[resource(inherit = Pod)]
#[serde(rename_all = "camelCase")]
pub struct AgentPod {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Where it runs.
    #[serde(default)]
    pub spec: PodSpecView,
    /// How it fares.
    #[serde(default)]
    pub status: PodStatusView,
}

/// Where a pod runs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpecView {
    /// The node, once it is scheduled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// The node for which the DaemonSet controller made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
}

/// How a pod fares.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatusView {
    /// `Ready` among others.
    #[serde(default)]
    pub conditions: Vec<ConditionView>,
    /// Containers.
    #[serde(default)]
    pub container_statuses: Vec<ContainerView>,
    /// Init containers.
    #[serde(default)]
    pub init_container_statuses: Vec<ContainerView>,
}

/// A condition of a Pod or a Node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConditionView {
    /// Such as `Ready`.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Time>,
}

/// A container's state, as far as it says why it does not run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerView {
    /// The state.
    #[serde(default)]
    pub state: ContainerStateView,
}

/// Why a container waits.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerStateView {
    /// Set while it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<WaitingView>,
}

/// Why a container waits.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WaitingView {
    /// Such as `CrashLoopBackOff`.
    #[serde(default)]
    pub reason: String,
}

impl AgentPod {
    /// The node that it runs on or is to run on.
    pub fn node(&self) -> Option<&str> {
        self.spec.node_name.as_deref().or_else(|| self.made_for())
    }

    /// The DaemonSet controller binds a pod to its node by an affinity to the node's name
    /// (`pkg/controller/daemon/util`), long before it is scheduled.
    fn made_for(&self) -> Option<&str> {
        let affinity = self.spec.affinity.as_ref()?.node_affinity.as_ref()?;
        let terms =
            &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
        let fields = terms.iter().filter_map(|term| term.match_fields.as_ref()).flatten();
        let mut named = fields.filter(|field| field.key == "metadata.name");
        named.next()?.values.as_ref()?.first().map(String::as_str)
    }

    /// Its `Ready` condition.
    pub fn ready(&self) -> Option<&ConditionView> {
        self.status.conditions.iter().find(|condition| condition.type_ == "Ready")
    }

    /// Whether its readiness probe succeeds.
    pub fn is_ready(&self) -> bool {
        self.ready().is_some_and(|ready| ready.status == "True")
    }

    /// Since when it is as ready, or not, as it is.
    pub fn since(&self) -> Option<&Time> {
        let changed = self.ready().and_then(|ready| ready.last_transition_time.as_ref());
        changed.or(self.metadata.creation_timestamp.as_ref())
    }

    /// Why a container of it waits, in the kubelet's word.
    pub fn waiting(&self) -> Option<&str> {
        let containers = self.status.init_container_statuses.iter().chain(&self.status.container_statuses);
        let reasons = containers.filter_map(|container| container.state.waiting.as_ref());
        // What every pod passes through is no explanation.
        reasons
            .map(|waiting| waiting.reason.as_str())
            .find(|reason| !matches!(*reason, "" | "PodInitializing" | "ContainerCreating"))
    }
}

/// A Node as it is read when one wants to know whether its kubelet is there.
#[derive(Clone, Debug, Resource, Serialize, Deserialize)]
#[resource(inherit = Node)]
pub struct NodeView {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// How it fares.
    #[serde(default)]
    pub status: NodeStatusView,
}

/// How a Node fares.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NodeStatusView {
    /// `Ready` among others.
    #[serde(default)]
    pub conditions: Vec<ConditionView>,
}

impl NodeView {
    /// Whether the control plane has lost its kubelet: the node lifecycle controller then says that
    /// nobody knows whether it is Ready.
    pub fn is_unreachable(&self) -> bool {
        let ready = self.status.conditions.iter().find(|condition| condition.type_ == "Ready");
        ready.is_some_and(|ready| ready.status == "Unknown")
    }
}
