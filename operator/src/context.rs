//! What reconciliations share.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use kube::Client;

use crate::{
    build::Install,
    dereference::{Reachability, Reported},
    events::Events,
    metrics::Metrics,
    watch::Caches,
    write::Writer,
};

/// The longest pause after a failure.
const LONGEST: Duration = Duration::from_secs(60);

/// What reconciliations share.
pub struct Context {
    /// Reads.
    pub client: Client,
    /// Writes.
    pub writer: Writer,
    /// What is known of the cluster.
    pub caches: Caches,
    /// What the operator was installed with.
    pub install: Install,
    /// Tells users.
    pub events: Events,
    /// Tells monitoring.
    pub metrics: Metrics,
    /// What one reconciliation notes for the next.
    pub notes: Notes,
}

/// What one reconciliation notes for the next. Nothing of it is needed after a restart.
#[derive(Debug, Default)]
pub struct Notes(Mutex<Noted>);

/// The notes.
#[derive(Clone, Debug, Default)]
pub struct Noted {
    /// Reconciliations that have failed in a row.
    pub failures: u32,
    /// Uid of the agent's pod that was deleted last.
    pub deleted_last: Option<String>,
    /// Nodes without a pod, and since when.
    pub bare: BTreeMap<String, Timestamp>,
    /// The status that was written last.
    pub reported: Option<Reported>,
    /// Which nodes are out of reach.
    pub reachability: Reachability,
}

impl Notes {
    /// A copy.
    pub fn read(&self) -> Noted {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes them.
    pub fn write(&self, change: impl FnOnce(&mut Noted)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// How long to wait after another failure: a second, doubled with each.
    pub fn back_off(&self) -> Duration {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = Duration::from_secs(1 << notes.failures.min(6)).min(LONGEST);
        notes.failures = notes.failures.saturating_add(1);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_minute_and_begin_anew_after_a_success() {
        let notes = Notes::default();
        let pauses: Vec<_> = (0..8).map(|_| notes.back_off().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        notes.write(|notes| notes.failures = 0);
        assert_eq!(notes.back_off(), Duration::from_secs(1));
    }
}
