//! The measurements in this process: objects in memory to the kernel's acknowledgement.

use std::{
    fs::File,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use fairlead_node_agent::{
    bring_up::settings,
    dataplane::{LinuxKernel, Reconciler, RowError},
    ipvs::Client,
    model::Model,
    state::record::Record,
    watch::{Change, EndpointSlice},
};
use jiff::Timestamp;

use crate::{
    cluster::{self, ENDPOINTS},
    namespace::{self, Namespace},
    report::Report,
};

/// Runs of each side of the comparison with `ipvsadm`.
const RUNS: usize = 3;
/// Changes before the measured ones: caches fill, the first allocations are made.
const WARM_UP: u32 = 20;
/// Pods that no Service had at first start here.
const NEW_PODS: u32 = 1_000_000;

/// Model and dataplane in step, as the agent's loop holds them.
struct Node {
    model: Model,
    reconciler: Reconciler<LinuxKernel>,
}

impl Node {
    /// From objects in memory to a kernel that has acknowledged all of them, the table and routes of
    /// the node included.
    fn start(objects: Vec<Change>, record: Record) -> Result<Self> {
        let mut model = Model::new(Timestamp::UNIX_EPOCH);
        for change in objects {
            model.apply(change);
        }
        let settings = settings(&model).context("the cluster has no node")?;
        let kernel = LinuxKernel::open(&settings.base)?;
        let reconciler =
            Reconciler::start(kernel, record, settings).map_err(|not| anyhow!(not.failure.chain()))?;
        let mut node = Self { model, reconciler };
        node.step()?;
        ensure!(node.reconciler.is_settled(), "the dataplane did not settle");
        Ok(node)
    }

    /// One turn of the agent's loop.
    fn step(&mut self) -> Result<()> {
        let changes = self.model.take_changes();
        for (name, row) in changes.rows {
            self.reconciler.table.set(name, row);
        }
        if changes.synced {
            self.reconciler.set_synced();
        }
        while self.reconciler.is_due(Instant::now()) {
            if !self.reconciler.round(Instant::now()) {
                bail!("the kernel could not be read");
            }
        }
        match self.reconciler.errors().pop() {
            Some(RowError { name, reason, .. }) => bail!("{name}: {reason}"),
            None => Ok(()),
        }
    }

    /// One EndpointSlice from the source to the kernel's acknowledgement.
    fn change(&mut self, slice: EndpointSlice) -> Result<Duration> {
        let change = Change::Slice(Arc::new(slice));
        let began = Instant::now();
        self.model.apply(change);
        self.step()?;
        Ok(began.elapsed())
    }
}

/// All objects at once, into an empty kernel.
pub fn cold_sync(report: &mut Report, services: u32, repetitions: usize) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..repetitions {
        let namespace = Namespace::enter()?;
        let state = tempfile::tempdir()?;
        let record = Record::open(state.path())?;
        let objects = cluster::objects(services);
        let began = Instant::now();
        let node = Node::start(objects, record)?;
        times.push(began.elapsed());
        namespace::expect(services, ENDPOINTS)?;
        drop(node);
        namespace.leave()?;
    }
    report.median("cold sync", services, &times);
    Ok(())
}

/// One EndpointSlice changes: an endpoint more, and an endpoint in place of another one. The one
/// replaced starts to drain.
pub fn single_changes(report: &mut Report, services: u32, changes: u32) -> Result<()> {
    let namespace = Namespace::enter()?;
    let state = tempfile::tempdir()?;
    let mut node = Node::start(cluster::objects(services), Record::open(state.path())?)?;
    // Far apart, so that no two in a row are about neighbours.
    let spread = |n: u32| n.wrapping_mul(7919) % services;
    let mut slices: Vec<_> = (0..services).map(cluster::slice).collect();
    let (mut added, mut replaced) = (Vec::new(), Vec::new());
    for n in 0..WARM_UP + changes {
        let slice = slices.get_mut(spread(n) as usize).context("no such slice")?;
        slice.endpoints.push(cluster::endpoint(NEW_PODS + n));
        added.push(node.change(slice.clone())?);
    }
    for n in 0..WARM_UP + changes {
        let slice = slices.get_mut(spread(n) as usize).context("no such slice")?;
        slice.endpoints.remove(0);
        slice.endpoints.push(cluster::endpoint(2 * NEW_PODS + n));
        replaced.push(node.change(slice.clone())?);
    }
    // What was replaced drains: it is still there, with weight 0.
    let lines = namespace::table()?.len();
    let wanted = (services * (ENDPOINTS + 1) + 2 * (WARM_UP + changes)) as usize;
    ensure!(lines == wanted, "IPVS has {lines} virtual and real servers, should have {wanted}");
    report.percentiles("one endpoint added", services, added.get(WARM_UP as usize..).unwrap_or_default());
    report.percentiles(
        "one endpoint replaced",
        services,
        replaced.get(WARM_UP as usize..).unwrap_or_default(),
    );
    drop(node);
    namespace.leave()
}

/// The same virtual and real servers through our netlink client and through `ipvsadm -R`, by turns.
pub fn restore(report: &mut Report, services: u32) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let rules = scratch.path().join("rules");
    std::fs::write(&rules, cluster::ipvsadm_rules(services)?)?;
    let operations = cluster::operations(services);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let namespace = Namespace::enter()?;
        let began = Instant::now();
        for verdict in Client::open()?.apply(&operations)? {
            verdict?;
        }
        ours.push(began.elapsed());
        let mut by_us = namespace::table()?;
        namespace.leave()?;

        let namespace = Namespace::enter()?;
        let mut command = Command::new("ipvsadm");
        command.arg("-R").stdin(File::open(&rules)?).stdout(Stdio::null());
        let began = Instant::now();
        let status = command.status().context("failed to start ipvsadm")?;
        theirs.push(began.elapsed());
        ensure!(status.success(), "ipvsadm -R failed: {status}");
        let mut by_them = namespace::table()?;
        namespace.leave()?;

        by_us.sort_unstable();
        by_them.sort_unstable();
        ensure!(by_us == by_them, "the two did not make the same virtual and real servers");
    }
    let ours = report.median("IPVS rules, our netlink", services, &ours);
    let theirs = report.median("IPVS rules, ipvsadm -R", services, &theirs);
    let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
    report.add("ipvsadm -R / our netlink", services, "ratio", ratio, "x", RUNS);
    Ok(())
}
