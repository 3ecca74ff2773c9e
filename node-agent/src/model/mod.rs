//! What should be true of every service port on this node, whatever the dataplane.
//!
//! Pure: values in, values out. Knows neither proxy mode nor kernel nor API client.

pub mod build;
mod claims;
pub mod tracker;

use std::{fmt, net::SocketAddr, sync::Arc};

use fairlead_crds::Scheduler;
use serde::{Deserialize, Serialize};

pub use build::SCHEDULER_ANNOTATION;
pub use tracker::{Changes, Model, NodeFacts};

/// Transport protocol of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The IANA protocol number, as it stands in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol of an IANA number.
    pub fn from_number(number: u16) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Family of an address.
    pub fn of(address: std::net::IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Identity of a service port: `namespace/name:port/PROTOCOL`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServicePortName {
    /// Namespace of the Service.
    pub namespace: Arc<str>,
    /// Name of the Service.
    pub service: Arc<str>,
    /// Name of the port, may be empty.
    pub port: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service)?;
        if !self.port.is_empty() {
            write!(f, ":{}", self.port)?;
        }
        write!(f, "/{}", self.protocol)
    }
}

/// An address at which clients reach a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Frontend {
    /// A cluster IP.
    ClusterIP(SocketAddr),
    /// One of `spec.externalIPs`.
    ExternalIP(SocketAddr),
    /// An ingress IP of the load balancer.
    LoadBalancerIP(SocketAddr),
    /// A port on the node's own addresses of one family.
    NodePort(Family, u16),
}

impl Frontend {
    /// Family of the clients that use it.
    pub fn family(&self) -> Family {
        match self {
            Self::ClusterIP(a) | Self::ExternalIP(a) | Self::LoadBalancerIP(a) => Family::of(a.ip()),
            Self::NodePort(family, _) => *family,
        }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClusterIP(address) => write!(f, "cluster IP {address}"),
            Self::ExternalIP(address) => write!(f, "external IP {address}"),
            Self::LoadBalancerIP(address) => write!(f, "load balancer IP {address}"),
            Self::NodePort(family, port) => write!(f, "node port {port} ({family})"),
        }
    }
}

/// An endpoint that takes new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Backend {
    /// Address and port on the pod (or, with hostNetwork, on its node).
    pub address: SocketAddr,
    /// On this node, or on a node that nobody named.
    pub local: bool,
}

/// A service port as it should be on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Identity.
    pub name: ServicePortName,
    /// Where clients reach it, sorted, without duplicates.
    pub frontends: Vec<Frontend>,
    /// What takes new connections, both families, sorted by address, without duplicates. A family
    /// without backends is rejected.
    pub backends: Vec<Backend>,
    /// Still in a slice but taking no new connections (not ready, terminating), sorted. A
    /// connection to one of them goes on, with no time limit yet.
    pub lingering: Vec<SocketAddr>,
    /// Scheduler asked for by annotation; without one the configured default holds.
    pub scheduler: Option<Scheduler>,
}

/// Why a service port is not programmed at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// internalTrafficPolicy: Local.
    #[error("internalTrafficPolicy Local is not supported yet: set it to Cluster")]
    InternalLocal,
    /// externalTrafficPolicy: Local.
    #[error("externalTrafficPolicy Local is not supported yet: set it to Cluster")]
    ExternalLocal,
    /// sessionAffinity: ClientIP.
    #[error("sessionAffinity ClientIP is not supported yet: set it to None")]
    Affinity,
    /// loadBalancerSourceRanges.
    #[error("loadBalancerSourceRanges is not supported yet: remove it, or filter in front of the node")]
    SourceRanges,
    /// An annotation of ours has a value we do not know.
    #[error("annotation {annotation}: {problem}")]
    Annotation {
        /// Name of the annotation.
        annotation: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Another service port has one of its addresses.
    #[error("{frontend} is taken by {holder}: give one of the two another address or port")]
    Conflict {
        /// The frontend that cannot be had.
        frontend: Frontend,
        /// Who has it.
        holder: ServicePortName,
    },
}

/// A service port as the model sees it: programmable, or refused with a reason.
pub type Row = Result<Arc<ServicePort>, Refusal>;

#[cfg(test)]
mod tests;
