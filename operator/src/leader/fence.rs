//! What keeps a process that has lost its leadership from writing.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

/// This process does not lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this process does not lead any more")]
pub struct NotLeading;

/// Open while this process leads. Every write looks here first: a process that was stopped for longer
/// than its lease would otherwise go on where it was.
#[derive(Clone, Debug, Default)]
pub struct Fence(Arc<Mutex<Option<Instant>>>);

impl Fence {
    /// Whether a write may be sent.
    pub fn check(&self) -> Result<(), NotLeading> {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match until {
            Some(until) if Instant::now() < until => Ok(()),
            _ => Err(NotLeading),
        }
    }

    pub(super) fn open_until(&self, until: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    pub(super) fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_fence_is_shut_at_first_open_for_a_while_and_shut_when_that_is_over() {
        let fence = Fence::default();
        assert_eq!(fence.check(), Err(NotLeading));
        fence.open_until(Instant::now() + Duration::from_secs(60));
        assert_eq!(fence.check(), Ok(()));
        fence.open_until(Instant::now());
        assert_eq!(fence.check(), Err(NotLeading));
        fence.open_until(Instant::now() + Duration::from_secs(60));
        fence.close();
        assert_eq!(fence.check(), Err(NotLeading));
    }
}
