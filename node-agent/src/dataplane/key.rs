//! Names of the virtual servers that Services need.

use std::{fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{
    ipvs::VirtualServerKey,
    model::{Family, Protocol},
};

/// A virtual server of ours, by what clients address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServerKey {
    /// Keyed by protocol, virtual IP and port.
    Address {
        /// Protocol.
        protocol: Protocol,
        /// Virtual IP and port.
        address: SocketAddr,
    },
    /// A node port: one server for all addresses of the node, keyed by a firewall mark.
    NodePort {
        /// Family of the clients.
        family: Family,
        /// Protocol.
        protocol: Protocol,
        /// The node port.
        port: u16,
        /// The mark.
        mark: u32,
    },
}

impl ServerKey {
    /// Protocol of its connections.
    pub fn protocol(&self) -> Protocol {
        match *self {
            Self::Address { protocol, .. } | Self::NodePort { protocol, .. } => protocol,
        }
    }

    /// How the kernel knows it.
    pub fn kernel(&self) -> VirtualServerKey {
        match *self {
            Self::Address { protocol, address } => VirtualServerKey::Address { protocol, address },
            Self::NodePort { family, mark, .. } => VirtualServerKey::Fwmark { family, mark },
        }
    }
}

impl fmt::Display for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { protocol, address } => write!(f, "{protocol} {address}"),
            Self::NodePort { family, protocol, port, mark } => {
                write!(f, "{protocol} node port {port} ({family}, mark {mark:#x})")
            }
        }
    }
}
