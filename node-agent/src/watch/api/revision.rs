//! From the revision a node is asked to run to its configuration.
//!
//! Owns what is running. Nothing that disappears changes it: neither the ServiceNetworkNode nor the
//! revision nor the CRDs; only another revision does, once it was read and understood.
//!
//! ```text
//! asked for one ----------------------> read it --+--> understood: Change::Config
//! asked for none, nothing running ----> last good-+
//! asked for none, something running --> goes on        otherwise: verdict, try again after a pause
//! ```

use std::sync::Arc;

use fairlead_crds::{
    api_client::explain,
    names::{LAST_GOOD_LABEL, NAMESPACE, REVISION_LABEL, REVISION_OF_AGENT},
    revision::decode,
};
use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use tokio::{sync::watch as cell, time::sleep};
use tracing::{error, info};

use super::{Outlet, OwnNode};
use crate::{
    backoff::Backoff,
    watch::{Change, Configured},
};

/// What came of the revision asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// None was asked for.
    #[default]
    NotAsked,
    /// It was read and understood, and is running.
    Accepted {
        /// Its name.
        revision: String,
    },
    /// It cannot be run.
    Refused {
        /// Its name.
        revision: String,
        /// A word of a closed list.
        reason: RefusalReason,
        /// Why, and what to do.
        message: String,
    },
}

/// Why a revision cannot be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// There is none of that name.
    Missing,
    /// It cannot be read at the moment.
    Unreadable,
    /// This version of the agent does not understand it.
    NotUnderstood,
}

impl RefusalReason {
    /// As conditions and metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "RevisionNotFound",
            Self::Unreadable => "RevisionNotReadable",
            Self::NotUnderstood => "RevisionNotUnderstood",
        }
    }
}

impl Verdict {
    /// The revision it is about.
    pub fn revision(&self) -> Option<&str> {
        match self {
            Self::NotAsked => None,
            Self::Accepted { revision } | Self::Refused { revision, .. } => Some(revision),
        }
    }
}

/// See the module.
pub(super) struct Revisions {
    api: Api<ControllerRevision>,
    own: cell::Receiver<OwnNode>,
    running: Option<Configured>,
    verdict: cell::Sender<Verdict>,
    outlet: Outlet,
}

impl Revisions {
    pub fn new(
        client: &Client,
        own: cell::Receiver<OwnNode>,
        running: Option<Configured>,
        outlet: Outlet,
    ) -> (Self, cell::Receiver<Verdict>) {
        let (verdict, receiver) = cell::channel(Verdict::default());
        let api = Api::namespaced(client.clone(), NAMESPACE);
        (Self { api, own, running, verdict, outlet }, receiver)
    }

    /// Until the source ends.
    pub async fn run(mut self) {
        if let Some(running) = &self.running {
            self.outlet.send(vec![Change::Config(running.clone())]);
        }
        let mut backoff = Backoff::default();
        let mut own = self.own.clone();
        loop {
            let seen = own.borrow_and_update().clone();
            let settled = tokio::select! {
                settled = self.pursue(&seen) => settled,
                // Whatever is being read may not be asked for any more.
                changed = own.changed() => if changed.is_ok() { continue } else { return },
            };
            let pause = backoff.pause();
            tokio::select! {
                changed = own.changed() => if changed.is_err() { return } else { backoff.reset() },
                () = sleep(pause), if !settled => {}
            }
            if settled {
                backoff.reset();
            }
        }
    }

    /// One attempt. True when there is nothing more to do until something else is asked for.
    async fn pursue(&mut self, own: &OwnNode) -> bool {
        let running = self.running.as_ref().and_then(|running| running.revision.clone());
        match (own, own.revision()) {
            (OwnNode::Unknown, _) => true,
            (_, Some(asked)) if running.as_deref() == Some(asked) => {
                self.decide(Verdict::Accepted { revision: asked.to_owned() });
                true
            }
            (_, Some(asked)) => {
                let accepted = self.read(asked).await;
                if !accepted && self.running.is_none() {
                    self.take_last_good().await;
                }
                accepted
            }
            (_, None) => {
                self.decide(Verdict::NotAsked);
                self.running.is_some() || self.take_last_good().await
            }
        }
    }

    async fn read(&mut self, asked: &str) -> bool {
        let refused = |reason, message| Verdict::Refused { revision: asked.to_owned(), reason, message };
        let verdict = match self.api.get_opt(asked).await {
            Err(error) => refused(
                RefusalReason::Unreadable,
                format!("failed to read revision {asked}, trying again: {}", explain(&error)),
            ),
            Ok(None) => refused(
                RefusalReason::Missing,
                format!(
                    "there is no revision {asked} in namespace {NAMESPACE}: the operator writes it again"
                ),
            ),
            Ok(Some(revision)) => match decode(&revision) {
                Ok(config) => {
                    self.run_on(Configured { config, revision: Some(asked.into()) });
                    Verdict::Accepted { revision: asked.to_owned() }
                }
                Err(error) => refused(RefusalReason::NotUnderstood, format!("revision {asked} {error}")),
            },
        };
        let accepted = matches!(verdict, Verdict::Accepted { .. });
        self.decide(verdict);
        accepted
    }

    /// What every node programmed last, for a node that nobody tells anything.
    async fn take_last_good(&mut self) -> bool {
        let labels = format!("{REVISION_LABEL}={REVISION_OF_AGENT},{LAST_GOOD_LABEL}=true");
        let list = match self.api.list(&ListParams::default().labels(&labels)).await {
            Ok(list) => list,
            Err(error) => {
                tracing::debug!("failed to look for the last good revision: {}", explain(&error));
                return false;
            }
        };
        let Some(newest) = list.items.into_iter().max_by_key(|revision| revision.revision) else {
            tracing::debug!(
                "no revision is asked for, and none is known to be good: waiting for the operator"
            );
            return false;
        };
        let revision: Arc<str> = newest.name_any().into();
        match decode(&newest) {
            Ok(config) => {
                info!(%revision, "no other revision can be run: taking the last good one");
                self.run_on(Configured { config, revision: Some(revision) });
                true
            }
            Err(error) => {
                error!(%revision, "the last good revision {error}");
                false
            }
        }
    }

    fn run_on(&mut self, configured: Configured) {
        info!(revision = configured.revision.as_deref(), "running on another revision");
        self.running = Some(configured.clone());
        self.outlet.send(vec![Change::Config(configured)]);
    }

    fn decide(&self, verdict: Verdict) {
        self.verdict.send_if_modified(|known| {
            if *known == verdict {
                return false;
            }
            if let Verdict::Refused { message, reason, .. } = &verdict {
                error!(reason = reason.as_str(), "the revision asked for is not run: {message}");
            }
            *known = verdict;
            true
        });
    }
}
