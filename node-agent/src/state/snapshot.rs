//! The objects the agent last followed, so that it can serve before its source answers.
//!
//! One file: a line `<crc32 of the rest>`, then JSON. Replaced whole, never edited.

use std::{fs, io, path::Path, sync::Arc};

use fairlead_crds::NodeAgentConfig;
use serde::{Deserialize, Deserializer, Serialize};

use super::{StateError, replace};
use crate::{
    model::tracker::Model,
    watch::{Change, Configured, EndpointSlice, Node, Service, ServiceCidr},
};

pub(super) const FILE: &str = "snapshot";

/// Everything a model is built from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Configuration in effect. A newer agent's may be one that this version does not understand: it
    /// is left out then, and the objects are of use all the same.
    #[serde(deserialize_with = "understood")]
    pub config: Option<NodeAgentConfig>,
    /// The revision that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Arc<str>>,
    /// Our own node.
    pub node: Option<Node>,
    /// Services.
    pub services: Vec<Arc<Service>>,
    /// EndpointSlices.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// ServiceCIDRs.
    pub cidrs: Vec<ServiceCidr>,
}

impl Snapshot {
    /// Everything that a model holds.
    pub fn of(model: &Model) -> Self {
        Self {
            config: model.config().cloned(),
            revision: model.configured().and_then(|configured| configured.revision.clone()),
            node: model.node().cloned(),
            services: model.services().cloned().collect(),
            slices: model.slices().cloned().collect(),
            cidrs: model.cidrs().cloned().collect(),
        }
    }

    /// Writes the snapshot into a state directory.
    pub fn write(&self, directory: &Path) -> Result<(), StateError> {
        let path = directory.join(FILE);
        // The checksum goes in front when it is known: a second copy would be the agent's peak of memory.
        let mut content = b"00000000\n".to_vec();
        serde_json::to_writer(&mut content, self)
            .map_err(|source| StateError::Write { path: path.clone(), source: source.into() })?;
        if let Some((sum, json)) = content.split_at_mut_checked(9) {
            sum.copy_from_slice(format!("{:08x}\n", crc32fast::hash(json)).as_bytes());
        }
        replace(&path, &content)
    }

    /// Reads the snapshot of a state directory; `None` when there is none yet.
    pub fn read(directory: &Path) -> Result<Option<Self>, StateError> {
        let path = directory.join(FILE);
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateError::Read { path, source }),
        };
        let damaged = |problem: &str| StateError::Damaged { path: path.clone(), problem: problem.to_owned() };
        let (sum, json) = content.split_at_checked(9).ok_or_else(|| damaged("it is too short"))?;
        let expected = format!("{:08x}\n", crc32fast::hash(json));
        if sum != expected.as_bytes() {
            return Err(damaged("its checksum does not hold"));
        }
        serde_json::from_slice(json).map(Some).map_err(|error| damaged(&error.to_string()))
    }

    /// The configuration, and the revision it is from.
    pub fn configured(&self) -> Option<Configured> {
        let config = self.config.clone()?;
        Some(Configured { config, revision: self.revision.clone() })
    }

    /// The changes that build a model of it.
    pub fn into_changes(self) -> Vec<Change> {
        let mut changes = Vec::with_capacity(self.services.len() + self.slices.len() + 2);
        changes.extend(self.configured().map(Change::Config));
        changes.extend(self.node.map(Change::Node));
        changes.extend(self.cidrs.into_iter().map(Change::Cidr));
        changes.extend(self.slices.into_iter().map(Change::Slice));
        changes.extend(self.services.into_iter().map(Change::Service));
        changes
    }
}

fn understood<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NodeAgentConfig>, D::Error> {
    let config = Option::<serde_json::Value>::deserialize(deserializer)?;
    Ok(config.and_then(|config| match serde_json::from_value(config) {
        Ok(config) => Some(config),
        Err(error) => {
            tracing::warn!(%error, "the configuration in the snapshot is of another version, and not used");
            None
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(json: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let content = format!("{:08x}\n{json}", crc32fast::hash(json.as_bytes()));
        fs::write(dir.path().join(FILE), content).unwrap();
        dir
    }

    #[test]
    fn a_snapshot_of_another_version_is_of_use_for_all_that_is_understood() {
        let node = r#""node":{"name":"n1","internal_ips":[],"pod_cidrs":[],"eligible":true}"#;
        let config = serde_json::to_string(&NodeAgentConfig::default()).unwrap();
        let rest = r#""services":[],"slices":[],"cidrs":[]"#;
        let older = written(&format!("{{\"config\":{config},{node},{rest}}}"));
        let older = Snapshot::read(older.path()).unwrap().unwrap();
        assert_eq!((older.config, older.revision), (Some(NodeAgentConfig::default()), None));
        let newer = written(&format!(
            "{{\"config\":{{\"dns\":{{}}}},\"revision\":\"fairlead-1\",\"more\":1,{node},{rest}}}"
        ));
        let newer = Snapshot::read(newer.path()).unwrap().unwrap();
        assert_eq!(newer.configured(), None);
        assert_eq!(&*newer.node.unwrap().name, "n1");
    }

    #[test]
    fn reads_back_what_was_written_and_refuses_what_was_damaged() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Snapshot::read(dir.path()).unwrap(), None);
        let snapshot = Snapshot {
            config: Some(NodeAgentConfig::default()),
            revision: Some("fairlead-0123456789".into()),
            node: Some(Node {
                name: "n1".into(),
                internal_ips: vec![[192, 0, 2, 1].into()],
                pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
                eligible: true,
            }),
            ..Snapshot::default()
        };
        snapshot.write(dir.path()).unwrap();
        assert_eq!(Snapshot::read(dir.path()).unwrap(), Some(snapshot));
        let path = dir.path().join(FILE);
        let mut content = fs::read(&path).unwrap();
        *content.last_mut().unwrap() = b'!';
        fs::write(&path, content).unwrap();
        assert!(matches!(Snapshot::read(dir.path()), Err(StateError::Damaged { .. })));
    }
}
