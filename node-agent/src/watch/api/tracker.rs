//! What was sent of one kind, and so what is new in what the API says.
//!
//! Pure: events in, changes out. What vanished while nobody watched is found when a list ends; what a
//! list repeats unchanged is not sent again.

use std::collections::{BTreeMap, HashMap};

use super::{
    follow::Event,
    lean::{Kind, Lean},
};
use crate::watch::{Change, Node, ObjectId};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    /// What the receiver knows, each with the number of the list that named it last.
    sent: HashMap<ObjectId, (Change, u32)>,
    list: u32,
    /// Objects that cannot be used, with the reason. What was sent of them before holds on.
    broken: BTreeMap<ObjectId, String>,
}

impl Tracker {
    /// Takes an event in; returns what is to be sent.
    pub fn take<K: Kind>(&mut self, event: Event<Lean<K>>) -> Vec<Change> {
        match event {
            Event::ListBegins => {
                self.list = self.list.wrapping_add(1);
                self.broken.clear();
                Vec::new()
            }
            Event::Listed(object) | Event::Changed(object) => self.enter(object),
            Event::Deleted(object) => {
                self.broken.remove(&object.id);
                self.remove(&object.id).into_iter().collect()
            }
            Event::ListEnds => {
                let list = self.list;
                let gone: Vec<_> = self
                    .sent
                    .iter()
                    .filter(|(_, (_, named))| *named != list)
                    .map(|(id, _)| id.clone())
                    .collect();
                gone.iter().filter_map(|id| self.remove(id)).collect()
            }
        }
    }

    /// What the receiver knows.
    pub fn sent(&self) -> impl Iterator<Item = &Change> {
        self.sent.values().map(|(change, _)| change)
    }

    /// How many objects that is.
    pub fn len(&self) -> usize {
        self.sent.len()
    }

    /// Objects that cannot be used.
    pub fn broken(&self) -> &BTreeMap<ObjectId, String> {
        &self.broken
    }

    fn enter<K: Kind>(&mut self, object: Lean<K>) -> Vec<Change> {
        let Lean { id, change, .. } = object;
        let change = match change {
            Ok(change) => change,
            Err(problem) => {
                if let Some((_, named)) = self.sent.get_mut(&id) {
                    *named = self.list;
                }
                self.broken.insert(id, problem.to_string());
                return Vec::new();
            }
        };
        self.broken.remove(&id);
        if id.gone().as_ref() == Some(&change) {
            return self.remove(&id).into_iter().collect();
        }
        match self.sent.insert(id, (change.clone(), self.list)) {
            Some((before, _)) if before == change => Vec::new(),
            _ => vec![change],
        }
    }

    fn remove(&mut self, id: &ObjectId) -> Option<Change> {
        let (last, _) = self.sent.remove(id)?;
        match last {
            // Nothing could be right without our own node, but load balancers should turn away from it.
            Change::Node(node) => Some(Change::Node(Node { eligible: false, ..node })),
            _ => id.gone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1 as core;
    use serde_json::json;

    use super::*;

    type Of<K> = Event<Lean<K>>;

    fn service(name: &str, ip: &str) -> Lean<core::Service> {
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "a", "resourceVersion": "7" },
            "spec": { "clusterIP": ip, "ports": [{ "port": 80 }] },
        }))
        .unwrap()
    }

    fn node(address: &str) -> Lean<core::Node> {
        serde_json::from_value(json!({
            "metadata": { "name": "n1" },
            "status": { "addresses": [{ "type": "InternalIP", "address": address }] },
        }))
        .unwrap()
    }

    fn listed(tracker: &mut Tracker, services: Vec<Lean<core::Service>>) -> Vec<Change> {
        let mut changes = tracker.take(Of::<core::Service>::ListBegins);
        for service in services {
            changes.extend(tracker.take(Event::Listed(service)));
        }
        changes.extend(tracker.take(Of::<core::Service>::ListEnds));
        changes
    }

    fn gone(name: &str) -> Change {
        core::Service::id("a", name).gone().unwrap()
    }

    #[test]
    fn a_second_list_sends_what_changed_and_what_vanished_and_nothing_else() {
        let mut tracker = Tracker::default();
        let first = listed(
            &mut tracker,
            vec![service("kept", "10.96.0.1"), service("changed", "10.96.0.2"), service("gone", "10.96.0.3")],
        );
        assert_eq!(first.len(), 3);
        let second =
            listed(&mut tracker, vec![service("kept", "10.96.0.1"), service("changed", "10.96.0.9")]);
        assert_eq!(second, [service("changed", "10.96.0.9").change.unwrap(), gone("gone")]);
        assert_eq!(tracker.len(), 2);
    }

    #[test]
    fn what_is_not_ours_is_sent_only_when_it_was_ours() {
        let mut tracker = Tracker::default();
        assert_eq!(listed(&mut tracker, vec![service("headless", "None")]), []);
        assert_eq!(tracker.take(Event::Changed(service("headless", "10.96.0.1"))).len(), 1);
        assert_eq!(tracker.take(Event::Changed(service("headless", "None"))), [gone("headless")]);
        assert_eq!(tracker.take(Event::Deleted(service("headless", "None"))), []);
    }

    #[test]
    fn a_broken_object_keeps_its_last_good_state_and_gives_the_reason() {
        let mut tracker = Tracker::default();
        listed(&mut tracker, vec![service("web", "10.96.0.1")]);
        assert_eq!(listed(&mut tracker, vec![service("web", "10.96.0.300")]), []);
        let (id, problem) = tracker.broken().first_key_value().unwrap();
        assert_eq!(id, &core::Service::id("a", "web"));
        assert!(problem.contains("10.96.0.300"), "{problem}");
        assert_eq!(tracker.len(), 1);
        assert_eq!(tracker.take(Event::Changed(service("web", "10.96.0.2"))).len(), 1);
        assert!(tracker.broken().is_empty());
    }

    #[test]
    fn our_node_is_kept_when_it_is_deleted_but_takes_no_new_connections() {
        let mut tracker = Tracker::default();
        let Change::Node(known) = tracker.take(Event::Changed(node("192.0.2.1"))).remove(0) else { panic!() };
        let changes = tracker.take(Event::Deleted(node("192.0.2.1")));
        assert_eq!(changes, [Change::Node(Node { eligible: false, ..known })]);
    }
}
