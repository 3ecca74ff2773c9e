//! Writes the status, and only when it says something new.
//!
//! Owns the moment: after a random pause, so that a change of a thousand nodes does not reach the API
//! server as one blow; not while the node is on its way to the state it will tell a moment later; and
//! for a message alone, rarely.

use std::{sync::Arc, time::Duration};

use fairlead_crds::{
    ServiceNetworkNode, ServiceNetworkNodeStatus,
    api_client::explain,
    conditions::{ACCEPTED, HEALTHY, PROGRAMMED},
    names::AGENT_MANAGER,
};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::watch as cell,
    time::{Instant, sleep, sleep_until},
};

use super::{
    events::{Events, transitions},
    status::{Reason, status},
};
use crate::{
    backoff::{Backoff, jitter},
    status::Shared,
    watch::api::{OwnNode, OwnSource, Verdict},
};

const OURS: [&str; 3] = [ACCEPTED, PROGRAMMED, HEALTHY];
/// Longest random pause before a write.
const JITTER: Duration = Duration::from_millis(1500);
/// How long something may be on its way before that is told.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between writes that change a message and nothing else.
const RARE: Duration = Duration::from_secs(60);
/// The dataplane says much in a burst; it is heard once.
const BURST: Duration = Duration::from_millis(100);

/// See the module.
pub struct Reporter {
    api: Api<ServiceNetworkNode>,
    events: Events,
    own: cell::Receiver<OwnNode>,
    verdict: cell::Receiver<Verdict>,
    shared: Shared,
    version: String,
    /// What was written last, and the version of the object it was written over: until the watch shows
    /// another version, this is what the API has.
    written: Option<(Option<String>, ServiceNetworkNodeStatus)>,
    wrote_at: Option<Instant>,
}

/// How soon a status is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Urgency {
    /// Something changed.
    Soon,
    /// The node is on its way to another state.
    WhenItLasts,
    /// Only messages changed.
    Rarely,
}

/// A status that differs from what the API has.
struct Draft {
    object: Arc<ServiceNetworkNode>,
    known: ServiceNetworkNodeStatus,
    wanted: ServiceNetworkNodeStatus,
}

/// Since when there is a draft, and the random part of its pause.
struct Need {
    since: Instant,
    jitter: Duration,
}

impl Reporter {
    /// A writer for the agent of `node`, whose version is `version`.
    pub fn new(client: &Client, node: &str, own: &OwnSource, shared: Shared, version: &str) -> Self {
        Self {
            api: Api::all(client.clone()),
            events: Events::new(client, node),
            own: own.node(),
            verdict: own.verdict(),
            shared,
            version: version.to_owned(),
            written: None,
            wrote_at: None,
        }
    }

    /// Until what it reports on has ended.
    pub async fn run(mut self) {
        let mut dataplane = self.shared.changes();
        let mut need: Option<Need> = None;
        let mut backoff = Backoff::default();
        let mut not_before = Instant::now();
        loop {
            let mut until = Instant::now() + RARE;
            if let Some(draft) = self.draft() {
                let need = need.get_or_insert_with(|| Need { since: Instant::now(), jitter: jitter(JITTER) });
                until = self.due(&draft, need).max(not_before);
                if until <= Instant::now() {
                    match self.write(draft).await {
                        Ok(()) => backoff.reset(),
                        Err(error) => {
                            tracing::warn!("failed to write the status, trying again: {}", explain(&error));
                            not_before = Instant::now() + backoff.pause();
                        }
                    }
                    continue;
                }
            } else {
                need = None;
            }
            let changed = tokio::select! {
                changed = self.own.changed() => changed,
                changed = self.verdict.changed() => changed,
                changed = dataplane.changed() => changed,
                () = sleep_until(until) => continue,
            };
            if changed.is_err() {
                return;
            }
            sleep(BURST).await;
        }
    }

    /// The status as it should be, unless the API has it.
    fn draft(&mut self) -> Option<Draft> {
        let object = self.own.borrow_and_update().object().cloned()?;
        let verdict = self.verdict.borrow_and_update().clone();
        let mut known = match &self.written {
            Some((over, written)) if *over == object.resource_version() => written.clone(),
            _ => object.status.clone().unwrap_or_default(),
        };
        known.conditions.retain(|condition| OURS.contains(&condition.type_.as_str()));
        let wanted = status(
            &object,
            &known.conditions,
            &verdict,
            &self.shared.read(),
            &self.version,
            Timestamp::now(),
        );
        (wanted != known).then_some(Draft { object, known, wanted })
    }

    fn due(&self, draft: &Draft, need: &Need) -> Instant {
        let at = match urgency(&draft.known, &draft.wanted) {
            Urgency::Soon => need.since,
            Urgency::WhenItLasts => need.since + PATIENCE,
            Urgency::Rarely => self.wrote_at.map_or(need.since, |at| at + RARE),
        };
        at + need.jitter
    }

    async fn write(&mut self, draft: Draft) -> kube::Result<()> {
        let Draft { object, known, wanted } = draft;
        let patch = Patch::Apply(json!({
            "apiVersion": ServiceNetworkNode::api_version(&()),
            "kind": ServiceNetworkNode::kind(&()),
            "metadata": { "name": object.name_any() },
            "status": wanted,
        }));
        let params = PatchParams::apply(AGENT_MANAGER).force();
        let answer = self.api.patch_status(&object.name_any(), &params, &patch).await?;
        for told in transitions(&known.conditions, &wanted.conditions) {
            self.events.tell(told).await;
        }
        let written = answer.status.unwrap_or_default();
        self.written = Some((object.resource_version(), written));
        self.wrote_at = Some(Instant::now());
        Ok(())
    }
}

fn urgency(known: &ServiceNetworkNodeStatus, wanted: &ServiceNetworkNodeStatus) -> Urgency {
    if wanted.conditions.iter().any(|condition| condition.reason == Reason::Progressing.as_str()) {
        return Urgency::WhenItLasts;
    }
    let core = |status: &ServiceNetworkNodeStatus| {
        let mut status = status.clone();
        status.conditions.iter_mut().for_each(|condition| condition.message.clear());
        status
    };
    if core(known) == core(wanted) { Urgency::Rarely } else { Urgency::Soon }
}

#[cfg(test)]
mod tests {
    use fairlead_crds::conditions::{PROGRAMMED, Truth, Wanted, update};

    use super::*;

    fn with(status: Truth, reason: &'static str, message: &str) -> ServiceNetworkNodeStatus {
        let wanted = Wanted { type_: PROGRAMMED, status, reason, message: message.to_owned() };
        let conditions = update(&[], vec![wanted], Some(1), Timestamp::UNIX_EPOCH);
        ServiceNetworkNodeStatus { conditions, ..ServiceNetworkNodeStatus::default() }
    }

    #[test]
    fn what_passes_by_itself_is_written_only_when_it_lasts_and_words_alone_rarely() {
        let well = with(Truth::True, "AsExpected", "in the kernel");
        let on_its_way = with(Truth::False, Reason::Progressing.as_str(), "being programmed");
        let one_failed = with(Truth::False, Reason::ServicesFailed.as_str(), "1 service port");
        let two_failed = with(Truth::False, Reason::ServicesFailed.as_str(), "2 service ports");
        assert_eq!(urgency(&well, &on_its_way), Urgency::WhenItLasts);
        assert_eq!(urgency(&well, &one_failed), Urgency::Soon);
        assert_eq!(urgency(&one_failed, &two_failed), Urgency::Rarely);
        let other_revision =
            ServiceNetworkNodeStatus { revision: Some("fairlead-2".to_owned()), ..well.clone() };
        assert_eq!(urgency(&well, &other_revision), Urgency::Soon);
    }
}
