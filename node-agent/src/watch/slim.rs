//! What the agent keeps of a Kubernetes object: the fields that decide how a packet travels.
//!
//! A cluster of 10,000 Services is held in memory and in the snapshot, so nothing else is.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use fairlead_crds::NodeAgentConfig;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::Protocol;

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

/// A Service that has virtual IPs (headless and ExternalName Services never get here).
#[expect(clippy::struct_excessive_bools, reason = "each stands for one field of the API")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `spec.clusterIPs`.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`, the invalid ones left out.
    pub external_ips: Vec<IpAddr>,
    /// IPs of `status.loadBalancer.ingress` with ipMode VIP (or none).
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<ServicePortSpec>,
    /// `spec.internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `spec.externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `spec.sessionAffinity: ClientIP`.
    pub client_ip_affinity: bool,
    /// `spec.loadBalancerSourceRanges` names at least one range.
    pub source_ranges: bool,
    /// Our own annotations (`fairlead.dev/...`), and no others.
    pub annotations: BTreeMap<String, String>,
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePortSpec {
    /// Name, empty for the only port of a Service.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the virtual IPs.
    pub port: u16,
    /// Port on every node, if it has one.
    pub node_port: Option<u16>,
}

/// An EndpointSlice of address type IPv4 or IPv6.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub key: ObjectKey,
    /// The Service of label `kubernetes.io/service-name`, in the same namespace.
    pub service: Arc<str>,
    /// `ports`, those without a number left out.
    pub ports: Vec<SlicePort>,
    /// `endpoints`, those without an address of the slice's family left out.
    pub endpoints: Vec<Endpoint>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`.
    pub trigger_time: Option<jiff::Timestamp>,
}

/// One entry of an EndpointSlice's `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlicePort {
    /// Name, matched with the Service port's.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Number of the port on the backend.
    pub port: u16,
}

/// One entry of an EndpointSlice's `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// `addresses[0]`.
    pub address: IpAddr,
    /// `conditions.ready`, true when absent.
    pub ready: bool,
    /// `conditions.serving`, true when absent.
    pub serving: bool,
    /// `conditions.terminating`, false when absent.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
}

/// The node that the agent runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Name.
    pub name: Arc<str>,
    /// `status.addresses` of type InternalIP, in their order.
    pub internal_ips: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// False when the node is being deleted or carries the taint `ToBeDeletedByClusterAutoscaler`:
    /// load balancers should stop sending it new connections.
    pub eligible: bool,
}

/// A range from which cluster IPs are taken (`networking.k8s.io/v1 ServiceCIDR`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCidr {
    /// Name.
    pub name: Arc<str>,
    /// `spec.cidrs`.
    pub cidrs: Vec<IpNet>,
}

/// The agent's configuration, and where it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configured {
    /// The configuration.
    pub config: NodeAgentConfig,
    /// The ControllerRevision that holds it; none for the configuration of a manifests folder.
    pub revision: Option<Arc<str>>,
}

impl From<NodeAgentConfig> for Configured {
    fn from(config: NodeAgentConfig) -> Self {
        Self { config, revision: None }
    }
}
