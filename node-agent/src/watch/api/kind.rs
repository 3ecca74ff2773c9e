//! One kind that the model is built from: from events to changes, health and log.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Instant};

use k8s_openapi::api::core::v1::Node;
use tracing::{error, info};

use super::{
    Outlet,
    follow::{Event, Failure, Handler},
    lean::{Kind, Lean},
    tracker::Tracker,
};
use crate::watch::{Change, EndpointSlice, ObjectId, SourceError};

/// Changes of one list that are sent together.
const BATCH: usize = 500;

/// See the module.
pub(super) struct KindHandler {
    kind: &'static str,
    outlet: Outlet,
    tracker: Tracker,
    /// Of a list that is still being read.
    batch: Vec<Change>,
    listed: bool,
    failing: Option<String>,
    /// As it was reported last.
    broken: BTreeMap<ObjectId, String>,
}

impl KindHandler {
    pub fn new(kind: &'static str, outlet: Outlet) -> Self {
        Self {
            kind,
            outlet,
            tracker: Tracker::default(),
            batch: Vec::new(),
            listed: false,
            failing: None,
            broken: BTreeMap::new(),
        }
    }

    fn flush(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        if batch.iter().any(|change| matches!(change, Change::Slice(slice) if is_of_api_server(slice))) {
            self.learn_api_servers();
        }
        self.outlet.send(batch);
    }

    fn learn_api_servers(&self) {
        let slices = self.tracker.sent().filter_map(|change| match change {
            Change::Slice(slice) => Some(slice),
            _ => None,
        });
        self.outlet.api_servers.learn(api_servers(slices));
    }

    /// Publishes what is wrong, and logs what is new in it.
    fn report(&mut self) {
        let broken = self.tracker.broken();
        for (object, problem) in broken.iter().filter(|(id, problem)| self.broken.get(*id) != Some(*problem))
        {
            error!(%object, "the object cannot be used and is left out: {problem}");
        }
        self.broken.clone_from(broken);
        let no_node = (self.kind == Node::NAME && self.listed && self.tracker.len() == 0)
            .then(|| SourceError::NoNode { name: self.outlet.node.to_string() });
        let failing = self.failing.clone().map(|problem| SourceError::Follow { kind: self.kind, problem });
        let broken = self.broken.clone().into_iter();
        let broken = broken.map(|(object, problem)| SourceError::Object { object, problem });
        self.outlet.report(self.kind, no_node.into_iter().chain(failing).chain(broken).collect());
    }
}

impl<K: Kind> Handler<Lean<K>> for KindHandler {
    fn event(&mut self, event: Event<Lean<K>>) {
        let (begins, listing) = (matches!(event, Event::ListBegins), matches!(event, Event::Listed(_)));
        let ends = matches!(event, Event::ListEnds);
        self.batch.extend(self.tracker.take(event));
        if !listing && !begins || self.batch.len() >= BATCH {
            self.flush();
        }
        let objects = self.tracker.len();
        self.outlet.status(self.kind, |status| {
            status.objects = objects;
            status.lists += u64::from(ends);
        });
        if ends {
            self.listed = true;
            self.outlet.listed(self.kind);
        }
        if self.broken != *self.tracker.broken() && !listing && !begins || ends {
            self.report();
        }
    }

    fn alive(&mut self) {
        self.outlet.status(self.kind, |status| status.alive = Some(Instant::now()));
        if self.failing.take().is_some() {
            info!(kind = self.kind, "following again");
            self.report();
        }
    }

    fn failed(&mut self, failure: &Failure) {
        self.outlet.status(self.kind, |status| status.failures += 1);
        let problem = failure.sentence();
        if self.failing.is_none() {
            error!(kind = self.kind, "failed to follow objects, what is known of them holds on: {problem}");
        }
        if self.failing.as_ref() != Some(&problem) {
            self.failing = Some(problem);
            self.report();
        }
    }
}

/// Where the API servers listen, by the endpoints of the Service `kubernetes`.
pub fn api_servers<'a>(slices: impl Iterator<Item = &'a Arc<EndpointSlice>>) -> Vec<SocketAddr> {
    let of_slice = |slice: &'a Arc<EndpointSlice>| {
        let ports = slice.ports.iter().filter(|port| &*port.name == "https");
        ports.flat_map(|port| slice.endpoints.iter().map(|e| SocketAddr::new(e.address, port.port)))
    };
    let mut addresses: Vec<_> = slices.filter(|slice| is_of_api_server(slice)).flat_map(of_slice).collect();
    addresses.sort_unstable();
    addresses
}

fn is_of_api_server(slice: &EndpointSlice) -> bool {
    &*slice.key.namespace == "default" && &*slice.service == "kubernetes"
}
