//! This node's ServiceNetworkNode.
//!
//! Absent is a state as good as any other: without an operator, or without our CRDs, the node goes on
//! with what it runs, and nobody is told every half minute.

use std::{sync::Arc, time::Instant};

use fairlead_crds::ServiceNetworkNode;
use tokio::sync::watch as cell;
use tracing::{error, info};

use super::{
    Outlet,
    follow::{Event, Failure, Handler},
};
use crate::watch::SourceError;

const KIND: &str = "ServiceNetworkNode";

/// What is known of it.
#[derive(Clone, Debug, Default)]
pub enum OwnNode {
    /// The API has not said yet.
    #[default]
    Unknown,
    /// There is none, or no such kind.
    Absent,
    /// As last seen, without managed fields.
    Present(Arc<ServiceNetworkNode>),
}

impl OwnNode {
    /// The object, if there is one.
    pub fn object(&self) -> Option<&Arc<ServiceNetworkNode>> {
        match self {
            Self::Present(object) => Some(object),
            Self::Unknown | Self::Absent => None,
        }
    }

    /// The revision it asks for.
    pub fn revision(&self) -> Option<&str> {
        self.object()?.spec.revision.as_deref()
    }
}

/// Publishes it.
pub(super) struct OwnHandler {
    outlet: Outlet,
    own: cell::Sender<OwnNode>,
    /// The list that is being read named it.
    listed: bool,
    failing: bool,
}

impl OwnHandler {
    pub fn new(outlet: Outlet) -> (Self, cell::Receiver<OwnNode>) {
        let (own, receiver) = cell::channel(OwnNode::default());
        (Self { outlet, own, listed: false, failing: false }, receiver)
    }

    fn publish(&self, mut object: ServiceNetworkNode) {
        object.metadata.managed_fields = None;
        self.own.send_replace(OwnNode::Present(Arc::new(object)));
    }

    fn absent(&self) {
        let is_new = |own: &mut OwnNode| !matches!(std::mem::replace(own, OwnNode::Absent), OwnNode::Absent);
        if self.own.send_if_modified(is_new) {
            info!(node = &*self.outlet.node, "there is no ServiceNetworkNode of this node");
        }
    }
}

impl Handler<ServiceNetworkNode> for OwnHandler {
    fn event(&mut self, event: Event<ServiceNetworkNode>) {
        match event {
            Event::ListBegins => self.listed = false,
            Event::Listed(object) => {
                self.listed = true;
                self.publish(object);
            }
            Event::Changed(object) => self.publish(object),
            Event::ListEnds => {
                self.outlet.status(KIND, |status| status.lists += 1);
                if !self.listed {
                    self.absent();
                }
            }
            Event::Deleted(_) => self.absent(),
        }
        let objects = usize::from(self.own.borrow().object().is_some());
        self.outlet.status(KIND, |status| status.objects = objects);
    }

    fn alive(&mut self) {
        self.outlet.status(KIND, |status| status.alive = Some(Instant::now()));
        if std::mem::take(&mut self.failing) {
            info!(kind = KIND, "following again");
            self.outlet.report(KIND, Vec::new());
        }
    }

    fn failed(&mut self, failure: &Failure) {
        if failure.is_not_found() {
            if std::mem::take(&mut self.failing) {
                self.outlet.report(KIND, Vec::new());
            }
            return self.absent();
        }
        self.outlet.status(KIND, |status| status.failures += 1);
        let problem = failure.sentence();
        if !std::mem::replace(&mut self.failing, true) {
            error!(kind = KIND, "failed to follow objects, what is known of them holds on: {problem}");
        }
        self.outlet.report(KIND, vec![SourceError::Follow { kind: KIND, problem }]);
    }
}
