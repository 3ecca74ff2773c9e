//! Identity of an object across sources and snapshots.

use std::{fmt, sync::Arc};

use super::{Change, ObjectKey};

/// What a `Change` is about. Of the configuration and of our own node there is one each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectId {
    /// The ServiceNetwork, or what was rendered from it.
    Config,
    /// A Node.
    Node(Arc<str>),
    /// A ServiceCIDR.
    Cidr(Arc<str>),
    /// A Service.
    Service(ObjectKey),
    /// An EndpointSlice.
    Slice(ObjectKey),
}

impl ObjectId {
    /// The object that a change is about; `Synced` is about none.
    pub fn of(change: &Change) -> Option<Self> {
        Some(match change {
            Change::Service(service) => Self::Service(service.key.clone()),
            Change::ServiceGone(key) => Self::Service(key.clone()),
            Change::Slice(slice) => Self::Slice(slice.key.clone()),
            Change::SliceGone(key) => Self::Slice(key.clone()),
            Change::Cidr(cidr) => Self::Cidr(cidr.name.clone()),
            Change::CidrGone(name) => Self::Cidr(name.clone()),
            Change::Node(node) => Self::Node(node.name.clone()),
            Change::Config(_) => Self::Config,
            Change::Synced => return None,
        })
    }

    /// The change that says it is gone. Node and configuration are kept when they disappear:
    /// nothing could be right without them.
    pub fn gone(&self) -> Option<Change> {
        match self {
            Self::Service(key) => Some(Change::ServiceGone(key.clone())),
            Self::Slice(key) => Some(Change::SliceGone(key.clone())),
            Self::Cidr(name) => Some(Change::CidrGone(name.clone())),
            Self::Node(_) | Self::Config => None,
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config => f.write_str("ServiceNetwork"),
            Self::Node(name) => write!(f, "Node {name}"),
            Self::Cidr(name) => write!(f, "ServiceCIDR {name}"),
            Self::Service(key) => write!(f, "Service {key}"),
            Self::Slice(key) => write!(f, "EndpointSlice {key}"),
        }
    }
}
