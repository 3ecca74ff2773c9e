//! Whether an object of the API already is what it should be.
//!
//! Pure. An object that is right is not written: a write that changes nothing still costs the API
//! server a round of admission and, over a thousand nodes, its rate limits.

use serde_json::Value;

/// Lists that server-side apply merges by a key, so that entries of others are theirs to keep. Every
/// other list belongs to one manager as a whole. From the `x-kubernetes-list-map-keys` of the
/// Kubernetes API.
const KEYED: [(&str, &str); 9] = [
    ("containers", "name"),
    ("initContainers", "name"),
    ("env", "name"),
    ("volumes", "name"),
    ("volumeMounts", "mountPath"),
    ("imagePullSecrets", "name"),
    ("ownerReferences", "uid"),
    ("matchConditions", "name"),
    ("conditions", "type"),
];

/// Whether `live` says everything that `desired` says: it may say more, for the API server fills in
/// defaults and others own fields too.
pub fn holds(desired: &Value, live: &Value) -> bool {
    match (desired, live) {
        (Value::Object(desired), Value::Object(live)) => desired.iter().all(|(field, desired)| {
            live.get(field).is_some_and(|live| match (desired, live, key_of(field)) {
                (Value::Array(desired), Value::Array(live), Some(key)) => keyed_hold(desired, live, key),
                _ => holds(desired, live),
            })
        }),
        (Value::Array(desired), Value::Array(live)) => {
            desired.len() == live.len()
                && desired.iter().zip(live).all(|(desired, live)| holds(desired, live))
        }
        (desired, live) => desired == live,
    }
}

fn key_of(field: &str) -> Option<&'static str> {
    KEYED.iter().find(|(list, _)| *list == field).map(|(_, key)| *key)
}

fn keyed_hold(desired: &[Value], live: &[Value], key: &str) -> bool {
    desired.iter().all(|desired| {
        let same = live.iter().find(|live| live.get(key).is_some() && live.get(key) == desired.get(key));
        same.is_some_and(|live| holds(desired, live))
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::equal(json!({ "a": 1 }), json!({ "a": 1 }), true)]
    #[case::a_default_of_the_server(json!({ "a": 1 }), json!({ "a": 1, "b": 2 }), true)]
    #[case::another_value(json!({ "a": 1 }), json!({ "a": 2 }), false)]
    #[case::a_field_that_is_gone(json!({ "a": { "b": 1 } }), json!({ "a": {} }), false)]
    #[case::a_default_within_a_list(json!({ "rules": [{ "verbs": ["get"] }] }), json!({ "rules": [{ "verbs": ["get"], "scope": "*" }] }), true)]
    #[case::a_rule_that_somebody_added(json!({ "rules": [{ "verbs": ["get"] }] }), json!({ "rules": [{ "verbs": ["get"] }, { "verbs": ["*"] }] }), false)]
    #[case::a_verb_that_somebody_added(json!({ "verbs": ["get"] }), json!({ "verbs": ["get", "list"] }), false)]
    #[case::variables_of_another(json!({ "env": [{ "name": "A", "value": "1" }] }), json!({ "env": [{ "name": "B" }, { "name": "A", "value": "1" }] }), true)]
    #[case::a_variable_that_was_changed(json!({ "env": [{ "name": "A", "value": "1" }] }), json!({ "env": [{ "name": "A", "value": "2" }] }), false)]
    #[case::an_owner_that_was_dropped(json!({ "ownerReferences": [{ "uid": "x" }] }), json!({ "ownerReferences": [] }), false)]
    #[case::a_list_that_is_none(json!({ "verbs": ["get"] }), json!({ "verbs": "get" }), false)]
    fn live_holds_what_is_desired(#[case] desired: Value, #[case] live: Value, #[case] held: bool) {
        assert_eq!(holds(&desired, &live), held);
    }
}
