//! The agent's loop: one thread that owns model and dataplane.
//!
//! ```text
//! inputs (changes, drift) -> model -> table -> rounds -> status, metrics, snapshot
//! ```
//!
//! Before the first row it waits for the source to have sent everything, or serves from the snapshot
//! of an earlier run; it then brings the node up (`bring_up`), again and again until that succeeds.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use fairlead_crds::ProxyMode;
use jiff::Timestamp;

use crate::{
    bring_up::{BringUp, Refused, settings},
    dataplane::{LinuxKernel, Reconciler},
    drift::Drift,
    error::chain,
    memory,
    metrics::Metrics,
    model::tracker::Model,
    state::{record::Record, snapshot::Snapshot},
    status::{Applied, Dataplane, Shared},
    watch::{Change, SourceHealth},
};

/// How long the source has to send everything before the snapshot is used.
const SYNC_PATIENCE: Duration = Duration::from_secs(5);
/// How often the kernel is compared with what we left there.
const AUDIT_PERIOD: Duration = Duration::from_secs(30);
/// Drift comes in bursts (a flush is many events): look once, a moment later.
const DRIFT_PATIENCE: Duration = Duration::from_millis(100);
/// How often draining backends are looked at.
const DRAIN_PERIOD: Duration = Duration::from_secs(1);
/// How long a change may wait before it is in the snapshot.
const SNAPSHOT_DELAY: Duration = Duration::from_secs(1);
/// Rows beyond which the memory of a pass is given back at once.
const BULK: usize = 1000;
/// First and last pause between attempts to bring the node up.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What the loop waits for.
#[derive(Debug)]
pub enum Input {
    /// The source says so. Without changes: look at its health.
    Changes(Vec<Change>),
    /// Somebody else changed the kernel.
    Drift(Drift),
    /// Nothing; the sender only asks whether anybody is there.
    Tick,
    /// End, and leave the dataplane in place.
    Stop,
}

impl From<Vec<Change>> for Input {
    fn from(changes: Vec<Change>) -> Self {
        Self::Changes(changes)
    }
}

/// The agent. See the module.
pub struct Agent {
    bring_up: BringUp,
    /// Taken by the reconciler while there is one.
    record: Option<Record>,
    state_dir: PathBuf,
    source: SourceHealth,
    shared: Shared,
    metrics: Metrics,
    model: Model,
    reconciler: Option<Reconciler<LinuxKernel>>,
    /// With mode None: nothing of ours is left.
    taken_down: bool,
    /// What does not depend on any one Service could not be programmed as configured.
    base_failed: bool,
    /// Writes the snapshot; it must not stand in the way of a change.
    writer: Option<JoinHandle<()>>,
    retry: Retry,
    due: Due,
}

#[derive(Debug)]
struct Retry {
    at: Instant,
    pause: Duration,
}

/// When the loop has something to do by itself.
#[derive(Debug)]
struct Due {
    snapshot_use: Option<Instant>,
    snapshot_write: Option<Instant>,
    audit: Instant,
    routes: Option<Instant>,
    drains: Instant,
    /// While kube-proxy's ports are not taken.
    ports: Option<Instant>,
}

impl Agent {
    /// An agent that has not started yet. `record` is open and so locked: there is no second agent.
    pub fn new(
        bring_up: BringUp,
        record: Record,
        state_dir: PathBuf,
        source: SourceHealth,
        shared: Shared,
        metrics: Metrics,
    ) -> Self {
        let now = Instant::now();
        Self {
            bring_up,
            record: Some(record),
            state_dir,
            source,
            shared,
            metrics,
            model: Model::new(Timestamp::now()),
            reconciler: None,
            taken_down: false,
            base_failed: false,
            writer: None,
            retry: Retry { at: now, pause: RETRY.0 },
            due: Due {
                snapshot_use: Some(now + SYNC_PATIENCE),
                snapshot_write: None,
                audit: now + AUDIT_PERIOD,
                routes: None,
                drains: now,
                ports: Some(now + SYNC_PATIENCE),
            },
        }
    }

    /// Runs until told to stop or until every sender is gone.
    pub fn run(mut self, inputs: &Receiver<Input>) {
        loop {
            let wait = self.next_deadline().saturating_duration_since(Instant::now());
            let mut next = match inputs.recv_timeout(wait) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Input::Stop),
            };
            // A round takes whatever has queued up since the last.
            while let Some(input) = next {
                match input {
                    Input::Changes(changes) => self.take_in(changes),
                    Input::Drift(drift) => self.hurry_audit(drift),
                    Input::Tick => {}
                    Input::Stop => {
                        self.write_last_snapshot();
                        return;
                    }
                }
                next = inputs.try_recv().ok();
            }
            self.step();
        }
    }

    fn take_in(&mut self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        for change in changes {
            match &change {
                Change::Service(_) | Change::ServiceGone(_) => {
                    self.metrics.service_changes.inc();
                    self.metrics.service_changes_pending.inc();
                }
                Change::Slice(_) | Change::SliceGone(_) => {
                    self.metrics.endpoint_changes.inc();
                    self.metrics.endpoint_changes_pending.inc();
                }
                Change::Synced => self.due.snapshot_use = None,
                _ => {}
            }
            self.model.apply(change);
        }
        self.metrics.last_queued.set(Metrics::now());
        // A node that is not ours to program is no reason to restart the agent.
        if self.reconciler.is_some() {
            self.shared.update(Dataplane::queue);
        }
        self.due.snapshot_write.get_or_insert(Instant::now() + SNAPSHOT_DELAY);
    }

    fn hurry_audit(&mut self, drift: Drift) {
        tracing::debug!(?drift, "somebody else changed the kernel");
        let soon = Instant::now() + DRIFT_PATIENCE;
        match drift {
            Drift::Table => self.due.audit = self.due.audit.min(soon),
            // Every pod that starts is an event here: only rules and routes are looked at.
            Drift::Routes => self.due.routes = Some(self.due.routes.map_or(soon, |at| at.min(soon))),
        }
    }

    fn step(&mut self) {
        let now = Instant::now();
        if self.due.snapshot_use.is_some_and(|at| at <= now) {
            self.due.snapshot_use = None;
            self.use_snapshot();
        }
        // No programming before everything is known, from the source or from the snapshot.
        if self.due.snapshot_use.is_none() && self.model.config().is_some() {
            self.program(now);
        }
        // With something to program, bringing the node up takes them.
        if self.due.ports.is_some_and(|at| at <= now) && self.reconciler.is_none() {
            self.due.ports = (!self.bring_up.take_ports()).then_some(now + RETRY.1);
        }
        if self.due.snapshot_write.is_some_and(|at| at <= now) {
            self.write_snapshot();
        }
        self.publish();
    }

    fn program(&mut self, now: Instant) {
        let idle = self.model.config().is_some_and(|config| config.proxy.mode == ProxyMode::None);
        if idle && self.take_down() {
            self.model.take_changes();
            self.shared.update(Dataplane::programmed);
            return;
        }
        self.taken_down &= idle;
        if self.reconciler.is_none() && self.retry.at <= now {
            self.try_bring_up(now);
        }
        let Some(reconciler) = &mut self.reconciler else { return };
        let began = Instant::now();
        let changes = self.model.take_changes();
        let mut worked = !changes.is_empty();
        let mut bulky = changes.rows.len() > BULK;
        if (changes.node.is_some() || changes.config.is_some())
            && let Some(settings) = settings(&self.model)
        {
            let configured = reconciler.configure(settings);
            self.base_failed = configured.is_err();
            if let Err(failure) = configured {
                tracing::error!(error = failure.chain(), "failed to apply the configuration; trying again");
                self.due.audit = now + RETRY.0;
            }
        }
        for (name, row) in changes.rows {
            reconciler.table.set(name, row);
        }
        if changes.synced {
            reconciler.set_synced();
        }
        if self.due.audit <= now {
            self.due.audit = now + AUDIT_PERIOD;
            // It reads the whole kernel beside what is known of it.
            bulky |= reconciler.table.counts().done > BULK;
            match reconciler.audit() {
                Ok(()) => self.base_failed = false,
                Err(failure) => {
                    tracing::error!(error = failure.chain(), "failed to audit the kernel; trying again");
                    self.due.audit = now + RETRY.0;
                }
            }
        }
        if self.due.routes.is_some_and(|at| at <= now) {
            self.due.routes = None;
            if let Err(failure) = reconciler.check_routes() {
                tracing::error!(error = failure.chain(), "failed to check rules and routes; trying again");
                self.due.routes = Some(now + RETRY.0);
            }
        }
        while reconciler.is_due(Instant::now()) {
            worked = true;
            if !reconciler.round(Instant::now()) {
                break;
            }
        }
        if self.due.drains <= now {
            self.due.drains = now + DRAIN_PERIOD;
            if let Err(failure) = reconciler.check_drains() {
                tracing::error!(error = failure.chain(), "failed to look at draining backends; trying again");
            }
        }
        if bulky {
            memory::give_back();
        }
        if worked {
            let programmed = Timestamp::now();
            for time in changes.trigger_times {
                let latency = programmed.duration_since(time).as_secs_f64();
                self.metrics.network_programming.observe(latency.max(0.0));
            }
            self.metrics.sync_duration.observe(began.elapsed().as_secs_f64());
            self.metrics.last_sync.set(Metrics::now());
            self.metrics.service_changes_pending.set(0);
            self.metrics.endpoint_changes_pending.set(0);
        }
    }

    fn try_bring_up(&mut self, now: Instant) {
        let Some(record) = self.record.take() else { return };
        match self.bring_up.bring_up(&self.model, record) {
            Ok(reconciler) => {
                tracing::info!(restored = reconciler.totals.restored, "the node is ours to program");
                self.retry.pause = RETRY.0;
                self.shared.update(|status| status.refused = None);
                self.metrics.refusals.clear();
                self.base_failed = false;
                self.reconciler = Some(reconciler);
            }
            Err(not) => {
                let (record, refused) = *not;
                self.record = Some(record);
                let known = self.shared.read().refused;
                if known.as_ref() != Some(&refused) {
                    let Refused { reason, message } = &refused;
                    tracing::error!(reason, "{message}");
                }
                self.metrics.refusals.clear();
                let label = vec![("reason", refused.reason.to_owned())];
                self.metrics.refusals.get_or_create(&label).set(1);
                self.shared.update(|status| status.refused = Some(refused));
                self.retry.at = now + self.retry.pause;
                self.retry.pause = (self.retry.pause * 2).min(RETRY.1);
            }
        }
    }

    /// With mode None: true once nothing of ours is left, or nothing ever was. Until then the
    /// reconciler goes on, with an empty table, until the last connection has drained.
    fn take_down(&mut self) -> bool {
        if self.taken_down {
            return true;
        }
        match self.reconciler.take() {
            None => {
                let recorded = self.record.as_ref().is_some_and(|r| !r.contents().servers.is_empty());
                self.taken_down = !recorded && !BringUp::finds_leftovers();
                self.taken_down
            }
            Some(reconciler) if reconciler.is_empty() => {
                tracing::info!("mode None: nothing is left to drain, taking down what is ours");
                let (record, result) = reconciler.take_down();
                self.record = Some(record);
                match result {
                    Ok(()) => self.taken_down = true,
                    Err(failure) => {
                        tracing::error!(error = failure.chain(), "failed to take down; trying again");
                    }
                }
                self.taken_down
            }
            reconciler => {
                self.reconciler = reconciler;
                false
            }
        }
    }

    fn use_snapshot(&mut self) {
        match Snapshot::read(&self.state_dir) {
            Ok(Some(snapshot)) => {
                tracing::warn!(
                    "the source has not sent everything yet: serving from the snapshot of the last run"
                );
                self.model.restore(snapshot.into_changes());
            }
            Ok(None) => {
                // Nothing to serve from: go on waiting, a half-known cluster is not programmed.
                self.due.snapshot_use = Some(Instant::now() + SYNC_PATIENCE);
            }
            Err(error) => {
                tracing::error!(%error, "the snapshot of the last run cannot be used");
                self.due.snapshot_use = Some(Instant::now() + SYNC_PATIENCE);
            }
        }
    }

    fn write_snapshot(&mut self) {
        self.due.snapshot_write = None;
        // Until everything is known, the last snapshot is the better one.
        if !self.model.is_synced() {
            return;
        }
        if self.writer.as_ref().is_some_and(|writer| !writer.is_finished()) {
            self.due.snapshot_write = Some(Instant::now() + SNAPSHOT_DELAY);
            return;
        }
        match thread::Builder::new().name("snapshot".to_owned()).spawn(self.snapshot_job()) {
            Ok(writer) => self.writer = Some(writer),
            Err(error) => tracing::warn!(%error, "failed to start the snapshot's thread"),
        }
    }

    /// At the end nothing else is to be done meanwhile.
    fn write_last_snapshot(&mut self) {
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the snapshot's thread panicked: this is a bug");
        }
        if self.model.is_synced() {
            self.snapshot_job()();
        }
    }

    fn snapshot_job(&self) -> impl FnOnce() + Send + 'static {
        let (snapshot, directory) = (Snapshot::of(&self.model), self.state_dir.clone());
        move || {
            if let Err(error) = snapshot.write(&directory) {
                tracing::warn!(
                    error = chain(&error),
                    "failed to write the snapshot; the next change tries again"
                );
            }
            drop(snapshot);
            memory::give_back();
        }
    }

    fn publish(&mut self) {
        let source = self.source.get();
        self.metrics.source_errors.set(i64::try_from(source.errors.len()).unwrap_or(i64::MAX));
        let mode = self.model.config().map(|config| config.proxy.mode);
        let applied = self.applied();
        let taken_down = self.taken_down;
        let eligible = self.model.node().map(|node| node.eligible);
        let mut reconciler = self.reconciler.as_mut();
        let owners =
            reconciler.as_mut().and_then(|reconciler| reconciler.owners_if_changed()).map(|owners| {
                Arc::new(owners.map(|(key, name)| (key.kernel(), name.clone())).collect::<HashMap<_, _>>())
            });
        self.shared.update(|status| {
            status.mode = mode;
            status.eligible = eligible;
            status.source = source;
            status.applied = applied.or(status.applied.take());
            status.settled |= taken_down;
            let Some(reconciler) = reconciler else { return };
            status.rows = reconciler.table.counts();
            status.totals = reconciler.totals.clone();
            status.draining = reconciler.draining();
            status.errors = reconciler.errors();
            status.settled = reconciler.is_settled();
            if let Some(owners) = owners {
                status.owners = owners;
            }
            if !reconciler.is_due(Instant::now()) {
                status.programmed();
            }
        });
    }

    /// The configuration, if at this moment the kernel has all of it.
    fn applied(&self) -> Option<Applied> {
        let in_kernel = match &self.reconciler {
            Some(reconciler) => {
                !self.base_failed && reconciler.is_settled() && !reconciler.is_due(Instant::now())
            }
            None => self.taken_down,
        };
        let configured = self.model.configured().filter(|_| in_kernel)?;
        Some(Applied { revision: configured.revision.clone(), mode: configured.config.proxy.mode })
    }

    fn next_deadline(&self) -> Instant {
        let now = Instant::now();
        let mut next = now + AUDIT_PERIOD;
        next = next.min(self.due.snapshot_use.unwrap_or(next));
        next = next.min(self.due.snapshot_write.unwrap_or(next));
        if self.reconciler.is_none() {
            next = next.min(self.due.ports.unwrap_or(next));
        }
        match &self.reconciler {
            None if self.taken_down || self.due.snapshot_use.is_some() => {}
            None => next = next.min(self.retry.at.max(now + Duration::from_millis(10))),
            Some(reconciler) => {
                if reconciler.is_due(now) {
                    next = now + RETRY.0;
                }
                next = next
                    .min(self.due.audit)
                    .min(self.due.routes.unwrap_or(next))
                    .min(reconciler.table.next_retry().unwrap_or(next));
                if reconciler.is_draining() {
                    next = next.min(self.due.drains);
                }
            }
        }
        next
    }
}
