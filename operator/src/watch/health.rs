//! How the watches fare.
//!
//! A watch that breaks off is taken up again, and kube says nothing when that succeeds. So a single
//! error is nothing to tell anybody of; errors that go on are.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Errors that have gone on for so long are told.
const PATIENCE: Duration = Duration::from_secs(5);
/// A watch that fails is tried again at least every ten seconds, and a try takes no longer than the
/// client's time-outs: without another error for so long it works.
const SILENCE: Duration = Duration::from_secs(45);

/// How each watch fares, by the plural of what it watches.
#[derive(Clone, Debug, Default)]
pub struct WatchHealth(Arc<Mutex<BTreeMap<String, Health>>>);

#[derive(Clone, Debug, Default)]
struct Health {
    synced: bool,
    failing: Option<Failing>,
}

#[derive(Clone, Debug)]
struct Failing {
    error: String,
    first: Instant,
    last: Instant,
}

impl WatchHealth {
    /// There is such a watch.
    pub fn begin(&self, plural: &str) {
        self.change(plural, |_| ());
    }

    /// Everything has been listed.
    pub fn synced(&self, plural: &str) {
        self.change(plural, |health| *health = Health { synced: true, failing: None });
    }

    /// A change was seen.
    pub fn works(&self, plural: &str) {
        self.change(plural, |health| health.failing = None);
    }

    /// An error was seen.
    pub fn failed(&self, plural: &str, error: String, now: Instant) {
        self.change(plural, |health| {
            let before = health.failing.take().filter(|failing| now.duration_since(failing.last) < SILENCE);
            let first = before.map_or(now, |failing| failing.first);
            health.failing = Some(Failing { error, first, last: now });
        });
    }

    /// The watches that have not listed everything once, each with its last error.
    pub fn unsynced(&self) -> Vec<String> {
        self.tell(|plural, health| {
            let error = health.failing.as_ref().map_or("not listed yet", |failing| &failing.error);
            (!health.synced).then(|| format!("{plural}: {error}"))
        })
    }

    /// The watches that have listed everything once and go on failing at present.
    pub fn failing(&self, now: Instant) -> Vec<String> {
        self.tell(|plural, health| {
            let failing = health.failing.as_ref().filter(|failing| {
                health.synced
                    && now.duration_since(failing.last) < SILENCE
                    && failing.last.duration_since(failing.first) >= PATIENCE
            });
            failing.map(|failing| format!("{plural}: {}", failing.error))
        })
    }

    fn change(&self, plural: &str, change: impl FnOnce(&mut Health)) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(all.entry(plural.to_owned()).or_default());
    }

    fn tell(&self, line: impl Fn(&str, &Health) -> Option<String>) -> Vec<String> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(|(plural, health)| line(plural, health)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> (WatchHealth, Instant) {
        let health = WatchHealth::default();
        health.begin("pods");
        (health, Instant::now())
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn what_was_not_listed_is_told_with_the_reason() {
        let (health, start) = watch();
        assert_eq!(health.unsynced(), ["pods: not listed yet"]);
        health.failed("pods", "forbidden".to_owned(), start);
        assert_eq!(health.unsynced(), ["pods: forbidden"]);
        assert_eq!(health.failing(start), [""; 0]);
        health.synced("pods");
        assert_eq!(health.unsynced(), [""; 0]);
    }

    #[test]
    fn a_watch_that_breaks_off_once_is_not_told() {
        let (health, start) = watch();
        health.synced("pods");
        health.failed("pods", "timed out".to_owned(), start);
        health.failed("pods", "timed out".to_owned(), after(start, 290));
        assert_eq!(health.failing(after(start, 291)), [""; 0]);
    }

    #[test]
    fn errors_that_go_on_are_told_until_they_end() {
        let (health, start) = watch();
        health.synced("pods");
        for second in [0, 2, 6, 16] {
            health.failed("pods", "not found".to_owned(), after(start, second));
        }
        assert_eq!(health.failing(after(start, 20)), ["pods: not found"]);
        assert_eq!(health.failing(after(start, 61)), [""; 0]);
        health.failed("pods", "not found".to_owned(), after(start, 26));
        health.works("pods");
        assert_eq!(health.failing(after(start, 27)), [""; 0]);
    }
}
