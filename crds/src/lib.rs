//! API types of Fairlead, and the pure functions that operator and agent share.
//!
//! `ServiceNetwork` is what a user writes; `NodeAgentConfig` is what a revision holds and an
//! agent runs. Rendering one to the other needs no client and no kernel.

pub mod config;
pub mod duration;
pub mod render;
pub mod service_network;

pub use config::{
    IpvsConfig, IpvsTimeouts, NodeAgentConfig, PolicyEngine, ProxyConfig, ProxyMode, Scheduler,
};
pub use render::{Problem, render};
pub use service_network::{
    IpvsSpec, IpvsTimeoutsSpec, ProxySpec, ServiceNetwork, ServiceNetworkManifest, ServiceNetworkSpec,
};
