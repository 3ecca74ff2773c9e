//! From a bare node to one that is programmed: is it ours at all, has it what is needed, and then
//! the first read of the kernel.

use std::{net::SocketAddr, path::Path, sync::mpsc::Sender, time::Duration};

use fairlead_crds::{PolicyEngine, ProxyMode};
use tokio::sync::watch as cell;

use crate::{
    agent::Input,
    dataplane::{
        Base, KernelFailure, LinuxKernel, Reconciler, Settings,
        ruleset::{PolicyBit, TABLE},
    },
    drift,
    error::chain,
    model::tracker::Model,
    nft,
    policy_route::PolicyRoutes,
    preflight::{
        self, Host,
        conflicts::{self, Conflict, Ruleset},
        kube_proxy, legacy_iptables, sysctl,
    },
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
            ipv6: sysctl::serves_ipv6(&Host::default()),
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
    /// Ports that kube-proxy would answer on: metrics and health.
    ports: (u16, u16),
    /// Where the drift monitors report to.
    inputs: Sender<Input>,
    /// Set once nothing else programs this node: kube-proxy's ports may be taken.
    ours: cell::Sender<bool>,
    monitoring: bool,
}

impl BringUp {
    /// `force` overrides what may be overridden; the monitors send to `inputs`.
    pub fn new(
        force: bool,
        metrics: SocketAddr,
        health: SocketAddr,
        inputs: Sender<Input>,
        ours: cell::Sender<bool>,
    ) -> Self {
        Self { force, ports: (metrics.port(), health.port()), inputs, ours, monitoring: false }
    }

    /// A reconciler that has read the kernel, or the record back and why not.
    pub fn bring_up(
        &mut self,
        model: &Model,
        record: Record,
    ) -> Result<Reconciler<LinuxKernel>, Box<(Record, Refused)>> {
        match self.prepare(model) {
            Err(refused) => Err(Box::new((record, refused))),
            Ok((kernel, settings)) => Reconciler::start(kernel, record, settings)
                .map_err(|not| Box::new((not.record, unusable(&not.failure)))),
        }
    }

    fn prepare(&mut self, model: &Model) -> Result<(LinuxKernel, Settings), Refused> {
        let settings = settings(model).ok_or_else(|| Refused {
            reason: "NoNode",
            message: "the Node object of this node is not known yet".to_owned(),
        })?;
        let ignored = model.config().is_some_and(|c| c.proxy.ipvs.policy_engine == PolicyEngine::Ignore);
        // With mode None there is only something of ours to take away.
        if model.config().is_some_and(|config| config.proxy.mode != ProxyMode::None) {
            self.check_conflicts(&settings.base, ignored)?;
        }
        let prepared = preflight::prepare(&Host::default())
            .map_err(|error| Refused { reason: "KernelUnusable", message: error.to_string() })?;
        if let Some(problem) = prepared.refusals.first() {
            return Err(Refused { reason: problem.reason, message: problem.message.clone() });
        }
        for problem in &prepared.warnings {
            tracing::warn!(reason = problem.reason, "{}", problem.message);
        }
        let kernel = LinuxKernel::open(&settings.base).map_err(|failure| unusable(&failure))?;
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
        Ok((kernel, settings))
    }

    /// Takes kube-proxy's ports although there is nothing to program, unless another proxy is found: a
    /// kubelet asks there whether the agent lives. True when they are ours.
    pub fn take_ports(&self) -> bool {
        let (metrics, health) = self.ports;
        if !*self.ours.borrow() && kube_proxy::answers(&kube_proxy::probes(metrics, health)).is_empty() {
            // No packet carries a mark of ours yet.
            let alone = foreign_rules()
                .is_ok_and(|rules| conflicts::find(&rules, 0).iter().all(Conflict::can_be_forced));
            self.ours.send_replace(alone);
        }
        *self.ours.borrow()
    }

    /// True when our table or one of our rules is in the kernel, or cannot be told not to be.
    pub fn finds_leftovers() -> bool {
        leftovers().unwrap_or(true)
    }

    /// What others have that makes this node not ours, unless the user said so.
    fn check_conflicts(&self, base: &Base, policy_engine_ignored: bool) -> Result<(), Refused> {
        let (metrics, health) = self.ports;
        // Once ours are bound, it is we who answer there.
        let mut found = if *self.ours.borrow() {
            Vec::new()
        } else {
            kube_proxy::answers(&kube_proxy::probes(metrics, health))
        };
        found.extend(conflicts::find(&foreign_rules()?, base.bit.mask()));
        if found.iter().all(Conflict::can_be_forced) {
            self.ours.send_replace(true);
        }
        for conflict in found {
            let forced = self.force && conflict.can_be_forced()
                || policy_engine_ignored && matches!(conflict, Conflict::PolicyEngine { .. });
            if !forced {
                return Err(Refused { reason: conflict.reason(), message: conflict.to_string() });
            }
            tracing::warn!(reason = conflict.reason(), "overridden: {conflict}");
        }
        Ok(())
    }
}

fn leftovers() -> Result<bool, KernelFailure> {
    let in_nft = |source| KernelFailure::Nft { action: "read the tables", source };
    let in_routes = |source| KernelFailure::Routes { action: "read the rules and routes", source };
    let tables = nft::Client::open().and_then(|mut client| client.tables()).map_err(in_nft)?;
    let observed = PolicyRoutes::open().and_then(|mut routes| routes.observe()).map_err(in_routes)?;
    let table = tables.iter().any(|table| table.family == nft::NFPROTO_INET && table.name == TABLE);
    Ok(table || !observed.rules.is_empty() || !observed.routes.is_empty())
}

/// Tables and chains of others, nftables and legacy iptables.
fn foreign_rules() -> Result<Ruleset, Refused> {
    let failed = |message: String| Refused { reason: "KernelUnusable", message };
    let foreign = nft::Client::open()
        .and_then(|mut client| client.foreign(&[TABLE]))
        .map_err(|source| unusable(&KernelFailure::Nft { action: "read the rules of others", source }))?;
    let mut rules = Ruleset::from(foreign);
    rules.extend(legacy_iptables::read(Path::new("/proc/net")).map_err(|error| failed(chain(&error)))?);
    Ok(rules)
}

fn unusable(failure: &KernelFailure) -> Refused {
    Refused { reason: "KernelUnusable", message: failure.chain() }
}
