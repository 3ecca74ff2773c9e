//! The reconciler: brings the kernel to what the desired table says, a round at a time.
//!
//! ```text
//! take rows -> make    (record, then virtual servers and backends)
//!           -> show    (set elements, one transaction)
//!           -> retire  (drain or remove what is no longer wanted)
//!           -> finish  (a status for each row)
//! ```
//!
//! The order matters: a virtual server without an element is inert, an element without a server is
//! live and wrong. Owns the mirror, the record and the claims; one thread, no locks.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    time::{Duration, Instant},
};

use fairlead_crds::Scheduler;

use super::{
    drains::Drains,
    expand::{Surroundings, Wanted, expand, rejection},
    kernel::{Base, Kernel, KernelFailure},
    key::ServerKey,
    marks::Marks,
    mirror::{Claims, DRAINING, Mirror},
    ruleset::Element,
    table::{RowError, Table, Work},
};
use crate::{
    error::chain,
    ipvs::{IpvsOp, is_gone},
    model::{Protocol, Row, ServicePortName},
    netlink::KernelError,
    state::record::{Entry, Record, since_boot},
};

/// Rows of one round: enough to fill batches, few enough that an urgent change does not wait long.
const ROUND: usize = 1000;

/// Settings that decide how rows are programmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Scheduler of Services that ask for none.
    pub scheduler: Scheduler,
    /// How long a removed TCP backend keeps its connections.
    pub drain_timeout: Duration,
    /// What does not depend on any one Service.
    pub base: Base,
}

/// Totals since start, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Operations that the kernel carried out, by kind.
    pub operations: BTreeMap<&'static str, u64>,
    /// Operations and reads that failed, by kind.
    pub failures: BTreeMap<&'static str, u64>,
    /// Objects that were not as we left them, by kind.
    pub repairs: BTreeMap<&'static str, u64>,
    /// Objects of an earlier run that were taken over.
    pub restored: u64,
    /// Objects of an earlier run that nobody wants any more.
    pub pruned: u64,
}

/// The kernel could not be read or prepared; the record is there for the next attempt.
#[derive(Debug)]
pub struct NotStarted {
    /// The record.
    pub record: Record,
    /// Why.
    pub failure: KernelFailure,
}

/// What a row holds in the kernel.
#[derive(Debug, Default)]
struct Held {
    servers: Vec<ServerKey>,
    elements: Vec<Element>,
}

/// A row on its way through a round.
#[derive(Debug)]
pub(super) struct Step {
    work: Work,
    wanted: Wanted,
    lingering: Vec<SocketAddr>,
    failure: Option<String>,
}

/// See the module.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not one state")]
pub struct Reconciler<K> {
    pub(super) kernel: K,
    pub(super) record: Record,
    /// The desired table.
    pub table: Table,
    pub(super) mirror: Mirror,
    pub(super) claims: Claims,
    pub(super) owners: HashMap<ServerKey, ServicePortName>,
    held: HashMap<ServicePortName, Held>,
    /// Servers that nobody wants, kept for their connections, and the rejections they claim.
    pub(super) retiring: BTreeMap<ServerKey, Vec<Element>>,
    pub(super) drains: Drains,
    marks: Marks,
    pub(super) settings: Settings,
    node_elements: Vec<Element>,
    /// Every source has synced: what nobody wants may go.
    pub(super) may_remove: bool,
    pub(super) pruned: bool,
    owners_changed: bool,
    /// The mirror may be wrong: read the kernel before the next round.
    pub(super) stale: bool,
    /// Totals since start.
    pub totals: Totals,
}

impl<K: Kernel> Reconciler<K> {
    /// A reconciler that has read the kernel and taken over what the record says is ours.
    /// Gives the record back when that fails.
    pub fn start(kernel: K, record: Record, settings: Settings) -> Result<Self, Box<NotStarted>> {
        let contents = record.contents();
        let mut reconciler = Self {
            drains: Drains::restore(&contents.drains),
            marks: Marks::restore(settings.base.bit, contents.servers.iter()),
            node_elements: settings.base.elements(),
            kernel,
            record,
            table: Table::default(),
            mirror: Mirror::default(),
            claims: Claims::default(),
            owners: HashMap::new(),
            owners_changed: false,
            held: HashMap::new(),
            retiring: BTreeMap::new(),
            settings,
            may_remove: false,
            pruned: false,
            stale: false,
            totals: Totals::default(),
        };
        reconciler.claims.add(&reconciler.node_elements);
        match reconciler.read().and_then(|()| reconciler.ensure_base()) {
            Ok(_changed) => {
                let recorded = &reconciler.record.contents().servers;
                let ours = reconciler.mirror.servers.keys().filter(|key| recorded.contains(key)).count();
                reconciler.totals.restored = (ours + reconciler.mirror.elements.len()) as u64;
                // The first round compares the elements of the node itself too.
                reconciler.stale = true;
                Ok(reconciler)
            }
            Err(failure) => Err(Box::new(NotStarted { record: reconciler.record, failure })),
        }
    }

    /// True when no service port is programmed and nothing drains.
    pub fn is_empty(&self) -> bool {
        self.pruned && self.owners.is_empty() && !self.is_draining() && !self.table.has_pending()
    }

    /// Removes what does not depend on any one Service; to be called when all of those are gone.
    pub fn take_down(mut self) -> (Record, Result<(), KernelFailure>) {
        let result = self.kernel.remove_base();
        (self.record, result)
    }

    /// True when a round has work to do.
    pub fn is_due(&self, now: Instant) -> bool {
        self.stale
            || self.table.has_pending()
            || self.table.next_retry().is_some_and(|at| at <= now)
            || self.prune_is_due()
    }

    fn prune_is_due(&self) -> bool {
        self.may_remove && !self.pruned && !self.stale
    }

    /// Failed and refused service ports with the reason, the first hundred.
    pub fn errors(&self) -> Vec<RowError> {
        self.table.errors().take(100).collect()
    }

    /// Which row each virtual server belongs to, if that changed since the last call.
    pub fn owners_if_changed(&mut self) -> Option<impl Iterator<Item = (&ServerKey, &ServicePortName)>> {
        std::mem::take(&mut self.owners_changed).then(|| self.owners.iter())
    }

    /// Takes new settings; rows that they touch are due again.
    pub fn configure(&mut self, settings: Settings) -> Result<(), KernelFailure> {
        if settings == self.settings {
            return Ok(());
        }
        let old = std::mem::replace(&mut self.settings, settings);
        if old.base.bit != self.settings.base.bit {
            let servers = self.record.contents().servers.iter();
            self.marks = Marks::restore(self.settings.base.bit, servers);
        }
        self.claims.release(&self.node_elements);
        self.node_elements = self.settings.base.elements();
        self.claims.add(&self.node_elements);
        self.table.touch_all();
        self.stale = true;
        self.ensure_base().map(|_changed| ())
    }

    /// Every source has sent all it has: from now on what nobody wants is removed.
    pub fn set_synced(&mut self) {
        if !self.may_remove {
            self.may_remove = true;
            self.table.touch_all();
        }
    }

    /// True when everything wanted was programmed once and leftovers are gone.
    pub fn is_settled(&self) -> bool {
        self.pruned
    }

    /// One round. False when the kernel could not even be read: try again a little later.
    pub fn round(&mut self, now: Instant) -> bool {
        if self.stale
            && let Err(failure) = self.resync()
        {
            tracing::error!(error = failure.chain(), "failed to read the kernel; trying again");
            return false;
        }
        let work = self.table.take(ROUND, now);
        let mut steps: Vec<_> = work.into_iter().map(|work| self.step(work)).collect();
        self.make(&mut steps);
        self.show(&mut steps);
        self.retire(&mut steps);
        for step in steps {
            if let Some(reason) = &step.failure {
                tracing::warn!(service_port = %step.work.name, reason, "failed to program a service port; trying again");
            }
            self.table.finish(&step.work, step.failure.map_or(Ok(()), Err), now);
        }
        if self.prune_is_due() && !self.table.has_pending() {
            self.prune();
        }
        true
    }

    fn step(&mut self, work: Work) -> Step {
        let port = match &work.desired {
            Some(Row::Ok(port)) => port.clone(),
            _ => return Step { work, wanted: Wanted::default(), lingering: Vec::new(), failure: None },
        };
        let surroundings = Surroundings {
            scheduler: self.settings.scheduler,
            ipv6: self.settings.base.ipv6,
            node_addresses: &self.settings.base.node_addresses,
        };
        let marks = &mut self.marks;
        let mut wanted = expand(&port, surroundings, |protocol, number| marks.assign(protocol, number));
        // Without backends in use a server is kept for those that linger, and never made.
        let there = &self.mirror.servers;
        wanted.servers.retain(|key, server| !server.backends.is_empty() || there.contains_key(key));
        Step { work, wanted, lingering: port.lingering.clone(), failure: None }
    }

    /// Virtual servers and backends, each server in the record before it is made.
    fn make(&mut self, steps: &mut [Step]) {
        let mut entries = Vec::new();
        let mut ops = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            for (key, wanted) in &step.wanted.servers {
                if self.owners.get(key) != Some(&step.work.name) {
                    self.owners.insert(*key, step.work.name.clone());
                    self.owners_changed = true;
                }
                if !self.record.contents().servers.contains(key) {
                    entries.push(Entry::Server(*key));
                }
                for backend in wanted.backends.iter() {
                    if self.drains.end(*key, *backend) {
                        entries.push(Entry::DrainOver(*key, *backend));
                    }
                }
                ops.extend(self.mirror.make(key, wanted).into_iter().map(|op| (index, *key, op)));
            }
        }
        if let Err(error) = self.record.append(&entries) {
            self.count_failure("record");
            for (index, ..) in ops {
                if let Some(step) = steps.get_mut(index) {
                    step.failure.get_or_insert_with(|| chain(&error));
                }
            }
            return;
        }
        for entry in &entries {
            if let Entry::Server(ServerKey::NodePort { mark, .. }) = entry {
                self.marks.hold(*mark);
            }
        }
        self.carry_out(ops, steps);
    }

    /// Set elements: what leads to a server that serves, what rejects, what nobody claims any more.
    fn show(&mut self, steps: &mut [Step]) {
        let mut free = BTreeSet::new();
        let mut add = Vec::new();
        for step in &mut *steps {
            let mut elements = step.wanted.elements.clone();
            for (key, wanted) in &step.wanted.servers {
                if self.mirror.serves(key) {
                    elements.extend(&wanted.elements);
                }
                if let Some(rejections) = self.retiring.remove(key) {
                    free.extend(self.claims.release(&rejections));
                }
            }
            self.claims.add(&elements);
            add.extend(elements.iter().filter(|e| !self.mirror.elements.contains(*e)).copied());
            let held = self.held.entry(step.work.name.clone()).or_default();
            let before = std::mem::replace(&mut held.elements, elements);
            let mut servers: Vec<_> = step.wanted.servers.keys().copied().collect();
            for key in std::mem::take(&mut held.servers) {
                let ours = self.owners.get(&key) == Some(&step.work.name);
                if !ours || step.wanted.servers.contains_key(&key) {
                    continue;
                }
                // Whoever has a connection to a server that goes may use it until it is drained;
                // whoever opens a new one is told at once.
                if self.may_remove && must_drain(&self.mirror, &key) {
                    self.owners.remove(&key);
                    self.owners_changed = true;
                    let rejections = rejections(&self.owners, &key);
                    self.claims.add(&rejections);
                    add.extend(&rejections);
                    self.retiring.insert(key, rejections);
                } else if !self.may_remove && step.work.desired.is_none() {
                    // Its row goes, and the record still names it: pruning will find it.
                    self.owners.remove(&key);
                    self.owners_changed = true;
                } else {
                    servers.push(key);
                }
            }
            if step.work.desired.is_none() && servers.is_empty() {
                self.held.remove(&step.work.name);
            } else {
                held.servers = servers;
            }
            free.extend(self.claims.release(&before));
        }
        self.commit(free, add, steps);
    }

    /// One transaction for a whole round.
    fn commit(&mut self, free: BTreeSet<Element>, add: Vec<Element>, steps: &mut [Step]) {
        let (claims, present) = (&self.claims, &self.mirror.elements);
        let mut add: Vec<_> =
            add.into_iter().filter(|e| claims.contains(e) && !present.contains(e)).collect();
        add.sort_unstable();
        add.dedup();
        let gone = |e: &Element| self.may_remove && !claims.contains(e) && present.contains(e);
        let remove: Vec<_> = free.into_iter().filter(gone).collect();
        if let Err(failure) = self.change_elements(&remove, &add) {
            let message = failure.chain();
            for step in steps {
                step.failure.get_or_insert_with(|| message.clone());
            }
        }
    }

    /// Backends and servers that are no longer wanted: TCP drains, the rest is cut at once.
    pub(super) fn retire(&mut self, steps: &mut [Step]) {
        if !self.may_remove {
            return;
        }
        let deadline = since_boot() + self.settings.drain_timeout.as_secs();
        let mut ops = Vec::new();
        let mut entries = Vec::new();
        for (index, step) in steps.iter_mut().enumerate() {
            for (key, wanted) in &step.wanted.servers {
                // What failed may be the very backend that was to take over.
                if step.failure.is_some() && !self.mirror.has_in_use(key, wanted) {
                    continue;
                }
                for (address, weight) in self.mirror.unwanted(key, wanted) {
                    let kernel = key.kernel();
                    if key.protocol() != Protocol::Tcp {
                        ops.push((index, *key, IpvsOp::DelDest { key: kernel, address }));
                        continue;
                    }
                    let deadline = step.lingering.binary_search(&address).is_err().then_some(deadline);
                    entries.extend(self.drains.set(*key, address, deadline));
                    if weight != DRAINING {
                        ops.push((index, *key, IpvsOp::SetDest { key: kernel, address, weight: DRAINING }));
                    }
                }
            }
            let held = self.held.get(&step.work.name).map(|held| held.servers.as_slice()).unwrap_or_default();
            for key in held.iter().filter(|key| !step.wanted.servers.contains_key(key)) {
                ops.push((index, *key, IpvsOp::DelService { key: key.kernel() }));
            }
        }
        for key in self.retiring.keys() {
            let Some(server) = self.mirror.servers.get(key) else { continue };
            for (address, weight) in &server.backends {
                entries.extend(self.drains.set(*key, *address, Some(deadline)));
                if *weight != DRAINING {
                    let op = IpvsOp::SetDest { key: key.kernel(), address: *address, weight: DRAINING };
                    ops.push((usize::MAX, *key, op));
                }
            }
        }
        let gone = self.carry_out(ops, steps);
        for step in steps {
            if let Some(held) = self.held.get_mut(&step.work.name) {
                held.servers.retain(|key| !gone.contains(key));
                if step.work.desired.is_none() && held.servers.is_empty() {
                    self.held.remove(&step.work.name);
                }
            }
        }
        entries.extend(self.forget(gone));
        self.journal(&entries);
    }

    /// Carries out operations and notes what came of them, at the row they belong to. Returns the
    /// virtual servers that were deleted.
    pub(super) fn carry_out(
        &mut self,
        ops: Vec<(usize, ServerKey, IpvsOp)>,
        steps: &mut [Step],
    ) -> BTreeSet<ServerKey> {
        if ops.is_empty() {
            return BTreeSet::new();
        }
        let batch: Vec<_> = ops.iter().map(|(.., op)| *op).collect();
        let mut deleted = BTreeSet::new();
        match self.kernel.change_servers(&batch) {
            Ok(verdicts) => {
                for ((index, key, op), verdict) in ops.into_iter().zip(verdicts) {
                    let verdict =
                        verdict.or_else(|error| if is_moot(&op, &error) { Ok(()) } else { Err(error) });
                    match verdict {
                        Ok(()) => {
                            *self.totals.operations.entry(label(&op)).or_default() += 1;
                            self.mirror.note(key, &op);
                            if matches!(op, IpvsOp::DelService { .. }) {
                                deleted.insert(key);
                            }
                        }
                        Err(error) => {
                            self.count_failure(label(&op));
                            self.stale = true;
                            if let Some(step) = steps.get_mut(index) {
                                step.failure.get_or_insert_with(|| format!("failed to {op}: {error}"));
                            }
                        }
                    }
                }
            }
            Err(failure) => {
                self.count_failure(failure.label());
                self.stale = true;
                let message = failure.chain();
                for (index, ..) in ops {
                    if let Some(step) = steps.get_mut(index) {
                        step.failure.get_or_insert_with(|| message.clone());
                    }
                }
            }
        }
        deleted
    }

    /// Changes elements and the mirror; after a failure the kernel is read anew.
    pub(super) fn change_elements(
        &mut self,
        remove: &[Element],
        add: &[Element],
    ) -> Result<(), KernelFailure> {
        if remove.is_empty() && add.is_empty() {
            return Ok(());
        }
        let mut remove = remove.to_vec();
        for mark in self.superseded_marks(add.iter()) {
            if !remove.contains(&mark) {
                remove.push(mark);
            }
        }
        if let Err(failure) = self.kernel.change_elements(&remove, add) {
            self.count_failure(failure.label());
            self.stale = true;
            return Err(failure);
        }
        *self.totals.operations.entry("element-add").or_default() += add.len() as u64;
        *self.totals.operations.entry("element-delete").or_default() += remove.len() as u64;
        for element in &remove {
            self.mirror.elements.remove(element);
        }
        self.mirror.elements.extend(add);
        Ok(())
    }

    /// Marks in the kernel of node ports that are to have another: a map takes one a key.
    pub(super) fn superseded_marks<'a>(&self, wanted: impl Iterator<Item = &'a Element>) -> Vec<Element> {
        let wanted: HashMap<_, _> = wanted.filter_map(port_and_mark).collect();
        if wanted.is_empty() {
            return Vec::new();
        }
        let differs = |element: &&Element| {
            port_and_mark(element).is_some_and(|(port, mark)| wanted.get(&port).is_some_and(|w| *w != mark))
        };
        self.mirror.elements.iter().filter(differs).copied().collect()
    }

    /// The record entries of virtual servers that are gone, whose marks are free again.
    pub(super) fn forget(&mut self, gone: BTreeSet<ServerKey>) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(gone.len());
        for key in gone {
            self.drains.end_all(key);
            self.owners_changed |= self.owners.remove(&key).is_some();
            self.retiring.remove(&key);
            if let ServerKey::NodePort { mark, .. } = key {
                self.marks.release(mark);
            }
            entries.push(Entry::ServerGone(key));
        }
        entries
    }

    /// Writes entries whose loss costs nothing but a longer drain.
    pub(super) fn journal(&mut self, entries: &[Entry]) {
        if let Err(error) = self.record.append(entries) {
            self.count_failure("record");
            tracing::warn!(error = chain(&error), "failed to write the record");
        }
    }

    pub(super) fn count_failure(&mut self, kind: &'static str) {
        *self.totals.failures.entry(kind).or_default() += 1;
    }
}

/// What was to be removed is not there.
fn is_moot(op: &IpvsOp, error: &KernelError) -> bool {
    matches!(op, IpvsOp::DelService { .. } | IpvsOp::DelDest { .. }) && is_gone(error)
}

/// Label of metrics.
fn label(op: &IpvsOp) -> &'static str {
    match op {
        IpvsOp::AddService { .. } => "virtual-server-add",
        IpvsOp::SetService { .. } => "virtual-server-set",
        IpvsOp::DelService { .. } => "virtual-server-delete",
        IpvsOp::AddDest { .. } => "real-server-add",
        IpvsOp::SetDest { .. } => "real-server-set",
        IpvsOp::DelDest { .. } => "real-server-delete",
    }
}

fn port_and_mark(element: &Element) -> Option<((Protocol, u16), u32)> {
    match *element {
        Element::NodePortMark { protocol, port, mark } => Some(((protocol, port), mark)),
        _ => None,
    }
}

/// What a retiring server claims: new connections are rejected, unless another server has the same
/// node port by now, with a mark of another policy bit.
pub(super) fn rejections(owners: &HashMap<ServerKey, ServicePortName>, key: &ServerKey) -> Vec<Element> {
    let rejection = rejection(key);
    let served = matches!(key, ServerKey::NodePort { .. })
        && owners.keys().any(|other| other != key && super::expand::rejection(other) == rejection);
    if served { Vec::new() } else { vec![rejection] }
}

/// TCP connections may live on behind a server that goes.
pub(super) fn must_drain(mirror: &Mirror, key: &ServerKey) -> bool {
    key.protocol() == Protocol::Tcp
        && mirror.servers.get(key).is_some_and(|server| !server.backends.is_empty())
}
