//! Revisions: a rendered config as an immutable `ControllerRevision`, and back.
//!
//! The name is made from the content, so that going back to an earlier config goes back to its
//! revision, and two operators that render the same config name it the same.

use k8s_openapi::{
    api::apps::v1::ControllerRevision, apimachinery::pkg::apis::meta::v1::ObjectMeta,
    apimachinery::pkg::runtime::RawExtension,
};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::{
    NodeAgentConfig,
    names::{NAMESPACE, REVISION_LABEL, REVISION_OF_AGENT},
};

/// `apiVersion` of the config inside a revision. An agent lists those it knows in its status.
pub const CONFIG_VERSION: &str = "config.fairlead.dev/v1alpha1";
/// `kind` of the config inside a revision.
pub const CONFIG_KIND: &str = "NodeAgentConfig";

/// Why a revision cannot be run. Reads on after the revision's name.
#[derive(Debug, thiserror::Error)]
pub enum RevisionError {
    /// It holds nothing, or no object.
    #[error("holds no config: delete it, and the operator writes it again")]
    Empty,
    /// It is of another kind or version.
    #[error(
        "holds {found}, but this version of Fairlead knows {CONFIG_KIND} of {CONFIG_VERSION}: upgrade it"
    )]
    Unknown {
        /// What it says it is.
        found: String,
    },
    /// It has fields or values that this version does not know.
    #[error("holds a config that this version of Fairlead does not understand ({0}): upgrade it")]
    NotUnderstood(#[source] serde_json::Error),
    /// The config cannot be written down.
    #[error("cannot hold this config")]
    NotWritable(#[source] serde_json::Error),
}

/// The revision of a config. `number` grows with every revision made.
pub fn encode(config: &NodeAgentConfig, number: i64) -> Result<ControllerRevision, RevisionError> {
    let data = content(config)?;
    let name = name(&data);
    Ok(ControllerRevision {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(NAMESPACE.to_owned()),
            labels: Some([(REVISION_LABEL.to_owned(), REVISION_OF_AGENT.to_owned())].into()),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision: number,
    })
}

/// The config of a revision.
pub fn decode(revision: &ControllerRevision) -> Result<NodeAgentConfig, RevisionError> {
    let Some(RawExtension(Value::Object(data))) = &revision.data else { return Err(RevisionError::Empty) };
    let mut data = data.clone();
    let mut take = |field: &str| data.remove(field).and_then(|value| value.as_str().map(str::to_owned));
    let (version, kind) = (take("apiVersion").unwrap_or_default(), take("kind").unwrap_or_default());
    if version != CONFIG_VERSION || kind != CONFIG_KIND {
        return Err(RevisionError::Unknown { found: format!("{kind:?} of {version:?}") });
    }
    serde_json::from_value(Value::Object(data)).map_err(RevisionError::NotUnderstood)
}

fn content(config: &NodeAgentConfig) -> Result<Value, RevisionError> {
    let mut data = Map::new();
    data.insert("apiVersion".to_owned(), CONFIG_VERSION.into());
    data.insert("kind".to_owned(), CONFIG_KIND.into());
    match serde_json::to_value(config).map_err(RevisionError::NotWritable)? {
        Value::Object(fields) => data.extend(fields),
        _ => return Err(RevisionError::Empty),
    }
    Ok(Value::Object(data))
}

fn name(data: &Value) -> String {
    format!("fairlead-{}", digest(data))
}

/// Ten hexadecimal digits by which one tells that two values are the same.
pub fn digest(data: &Value) -> String {
    let mut hash = Sha256::new();
    feed(&mut hash, data);
    let digest = hash.finalize();
    digest.iter().take(5).fold(String::new(), |name, byte| format!("{name}{byte:02x}"))
}

/// The order of fields is left out: it depends on a feature of `serde_json` that any dependency may switch.
fn feed(hash: &mut Sha256, value: &Value) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            for (name, value) in fields {
                hash.update(format!("{{{name:?}:"));
                feed(hash, value);
                hash.update("}");
            }
        }
        Value::Array(items) => items.iter().for_each(|item| {
            hash.update("[");
            feed(hash, item);
            hash.update("]");
        }),
        scalar => hash.update(scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Scheduler;

    fn changed(change: impl FnOnce(&mut Map<String, Value>)) -> ControllerRevision {
        let mut revision = encode(&NodeAgentConfig::default(), 1).unwrap();
        change(revision.data.as_mut().unwrap().0.as_object_mut().unwrap());
        revision
    }

    #[test]
    fn a_revision_reads_back_as_the_config_it_was_made_of() {
        let mut config = NodeAgentConfig::default();
        config.proxy.ipvs.scheduler = Scheduler::Mh;
        let revision = encode(&config, 7).unwrap();
        assert_eq!(decode(&revision).unwrap(), config);
        assert_eq!(revision.revision, 7);
    }

    #[test]
    fn equal_configs_have_one_name_and_others_another() {
        let name_of =
            |config: &NodeAgentConfig, number| encode(config, number).unwrap().metadata.name.unwrap();
        let mut other = NodeAgentConfig::default();
        other.proxy.mark_bit = 13;
        let default = NodeAgentConfig::default();
        assert_eq!(name_of(&default, 1), name_of(&default, 2));
        assert_ne!(name_of(&default, 1), name_of(&other, 1));
        // A name that changed with an upgrade of the operator would be a new revision of the same config.
        assert_eq!(name_of(&default, 1), "fairlead-6197c560bd");
    }

    #[test]
    fn what_this_version_does_not_know_is_refused_and_named() {
        let error = |revision| decode(&revision).unwrap_err().to_string();
        let newer = error(changed(|data| {
            data.insert("apiVersion".to_owned(), json!("config.fairlead.dev/v1"));
        }));
        assert!(newer.contains("config.fairlead.dev/v1\"") && newer.contains("upgrade"), "{newer}");
        let field = error(changed(|data| {
            data.insert("dns".to_owned(), json!({}));
        }));
        assert!(field.contains("dns"), "{field}");
        assert!(matches!(
            decode(&ControllerRevision { data: None, ..encode(&NodeAgentConfig::default(), 1).unwrap() }),
            Err(RevisionError::Empty)
        ));
    }
}
