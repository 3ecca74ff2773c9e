//! Fairlead on a cluster, installed as a user does it: the manifests copied, their two settings edited, two commands.

#![allow(clippy::indexing_slicing, reason = "what is not in a JSON value reads as null: it never panics")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::patiently;

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What is copied: the manifests, and the CRDs that they refer to.
const FOLDERS: &[&str] = &["crds", "manifests/crds", "manifests/install", "manifests/operator"];

/// Where the user's two settings are.
const SETTINGS: &str = "manifests/install/kustomization.yaml";

/// The namespace of operator and agents.
pub const NAMESPACE: &str = "fairlead-system";
/// The operator's Deployment.
pub const OPERATOR: &str = "deployment/fairlead-operator";
/// The agents' DaemonSet.
pub const AGENTS: &str = "daemonset/fairlead-node-agent";
/// The label of the agents' pods.
pub const AGENT_PODS: &str = "app.kubernetes.io/name=fairlead-node-agent";

/// The manifests of an installation, beside the cluster that they are for.
#[derive(Debug)]
pub struct Installation<'a> {
    cluster: &'a Cluster,
    folder: PathBuf,
}

impl<'a> Installation<'a> {
    /// Copies the manifests into `folder` and edits their two settings for the cluster.
    pub fn prepare(cluster: &'a Cluster, folder: &Path) -> Result<Self> {
        for part in FOLDERS {
            copy_manifests(&Path::new(WORKSPACE).join(part), &folder.join(part))?;
        }
        let file = folder.join(SETTINGS);
        let settings =
            fs::read_to_string(&file).with_context(|| format!("failed to read {}", file.display()))?;
        let settings = edit(&settings, &cluster.describe()?.api_server, &cluster.image("fairlead")?)?;
        fs::write(&file, settings).with_context(|| format!("failed to write {}", file.display()))?;
        Ok(Self { cluster, folder: folder.to_owned() })
    }

    /// Adds addresses of the API server to the first setting.
    pub fn add_api_servers(&self, more: &[String]) -> Result<()> {
        let file = self.folder.join(SETTINGS);
        let settings =
            fs::read_to_string(&file).with_context(|| format!("failed to read {}", file.display()))?;
        let first = self.cluster.describe()?.api_server;
        let all = [std::slice::from_ref(&first), more].concat().join(",");
        let settings = settings.replace(&format!("SERVERS={first}\n"), &format!("SERVERS={all}\n"));
        fs::write(&file, settings).with_context(|| format!("failed to write {}", file.display()))
    }

    /// The two commands: CRDs, then the rest.
    pub fn apply(&self) -> Result<()> {
        self.kustomize("apply", "crds")?;
        self.kustomize("apply", "install")
    }

    /// The command that takes the operator away.
    pub fn delete(&self) -> Result<()> {
        self.kustomize("delete", "install")
    }

    /// A command over one of the kustomizations.
    pub fn kustomize(&self, verb: &str, kustomization: &str) -> Result<()> {
        let folder = self.folder.join("manifests").join(kustomization).display().to_string();
        let arguments = match verb {
            "apply" => vec!["apply", "--server-side", "-k", &folder],
            verb => vec![verb, "-k", &folder],
        };
        self.cluster.kubectl(&arguments).map(drop)
    }
}

/// The user's ServiceNetwork with a spec, in YAML's flow style.
pub fn service_network(spec: &str) -> String {
    format!(
        "{{apiVersion: fairlead.dev/v1alpha1, kind: ServiceNetwork, metadata: {{name: cluster}}, spec: {spec}}}"
    )
}

/// Waits until the ServiceNetwork is Ready for what it asks for now, and every node of `nodes` is updated.
pub fn wait_ready(cluster: &Cluster, nodes: u64, limit: Duration) -> Result<Value> {
    let mut seen = Value::Null;
    let ready = patiently("the ServiceNetwork is Ready on every node", limit, || {
        seen = cluster.get("servicenetwork/cluster").unwrap_or_default();
        is_ready(&seen, nodes)
    });
    ready.with_context(|| format!("its status is {:#}", seen.get("status").unwrap_or(&Value::Null)))?;
    Ok(seen)
}

fn is_ready(network: &Value, nodes: u64) -> bool {
    let status = &network["status"];
    let condition = |type_: &str| {
        let conditions = status["conditions"].as_array().into_iter().flatten();
        conditions.filter(|c| c["type"] == type_).any(|c| c["status"] == "True")
    };
    status["observedGeneration"] == network["metadata"]["generation"]
        && condition("Ready")
        && !condition("Reconciling")
        && status["nodes"]["total"] == nodes
        && status["nodes"]["updated"] == nodes
}

fn copy_manifests(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("failed to create {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("failed to read {}", from.display()))? {
        let file = entry?.path();
        if file.extension().is_some_and(|end| end == "yaml") {
            let name = file.file_name().context("a manifest without a name")?;
            fs::copy(&file, to.join(name)).with_context(|| format!("failed to copy {}", file.display()))?;
        }
    }
    Ok(())
}

/// The two settings, as a user edits them; fails when they are not where the text says.
fn edit(settings: &str, api_servers: &str, image: &str) -> Result<String> {
    let (name, digest) = image.split_once('@').context("an image without a digest")?;
    let mut edited = Vec::new();
    let mut edits = 0;
    for line in settings.lines() {
        let trimmed = line.trim_start();
        let indent = line.get(..line.len() - trimmed.len()).unwrap_or_default();
        let new = match trimmed.split_once([':', '=']) {
            Some(("- FAIRLEAD_API_SERVERS", _)) => Some(format!("- FAIRLEAD_API_SERVERS={api_servers}")),
            Some(("newName", _)) => Some(format!("newName: {name}")),
            Some(("digest", _)) => Some(format!("digest: {digest}")),
            _ => None,
        };
        edits += usize::from(new.is_some());
        edited.push(new.map_or_else(|| line.to_owned(), |new| format!("{indent}{new}")));
    }
    ensure!(edits == 3, "{SETTINGS} has {edits} of the three lines that a user edits");
    Ok(edited.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_of_the_manifests_are_where_a_user_is_told_to_edit_them() {
        let settings = fs::read_to_string(Path::new(WORKSPACE).join(SETTINGS)).unwrap();
        let edited = edit(&settings, "https://10.89.1.1:6443", "fairlead.dev/x@sha256:12").unwrap();
        assert!(edited.contains("      - FAIRLEAD_API_SERVERS=https://10.89.1.1:6443\n"), "{edited}");
        assert!(edited.contains("    newName: fairlead.dev/x\n    digest: sha256:12\n"), "{edited}");
        assert!(!edited.contains("192.0.2.10") && !edited.contains("registry.example"), "{edited}");
    }

    #[test]
    fn a_status_about_an_older_generation_is_not_ready() {
        let mut network = serde_json::json!({
            "metadata": { "generation": 2 },
            "status": {
                "observedGeneration": 2,
                "conditions": [{ "type": "Ready", "status": "True" }],
                "nodes": { "total": 3, "updated": 3 },
            },
        });
        assert!(is_ready(&network, 3) && !is_ready(&network, 4));
        network["metadata"]["generation"] = 3.into();
        assert!(!is_ready(&network, 3));
    }
}
