//! The CRD and the agent refuse the same objects: one table, two judges.
//!
//! The CRD is the generated file that users apply. It is judged as the API server does it: nulls
//! of fields that are not nullable are dropped, the schema is applied with `kubectl`'s strict
//! field validation, and the CEL rules are evaluated.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy exempts test functions, not what they call"
)]

use fairlead_crds::{NodeAgentConfig, ServiceNetworkManifest, render};
use kube_cel::{ErrorKind, ScopeContext, ValidationError};
use serde::Deserialize;
use serde_json::{Value, json};

const CRD: &str = include_str!("../fairlead.dev_servicenetworks.yaml");
const TABLE: &str = include_str!("servicenetworks.yaml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    accepted: Vec<Row>,
    refused: Vec<RefusedRow>,
    malformed: Vec<MalformedRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    case: String,
    object: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RefusedRow {
    case: String,
    object: Value,
    field: String,
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MalformedRow {
    case: String,
    object: Value,
    message: String,
}

fn table() -> Table {
    serde_saphyr::from_str(TABLE).unwrap()
}

/// A row's object with what every row has in common.
fn complete(object: &Value) -> Value {
    let mut whole = json!({ "apiVersion": "fairlead.dev/v1alpha1", "kind": "ServiceNetwork", "metadata": { "name": "cluster" } });
    whole.as_object_mut().unwrap().extend(object.as_object().unwrap().clone());
    whole
}

/// The schema of the CRD, as it is.
fn schema() -> Value {
    let crd: Value = serde_saphyr::from_str(CRD).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// What the schema alone says against an object.
fn schema_errors(object: &Value) -> Vec<String> {
    let mut schema = schema();
    for (name, of) in [("apiVersion", "string"), ("kind", "string"), ("metadata", "object")] {
        schema["properties"][name] = json!({ "type": of });
    }
    refuse_unknown_fields(&mut schema);
    let validator = jsonschema::validator_for(&schema).unwrap();
    validator.iter_errors(&without_nulls(object)).map(|error| error.to_string()).collect()
}

/// What the CEL rules say against an object.
fn cel_errors(object: &Value) -> Vec<ValidationError> {
    let verdict = kube_cel::Validator::new().validate(&schema(), &without_nulls(object), None);
    verdict.err().map(kube_cel::ValidationErrors::into_vec).unwrap_or_default()
}

fn refuse_unknown_fields(schema: &mut Value) {
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(refuse_unknown_fields);
        schema["additionalProperties"] = json!(false);
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), without_nulls(v))).collect()
        }
        other => other.clone(),
    }
}

/// What the agent says: an unreadable object, or the problems of a readable one.
fn agent(object: &Value) -> Result<Result<NodeAgentConfig, Vec<(String, String)>>, serde_json::Error> {
    let manifest: ServiceNetworkManifest = serde_json::from_value(object.clone())?;
    Ok(render(&manifest.0).map_err(|problems| problems.into_iter().map(|p| (p.field, p.message)).collect()))
}

#[test]
fn both_take_what_is_right() {
    for Row { case, object } in table().accepted {
        let object = complete(&object);
        assert_eq!(schema_errors(&object), [""; 0], "schema, {case}");
        assert_eq!(cel_errors(&object), [], "CEL, {case}");
        agent(&object).unwrap_or_else(|e| panic!("{case}: {e}")).unwrap_or_else(|p| panic!("{case}: {p:?}"));
    }
}

#[test]
fn both_refuse_with_the_same_sentence() {
    for RefusedRow { case, object, field, message } in table().refused {
        let object = complete(&object);
        let said: Vec<_> = cel_errors(&object)
            .into_iter()
            .map(|error| {
                assert_eq!(error.kind, ErrorKind::ValidationFailure, "{case}: {error}");
                error.to_string()
            })
            .collect();
        // The rule on the name stands at the root and names the field itself: fieldPath cannot
        // point into metadata.
        let want = if field == "metadata.name" {
            format!("{field} {message}")
        } else {
            format!("{field}: {message}")
        };
        assert_eq!(said, [want], "CEL, {case}");
        assert_eq!(agent(&object).unwrap(), Err(vec![(field, message)]), "render, {case}");
    }
}

#[test]
fn both_refuse_what_is_malformed() {
    for MalformedRow { case, object, message } in table().malformed {
        let object = complete(&object);
        assert_ne!(schema_errors(&object), [""; 0], "schema, {case}");
        let said = agent(&object).expect_err(&case).to_string();
        assert!(said.contains(&message), "{case}: {said}");
    }
}

#[test]
fn a_manifest_of_another_version_is_refused() {
    let mut object = complete(&json!({ "spec": {} }));
    object["apiVersion"] = json!("fairlead.dev/v1");
    let said = agent(&object).unwrap_err().to_string();
    assert_eq!(
        said,
        r#"apiVersion and kind must be fairlead.dev/v1alpha1 and ServiceNetwork, not "fairlead.dev/v1" and "ServiceNetwork""#
    );
}

/// Calls `visit` with the path of every schema of a field, and the schema.
fn visit_fields(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        visit(&path, field);
        visit_fields(field, &path, visit);
    }
}

#[test]
fn every_field_is_documented_with_what_its_omission_means() {
    let spec = &schema()["properties"]["spec"];
    // spec itself is required
    assert!(spec["description"].as_str().unwrap().contains("may be omitted"));
    let mut documented = 0;
    visit_fields(spec, ".spec", &mut |path, field| {
        let description = field["description"].as_str().unwrap_or_default();
        assert!(description.contains("Omitted:"), "{path}: {description:?}");
        documented += 1;
    });
    assert_eq!(documented, 11);
}

#[test]
fn every_field_is_bounded_and_every_rule_is_cheap() {
    visit_fields(&schema()["properties"]["spec"], ".spec", &mut |path, field| {
        let bounded = match field["type"].as_str() {
            Some("object") => field["properties"].is_object(),
            Some("string") => field["enum"].is_array() || field["maxLength"].is_u64(),
            Some("integer") => field["minimum"].is_i64() && field["maximum"].is_i64(),
            _ => false,
        };
        assert!(bounded, "{path}");
        let compiled = kube_cel::compile_schema(field);
        for rule in field["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let warnings = kube_cel::analyze_rule(
                rule["rule"].as_str().unwrap(),
                &compiled,
                ScopeContext::CrdValidation,
            );
            assert!(warnings.is_empty(), "{path}: {warnings:?}");
        }
    });
}

#[test]
fn a_mistake_in_a_file_is_reported_with_line_and_column() {
    for (mistake, said) in [
        ("    markbit: 5", "line 6 column 5: unknown field `markbit`"),
        ("    mode: ipvs", "line 6 column 11: unknown variant `ipvs`"),
        ("stats: {}", "line 6 column 1: unknown field `stats`"),
    ] {
        let head = "apiVersion: fairlead.dev/v1alpha1\nkind: ServiceNetwork\nmetadata: { name: cluster }\n";
        let file = format!("{head}spec:\n  proxy:\n{mistake}\n");
        let error = serde_saphyr::from_str::<ServiceNetworkManifest>(&file).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}
