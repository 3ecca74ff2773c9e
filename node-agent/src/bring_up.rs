//! From a bare node to one that is programmed: is it ours at all, has it what is needed, and then
//! the first read of the kernel.

use std::{sync::mpsc::Sender, time::Duration};

use tokio::sync::watch as cell;

use crate::{
    agent::Input,
    dataplane::{Base, LinuxKernel, Reconciler, Settings, ruleset::PolicyBit},
    drift,
    model::tracker::Model,
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

/// What the dataplane needs to know of configuration and node; none before both are known.
pub fn settings(model: &Model) -> Option<Settings> {
    let proxy = &model.config()?.proxy;
    let facts = model.facts()?;
    let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
    let timeouts = &proxy.ipvs.timeouts;
    Some(Settings {
        scheduler: proxy.ipvs.scheduler,
        drain_timeout: proxy.ipvs.drain_timeout,
        base: Base {
            bit: PolicyBit::new(proxy.mark_bit)?,
            timeouts: (seconds(timeouts.tcp), seconds(timeouts.tcp_fin), seconds(timeouts.udp)),
            node_addresses: facts.addresses,
            pod_cidrs: facts.pod_cidrs,
            service_cidrs: facts.service_cidrs,
        },
    })
}

/// Brings the node up.
#[derive(Debug)]
pub struct BringUp {
    /// Program the node although a policy engine or a host firewall was found.
    force: bool,
    /// Where the drift monitors report to.
    inputs: Sender<Input>,
    /// Set once nothing else programs this node: kube-proxy's ports may be taken.
    ours: cell::Sender<bool>,
    monitoring: bool,
}

impl BringUp {
    /// `force` overrides what may be overridden; the monitors send to `inputs`.
    pub fn new(force: bool, inputs: Sender<Input>, ours: cell::Sender<bool>) -> Self {
        Self { force, inputs, ours, monitoring: false }
    }

    /// A reconciler that has read the kernel, or the record back and why not.
    pub fn bring_up(
        &mut self,
        model: &Model,
        record: Record,
    ) -> Result<Reconciler<LinuxKernel>, Box<(Record, Refused)>> {
        let Some(settings) = settings(model) else {
            let message = "the Node object of this node is not known yet".to_owned();
            return Err(Box::new((record, Refused { reason: "NoNode", message })));
        };
        self.ours.send_replace(true);
        let unusable = |message: String| Refused { reason: "KernelUnusable", message };
        let kernel = match LinuxKernel::open(&settings.base) {
            Ok(kernel) => kernel,
            Err(failure) => return Err(Box::new((record, unusable(failure.chain())))),
        };
        if !self.monitoring {
            // Without them the audit still finds what others change, later.
            match kernel.nft_port().map(|port| drift::watch(&self.inputs, port)) {
                Ok(Ok(())) => self.monitoring = true,
                Ok(Err(error)) => tracing::warn!(%error, "failed to follow the kernel's events"),
                Err(failure) => {
                    tracing::warn!(error = failure.chain(), "failed to follow the kernel's events");
                }
            }
        }
        Reconciler::start(kernel, record, settings)
            .map_err(|not| Box::new((not.record, unusable(not.failure.chain()))))
    }
}
