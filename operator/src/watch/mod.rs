//! What the operator knows of the cluster: one watch and one store a kind.
//!
//! Each watch heals by itself, with back-off, from whatever it meets: an API server that is away, a
//! CRD that is not there (yet, or any more), permissions that are missing. What it met last is kept
//! for the status and for `/readyz`. No stream is shared: kube's shared streams lose deletions.

mod back_off;
mod health;
mod slim;
mod trigger;

use std::{collections::BTreeMap, fmt::Debug, hash::Hash, sync::Arc, time::Instant};

use fairlead_crds::names::{AGENT, APP_LABEL, NAMESPACE, REVISION_LABEL, REVISION_OF_AGENT};
use futures::{FutureExt as _, Stream, StreamExt as _};
use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::Node},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource,
    core::{DynamicObject, PartialObjectMeta},
    runtime::{
        WatchStreamExt as _,
        reflector::{ObjectRef, Store, store::Writer},
        watcher::{self, Config, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use self::health::WatchHealth;
pub use self::{
    back_off::BackOff,
    slim::{AgentPod, AgentStatus, AgentView, NodeView},
    trigger::{Trigger, debounced},
};
use crate::{build::Owned, error::chain};

/// Pods and nodes of a big cluster come in pages, so that no single answer is large.
const PAGE: u32 = 250;

/// The stores, and how their watches fare.
#[derive(Clone)]
pub struct Caches {
    /// Nodes: who there is. Their status, which changes all the time, is not watched.
    pub nodes: Store<PartialObjectMeta<Node>>,
    /// ServiceNetworkNodes.
    pub agents: Store<AgentView>,
    /// The agents' pods.
    pub pods: Store<AgentPod>,
    /// Revisions of the agents' config.
    pub revisions: Store<ControllerRevision>,
    owned: BTreeMap<Owned, Store<DynamicObject>>,
    health: WatchHealth,
}

impl Caches {
    /// Starts every watch. Each change worth a look fires the trigger.
    pub fn start(client: &Client, trigger: &Trigger, tasks: &mut JoinSet<()>) -> Self {
        let mut start = Start { health: WatchHealth::default(), trigger, tasks };
        let config = Config::default().page_size(PAGE);
        let in_namespace = |label: &str, value: &str| config.clone().labels(&format!("{label}={value}"));

        let nodes = start.reflect("nodes", &(), watcher(Api::all(client.clone()), config.clone()));
        let agents =
            start.reflect("servicenetworknodes", &(), watcher(Api::all(client.clone()), config.clone()));
        let namespaced = Api::namespaced(client.clone(), NAMESPACE);
        let pods = start.reflect("pods", &(), watcher(namespaced, in_namespace(APP_LABEL, AGENT)));
        let namespaced = Api::namespaced(client.clone(), NAMESPACE);
        let selected = in_namespace(REVISION_LABEL, REVISION_OF_AGENT);
        let revisions = start.reflect("controllerrevisions", &(), watcher(namespaced, selected));
        let owned = Owned::ALL
            .into_iter()
            .map(|owned| {
                let resource = owned.resource();
                let api: Api<DynamicObject> = match owned.namespace() {
                    Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
                    None => Api::all_with(client.clone(), &resource),
                };
                let config = Config::default().fields(&format!("metadata.name={}", owned.name()));
                (owned, start.reflect(&resource.plural, &resource, watcher(api, config)))
            })
            .collect();
        let health = start.health;
        Self { nodes, agents, pods, revisions, owned, health }
    }

    /// The live object of an owned kind.
    pub fn owned(&self, owned: Owned) -> Option<Arc<DynamicObject>> {
        let mut key = ObjectRef::new_with(owned.name(), owned.resource());
        if let Some(namespace) = owned.namespace() {
            key = key.within(namespace);
        }
        self.owned.get(&owned)?.get(&key)
    }

    /// The kinds that have not been listed once, each with what its watch met last.
    pub fn unsynced(&self) -> Vec<String> {
        self.health.unsynced()
    }

    /// The kinds whose watches go on failing although they have worked.
    pub fn failing(&self) -> Vec<String> {
        self.health.failing(Instant::now())
    }
}

struct Start<'a> {
    health: WatchHealth,
    trigger: &'a Trigger,
    tasks: &'a mut JoinSet<()>,
}

impl Start<'_> {
    fn reflect<K>(
        &mut self,
        plural: &str,
        dyntype: &K::DynamicType,
        events: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    ) -> Store<K>
    where
        K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        K::DynamicType: Clone + Debug + Eq + Hash + Send + Sync + 'static,
    {
        let writer = Writer::new(dyntype.clone());
        let store = writer.as_reader();
        self.health.begin(plural);
        let (health, trigger, plural) = (self.health.clone(), self.trigger.clone(), plural.to_owned());
        let (before, dyntype) = (store.clone(), dyntype.clone());
        let events = events
            .backoff(BackOff::default())
            .modify(|object: &mut K| object.meta_mut().managed_fields = None)
            // Before the store learns of it, so that the two can be compared.
            .inspect(move |event| observe(event, &before, &dyntype, &plural, &health, &trigger))
            .reflect(writer);
        self.tasks.spawn(events.for_each(|_| async {}).boxed());
        store
    }
}

fn observe<K>(
    event: &watcher::Result<Event<K>>,
    store: &Store<K>,
    dyntype: &K::DynamicType,
    plural: &str,
    health: &WatchHealth,
    trigger: &Trigger,
) where
    K: Resource + Clone + 'static,
    K::DynamicType: Clone + Eq + Hash,
{
    match event {
        Ok(Event::Init | Event::InitApply(_)) => {}
        Ok(Event::InitDone) => {
            health.synced(plural);
            trigger.fire();
        }
        Ok(Event::Apply(object)) => {
            health.works(plural);
            let before = store.get(&ObjectRef::from_obj_with(object, dyntype.clone()));
            if before.is_none_or(|before| is_news::<K>(before.meta(), object.meta(), dyntype)) {
                trigger.fire();
            }
        }
        Ok(Event::Delete(_)) => {
            health.works(plural);
            trigger.fire();
        }
        Err(error) => {
            let error = chain(error);
            tracing::warn!(resource = plural, error, "watch failed, will be tried again");
            health.failed(plural, error, Instant::now());
            // To tell of it, if it goes on.
            if !health.failing(Instant::now()).is_empty() {
                trigger.fire();
            }
        }
    }
}

/// A Node changes with every report of its kubelet, of which the metadata shows only a new
/// `resourceVersion`. Whatever else is watched changes seldom.
fn is_news<K: Resource>(before: &ObjectMeta, after: &ObjectMeta, dyntype: &K::DynamicType) -> bool {
    K::kind(dyntype) != "Node"
        || before.uid != after.uid
        || before.labels != after.labels
        || before.deletion_timestamp != after.deletion_timestamp
}
