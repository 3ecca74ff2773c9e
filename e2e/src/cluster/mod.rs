//! A real Kubernetes cluster of the rig's own.

pub mod image;
