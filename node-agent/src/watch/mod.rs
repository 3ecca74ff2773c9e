//! Where objects come from.
//!
//! A source (the Kubernetes API, or a manifests folder) turns what it sees into `Change`s and
//! sends them down one channel. Nothing behind the channel knows which source it was.

pub mod api;
pub mod convert;
mod folder;
pub mod manifests;
mod object;
pub mod parse;
pub mod slim;
pub mod status;

use std::sync::Arc;

pub use api::ApiSource;
pub use manifests::{Manifests, load};
pub use object::ObjectId;
pub use parse::FileError;
pub use slim::{
    Configured, Endpoint, EndpointSlice, Node, ObjectKey, Service, ServiceCidr, ServicePortSpec, SlicePort,
};
pub use status::{KindStatus, SourceError, SourceHealth, SourceStatus};

/// One change of one object. Sources send an object whole, and again only when it changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A Service was added or changed.
    Service(Arc<Service>),
    /// A Service is gone, or is no longer ours to serve.
    ServiceGone(ObjectKey),
    /// An EndpointSlice was added or changed.
    Slice(Arc<EndpointSlice>),
    /// An EndpointSlice is gone.
    SliceGone(ObjectKey),
    /// A ServiceCIDR was added or changed.
    Cidr(ServiceCidr),
    /// The ServiceCIDR of this name is gone.
    CidrGone(Arc<str>),
    /// Our own node, added or changed.
    Node(Node),
    /// The configuration that holds from now on.
    Config(Configured),
    /// Everything that exists has been sent: what was not sent may be pruned.
    Synced,
}

#[cfg(test)]
mod tests;
