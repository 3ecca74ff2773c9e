//! The dataplane: classify in nftables, schedule in IPVS. See README.md beside this file.
//!
//! ```text
//! rows of the model -> table (status a row) -> expand (pure) -> mirror: diff (pure)
//!                   -> reconciler: make, show, retire -> kernel
//! ```

mod audit;
pub mod drains;
pub mod expand;
pub mod expected;
pub mod kernel;
pub mod key;
mod lifecycle;
mod linux;
pub mod marks;
pub mod mirror;
pub mod reconciler;
pub mod ruleset;
pub mod table;
#[cfg(test)]
mod tests;

pub use kernel::{Base, Kernel, KernelFailure};
pub use key::ServerKey;
pub use linux::LinuxKernel;
pub use reconciler::{Reconciler, Settings};
pub use table::RowError;
