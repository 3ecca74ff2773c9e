//! Who leads: client-go's algorithm (`tools/leaderelection/leaderelection.go`) without its I/O.
//!
//! ```text
//!            lease free, or unchanged for its duration             renewed within the deadline
//!   Standby ──────────────────────────────────────────▶ Leading ◀──────────────────────────────┐
//!      ▲                                                   │   └────────────────────────────────┘
//!      └── another holder's lease changes                  └── not renewed for the deadline: lost
//! ```
//!
//! A lease counts as expired once *this* process has seen it unchanged for as long as it is to hold,
//! by its own monotonic clock: the times in the lease come from the clock of another machine.

use std::time::{Duration, Instant};

/// How leadership is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long a lease holds without being renewed.
    pub lease: Duration,
    /// How long a leader tries to renew before it gives up. Shorter than the lease, so that it has
    /// stopped before another begins.
    pub deadline: Duration,
    /// How often one tries.
    pub retry: Duration,
}

/// What a Lease says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Who leads; empty after a release.
    pub holder: String,
    /// How long it holds.
    pub duration: Duration,
    /// Its times, which make one renewal differ from the other. Never read as times.
    pub stamp: String,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write the lease as ours. `transition` when it was another's.
    Take {
        /// Whether leadership changes hands.
        transition: bool,
    },
    /// Leave it: another holds it.
    Wait,
}

/// One candidate.
#[derive(Debug)]
pub struct Elector {
    identity: String,
    timing: Timing,
    observed: Option<(Record, Instant)>,
    renewed: Option<Instant>,
}

impl Elector {
    /// A candidate with a name that no other has.
    pub fn new(identity: String, timing: Timing) -> Self {
        Self { identity, timing, observed: None, renewed: None }
    }

    /// Its name.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// How it is timed.
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// Judges the lease as it was read at `now`; none when there is none.
    pub fn judge(&mut self, lease: Option<Record>, now: Instant) -> Step {
        let Some(lease) = lease else {
            self.observed = None;
            return Step::Take { transition: false };
        };
        let unchanged = self.observed.as_ref().is_some_and(|(seen, _)| *seen == lease);
        if !unchanged {
            self.observed = Some((lease.clone(), now));
        }
        let ours = lease.holder == self.identity;
        if ours || lease.holder.is_empty() {
            return Step::Take { transition: !ours };
        }
        let since = self.observed.as_ref().map_or(now, |(_, at)| *at);
        if now.duration_since(since) < lease.duration {
            return Step::Wait;
        }
        Step::Take { transition: true }
    }

    /// The lease was written as ours, with a request that was sent at `sent`.
    pub fn wrote(&mut self, sent: Instant) {
        self.renewed = Some(sent);
    }

    /// Until when nobody else can lead; none while this one does not.
    pub fn leads_until(&self) -> Option<Instant> {
        self.renewed.map(|renewed| renewed + self.timing.deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing {
        lease: Duration::from_secs(15),
        deadline: Duration::from_secs(10),
        retry: Duration::from_secs(2),
    };

    fn elector() -> Elector {
        Elector::new("a".to_owned(), TIMING)
    }

    fn held_by(holder: &str, stamp: &str) -> Record {
        Record { holder: holder.to_owned(), duration: TIMING.lease, stamp: stamp.to_owned() }
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_lease_that_is_not_there_or_was_released_is_taken_at_once() {
        let now = Instant::now();
        assert_eq!(elector().judge(None, now), Step::Take { transition: false });
        assert_eq!(elector().judge(Some(held_by("", "1")), now), Step::Take { transition: true });
    }

    #[test]
    fn a_lease_of_another_is_taken_once_it_was_seen_unchanged_for_its_duration() {
        let (mut elector, start) = (elector(), Instant::now());
        assert_eq!(elector.judge(Some(held_by("b", "1")), start), Step::Wait);
        assert_eq!(elector.judge(Some(held_by("b", "1")), after(start, 14)), Step::Wait);
        assert_eq!(elector.judge(Some(held_by("b", "1")), after(start, 15)), Step::Take { transition: true });
    }

    #[test]
    fn a_renewal_starts_the_wait_anew() {
        let (mut elector, start) = (elector(), Instant::now());
        assert_eq!(elector.judge(Some(held_by("b", "1")), start), Step::Wait);
        assert_eq!(elector.judge(Some(held_by("b", "2")), after(start, 14)), Step::Wait);
        assert_eq!(elector.judge(Some(held_by("b", "2")), after(start, 28)), Step::Wait);
        assert_eq!(elector.judge(Some(held_by("b", "2")), after(start, 29)), Step::Take { transition: true });
    }

    #[test]
    fn the_duration_is_the_one_that_the_holder_wrote() {
        let (mut elector, start) = (elector(), Instant::now());
        let long = || Some(Record { duration: Duration::from_secs(60), ..held_by("b", "1") });
        assert_eq!(elector.judge(long(), start), Step::Wait);
        assert_eq!(elector.judge(long(), after(start, 59)), Step::Wait);
        assert_eq!(elector.judge(long(), after(start, 60)), Step::Take { transition: true });
    }

    #[test]
    fn our_own_lease_is_renewed_without_a_transition() {
        assert_eq!(
            elector().judge(Some(held_by("a", "1")), Instant::now()),
            Step::Take { transition: false }
        );
    }

    #[test]
    fn leadership_ends_by_itself_before_another_can_take_it() {
        let (mut elector, sent) = (elector(), Instant::now());
        assert_eq!(elector.leads_until(), None);
        elector.wrote(sent);
        let until = elector.leads_until().unwrap();
        assert_eq!(until, after(sent, 10));
        assert!(until < sent + TIMING.lease);
    }
}
