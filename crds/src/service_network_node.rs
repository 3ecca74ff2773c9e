//! The `ServiceNetworkNode` resource: what one node should run, and what it does run.
//!
//! The operator writes the spec and the node's agent the status; nobody else writes either.
//! It has the name of its Node.

#![allow(clippy::duplicated_attributes, reason = "every printer column has attributes of its own")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// What a node should run. Written by the operator alone.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "ServiceNetworkNode",
    shortname = "svcnetnode",
    category = "networking",
    derive = "PartialEq",
    status = "ServiceNetworkNodeStatus",
    doc = "The service network of one node: the revision it should run, set by the operator, and what it does run, told by its agent. It has the name of its Node. Do not edit it: change the ServiceNetwork.",
    printcolumn(
        name = "Mode",
        type_ = "string",
        json_path = ".status.mode",
        description = "The dataplane in effect."
    ),
    printcolumn(
        name = "Revision",
        type_ = "string",
        json_path = ".status.revision",
        description = "The revision in effect."
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status",
        description = "Whether that revision, and every Service, is in the kernel."
    ),
    printcolumn(
        name = "Healthy",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Healthy\")].status",
        description = "Whether nothing is wrong on this node."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Healthy\")].reason",
        description = "What is wrong, in a word."
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type==\"Healthy\")].message",
        description = "What is wrong, and what to do."
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        priority = 1,
        json_path = ".status.version",
        description = "The version of the node's agent."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ServiceNetworkNodeSpec {
    /// Name of the ControllerRevision in namespace fairlead-system that holds the configuration to
    /// run. Omitted: the node goes on with what it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub revision: Option<String>,
}

/// What a node does run. Written by its agent alone, and only when something in it changes: counts
/// and times are metrics.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceNetworkNodeStatus {
    /// The generation of the spec that the agent has seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Name of the revision in effect. Omitted: none is yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub revision: Option<String>,

    /// The dataplane in effect, a value of the ServiceNetwork's spec.proxy.mode.
    // Not the enum: an operator reads the status of an agent that may be newer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub mode: Option<String>,

    /// Version of the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub version: Option<String>,

    /// The versions of configuration that the agent understands. The operator hands out no other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 64)))]
    pub config_versions: Vec<String>,

    /// Accepted: the revision asked for was read and understood. Programmed: that revision, and
    /// every Service, is in the kernel. Healthy: nothing is wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
