//! API types of Fairlead, and the pure functions that operator and agent share.
//!
//! `ServiceNetwork` is what a user writes; `NodeAgentConfig` is what a revision holds and an
//! agent runs. Rendering one to the other needs no client and no kernel.

pub mod config;

pub use config::{
    IpvsConfig, IpvsTimeouts, NodeAgentConfig, PolicyEngine, ProxyConfig, ProxyMode, Scheduler,
};
