//! A real Kubernetes cluster: control plane and nodes of its own programs, on this host and nowhere else.
//!
//! ```text
//!   rig cluster up ── starts ──> supervisor ── keeps ──> etcd, API server, controllers, scheduler   (router's namespace)
//!   rig cluster ..., Cluster ── socket ──┘   └─ keeps ──> a node each: machine (QEMU) or namespaces
//! ```
//!
//! * [`Fixture`] is a control plane for one test, ready in seconds; [`lifecycle`] brings up a cluster that stays.
//! * [`Cluster`] is what a test or a user does with either.
//! * [`Supervisor`] owns a cluster: all that it has started ends with it, also when it is killed.
//! * [`node`] is a kubelet and a containerd in a machine or in namespaces; [`image`] makes the images of its pods.
//! * [`network`] is the namespaces that it all runs in; [`pki`] the certificates.
//! * [`programs`] builds Kubernetes and a container runtime, once.
//! * [`leftovers`] sees to it that nothing is left.
//!
//! It needs root. It changes nothing of the host but for one network device, which is gone with the cluster.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result};

use crate::process::die_with_parent;
use kubectl::Kubectl;
use network::Network;
use programs::Programs;

mod claim;
mod control_plane;
mod fixture;
mod handle;
pub mod image;
mod keeper;
mod kubectl;
pub mod leftovers;
pub mod lifecycle;
pub mod network;
pub mod node;
mod nodes;
pub mod pki;
pub mod programs;
mod supervisor;
pub mod wire;

pub use fixture::Fixture;
pub use handle::{Cluster, Cut};
pub use supervisor::Supervisor;

/// The administrator's kubeconfig.
const ADMIN: &str = "admin.kubeconfig";

/// Names the cluster in the environment of its processes, so that what is left of a cluster can be found.
pub const MARK: &str = "FAIRLEAD_CLUSTER";

/// What a node needs of its cluster.
#[derive(Debug, Clone)]
pub struct Context {
    /// The cluster's name, unlike any other's on this host, now or before. Fit for a file's name.
    pub id: String,
    /// The programs of nodes.
    pub programs: Programs,
    /// The certificates.
    pub pki: Arc<pki::Pki>,
    /// The network: a node takes its address, and its namespace or tap, from here.
    pub network: Arc<Network>,
    /// The folder of everything of this cluster's; removed when it is taken down.
    pub folder: PathBuf,
}

impl Context {
    /// The folder of a node's files: the same each time, removed with the cluster.
    pub fn node_folder(&self, node: &str) -> Result<PathBuf> {
        self.made("nodes", node)
    }

    /// The folder of logs, shown when something fails.
    pub fn logs(&self) -> Result<PathBuf> {
        self.made("logs", "")
    }

    /// The control group of all of this cluster's, in every hierarchy, by its path below the mount: a node makes its
    /// own below this one, and what is left of it is removed with the cluster.
    pub fn cgroup(&self) -> String {
        format!("fairlead-{}", self.id)
    }

    /// Makes a command one of the cluster's: it is found by [`MARK`] in its environment, and it dies with the thread
    /// that spawns it. Nodes start in a thread that lives as long as the node.
    pub fn adopt<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        die_with_parent(command.env(MARK, &self.id))
    }

    /// kubectl as the administrator.
    fn kubectl(&self) -> Result<Kubectl> {
        Ok(Kubectl::new(self.programs.path("kubectl")?, self.pki.file(ADMIN), &self.folder))
    }

    fn made(&self, kind: &str, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join(kind).join(name);
        std::fs::create_dir_all(&folder).with_context(|| format!("failed to create {}", folder.display()))?;
        Ok(folder)
    }
}
