//! Events on the Node, where people look first.

use fairlead_crds::{
    api_client::explain,
    conditions::{self, HEALTHY, PROGRAMMED, Truth},
    names::AGENT_MANAGER,
};
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};

use super::Reason;

/// Events about objects without a namespace are kept there.
const NAMESPACE: &str = "default";
/// The API takes no longer notes, in bytes.
const LONGEST_NOTE: usize = 1024;

/// A transition worth telling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// It is for the worse.
    pub warning: bool,
    pub reason: String,
    pub note: String,
}

/// What is to be told of a status that follows another: conditions that turned False, and those that
/// came back from it. Pure.
pub(super) fn transitions(before: &[Condition], after: &[Condition]) -> Vec<Told> {
    let is_false =
        |condition: Option<&Condition>| condition.is_some_and(|c| c.status == Truth::False.as_str());
    let mut told: Vec<Told> = Vec::new();
    for type_ in [PROGRAMMED, HEALTHY] {
        let Some(now) = conditions::find(after, type_) else { continue };
        let event = match (is_false(conditions::find(before, type_)), is_false(Some(now))) {
            // Merely slow.
            (false, true) if now.reason == Reason::Progressing.as_str() => continue,
            (false, true) => Told { warning: true, reason: now.reason.clone(), note: now.message.clone() },
            (true, false) => Told { warning: false, reason: type_.to_owned(), note: now.message.clone() },
            _ => continue,
        };
        // What keeps a node from being programmed is also what is wrong with it.
        if !told.contains(&event) {
            told.push(event);
        }
    }
    told
}

/// Writes Events on one Node.
pub(super) struct Events {
    api: Api<Event>,
    node: String,
}

impl Events {
    pub fn new(client: &Client, node: &str) -> Self {
        Self { api: Api::namespaced(client.clone(), NAMESPACE), node: node.to_owned() }
    }

    /// Tries once: an Event is a courtesy, the status is what counts.
    pub async fn tell(&self, told: Told) {
        let event = event(&self.node, told, Timestamp::now());
        if let Err(error) = self.api.create(&PostParams::default(), &event).await {
            tracing::warn!("failed to write an Event: {}", explain(&error));
        }
    }
}

fn event(node: &str, told: Told, now: Timestamp) -> Event {
    let Told { warning, reason, mut note } = told;
    while note.len() > LONGEST_NOTE {
        note.pop();
    }
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{node}.{:x}", now.as_nanosecond())),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some(if warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(reason),
        action: Some("Program".to_owned()),
        note: Some(note),
        event_time: Some(MicroTime(now)),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            // As the kubelet has it; `kubectl describe node` looks for both this and the Node's UID.
            uid: Some(node.to_owned()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(format!("fairlead.dev/{AGENT_MANAGER}")),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use fairlead_crds::conditions::{Wanted, update};

    use super::*;

    fn conditions(programmed: (Truth, &'static str), healthy: (Truth, &'static str)) -> Vec<Condition> {
        let wanted = |type_, (status, reason): (Truth, &'static str)| Wanted {
            type_,
            status,
            reason,
            message: format!("because of {reason}"),
        };
        let wanted = vec![wanted(PROGRAMMED, programmed), wanted(HEALTHY, healthy)];
        update(&[], wanted, Some(1), Timestamp::UNIX_EPOCH)
    }

    fn reasons(before: &[Condition], after: &[Condition]) -> Vec<(bool, String)> {
        transitions(before, after).into_iter().map(|told| (told.warning, told.reason)).collect()
    }

    #[test]
    fn trouble_is_told_once_and_so_is_its_end() {
        let well = conditions((Truth::True, "AsExpected"), (Truth::True, "AsExpected"));
        let ill = conditions((Truth::False, "KubeProxyConflict"), (Truth::False, "KubeProxyConflict"));
        assert_eq!(reasons(&[], &well), []);
        assert_eq!(reasons(&well, &ill), [(true, "KubeProxyConflict".to_owned())]);
        assert_eq!(reasons(&ill, &ill), []);
        assert_eq!(reasons(&[], &ill), reasons(&well, &ill));
        let back = [(false, PROGRAMMED.to_owned()), (false, HEALTHY.to_owned())];
        assert_eq!(reasons(&ill, &well), back);
    }

    #[test]
    fn a_condition_that_is_false_for_another_reason_is_no_transition() {
        let one = conditions((Truth::True, "AsExpected"), (Truth::False, "ServicesRefused"));
        let other = conditions((Truth::True, "AsExpected"), (Truth::False, "NotFollowing"));
        assert_eq!(reasons(&one, &other), []);
    }

    #[test]
    fn slowness_is_no_event() {
        let slow = conditions((Truth::False, Reason::Progressing.as_str()), (Truth::True, "AsExpected"));
        assert_eq!(reasons(&[], &slow), []);
    }

    #[test]
    fn a_note_is_cut_to_what_the_api_takes_between_two_characters() {
        let told = Told { warning: true, reason: "Late".to_owned(), note: "ä".repeat(1000) };
        assert_eq!(event("n1", told, Timestamp::UNIX_EPOCH).note.unwrap().len(), 1024);
    }
}
