//! Which node is told to run what.

use std::sync::Arc;

use fairlead_crds::revision::CONFIG_VERSION;
use kube::ResourceExt as _;
use serde_json::Value;

use crate::{
    build::{owner_uid, service_network_node},
    watch::AgentView,
};

/// A Node as far as one needs it to tell it something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeId {
    /// Its name.
    pub name: String,
    /// Its uid: a Node of the same name that was made again is another.
    pub uid: String,
}

/// What has to be written so that a node runs what it should.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// The node.
    pub node: String,
    /// The uid and version of a ServiceNetworkNode that was made for an earlier Node of that name, and
    /// has to go first: its status tells of a machine that is no more.
    pub remove_first: Option<(String, String)>,
    /// The ServiceNetworkNode as it is applied.
    pub object: Value,
}

/// What has to be written for a node. None: nothing, it is as it should be.
pub fn assignment(node: &NodeId, agent: Option<&Arc<AgentView>>, revision: &str) -> Option<Assignment> {
    let object = service_network_node(&node.name, &node.uid, revision);
    let assignment =
        |remove_first| Some(Assignment { node: node.name.clone(), remove_first, object: object.clone() });
    let Some(agent) = agent else { return assignment(None) };
    if owner_uid(&agent.metadata).is_some_and(|uid| uid != node.uid) {
        return assignment(Some((
            agent.uid().unwrap_or_default(),
            agent.resource_version().unwrap_or_default(),
        )));
    }
    // An agent that does not know this version of configuration gets its pod replaced first.
    let versions = &agent.status.config_versions;
    if !versions.is_empty() && !versions.iter().any(|version| version == CONFIG_VERSION) {
        return None;
    }
    let owned = agent.owner_references().iter().any(|owner| {
        owner.kind == "Node" && owner.uid == node.uid && owner.block_owner_deletion != Some(true)
    });
    if owned && agent.spec.revision.as_deref() == Some(revision) { None } else { assignment(None) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{rollout::fixtures, watch::AgentStatus};

    fn node() -> NodeId {
        NodeId { name: "n".to_owned(), uid: "uid-n".to_owned() }
    }

    fn agent(told: &str) -> AgentView {
        fixtures::agent("n", told, told)
    }

    fn for_agent(agent: AgentView) -> Option<Assignment> {
        assignment(&node(), Some(&Arc::new(agent)), "fairlead-1")
    }

    #[test]
    fn a_node_that_was_told_is_not_told_again() {
        assert_eq!(for_agent(agent("fairlead-1")), None);
    }

    #[test]
    fn a_new_node_and_another_revision_are_written() {
        let new = assignment(&node(), None, "fairlead-1").unwrap();
        assert_eq!((new.remove_first, &new.object["spec"]["revision"]), (None, &"fairlead-1".into()));
        assert!(for_agent(agent("fairlead-0")).is_some());
    }

    #[test]
    fn what_was_made_for_an_earlier_node_of_that_name_goes_first() {
        let anew = NodeId { uid: "uid-new".to_owned(), ..node() };
        let again = assignment(&anew, Some(&Arc::new(agent("fairlead-1"))), "fairlead-1").unwrap();
        assert_eq!(again.remove_first, Some(("own-n".to_owned(), "7".to_owned())));
        assert_eq!(again.object["metadata"]["ownerReferences"][0]["uid"], "uid-new");
    }

    #[test]
    fn an_owner_that_somebody_took_away_is_put_back() {
        let mut orphan = agent("fairlead-1");
        orphan.metadata.owner_references = None;
        assert_eq!(for_agent(orphan).unwrap().remove_first, None);
    }

    #[test]
    fn an_agent_gets_no_config_of_a_version_that_it_does_not_know() {
        let older = AgentStatus {
            config_versions: vec!["config.fairlead.dev/v0".to_owned()],
            ..AgentStatus::default()
        };
        assert_eq!(for_agent(AgentView { status: older, ..agent("fairlead-0") }), None);
    }
}
