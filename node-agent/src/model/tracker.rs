//! The state of all objects, and what changed of the rows since the last round.
//!
//! ```text
//! apply(change) -> marks the Service it touches -> take_changes() -> rebuilds what is marked,
//!                                                  settles disputes, compares with what was given
//! ```
//!
//! Rows wait until both node and configuration are known: without the one nothing is local, and
//! the other may say that this node is not ours to program.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    ops::Bound,
    sync::Arc,
};

use fairlead_crds::{NodeAgentConfig, ProxyMode};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;
use tracing::warn;

use super::{Family, Protocol, Row, SCHEDULER_ANNOTATION, ServicePortName, build, claims};
use crate::watch::{Change, Configured, EndpointSlice, Node, ObjectId, ObjectKey, Service, ServiceCidr};

/// What a dataplane needs to know of the node it is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeFacts {
    /// Name of the Node.
    pub name: Arc<str>,
    /// The primary address of each family, IPv4 before IPv6.
    pub addresses: Vec<IpAddr>,
    /// Where the pods of this node get their addresses.
    pub pod_cidrs: Vec<IpNet>,
    /// Where all cluster IPs are taken from, sorted.
    pub service_cidrs: Vec<IpNet>,
    /// Load balancers may send new connections here.
    pub eligible: bool,
}

/// What changed since the last time.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Rows with another value than before, by name; None for a port that is gone.
    pub rows: Vec<(ServicePortName, Option<Row>)>,
    /// The node, if anything about it changed.
    pub node: Option<NodeFacts>,
    /// The configuration, if it changed.
    pub config: Option<NodeAgentConfig>,
    /// When the endpoints changed that these rows are about, for the programming latency.
    pub trigger_times: Vec<Timestamp>,
    /// All sources have sent everything, now or before: what is in no row may be pruned.
    pub synced: bool,
}

impl Changes {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.node.is_none() && self.config.is_none()
    }
}

/// What every row rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Basis {
    node: Arc<str>,
    pub(super) addresses: Vec<IpAddr>,
}

/// All objects, and the rows that follow from them.
#[derive(Debug)]
pub struct Model {
    /// Endpoint changes before this moment were somebody else's to program.
    started: Timestamp,
    services: BTreeMap<ObjectKey, Arc<Service>>,
    /// Slices by the Service they are about, then by name.
    slices: BTreeMap<ObjectKey, BTreeMap<Arc<str>, Arc<EndpointSlice>>>,
    /// The Service of each slice.
    slice_service: HashMap<ObjectKey, Arc<str>>,
    cidrs: BTreeMap<Arc<str>, ServiceCidr>,
    node: Option<Node>,
    config: Option<Configured>,
    synced: bool,
    /// Restored objects that no source has confirmed yet.
    unconfirmed: BTreeSet<ObjectId>,

    /// Services to look at in the next round.
    pub(super) dirty: BTreeSet<ObjectKey>,
    /// What the rows were built on; None while there are to be none.
    pub(super) basis: Option<Basis>,
    trigger_times: Vec<Timestamp>,

    /// Every row as if it were alone.
    pub(super) built: BTreeMap<ServicePortName, Row>,
    claims: claims::Claims,
    /// Every row as it was given out, disputes settled.
    given: BTreeMap<ServicePortName, Row>,
    given_node: Option<NodeFacts>,
    given_config: Option<NodeAgentConfig>,
}

impl Model {
    /// Knows nothing yet. Endpoint changes older than `started` do not count as programming
    /// latency.
    pub fn new(started: Timestamp) -> Self {
        Self {
            started,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            slice_service: HashMap::new(),
            cidrs: BTreeMap::new(),
            node: None,
            config: None,
            synced: false,
            unconfirmed: BTreeSet::new(),
            dirty: BTreeSet::new(),
            basis: None,
            trigger_times: Vec::new(),
            built: BTreeMap::new(),
            claims: claims::Claims::default(),
            given: BTreeMap::new(),
            given_node: None,
            given_config: None,
        }
    }

    /// Takes in what a source says.
    pub fn apply(&mut self, change: Change) {
        if let Some(id) = ObjectId::of(&change) {
            self.unconfirmed.remove(&id);
        }
        self.enter(change);
    }

    /// Takes in the objects of a snapshot, except those that a source has spoken of: they are
    /// newer. What no source has confirmed by the time of `Synced` is gone with it.
    pub fn restore(&mut self, objects: impl IntoIterator<Item = Change>) {
        for change in objects {
            let Some(id) = ObjectId::of(&change) else { continue };
            if !self.knows(&id) {
                self.unconfirmed.insert(id);
                self.enter(change);
            }
        }
    }

    fn knows(&self, id: &ObjectId) -> bool {
        match id {
            ObjectId::Config => self.config.is_some(),
            ObjectId::Node(_) => self.node.is_some(),
            ObjectId::Cidr(name) => self.cidrs.contains_key(name),
            ObjectId::Service(key) => self.services.contains_key(key),
            ObjectId::Slice(key) => self.slice_service.contains_key(key),
        }
    }

    /// Everything that a snapshot must hold for `restore`: one change an object.
    pub fn objects(&self) -> impl Iterator<Item = Change> + '_ {
        let config = self.config.iter().cloned().map(Change::Config);
        let node = self.node.iter().cloned().map(Change::Node);
        let cidrs = self.cidrs.values().cloned().map(Change::Cidr);
        let services = self.services.values().cloned().map(Change::Service);
        let slices = self.slices().cloned().map(Change::Slice);
        config.chain(node).chain(cidrs).chain(services).chain(slices)
    }

    /// The Services, by namespace and name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The EndpointSlices, by their Service.
    pub fn slices(&self) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.slices.values().flat_map(BTreeMap::values)
    }

    /// The ServiceCIDRs, by name.
    pub fn cidrs(&self) -> impl Iterator<Item = &ServiceCidr> {
        self.cidrs.values()
    }

    /// Our own node, once known.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The configuration, once known.
    pub fn config(&self) -> Option<&NodeAgentConfig> {
        self.configured().map(|configured| &configured.config)
    }

    /// The configuration and where it is from, once known.
    pub fn configured(&self) -> Option<&Configured> {
        self.config.as_ref()
    }

    /// All sources have sent everything at least once.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// What is different from what the last call left behind.
    pub fn take_changes(&mut self) -> Changes {
        let facts = self.facts();
        let programs = self.config().is_some_and(|config| match config.proxy.mode {
            ProxyMode::IPVS => true,
            ProxyMode::None => false,
        });
        let basis = facts
            .as_ref()
            .filter(|_| programs)
            .map(|facts| Basis { node: facts.name.clone(), addresses: facts.addresses.clone() });
        let touched = self.rebuild(basis);
        let rows = self.give(touched);
        let times = std::mem::take(&mut self.trigger_times);
        let node = facts.filter(|facts| Some(facts) != self.given_node.as_ref());
        let config = self.config().filter(|config| Some(*config) != self.given_config.as_ref()).cloned();
        self.given_node = node.clone().or(self.given_node.take());
        self.given_config = config.clone().or(self.given_config.take());
        Changes {
            rows,
            node,
            config,
            trigger_times: if programs { times } else { Vec::new() },
            synced: self.synced,
        }
    }

    fn enter(&mut self, change: Change) {
        match change {
            Change::Service(service) => {
                let key = service.key.clone();
                let before = self.services.insert(key.clone(), service.clone());
                if before.as_ref() != Some(&service) {
                    if before.is_none_or(|b| b.annotations != service.annotations) {
                        warn_of_unknown_annotations(&service);
                    }
                    self.dirty.insert(key);
                }
            }
            Change::ServiceGone(key) => {
                if self.services.remove(&key).is_some() {
                    self.dirty.insert(key);
                }
            }
            Change::Slice(slice) => self.enter_slice(slice),
            Change::SliceGone(key) => self.remove_slice(&key),
            Change::Cidr(cidr) => {
                self.cidrs.insert(cidr.name.clone(), cidr);
            }
            Change::CidrGone(name) => {
                self.cidrs.remove(&name);
            }
            Change::Node(node) => self.node = Some(node),
            Change::Config(config) => self.config = Some(config),
            Change::Synced => {
                self.synced = true;
                for id in std::mem::take(&mut self.unconfirmed) {
                    if let Some(gone) = id.gone() {
                        self.enter(gone);
                    }
                }
            }
        }
    }

    fn enter_slice(&mut self, slice: Arc<EndpointSlice>) {
        let service = service_of(&slice);
        let before = self.slices.get(&service).and_then(|slices| slices.get(&slice.key.name));
        if before == Some(&slice) {
            return;
        }
        if before.is_none_or(|b| b.trigger_time != slice.trigger_time) {
            self.trigger_times.extend(slice.trigger_time.filter(|time| *time >= self.started));
        }
        // It may have been another Service's.
        self.remove_slice(&slice.key);
        self.slice_service.insert(slice.key.clone(), slice.service.clone());
        self.slices.entry(service.clone()).or_default().insert(slice.key.name.clone(), slice);
        self.dirty.insert(service);
    }

    fn remove_slice(&mut self, key: &ObjectKey) {
        let Some(name) = self.slice_service.remove(key) else { return };
        let service = ObjectKey { namespace: key.namespace.clone(), name };
        if let Some(slices) = self.slices.get_mut(&service) {
            slices.remove(&key.name);
            if slices.is_empty() {
                self.slices.remove(&service);
            }
        }
        self.dirty.insert(service);
    }

    /// Builds the rows of the marked Services anew, or of all if what all rest on has changed;
    /// returns the names of the rows that may differ.
    fn rebuild(&mut self, basis: Option<Basis>) -> BTreeSet<ServicePortName> {
        let mut dirty = std::mem::take(&mut self.dirty);
        if basis != self.basis {
            dirty.extend(self.services.keys().cloned());
            self.basis = basis;
        }
        let mut touched = BTreeSet::new();
        let mut changed_claims = BTreeMap::new();
        for key in dirty {
            let rows: BTreeMap<_, _> = match (self.services.get(&key), &self.basis) {
                (Some(service), Some(basis)) => {
                    let slices = self.slices.get(&key).into_iter().flat_map(BTreeMap::values);
                    build::rows(service, &slices, &basis.node).into_iter().collect()
                }
                _ => BTreeMap::new(),
            };
            for name in ports_of(&self.built, &key) {
                if !rows.contains_key(&name) {
                    self.built.remove(&name);
                    changed_claims.insert(name.clone(), Vec::new());
                    touched.insert(name);
                }
            }
            for (name, row) in rows {
                let node = self.basis.as_ref().map_or(&[][..], |basis| &basis.addresses);
                let claims = row.as_ref().map(|port| claims::of(port, node)).unwrap_or_default();
                changed_claims.insert(name.clone(), claims);
                touched.insert(name.clone());
                self.built.insert(name, row);
            }
        }
        touched.extend(self.claims.settle(changed_claims));
        touched
    }

    /// The rows among these that differ from what was given before.
    fn give(&mut self, touched: BTreeSet<ServicePortName>) -> Vec<(ServicePortName, Option<Row>)> {
        let mut rows = Vec::new();
        for name in touched {
            let row = self.built.get(&name).map(|row| match self.claims.refusal(&name) {
                Some(refusal) => Err(refusal.clone()),
                None => row.clone(),
            });
            if row.as_ref() == self.given.get(&name) {
                continue;
            }
            match &row {
                Some(row) => self.given.insert(name.clone(), row.clone()),
                None => self.given.remove(&name),
            };
            rows.push((name, row));
        }
        rows
    }

    /// What is known of the node this agent is on.
    pub fn facts(&self) -> Option<NodeFacts> {
        let node = self.node.as_ref()?;
        let primary = |family| node.internal_ips.iter().copied().find(|ip| Family::of(*ip) == family);
        let service_cidrs: BTreeSet<IpNet> =
            self.cidrs.values().flat_map(|c| c.cidrs.iter().copied()).collect();
        Some(NodeFacts {
            name: node.name.clone(),
            addresses: Family::ALL.into_iter().filter_map(primary).collect(),
            pod_cidrs: node.pod_cidrs.clone(),
            service_cidrs: service_cidrs.into_iter().collect(),
            eligible: node.eligible,
        })
    }
}

fn service_of(slice: &EndpointSlice) -> ObjectKey {
    ObjectKey { namespace: slice.key.namespace.clone(), name: slice.service.clone() }
}

/// The names of a Service's ports among these rows, which sort by Service first.
fn ports_of(rows: &BTreeMap<ServicePortName, Row>, service: &ObjectKey) -> Vec<ServicePortName> {
    let first = ServicePortName {
        namespace: service.namespace.clone(),
        service: service.name.clone(),
        port: "".into(),
        protocol: Protocol::Tcp,
    };
    rows.range((Bound::Included(first), Bound::Unbounded))
        .map(|(name, _)| name)
        .take_while(|name| name.namespace == service.namespace && name.service == service.name)
        .cloned()
        .collect()
}

/// A later version may know them, so the Service is served all the same.
fn warn_of_unknown_annotations(service: &Service) {
    for annotation in service.annotations.keys().filter(|name| *name != SCHEDULER_ANNOTATION) {
        warn!(service = %service.key, annotation, "ignoring an annotation that this version does not know");
    }
}
