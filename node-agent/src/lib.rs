//! The node agent: Services on this node, through the kernel.
//!
//! ```text
//! watch -> model (pure) -> dataplane: desired table -> plan (pure) -> kernel -> status
//! ```

pub mod ipvs;
pub mod model;
pub mod netlink;
pub mod policy_route;
pub mod watch;
