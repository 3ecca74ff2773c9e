//! How a source is doing, for health and metrics to read.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use super::{FileError, ObjectId};

/// What is wrong with a source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// A file of the manifests folder.
    #[error(transparent)]
    File(#[from] FileError),
    /// Objects of a kind cannot be followed at the moment: what is known of them holds on.
    #[error("failed to follow {kind} objects: {problem}")]
    Follow {
        /// The kind.
        kind: &'static str,
        /// What happened.
        problem: String,
    },
    /// An object that the API server let through and that cannot be used.
    #[error("{object} is left out: {problem}")]
    Object {
        /// The object.
        object: ObjectId,
        /// What is wrong with it.
        problem: String,
    },
    /// Our own Node is not there.
    #[error("there is no Node {name}: correct --node-name, or wait for the kubelet to register it")]
    NoNode {
        /// Its name.
        name: String,
    },
}

impl SourceError {
    /// One word of a closed list.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::File(_) => "BrokenManifest",
            Self::Follow { .. } => "NotFollowing",
            Self::Object { .. } => "BrokenObject",
            Self::NoNode { .. } => "NoNode",
        }
    }
}

/// One kind of object, as the API source follows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KindStatus {
    /// Everything there is was listed once.
    pub listed: bool,
    /// Objects that are in effect.
    pub objects: usize,
    /// Lists since start, the first included.
    pub lists: u64,
    /// Failed attempts since start.
    pub failures: u64,
    /// The last sign of life of the watch.
    pub alive: Option<Instant>,
    /// What is wrong now.
    pub errors: Vec<SourceError>,
}

/// State of a source at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceStatus {
    /// Everything that exists has been sent at least once.
    pub synced: bool,
    /// What is wrong now; empty when all is well.
    pub errors: Vec<SourceError>,
    /// What is followed, by kind; empty for a folder.
    pub kinds: BTreeMap<&'static str, KindStatus>,
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

    pub(super) fn update<R>(&self, change: impl FnOnce(&mut SourceStatus) -> R) -> R {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
