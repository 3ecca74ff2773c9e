//! Pauses between attempts, spread so that a thousand agents do not come back at one moment.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

const FIRST: Duration = Duration::from_millis(500);
const LAST: Duration = Duration::from_secs(30);

/// Pauses that double from half a second to half a minute.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The pause before the next attempt: between half and one and a half of its nominal length.
    pub fn pause(&mut self) -> Duration {
        let nominal = self.next;
        self.next = (nominal * 2).min(LAST);
        nominal / 2 + jitter(nominal)
    }

    /// It went well: the next failure starts from the shortest pause.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

/// A duration from zero to `longest`, by chance.
pub fn jitter(longest: Duration) -> Duration {
    // Keyed anew for each by the system's randomness; nothing here is worth a generator of its own.
    let chance = RandomState::new().hash_one(0_u8);
    let share = u32::try_from(chance >> 40).unwrap_or_default();
    longest.mul_f64(f64::from(share) / f64::from(1_u32 << 24))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_start_over_after_success() {
        let mut backoff = Backoff::default();
        let first = backoff.pause();
        assert!(first >= FIRST / 2 && first <= FIRST * 3 / 2, "{first:?}");
        let longest = (0..20).map(|_| backoff.pause()).max().unwrap();
        assert!(longest > LAST / 2 && longest <= LAST * 3 / 2, "{longest:?}");
        backoff.reset();
        assert!(backoff.pause() <= FIRST * 3 / 2);
    }

    #[test]
    fn jitter_spreads_over_the_whole_range() {
        let all: Vec<_> = (0..1000).map(|_| jitter(Duration::from_secs(1))).collect();
        assert!(all.iter().all(|d| *d <= Duration::from_secs(1)));
        let low = all.iter().filter(|d| **d < Duration::from_millis(500)).count();
        assert!((300..700).contains(&low), "{low} of 1000 in the lower half");
    }
}
