//! From a bare node to one that is programmed: is it ours at all, has it what is needed, and then
//! the first read of the kernel.

use std::sync::mpsc::Sender;

use fairlead_crds::{PolicyEngine, Scheduler};

use crate::{
    agent::Input,
    dataplane::{Base, LinuxKernel, Reconciler, Settings, kernel::KernelFailure},
    drift,
    model::tracker::Model,
    preflight,
    state::record::Record,
};

/// Why a node is not programmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// One word of a closed list, for status and metrics.
    pub reason: &'static str,
    /// What was found, and what to do.
    pub message: String,
}

/// Brings the node up.
#[derive(Debug)]
pub struct BringUp {
    /// Program the node although a policy engine or a host firewall was found.
    force: bool,
    /// Where the drift monitors report to.
    inputs: Sender<Input>,
    monitoring: bool,
}
