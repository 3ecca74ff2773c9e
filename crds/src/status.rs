//! `ServiceNetwork.status`: what the operator tells of the service network. It writes nothing else
//! into the object, and the user writes nothing here.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::NodeAgentConfig;

/// What is known of the service network. Small and slow: counts of packets and times are metrics,
/// what concerns one node is in its ServiceNetworkNode.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceNetworkStatus {
    /// The generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready: what the spec asks for holds. Reconciling, only while true: on its way there.
    /// Stalled, only while true: it will not get there before somebody does what the message says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,

    /// Every value that is in effect, those that the spec leaves to Fairlead included.
    // Not the type: an older operator reads what a newer one has written.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<NodeAgentConfig>")]
    pub effective: Option<Value>,

    /// Which configuration goes to the nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,

    /// How many nodes are how far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodesStatus>,

    /// The parts that Fairlead runs in the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub components: Vec<ComponentStatus>,

    /// The version of Fairlead that runs on every node; omitted while nodes differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub version: Option<String>,

    /// The objects to look at when something is wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub related_objects: Vec<RelatedObject>,
}

/// Which configuration goes to the nodes.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    /// Name of the ControllerRevision that the nodes are to run.
    #[schemars(length(max = 253))]
    pub revision: String,

    /// Name of the last ControllerRevision that every node has programmed. A new node takes it when
    /// the operator is away.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub last_good: Option<String>,
}

/// How many nodes are how far.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodesStatus {
    /// Nodes of the cluster.
    pub total: i32,

    /// Nodes that have programmed the revision they are to run.
    pub updated: i32,

    /// Nodes with nothing wrong.
    pub healthy: i32,

    /// The nodes that are worst off, three at most; every one is in its ServiceNetworkNode.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub worst: Vec<NodeProblem>,
}

/// What is wrong on a node.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeProblem {
    /// The node.
    #[schemars(length(max = 253))]
    pub name: String,

    /// What, in a word.
    #[schemars(length(max = 64))]
    pub reason: String,

    /// What, and what to do.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// How a part of Fairlead is.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ComponentStatus {
    /// The part, such as node-agent.
    #[schemars(length(max = 63))]
    pub name: String,

    /// It does its work.
    pub available: bool,

    /// It is being changed.
    pub progressing: bool,

    /// It works less well than it should.
    pub degraded: bool,

    /// Why, in a word.
    #[schemars(length(max = 64))]
    pub reason: String,

    /// Why, with numbers.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// An object that belongs to Fairlead.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RelatedObject {
    /// API group; empty for the core group.
    #[schemars(length(max = 253))]
    pub group: String,

    /// Resource, such as daemonsets.
    #[schemars(length(max = 63))]
    pub resource: String,

    /// Namespace, of an object that has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,

    /// Name; empty for all of a resource.
    #[schemars(length(max = 253))]
    pub name: String,
}
