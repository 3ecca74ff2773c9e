//! The sets of the table: the only place where Services leave a trace in it.

use std::fmt;

use crate::{
    model::Family,
    nft::{DataType, Set},
};

/// A set of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetName {
    /// Address, protocol and port of every ClusterIP that has endpoints.
    ClusterIps(Family),
    /// The same of externalIPs and LoadBalancer IPs.
    ExternalIps(Family),
    /// Protocol and port of every NodePort that has endpoints.
    NodePorts(Family),
    /// The marks that key the virtual servers of NodePorts.
    NodePortMarks,
    /// Where NodePorts answer.
    NodeAddresses(Family),
    /// Address, protocol and port of every frontend without endpoints.
    NoEndpoints(Family),
    /// Protocol and port of every NodePort without endpoints.
    NoEndpointNodePorts(Family),
    /// Every ClusterIP, with or without endpoints.
    ClusterAddresses(Family),
    /// Backends on this node, each with itself: connections that come back to their client.
    Hairpin(Family),
    /// The podCIDRs of this node.
    LocalPods(Family),
}

impl SetName {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let of = |family| {
            [
                Self::ClusterIps(family),
                Self::ExternalIps(family),
                Self::NodePorts(family),
                Self::NodeAddresses(family),
                Self::NoEndpoints(family),
                Self::NoEndpointNodePorts(family),
                Self::ClusterAddresses(family),
                Self::Hairpin(family),
                Self::LocalPods(family),
            ]
        };
        Family::ALL.into_iter().flat_map(of).chain([Self::NodePortMarks])
    }

    /// The set as the kernel has to make it.
    pub(super) fn definition(self) -> Set {
        use DataType::{Ipv4, Ipv6, Mark, Port, Protocol};
        let address = |family| if family == Family::V4 { Ipv4 } else { Ipv6 };
        let set = |fields: &[DataType]| Set::new(self.to_string(), fields, self.purpose());
        match self {
            Self::ClusterIps(family) | Self::ExternalIps(family) | Self::NoEndpoints(family) => {
                set(&[address(family), Protocol, Port])
            }
            Self::NodePorts(_) | Self::NoEndpointNodePorts(_) => set(&[Protocol, Port]),
            Self::NodePortMarks => set(&[Protocol, Port]).to(Mark),
            Self::NodeAddresses(family) | Self::ClusterAddresses(family) => set(&[address(family)]),
            Self::Hairpin(family) => set(&[address(family), address(family)]),
            Self::LocalPods(family) => set(&[address(family)]).of_intervals(),
        }
    }

    fn purpose(self) -> &'static str {
        match self {
            Self::ClusterIps(_) => "ClusterIPs with endpoints",
            Self::ExternalIps(_) => "externalIPs and LoadBalancer IPs with endpoints",
            Self::NodePorts(_) => "NodePorts with endpoints",
            Self::NodePortMarks => "fwmark of each NodePort's virtual server",
            Self::NodeAddresses(_) => "where NodePorts answer",
            Self::NoEndpoints(_) => "frontends without endpoints",
            Self::NoEndpointNodePorts(_) => "NodePorts without endpoints",
            Self::ClusterAddresses(_) => "every ClusterIP",
            Self::Hairpin(_) => "backends on this node, each with itself",
            Self::LocalPods(_) => "podCIDRs of this node",
        }
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, family) = match self {
            Self::NodePortMarks => return f.write_str("node-port-marks"),
            Self::ClusterIps(family) => ("cluster-ips", family),
            Self::ExternalIps(family) => ("external-ips", family),
            Self::NodePorts(family) => ("node-ports", family),
            Self::NodeAddresses(family) => ("node-addresses", family),
            Self::NoEndpoints(family) => ("no-endpoints", family),
            Self::NoEndpointNodePorts(family) => ("no-endpoint-node-ports", family),
            Self::ClusterAddresses(family) => ("cluster-addresses", family),
            Self::Hairpin(family) => ("hairpin", family),
            Self::LocalPods(family) => ("local-pods", family),
        };
        write!(f, "{name}-{}", if *family == Family::V4 { "4" } else { "6" })
    }
}
