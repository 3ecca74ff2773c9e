//! The objects the agent last followed, so that it can serve before its source answers.
//!
//! One file: a line `<crc32 of the rest>`, then JSON. Replaced whole, never edited.

use std::{fs, io, path::Path, sync::Arc};

use fairlead_crds::NodeAgentConfig;
use serde::{Deserialize, Serialize};

use super::{StateError, replace};
use crate::{
    model::tracker::Model,
    watch::{Change, EndpointSlice, Node, Service, ServiceCidr},
};

pub(super) const FILE: &str = "snapshot";

/// Everything a model is built from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Configuration in effect.
    pub config: Option<NodeAgentConfig>,
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

    /// The changes that build a model of it.
    pub fn into_changes(self) -> Vec<Change> {
        let mut changes = Vec::with_capacity(self.services.len() + self.slices.len() + 2);
        changes.extend(self.config.map(Change::Config));
        changes.extend(self.node.map(Change::Node));
        changes.extend(self.cidrs.into_iter().map(Change::Cidr));
        changes.extend(self.slices.into_iter().map(Change::Slice));
        changes.extend(self.services.into_iter().map(Change::Service));
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_was_written_and_refuses_what_was_damaged() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Snapshot::read(dir.path()).unwrap(), None);
        let snapshot = Snapshot {
            config: Some(NodeAgentConfig::default()),
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
