//! A cluster for one test.

use std::ops::Deref;

use anyhow::Result;
use tempfile::TempDir;

use super::{Cluster, Supervisor};
use crate::machine::cache;

/// A control plane without nodes that this process owns: ready in some four seconds, gone with the value or with the
/// process. Several stand beside each other.
#[derive(Debug)]
pub struct Fixture {
    cluster: Cluster,
    /// None once it is stopped; goes before its folder.
    supervisor: Option<Supervisor>,
    _folder: TempDir,
}

impl Fixture {
    /// Brings one up.
    pub fn start() -> Result<Self> {
        Self::start_without(&[])
    }

    /// Brings one up whose controller manager does without these controllers.
    pub fn start_without(controllers: &'static [&'static str]) -> Result<Self> {
        let folder = cache::scratch()?;
        let supervisor = Supervisor::start_without(controllers, folder.path(), None)?;
        Ok(Self { cluster: Cluster::attach(folder.path())?, supervisor: Some(supervisor), _folder: folder })
    }

    /// Takes it down, and fails if anything is left of it.
    pub fn stop(mut self) -> Result<()> {
        self.supervisor.take().map_or(Ok(()), Supervisor::stop)
    }
}

impl Deref for Fixture {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // captured by libtest with the output of this very test
            println!("{}", self.cluster.diagnose());
        }
    }
}
