//! One list and watch of one kind, for ever.
//!
//! Owns the position in the stream of changes and the way back to it; keeps no object. kube's `watcher`
//! does the same, but hides bookmarks and reconnections, which tell here that a quiet kind is well, and
//! lists again from whatever state a server has, be it older than what was seen of another.
//!
//! ```text
//!  list (streamed)  --initial events end-->  watch --ended--> watch from the last version
//!     ^                                        |
//!     +------------- 410 Gone -----------------+
//! ```

use std::{fmt::Debug, pin::pin, sync::Arc, time::Duration};

use fairlead_crds::api_client;
use futures::{Stream, StreamExt as _};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{ListParams, VersionMatch, WatchEvent, WatchParams},
    core::Status,
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use crate::backoff::{Backoff, jitter};

/// A watch that ended sooner, even if without an error, is a reason for a pause.
const SHORT: Duration = Duration::from_secs(5);
/// Annotation of the bookmark behind the last object of a streamed list.
const LIST_END: &str = "k8s.io/initial-events-end";
/// How long a watch may last before the server ends it, in seconds; kube allows less than 295. Spread, so
/// that agents that started together do not reconnect together.
const WATCH: (u64, u64) = (200, 90);

/// What happened.
#[derive(Debug)]
pub(super) enum Event<T> {
    /// A list begins: what it does not name until its end is gone.
    ListBegins,
    /// An object of the list.
    Listed(T),
    /// The list is complete.
    ListEnds,
    /// An object was added or changed.
    Changed(T),
    /// An object was deleted.
    Deleted(T),
}

/// Takes what happens.
pub(super) trait Handler<T> {
    /// In order, each once.
    fn event(&mut self, event: Event<T>);
    /// A sign of life of the watch: an event, or the server's word that there is none.
    fn alive(&mut self);
    /// An attempt failed; the next follows after a pause.
    fn failed(&mut self, failure: &Failure);
}

/// Why there is no watch at the moment.
#[derive(Debug)]
pub(super) enum Failure {
    /// A request or a connection failed.
    Request(kube::Error),
    /// The server ended the watch with an error.
    Watch(Box<Status>),
    /// It was over too soon.
    Ended,
}

impl Failure {
    fn status(&self) -> Option<&Status> {
        match self {
            Self::Request(kube::Error::Api(status)) | Self::Watch(status) => Some(status),
            Self::Request(_) | Self::Ended => None,
        }
    }

    /// The server has forgotten the version to continue from.
    fn is_expired(&self) -> bool {
        self.status().is_some_and(|status| status.code == 410)
    }

    /// There is no such kind, or no such object.
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(|status| status.code == 404)
    }

    /// The server does not stream lists: a gate that Kubernetes 1.33 has switched off.
    fn is_no_streaming(&self) -> bool {
        self.status().is_some_and(|status| status.code == 422 || status.code == 400)
    }

    /// In one sentence.
    pub fn sentence(&self) -> String {
        match self {
            Self::Request(error) => api_client::explain(error),
            Self::Watch(status) => format!("the API server ended the watch: {}", status.message),
            Self::Ended => "the API server ended the watch at once".to_owned(),
        }
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        Self::Request(error)
    }
}

/// Which objects are followed.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    pub labels: Option<String>,
    pub fields: Option<String>,
}

impl Selection {
    /// The one object of this name.
    pub fn named(name: &str) -> Self {
        Self { fields: Some(format!("metadata.name={name}")), ..Self::default() }
    }
}

/// See the module.
pub(super) struct Follow<T> {
    api: Api<T>,
    selection: Selection,
    /// Whether the server streams lists; found out by asking.
    streams_lists: bool,
    /// The newest version seen. Lists are asked to be no older: another server may be behind.
    newest: String,
    /// The watch can go on from there.
    resumable: bool,
    /// The last attempt failed.
    failing: bool,
    /// One of the agent's watches works again: no other needs to wait any longer.
    back: Arc<Notify>,
}

impl<T> Follow<T>
where
    T: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    pub fn new(api: Api<T>, selection: Selection, back: Arc<Notify>) -> Self {
        // Any version will do for the first list: a quorum read of every agent at once is what brings
        // an API server down.
        let newest = "0".to_owned();
        Self { api, selection, streams_lists: true, newest, resumable: false, failing: false, back }
    }

    /// Follows until it is dropped.
    pub async fn run(mut self, handler: &mut impl Handler<T>) {
        let mut backoff = Backoff::default();
        loop {
            let began = Instant::now();
            let listing = !self.resumable;
            let result = self.session(handler).await;
            let lasted = began.elapsed();
            if lasted > SHORT {
                backoff.reset();
            }
            let failure = match result {
                Ok(()) if lasted > SHORT => continue,
                Ok(()) => Failure::Ended,
                Err(failure) => failure,
            };
            if failure.is_expired() && !listing {
                tracing::debug!(kind = %T::kind(&()), "the version to continue from has expired: listing again");
                self.resumable = false;
                continue;
            }
            if !self.resumable && self.streams_lists && failure.is_no_streaming() {
                tracing::info!(kind = %T::kind(&()), "the API server does not stream lists: listing whole");
                self.streams_lists = false;
                continue;
            }
            if !self.resumable {
                // The version may be one that this server never had: after a restore of etcd. Ask for
                // the most recent state instead, whichever that is.
                self.newest = String::new();
            }
            handler.failed(&failure);
            self.failing = true;
            tokio::select! {
                () = sleep(backoff.pause()) => {}
                () = self.back.notified() => {}
            }
        }
    }

    /// One connection: a list if one is due, then the watch, until either ends.
    async fn session(&mut self, handler: &mut impl Handler<T>) -> Result<(), Failure> {
        let streamed = !self.resumable && self.streams_lists;
        if !self.resumable && !streamed {
            self.list(handler).await?;
        }
        let mut params = WatchParams::default().timeout(watch_seconds());
        params.label_selector.clone_from(&self.selection.labels);
        params.field_selector.clone_from(&self.selection.fields);
        params.send_initial_events = streamed;
        let events = self.api.watch(&params, &self.newest).await?;
        handler.alive();
        if std::mem::take(&mut self.failing) {
            self.back.notify_waiters();
        }
        if streamed {
            handler.event(Event::ListBegins);
        }
        self.watch(pin!(events), streamed, handler).await
    }

    async fn list(&mut self, handler: &mut impl Handler<T>) -> Result<(), Failure> {
        let mut params = ListParams {
            label_selector: self.selection.labels.clone(),
            field_selector: self.selection.fields.clone(),
            ..ListParams::default()
        };
        if !self.newest.is_empty() {
            params.resource_version = Some(self.newest.clone());
            params.version_match = Some(VersionMatch::NotOlderThan);
        }
        let list = self.api.list(&params).await?;
        handler.event(Event::ListBegins);
        for object in list.items {
            handler.event(Event::Listed(object));
        }
        handler.event(Event::ListEnds);
        self.newest = list.metadata.resource_version.unwrap_or_default();
        self.resumable = !self.newest.is_empty();
        Ok(())
    }

    async fn watch(
        &mut self,
        mut events: impl Stream<Item = kube::Result<WatchEvent<T>>> + Unpin,
        mut listing: bool,
        handler: &mut impl Handler<T>,
    ) -> Result<(), Failure> {
        while let Some(event) = events.next().await {
            let event = event?;
            handler.alive();
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) if listing => {
                    handler.event(Event::Listed(object));
                }
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    self.advance(object.resource_version());
                    handler.event(Event::Changed(object));
                }
                WatchEvent::Deleted(object) => {
                    self.advance(object.resource_version());
                    handler.event(Event::Deleted(object));
                }
                WatchEvent::Bookmark(bookmark) => {
                    if listing && bookmark.metadata.annotations.contains_key(LIST_END) {
                        listing = false;
                        self.resumable = true;
                        handler.event(Event::ListEnds);
                    }
                    if !listing {
                        self.advance(Some(bookmark.metadata.resource_version));
                    }
                }
                WatchEvent::Error(status) => return Err(Failure::Watch(status)),
            }
        }
        Ok(())
    }

    fn advance(&mut self, version: Option<String>) {
        if let Some(version) = version.filter(|version| !version.is_empty()) {
            self.newest = version;
        }
    }
}

fn watch_seconds() -> u32 {
    let (shortest, spread) = WATCH;
    u32::try_from(shortest + jitter(Duration::from_secs(spread)).as_secs()).unwrap_or(u32::MAX)
}
