//! API types of Fairlead, and the pure functions that operator and agent share.
//!
//! `ServiceNetwork` is what a user writes; `NodeAgentConfig` is what a revision holds and an
//! agent runs; `ServiceNetworkNode` is where operator and agent meet. Rendering one to the other
//! needs no client and no kernel.

#[cfg(feature = "client")]
pub mod api_client;
pub mod conditions;
pub mod config;
pub mod duration;
pub mod names;
pub mod render;
pub mod revision;
pub mod service_network;
pub mod service_network_node;
pub mod status;

pub use config::{
    IpvsConfig, IpvsTimeouts, NodeAgentConfig, PolicyEngine, ProxyConfig, ProxyMode, Scheduler,
};
pub use render::{Problem, render};
pub use service_network::{
    IpvsSpec, IpvsTimeoutsSpec, ProxySpec, ServiceNetwork, ServiceNetworkManifest, ServiceNetworkSpec,
};
pub use service_network_node::{ServiceNetworkNode, ServiceNetworkNodeSpec, ServiceNetworkNodeStatus};
pub use status::{
    ComponentStatus, NodeProblem, NodesStatus, RelatedObject, RolloutStatus, ServiceNetworkStatus,
};
