//! How a source is doing, for health and metrics to read.

use std::sync::{Arc, Mutex, PoisonError};

use super::FileError;

/// State of a source at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceStatus {
    /// Everything that exists has been sent at least once.
    pub synced: bool,
    /// What is wrong now; empty when all is well.
    pub errors: Vec<FileError>,
}

/// The status of a running source: the source writes it, anybody reads it.
#[derive(Clone, Debug, Default)]
pub struct SourceHealth(Arc<Mutex<SourceStatus>>);

impl SourceHealth {
    /// The status now.
    pub fn get(&self) -> SourceStatus {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, status: SourceStatus) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}
