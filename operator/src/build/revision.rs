//! The ControllerRevision of a config.

use fairlead_crds::{
    NodeAgentConfig,
    revision::{RevisionError, encode},
};
use kube::ResourceExt as _;
use serde_json::{Value, json};

/// The name of a config's revision, and the revision as it is applied. It is immutable but for its
/// labels and its number, which grows when a revision is used again.
pub fn revision(config: &NodeAgentConfig, number: i64) -> Result<(String, Value), RevisionError> {
    let revision = encode(config, number)?;
    let object = json!({
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": revision.name_any(),
            "namespace": revision.namespace(),
            "labels": revision.labels(),
        },
        "data": revision.data,
        "revision": number,
    });
    Ok((revision.name_any(), object))
}
