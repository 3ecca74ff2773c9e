//! The Kubernetes API as a source of objects.
//!
//! Owns one watch a kind, each with a connection of its own, and what was sent of it. Never writes to the
//! API, and knows no kernel.
//!
//! ```text
//! Service, EndpointSlice, Node, ServiceCIDR -> follow -> lean -> tracker --+--> changes, Synced
//! ServiceNetworkNode -> follow -> revision (ControllerRevision -> config) -+
//! ```

mod follow;
mod kind;
mod lean;
mod own;
mod revision;
mod tracker;

use std::sync::Arc;

use fairlead_crds::{
    ServiceNetworkNode,
    api_client::{ApiServers, Connection},
};
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use kube::{Api, Client};
use tokio::{
    sync::{Notify, watch as cell},
    task::JoinSet,
};

use self::{
    follow::{Follow, Selection},
    kind::KindHandler,
    lean::{Kind, Lean},
};
pub use self::{
    kind::api_servers,
    own::OwnNode,
    revision::{RefusalReason, Verdict},
};
use super::{Change, Configured, SourceError, SourceHealth, status::KindStatus};

/// What the model is built from. `Synced` waits for all of them.
const KINDS: [&str; 4] = [Service::NAME, EndpointSlice::NAME, Node::NAME, ServiceCIDR::NAME];

/// Services and slices that are another proxy's, and slices of headless Services, are not even sent to
/// us; as kube-proxy has it.
const OURS: &str = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";

/// A running source. Dropping it ends its tasks.
pub struct ApiSource {
    health: SourceHealth,
    own: OwnSource,
    tasks: JoinSet<()>,
}

/// The part of it that follows what this node is asked to run, and sends nothing but configurations.
/// Dropping it ends its tasks.
pub struct OwnSource {
    own: cell::Receiver<OwnNode>,
    verdict: cell::Receiver<Verdict>,
    tasks: JoinSet<()>,
}

impl ApiSource {
    /// Starts to follow the API as the agent of `node`, on the present runtime. `running` is the
    /// configuration that holds until another is asked for.
    ///
    /// `send` must not block. It is called without changes too, when only the health has changed.
    pub fn start(
        connection: &Connection,
        node: &str,
        running: Option<Configured>,
        send: impl Fn(Vec<Change>) + Send + Sync + 'static,
    ) -> Self {
        let client = &connection.client;
        let outlet = Outlet::new(connection, node, send);
        outlet.health.update(|status| {
            status.kinds = KINDS.iter().map(|kind| (*kind, KindStatus::default())).collect();
        });
        let mut tasks = JoinSet::new();
        let ours = || Selection { labels: Some(OURS.to_owned()), ..Selection::default() };
        spawn::<Service>(&mut tasks, client, ours(), &outlet);
        spawn::<EndpointSlice>(&mut tasks, client, ours(), &outlet);
        spawn::<Node>(&mut tasks, client, Selection::named(node), &outlet);
        spawn::<ServiceCIDR>(&mut tasks, client, Selection::default(), &outlet);
        let own = OwnSource::of(client, running, &outlet);
        Self { health: outlet.health, own, tasks }
    }

    /// The status of the source, which outlives it.
    pub fn health(&self) -> SourceHealth {
        self.health.clone()
    }

    /// What this node is asked to run.
    pub fn own(&self) -> &OwnSource {
        &self.own
    }

    /// Waits until a task ends, which none of them ever should.
    pub async fn ended(&mut self) {
        tokio::select! {
            _ = self.tasks.join_next() => {}
            _ = self.own.tasks.join_next() => {}
        }
    }
}

impl OwnSource {
    /// Starts to follow the ServiceNetworkNode of `node`, and nothing else; see [`ApiSource::start`].
    pub fn start(
        connection: &Connection,
        node: &str,
        running: Option<Configured>,
        send: impl Fn(Vec<Change>) + Send + Sync + 'static,
    ) -> Self {
        Self::of(&connection.client, running, &Outlet::new(connection, node, send))
    }

    fn of(client: &Client, running: Option<Configured>, outlet: &Outlet) -> Self {
        let mut tasks = JoinSet::new();
        let (mut handler, own) = own::OwnHandler::new(outlet.clone());
        let api = Api::<ServiceNetworkNode>::all(client.clone());
        let follow = Follow::new(api, Selection::named(&outlet.node), outlet.back.clone());
        tasks.spawn(async move { follow.run(&mut handler).await });
        let (revisions, verdict) = revision::Revisions::new(client, own.clone(), running, outlet.clone());
        tasks.spawn(revisions.run());
        Self { own, verdict, tasks }
    }

    /// This node's ServiceNetworkNode, as last seen.
    pub fn node(&self) -> cell::Receiver<OwnNode> {
        self.own.clone()
    }

    /// What came of the revision asked for.
    pub fn verdict(&self) -> cell::Receiver<Verdict> {
        self.verdict.clone()
    }
}

fn spawn<K: Kind>(tasks: &mut JoinSet<()>, client: &Client, selection: Selection, outlet: &Outlet)
where
    K::Scope: Send,
{
    let follow = Follow::<Lean<K>>::new(Api::all(client.clone()), selection, outlet.back.clone());
    let mut handler = KindHandler::new(K::NAME, outlet.clone());
    tasks.spawn(async move { follow.run(&mut handler).await });
}

/// Where all kinds send to.
#[derive(Clone)]
struct Outlet {
    node: Arc<str>,
    api_servers: ApiServers,
    health: SourceHealth,
    send: Arc<dyn Fn(Vec<Change>) + Send + Sync>,
    back: Arc<Notify>,
}

impl Outlet {
    fn new(connection: &Connection, node: &str, send: impl Fn(Vec<Change>) + Send + Sync + 'static) -> Self {
        Self {
            node: node.into(),
            api_servers: connection.servers.clone(),
            health: SourceHealth::default(),
            send: Arc::new(send),
            back: Arc::default(),
        }
    }

    fn send(&self, changes: Vec<Change>) {
        if !changes.is_empty() {
            (self.send)(changes);
        }
    }

    fn status(&self, kind: &'static str, change: impl FnOnce(&mut KindStatus)) {
        self.health.update(|status| change(status.kinds.entry(kind).or_default()));
    }

    /// Notes that all objects of a kind were sent; with the last kind everything was.
    fn listed(&self, kind: &'static str) {
        let synced = self.health.update(|status| {
            status.kinds.entry(kind).or_default().listed = true;
            let all = KINDS.iter().all(|kind| status.kinds.get(kind).is_some_and(|status| status.listed));
            all && !std::mem::replace(&mut status.synced, all)
        });
        if synced {
            tracing::info!("everything that exists was read from the API");
            self.send(vec![Change::Synced]);
        }
    }

    /// Replaces what is wrong with a kind.
    fn report(&self, kind: &'static str, errors: Vec<SourceError>) {
        self.health.update(|status| {
            status.kinds.entry(kind).or_default().errors = errors;
            status.errors = status.kinds.values().flat_map(|status| status.errors.clone()).collect();
        });
        // Whoever tells of it waits for changes.
        (self.send)(Vec::new());
    }
}
