//! The desired table: a row a service port, each with a status.
//!
//! ```text
//!            set / remove                taken by a round
//!   (any) ----------------> Pending ----------------------+--> Done
//!                              ^                          |
//!                              |   back-off is over       v
//!                              +------------------------ Error
//! ```
//!
//! A result counts only if its row has not changed since the round took it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::model::{Row, ServicePortName};

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// Where a row stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Waits for a round.
    Pending,
    /// The kernel has what the row says.
    Done,
    /// It has not; tried again after a back-off, or when the row changes.
    Error(String),
}

#[derive(Debug)]
struct Entry {
    /// `None`: to be removed from the kernel.
    desired: Option<Row>,
    status: Status,
    revision: u64,
    failures: u32,
    retry_at: Option<Instant>,
}

/// A row as a round takes it.
#[derive(Clone, Debug)]
pub struct Work {
    /// The row.
    pub name: ServicePortName,
    /// What it should be; `None` when it should be gone.
    pub desired: Option<Row>,
    revision: u64,
}

/// Number of rows in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Waiting for a round.
    pub pending: usize,
    /// As they should be.
    pub done: usize,
    /// Failed or refused.
    pub error: usize,
    /// Those of them that were refused for what they say: only a change of the Service can mend it.
    pub refused: usize,
}

/// A row that is not in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowError {
    /// The row.
    pub name: ServicePortName,
    /// Why.
    pub reason: String,
    /// It was refused for what it says; the kernel has not failed.
    pub refused: bool,
}

/// All rows.
#[derive(Debug, Default)]
pub struct Table {
    rows: BTreeMap<ServicePortName, Entry>,
    pending: BTreeSet<(Urgency, ServicePortName)>,
    retries: BTreeSet<(Instant, ServicePortName)>,
    errors: BTreeSet<ServicePortName>,
    revision: u64,
}

/// Order in which a round takes rows: without the API server and DNS nothing else gets far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    ApiServer,
    Dns,
    Other,
}

impl Urgency {
    fn of(name: &ServicePortName) -> Self {
        match (&*name.namespace, &*name.service) {
            ("default", "kubernetes") => Self::ApiServer,
            ("kube-system", "kube-dns") => Self::Dns,
            _ => Self::Other,
        }
    }
}

impl Table {
    /// Says what a row should be from now on; `None` removes it.
    pub fn set(&mut self, name: ServicePortName, desired: Option<Row>) {
        if desired.is_none() && !self.rows.contains_key(&name) {
            return;
        }
        self.revision += 1;
        let entry =
            Entry { desired, status: Status::Pending, revision: self.revision, failures: 0, retry_at: None };
        if let Some(Entry { retry_at: Some(at), .. }) = self.rows.insert(name.clone(), entry) {
            self.retries.remove(&(at, name.clone()));
        }
        self.queue(name);
    }

    /// Makes a row due again although it did not change: the kernel, or a setting, did.
    pub fn touch(&mut self, name: &ServicePortName) {
        if let Some(entry) = self.rows.get_mut(name) {
            entry.status = Status::Pending;
            if let Some(at) = entry.retry_at.take() {
                self.retries.remove(&(at, name.clone()));
            }
            self.queue(name.clone());
        }
    }

    /// Makes every row due again.
    pub fn touch_all(&mut self) {
        let names: Vec<_> = self.rows.keys().cloned().collect();
        for name in names {
            self.touch(&name);
        }
    }

    /// Replaces all rows: those not among `rows` are removed.
    pub fn replace(&mut self, rows: Vec<(ServicePortName, Row)>) {
        let mut gone: BTreeSet<_> = self.rows.keys().cloned().collect();
        for (name, row) in rows {
            gone.remove(&name);
            let same = self.rows.get(&name).is_some_and(|entry| entry.desired.as_ref() == Some(&row));
            if !same {
                self.set(name, Some(row));
            }
        }
        for name in gone {
            self.set(name, None);
        }
    }

    /// Takes at most `limit` rows that are due, the most urgent first.
    pub fn take(&mut self, limit: usize, now: Instant) -> Vec<Work> {
        while let Some((at, name)) = self.retries.first().cloned()
            && at <= now
        {
            self.touch(&name);
        }
        let mut work = Vec::new();
        while work.len() < limit
            && let Some((_, name)) = self.pending.pop_first()
        {
            if let Some(entry) = self.rows.get(&name) {
                work.push(Work { desired: entry.desired.clone(), revision: entry.revision, name });
            }
        }
        work
    }

    /// Notes what came of a row. A failed row is due again after a back-off, unless it was refused
    /// for what it says: then only a change can mend it.
    pub fn finish(&mut self, work: &Work, result: Result<(), String>, now: Instant) {
        let Some(entry) = self.rows.get_mut(&work.name) else { return };
        if entry.revision != work.revision {
            return;
        }
        match result {
            Ok(()) if entry.desired.is_none() => {
                self.rows.remove(&work.name);
                self.errors.remove(&work.name);
            }
            Ok(()) => {
                entry.failures = 0;
                match &entry.desired {
                    Some(Err(refusal)) => {
                        entry.status = Status::Error(refusal.to_string());
                        self.errors.insert(work.name.clone());
                    }
                    _ => entry.status = Status::Done,
                }
            }
            Err(message) => {
                let delay = FIRST_RETRY.saturating_mul(1 << entry.failures.min(16)).min(LAST_RETRY);
                entry.failures += 1;
                entry.status = Status::Error(message);
                self.errors.insert(work.name.clone());
                entry.retry_at = Some(now + delay);
                self.retries.insert((now + delay, work.name.clone()));
            }
        }
    }

    /// When the next failed row is due.
    pub fn next_retry(&self) -> Option<Instant> {
        self.retries.first().map(|(at, _)| *at)
    }

    /// True when a round has something to take at once.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Rows by state.
    pub fn counts(&self) -> Counts {
        let (pending, error) = (self.pending.len(), self.errors.len());
        let done = self.rows.len().saturating_sub(pending + error);
        // What failed is tried again.
        Counts { pending, error, done, refused: error.saturating_sub(self.retries.len()) }
    }

    /// Rows that are not in the kernel, those that failed before those that were refused.
    pub fn errors(&self) -> impl Iterator<Item = RowError> {
        let of = |refused| {
            self.errors.iter().filter_map(move |name| {
                let entry = self.rows.get(name)?;
                let Status::Error(reason) = &entry.status else { return None };
                let wanted = entry.retry_at.is_none() == refused;
                wanted.then(|| RowError { name: name.clone(), reason: reason.clone(), refused })
            })
        };
        of(false).chain(of(true))
    }

    /// What a row should be.
    pub fn desired(&self, name: &ServicePortName) -> Option<&Row> {
        self.rows.get(name)?.desired.as_ref()
    }

    fn queue(&mut self, name: ServicePortName) {
        self.errors.remove(&name);
        self.pending.insert((Urgency::of(&name), name));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Protocol, Refusal, ServicePort};

    fn name(namespace: &str, service: &str) -> ServicePortName {
        ServicePortName {
            namespace: namespace.into(),
            service: service.into(),
            port: "".into(),
            protocol: Protocol::Tcp,
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "a row may be refused")]
    fn row(name: &ServicePortName) -> Row {
        Row::Ok(Arc::new(ServicePort {
            name: name.clone(),
            frontends: vec![],
            backends: vec![],
            lingering: vec![],
            scheduler: None,
        }))
    }

    #[test]
    fn the_api_server_and_dns_come_first() {
        let mut table = Table::default();
        for (namespace, service) in [("a", "web"), ("kube-system", "kube-dns"), ("default", "kubernetes")] {
            let name = name(namespace, service);
            table.set(name.clone(), Some(row(&name)));
        }
        let order: Vec<_> =
            table.take(9, Instant::now()).into_iter().map(|w| w.name.service.to_string()).collect();
        assert_eq!(order, ["kubernetes", "kube-dns", "web"]);
    }

    #[test]
    fn a_failed_row_is_tried_again_later_and_later() {
        let mut table = Table::default();
        let web = name("a", "web");
        table.set(web.clone(), Some(row(&web)));
        let mut now = Instant::now();
        let mut delays = Vec::new();
        for _ in 0..12 {
            let work = table.take(1, now).pop().expect("due");
            table.finish(&work, Err("no memory".into()), now);
            assert_eq!(table.counts(), Counts { pending: 0, done: 0, error: 1, refused: 0 });
            let at = table.next_retry().unwrap();
            assert!(table.take(1, now).is_empty());
            delays.push((at - now).as_millis());
            now = at;
        }
        assert_eq!(delays[..4], [100, 200, 400, 800]);
        assert_eq!(delays.last(), Some(&60_000));
        let work = table.take(1, now).pop().unwrap();
        table.finish(&work, Ok(()), now);
        assert_eq!(table.counts(), Counts { pending: 0, done: 1, error: 0, refused: 0 });
        assert_eq!(table.next_retry(), None);
    }

    #[test]
    fn a_result_for_a_row_that_changed_meanwhile_does_not_count() {
        let mut table = Table::default();
        let web = name("a", "web");
        table.set(web.clone(), Some(row(&web)));
        let work = table.take(1, Instant::now()).pop().unwrap();
        table.set(web.clone(), None);
        table.finish(&work, Ok(()), Instant::now());
        assert_eq!(table.counts().pending, 1);
        let work = table.take(1, Instant::now()).pop().unwrap();
        table.finish(&work, Ok(()), Instant::now());
        assert_eq!(table.counts(), Counts::default());
    }

    #[test]
    fn a_refused_row_is_an_error_that_only_a_change_mends() {
        let mut table = Table::default();
        let web = name("a", "web");
        table.set(web.clone(), Some(Err(Refusal::Affinity)));
        let work = table.take(1, Instant::now()).pop().unwrap();
        table.finish(&work, Ok(()), Instant::now());
        assert_eq!(table.counts(), Counts { error: 1, refused: 1, ..Counts::default() });
        assert_eq!(table.next_retry(), None);
        let error = table.errors().next().unwrap();
        assert!(error.refused && error.reason.contains("sessionAffinity"), "{error:?}");
    }

    #[test]
    fn replacing_all_rows_touches_only_what_differs() {
        let mut table = Table::default();
        let (old, kept, new) = (name("a", "old"), name("a", "kept"), name("a", "new"));
        table.replace(vec![(old.clone(), row(&old)), (kept.clone(), row(&kept))]);
        for work in table.take(9, Instant::now()) {
            table.finish(&work, Ok(()), Instant::now());
        }
        table.replace(vec![(kept.clone(), row(&kept)), (new.clone(), row(&new))]);
        let due: Vec<_> =
            table.take(9, Instant::now()).into_iter().map(|w| (w.name, w.desired.is_some())).collect();
        assert_eq!(due, [(new, true), (old, false)]);
    }
}
