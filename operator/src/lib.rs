//! The operator: rolls one ServiceNetwork out to every node and tells how that goes.
//!
//! ```text
//! watch ──▶ dereference ──▶ validate ──▶ plan ──▶ apply ──▶ status
//! (stores)  (all reads)     (pure)       (pure,   (all      (pure; written
//!                                        builds)  writes)   if it differs)
//! ```
//!
//! It owns the agents' DaemonSet, ServiceAccount, permissions and admission policy, the revisions of
//! their config, the spec of ServiceNetworkNodes and the status of the ServiceNetwork. It never writes
//! the spec of the ServiceNetwork or the status of a node, and removes nothing when the ServiceNetwork
//! goes: nodes go on with what they run.

pub mod apply;
pub mod build;
pub mod cli;
pub mod compare;
pub mod context;
pub mod dereference;
pub mod error;
pub mod events;
pub mod leader;
pub mod metrics;
pub mod plan;
pub mod reconcile;
pub mod rollout;
pub mod run;
pub mod serve;
pub mod status;
pub mod validate;
pub mod watch;
pub mod write;
