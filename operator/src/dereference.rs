//! What one reconciliation looks at: everything is read here, nothing later.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use fairlead_crds::{ServiceNetworkStatus, conditions::PROGRAMMED, conditions::is_true};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::{
    api::apps::v1::{ControllerRevision, DaemonSet},
    apimachinery::pkg::apis::meta::v1::Condition,
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt as _, api::ListParams, core::DynamicObject};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    build::Owned,
    rollout::{
        assign::NodeId,
        nodes::{NodeFacts, NodeState},
        pods::Host,
    },
    watch::{AgentPod, AgentView, Caches, NodeView},
};

/// Up to so many Nodes are read one by one; of more, all are listed at once.
const FEW: usize = 32;
const AT_A_TIME: usize = 8;
/// How often Nodes are read while a few, or many, are badly off.
const LOOK_AT_FEW: Duration = Duration::from_secs(10);
const LOOK_AT_MANY: Duration = Duration::from_secs(60);

/// The cluster as it was seen.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The ServiceNetwork's metadata and status as far as the next status is made with them.
    pub network: Previous,
    /// Nodes that agents run on, by name.
    pub nodes: BTreeMap<String, NodeId>,
    /// ServiceNetworkNodes by name.
    pub agents: BTreeMap<String, Arc<AgentView>>,
    /// The agents' pods.
    pub pods: Vec<Arc<AgentPod>>,
    /// Revisions of the agents' config.
    pub revisions: Vec<Arc<ControllerRevision>>,
    /// The owned objects that are there.
    pub owned: BTreeMap<Owned, Arc<DynamicObject>>,
    /// Nodes whose kubelet the control plane has lost.
    pub unreachable: BTreeSet<String>,
    /// Nodes without a pod of the agent, and since when.
    pub bare: BTreeMap<String, Timestamp>,
    /// Uid of the agent's pod that was deleted last.
    pub deleted_last: Option<String>,
}

/// What a ServiceNetwork says of itself before this reconciliation.
#[derive(Clone, Debug, Default)]
pub struct Previous {
    /// Its uid.
    pub uid: String,
    /// Generation of its spec.
    pub generation: Option<i64>,
    /// Its status as it stands there.
    pub status: Value,
    /// The conditions in it.
    pub conditions: Vec<Condition>,
    /// The revision that it was rolling out.
    pub revision: Option<String>,
}

impl Previous {
    /// Reads it part by part: what this version does not understand of a status that another one wrote
    /// must not lose the rest. Where the watch has not told yet of what was `reported` last, that counts.
    pub fn of(network: &DynamicObject, reported: Option<&Reported>) -> Self {
        let unseen = reported.filter(|it| it.on == on(network)).map(|it| it.status.clone());
        let status = unseen.or_else(|| network.data.get("status").cloned()).unwrap_or_default();
        let part = |path: &str| status.pointer(path).cloned().unwrap_or_default();
        Self {
            uid: network.uid().unwrap_or_default(),
            generation: network.metadata.generation,
            conditions: read(part("/conditions")).unwrap_or_default(),
            revision: read(part("/rollout/revision")),
            status,
        }
    }

    /// The whole status, where this version understands it.
    pub fn typed(&self) -> Option<ServiceNetworkStatus> {
        read(self.status.clone())
    }
}

/// The status that was written last.
#[derive(Clone, Debug)]
pub struct Reported {
    on: (Option<String>, Option<String>),
    status: Value,
}

impl Reported {
    /// It was written on the object as it was seen.
    pub fn new(seen: &DynamicObject, status: Value) -> Self {
        Self { on: on(seen), status }
    }
}

fn on(network: &DynamicObject) -> (Option<String>, Option<String>) {
    (network.uid(), network.resource_version())
}

fn read<T: DeserializeOwned>(value: Value) -> Option<T> {
    serde_json::from_value(value).ok()
}

impl Observed {
    /// What is in the stores.
    pub fn cached(caches: &Caches, network: Previous) -> Self {
        let nodes = caches.nodes.state().into_iter().filter(|node| {
            // As the DaemonSet selects them.
            node.labels().get("kubernetes.io/os").is_some_and(|os| os == "linux")
        });
        let id = |name: String, uid| (name.clone(), NodeId { name, uid });
        Self {
            network,
            nodes: nodes.map(|node| id(node.name_any(), node.uid().unwrap_or_default())).collect(),
            agents: caches.agents.state().into_iter().map(|agent| (agent.name_any(), agent)).collect(),
            pods: caches.pods.state(),
            revisions: caches.revisions.state(),
            owned: Owned::ALL.into_iter().filter_map(|owned| Some((owned, caches.owned(owned)?))).collect(),
            ..Self::default()
        }
    }

    /// Notes which nodes have no pod, and since when as far as was noted before.
    pub fn note_bare(&mut self, before: &BTreeMap<String, Timestamp>, now: Timestamp) {
        let with_pod = self.pods_by_node();
        let bare = self.nodes.keys().filter(|name| !with_pod.contains_key(name.as_str()));
        self.bare = bare.map(|name| (name.clone(), before.get(name).copied().unwrap_or(now))).collect();
    }

    /// Nodes whose Node it is worth reading: their agent does not run, or not what it should.
    pub fn badly_off(&self) -> Vec<String> {
        let leaving: BTreeSet<_> = self
            .pods
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_some())
            .filter_map(|pod| pod.node())
            .collect();
        let badly = |facts: &NodeFacts<'_>| {
            let told = facts.agent.and_then(|agent| agent.spec.revision.as_deref());
            let state = NodeState::judge(*facts, told);
            !state.updated || facts.pod.is_none_or(|pod| !pod.is_ready()) || leaving.contains(facts.name)
        };
        self.facts().iter().filter(|facts| badly(facts)).map(|facts| facts.name.to_owned()).collect()
    }

    /// What is known of each node.
    pub fn facts(&self) -> Vec<NodeFacts<'_>> {
        let pods = self.pods_by_node();
        self.nodes
            .keys()
            .map(|name| NodeFacts {
                name,
                agent: self.agents.get(name).map(|agent| &**agent),
                pod: pods.get(name.as_str()).copied(),
                bare_since: self.bare.get(name).copied(),
                unreachable: self.unreachable.contains(name),
            })
            .collect()
    }

    /// The nodes where pods have to run.
    pub fn hosts(&self) -> BTreeMap<String, Host> {
        let programmed = |name: &String| {
            self.agents.get(name).is_some_and(|agent| is_true(&agent.status.conditions, PROGRAMMED))
        };
        self.nodes
            .keys()
            .map(|name| {
                let host = Host {
                    unreachable: self.unreachable.contains(name),
                    programmed: programmed(name),
                    bare_since: self.bare.get(name).copied(),
                };
                (name.clone(), host)
            })
            .collect()
    }

    /// Whether the DaemonSet controller has seen the DaemonSet as it is.
    pub fn template_seen(&self) -> bool {
        let live =
            self.owned.get(&Owned::DaemonSet).and_then(|live| (**live).clone().try_parse::<DaemonSet>().ok());
        live.is_some_and(|live| {
            let seen = live.status.and_then(|status| status.observed_generation);
            seen.is_some() && seen >= live.metadata.generation
        })
    }

    /// Of each node the pod that counts: one that stays before one that goes, the newer before the older.
    fn pods_by_node(&self) -> BTreeMap<&str, &AgentPod> {
        let mut pods: Vec<&AgentPod> = self.pods.iter().map(|pod| &**pod).collect();
        pods.sort_by_key(|pod| {
            let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (pod.metadata.deletion_timestamp.is_none(), created)
        });
        pods.into_iter().filter_map(|pod| Some((pod.node()?, pod))).collect()
    }
}

/// Which Nodes were found unreachable, and when one looked.
#[derive(Clone, Debug, Default)]
pub struct Reachability {
    looked: Option<Instant>,
    unreachable: BTreeSet<String>,
}

impl Reachability {
    /// Of the nodes that are badly off, those whose kubelet is gone. The status of Nodes is not
    /// watched, because every kubelet rewrites it all the time: it is read where it matters.
    pub async fn look(
        &mut self,
        client: &Client,
        badly_off: &[String],
    ) -> Result<BTreeSet<String>, kube::Error> {
        let few = badly_off.len() <= FEW;
        let interval = if few { LOOK_AT_FEW } else { LOOK_AT_MANY };
        let known = self.looked.is_some_and(|looked| looked.elapsed() < interval);
        if badly_off.is_empty() {
            *self = Self::default();
        } else if !known {
            let api: Api<NodeView> = Api::all(client.clone());
            let nodes = if few { read_few(&api, badly_off).await? } else { read_all(&api).await? };
            let unreachable = nodes.into_iter().filter(NodeView::is_unreachable);
            *self = Self {
                looked: Some(Instant::now()),
                unreachable: unreachable.map(|node| node.name_any()).collect(),
            };
        }
        Ok(self.unreachable.iter().filter(|node| badly_off.contains(node)).cloned().collect())
    }
}

async fn read_few(api: &Api<NodeView>, names: &[String]) -> Result<Vec<NodeView>, kube::Error> {
    let reads: Vec<_> = names.iter().map(|name| api.get_opt(name)).collect();
    let nodes: Vec<_> = futures::stream::iter(reads).buffer_unordered(AT_A_TIME).try_collect().await?;
    Ok(nodes.into_iter().flatten().collect())
}

async fn read_all(api: &Api<NodeView>) -> Result<Vec<NodeView>, kube::Error> {
    // From the API server's cache: some seconds of age do not matter, the load on etcd does.
    Ok(api.list(&ListParams::default().match_any()).await?.items)
}

#[cfg(test)]
mod tests {
    use fairlead_crds::ServiceNetwork;
    use kube::core::ApiResource;
    use serde_json::json;

    use super::*;

    fn network(version: &str, revision: &str) -> DynamicObject {
        let resource = ApiResource::erase::<ServiceNetwork>(&());
        let status = json!({ "status": { "rollout": { "revision": revision } } });
        let mut network = DynamicObject::new("cluster", &resource).data(status);
        network.metadata.resource_version = Some(version.to_owned());
        network
    }

    #[test]
    fn what_was_reported_counts_until_the_watch_tells_of_something_newer() {
        let seen = network("1", "a");
        let reported = Reported::new(&seen, json!({ "rollout": { "revision": "b" } }));
        let revision = |network: &DynamicObject| Previous::of(network, Some(&reported)).revision;
        assert_eq!(revision(&seen).as_deref(), Some("b"));
        assert_eq!(revision(&network("2", "c")).as_deref(), Some("c"));
    }

    #[test]
    fn a_part_of_a_status_that_is_not_understood_does_not_lose_the_rest() {
        let mut network = network("1", "a");
        network.data["status"]["conditions"] = json!("of another version");
        let previous = Previous::of(&network, None);
        assert_eq!((previous.revision.as_deref(), previous.conditions), (Some("a"), Vec::new()));
    }
}
