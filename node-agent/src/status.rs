//! What the agent tells of itself: written by its loop; read by health, metrics and logs.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Instant, SystemTime},
};

use fairlead_crds::ProxyMode;
use serde::Serialize;
use tokio::sync::watch as cell;

use crate::{
    bring_up::Refused,
    dataplane::{RowError, reconciler::Totals, table::Counts},
    ipvs::VirtualServerKey,
    model::ServicePortName,
    watch::{SourceError, SourceStatus},
};

/// The agent as of its last round.
#[derive(Clone, Debug, Default)]
pub struct Dataplane {
    /// Service ports by state.
    pub rows: Counts,
    /// Totals since start.
    pub totals: Totals,
    /// Draining backends.
    pub draining: usize,
    /// Failed and refused service ports with the reason, the first hundred, failed ones first.
    pub errors: Vec<RowError>,
    /// Which service port a virtual server belongs to.
    pub owners: Arc<HashMap<VirtualServerKey, ServicePortName>>,
    /// The proxy mode asked for, once known.
    pub mode: Option<ProxyMode>,
    /// What was last wholly in the kernel: a configuration, and every Service under it.
    pub applied: Option<Applied>,
    /// The source of objects.
    pub source: SourceStatus,
    /// Why the node is not programmed.
    pub refused: Option<Refused>,
    /// Everything wanted was programmed once, and leftovers are gone.
    pub settled: bool,
    /// Load balancers may send new connections here; unknown before the Node is.
    pub eligible: Option<bool>,
    /// Since when a change waits to be programmed.
    pub queued_since: Option<Instant>,
    /// When everything queued was last programmed.
    pub last_programmed: Option<SystemTime>,
}

impl Dataplane {
    /// Notes that a change waits.
    pub fn queue(&mut self) {
        self.queued_since.get_or_insert_with(Instant::now);
    }

    /// Notes that nothing waits any more.
    pub fn programmed(&mut self) {
        if self.queued_since.take().is_some() || self.last_programmed.is_none() {
            self.last_programmed = Some(SystemTime::now());
        }
    }

    /// Why the node is not ready, worst first; empty when it is.
    pub fn not_ready(&self) -> Vec<NotReady> {
        let mut reasons = Vec::new();
        let mut push = |reason: &str, message: String| {
            reasons.push(NotReady { reason: reason.to_owned(), message });
        };
        if let Some(Refused { reason, message }) = &self.refused {
            push(reason, message.clone());
        }
        // An object that the API server let through is one of many: it must not hold up the node.
        for error in self.source.errors.iter().filter(|error| !matches!(error, SourceError::Object { .. })) {
            push(error.reason(), error.to_string());
        }
        if !self.source.synced {
            push("NotSynced", "not every object has been read yet".to_owned());
        }
        if !self.settled && self.refused.is_none() {
            push("NotProgrammed", "Services are being programmed for the first time".to_owned());
        }
        reasons
    }
}

/// A configuration that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The revision that holds it; none for the configuration of a manifests folder.
    pub revision: Option<Arc<str>>,
    /// Its proxy mode.
    pub mode: ProxyMode,
}

/// One reason why the node is not ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotReady {
    /// One word, of a closed list.
    pub reason: String,
    /// A sentence that says what to do.
    pub message: String,
}

/// Shared by the threads of the agent.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    dataplane: Mutex<Dataplane>,
    changed: cell::Sender<()>,
}

impl Shared {
    /// The present state.
    pub fn read(&self) -> Dataplane {
        self.0.dataplane.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes it.
    pub fn update(&self, change: impl FnOnce(&mut Dataplane)) {
        change(&mut self.0.dataplane.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.changed.send_replace(());
    }

    /// Is marked changed after each update, whether that made a difference or not.
    pub fn changes(&self) -> cell::Receiver<()> {
        self.0.changed.subscribe()
    }
}
