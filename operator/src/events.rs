//! Events: what changed, told once.
//!
//! Which Events there are follows from the conditions before and after; nothing is told that stayed
//! as it was.

use fairlead_crds::{
    conditions::{READY, RECONCILING, STALLED, find},
    names::NAMESPACE,
};
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use crate::{
    error::chain,
    status::{Reason, cut},
};

/// As the API bounds a note.
const NOTE: usize = 1024;

/// Writes Events on one object.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

impl Events {
    /// For an operator whose pod has this name.
    pub fn new(client: Client, instance: String) -> Self {
        let reporter = Reporter { controller: "fairlead.dev/operator".to_owned(), instance: Some(instance) };
        Self { recorder: Recorder::new(client, reporter) }
    }

    /// Tells. An Event that cannot be written is logged: nothing depends on it.
    pub async fn tell(&self, on: &ObjectReference, events: Vec<Event>) {
        for event in events {
            if let Err(error) = self.recorder.publish(&event, on).await {
                tracing::warn!(error = chain(&error), reason = event.reason, "event not written");
            }
        }
    }
}

/// What has changed between two lists of conditions, with the revision that it is about: Events of the
/// same reason are counted on the first of them, whose note stays, unless they are about another object.
pub fn transitions(before: &[Condition], after: &[Condition], revision: Option<&str>) -> Vec<Event> {
    let events = [STALLED, RECONCILING, READY].into_iter().filter_map(|it| transition(before, after, it));
    events.map(|event| Event { secondary: revision.map(revision_reference), ..event }).collect()
}

fn revision_reference(name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("apps/v1".to_owned()),
        kind: Some("ControllerRevision".to_owned()),
        namespace: Some(NAMESPACE.to_owned()),
        name: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}

fn transition(before: &[Condition], after: &[Condition], type_: &str) -> Option<Event> {
    let now = find(after, type_)?;
    let was = find(before, type_);
    if was.is_some_and(|was| was.status == now.status && was.reason == now.reason) {
        return None;
    }
    let expected = [Reason::AsExpected, Reason::RollingOut].map(Reason::as_str);
    let type_ = match (type_, expected.contains(&now.reason.as_str())) {
        // Stalled and Reconciling tell the same, and say why.
        (READY, false)
            if find(after, STALLED)
                .or(find(after, RECONCILING))
                .is_some_and(|it| it.reason == now.reason) =>
        {
            return None;
        }
        (READY, true) if now.reason == Reason::RollingOut.as_str() => return None,
        (_, true) => EventType::Normal,
        (_, false) => EventType::Warning,
    };
    Some(event(type_, &now.reason, &now.message, "Reconcile"))
}

/// That a pod of the agents is being replaced.
pub fn replacing(pod: ObjectReference, node: &str) -> Event {
    let message = format!("replacing the agent on {node} by one of the present version");
    Event { secondary: Some(pod), ..event(EventType::Normal, "ReplacingAgent", &message, "Replace") }
}

fn event(type_: EventType, reason: &str, note: &str, action: &str) -> Event {
    Event {
        type_,
        reason: reason.to_owned(),
        note: Some(cut(note, NOTE)),
        action: action.to_owned(),
        secondary: None,
    }
}

#[cfg(test)]
mod tests {
    use fairlead_crds::conditions::{Truth, Wanted, update};
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn conditions(wanted: &[(&'static str, bool, Reason, &str)]) -> Vec<Condition> {
        let wanted = wanted.iter().map(|(type_, status, reason, message)| Wanted {
            type_,
            status: Truth::from(*status),
            reason: reason.as_str(),
            message: (*message).to_owned(),
        });
        update(&[], wanted.collect(), Some(1), Timestamp::UNIX_EPOCH)
    }

    fn told(before: &[Condition], after: &[Condition]) -> Vec<(EventType, String)> {
        let events = transitions(before, after, Some("fairlead-1"));
        assert!(
            events
                .iter()
                .all(|event| event.secondary.as_ref().unwrap().name.as_deref() == Some("fairlead-1"))
        );
        events.into_iter().map(|event| (event.type_, event.reason)).collect()
    }

    #[test]
    fn a_rollout_is_told_when_it_begins_and_when_it_ends_and_not_in_between() {
        let ready = conditions(&[(READY, true, Reason::AsExpected, "3 of 3")]);
        let rolling = |message| {
            conditions(&[
                (READY, true, Reason::RollingOut, message),
                (RECONCILING, true, Reason::RollingOut, message),
            ])
        };
        let normal = |reason: &str| vec![(EventType::Normal, reason.to_owned())];
        assert_eq!(told(&ready, &rolling("0 of 3")), normal("RollingOut"));
        assert_eq!(told(&rolling("0 of 3"), &rolling("1 of 3")), []);
        assert_eq!(told(&rolling("2 of 3"), &ready), normal("AsExpected"));
        assert_eq!(told(&ready, &ready), []);
    }

    #[test]
    fn a_refused_spec_is_told_once_and_as_a_warning() {
        let ready = conditions(&[(READY, true, Reason::AsExpected, "")]);
        let stalled = conditions(&[
            (READY, false, Reason::InvalidSpec, "spec.proxy"),
            (STALLED, true, Reason::InvalidSpec, "spec.proxy"),
        ]);
        assert_eq!(told(&ready, &stalled), [(EventType::Warning, "InvalidSpec".to_owned())]);
        assert_eq!(told(&stalled, &ready), [(EventType::Normal, "AsExpected".to_owned())]);
    }

    #[test]
    fn agents_that_are_away_are_told_as_a_warning() {
        let ready = conditions(&[(READY, true, Reason::AsExpected, "")]);
        let away = conditions(&[(READY, false, Reason::AgentsNotReady, "")]);
        assert_eq!(told(&ready, &away), [(EventType::Warning, "AgentsNotReady".to_owned())]);
    }
}
