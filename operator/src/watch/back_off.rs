//! How long a watch that failed waits.

use std::time::Duration;

use kube::runtime::{utils::Backoff, watcher::DefaultBackoff};

/// A CRD that is made, or a permission that is granted, is noticed within this time.
const LONGEST: Duration = Duration::from_secs(10);

/// As client-go waits, and kube after it, but never longer than ten seconds.
#[derive(Default)]
pub struct BackOff(DefaultBackoff);

impl Iterator for BackOff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|pause| pause.min(LONGEST))
    }
}

impl Backoff for BackOff {
    fn reset(&mut self) {
        self.0.reset();
    }
}
