//! The node agent: Services on this node, through the kernel.
//!
//! ```text
//! watch -> model (pure) -> dataplane: desired table -> plan (pure) -> kernel -> status
//! ```

pub mod agent;
pub mod backoff;
pub mod bring_up;
pub mod cli;
pub mod commands;
pub mod dataplane;
pub mod drift;
pub mod error;
pub mod ipvs;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod netlink;
pub mod nft;
pub mod policy_route;
pub mod preflight;
pub mod report;
pub mod serve;
pub mod state;
pub mod status;
pub mod watch;
