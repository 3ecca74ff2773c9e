//! The container images of the cluster: made here without Docker, unpacked once, shared by all nodes.

pub mod archive;
pub mod recipes;
pub mod store;
