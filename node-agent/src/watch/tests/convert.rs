//! What of an object is kept; what of it decides rows is in the scripts of the model.

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};
use rstest::rstest;
use serde_json::json;

use super::super::{Change, convert};

fn node(json: serde_json::Value) -> crate::watch::Node {
    convert::node(&serde_json::from_value::<core::Node>(json).unwrap()).unwrap()
}

#[test]
fn a_node_keeps_its_internal_ips_in_their_order() {
    let node = node(json!({
        "metadata": {"name": "a"},
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"]},
        "status": {"addresses": [
            {"type": "Hostname", "address": "a"},
            {"type": "ExternalIP", "address": "203.0.113.1"},
            {"type": "InternalIP", "address": "2001:db8::1"},
            {"type": "InternalIP", "address": "192.0.2.1"},
        ]},
    }));
    assert_eq!(
        node.internal_ips,
        ["2001:db8::1".parse::<std::net::IpAddr>().unwrap(), "192.0.2.1".parse().unwrap()]
    );
    assert_eq!(node.pod_cidrs.len(), 2);
    assert!(node.eligible);
}

#[test]
fn a_node_without_internal_ip_has_its_external_ones() {
    let node = node(json!({
        "metadata": {"name": "a"},
        "spec": {"podCIDR": "10.1.0.0/24"},
        "status": {"addresses": [{"type": "ExternalIP", "address": "203.0.113.1"}]},
    }));
    assert_eq!(node.internal_ips, ["203.0.113.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(node.pod_cidrs, ["10.1.0.0/24".parse().unwrap()]);
}

#[rstest]
#[case::deleted(json!({"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}}))]
#[case::tainted(json!({"metadata": {"name": "a"}, "spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}}))]
fn a_node_on_its_way_out_is_not_eligible(#[case] object: serde_json::Value) {
    assert!(!node(object).eligible);
}

#[test]
fn another_taint_leaves_a_node_eligible() {
    assert!(
        node(
            json!({"metadata": {"name": "a"}, "spec": {"taints": [{"key": "other", "effect": "NoSchedule"}]}})
        )
        .eligible
    );
}

#[test]
fn a_service_cidr_keeps_its_networks() {
    let object: networking::ServiceCIDR = serde_json::from_value(
        json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16", "fd00:96::/112"]}}),
    )
    .unwrap();
    assert_eq!(convert::service_cidr(&object).unwrap().cidrs.len(), 2);
}

#[test]
fn a_slice_keeps_its_trigger_time() {
    let slice = |time: &str| {
        let object: discovery::EndpointSlice = serde_json::from_value(json!({
            "metadata": {
                "name": "web-1",
                "labels": {"kubernetes.io/service-name": "web"},
                "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": time},
            },
            "addressType": "IPv4",
            "endpoints": [],
        }))
        .unwrap();
        match convert::endpoint_slice(&object).unwrap() {
            Change::Slice(slice) => slice.trigger_time,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(slice("1970-01-01T00:01:40Z").unwrap().as_second(), 100);
    assert_eq!(slice("yesterday"), None);
}

#[test]
fn only_our_own_annotations_are_kept() {
    let object: core::Service = serde_json::from_value(json!({
        "metadata": {"name": "web", "annotations": {"fairlead.dev/ipvs-scheduler": "wlc", "example.org/note": "x"}},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    }))
    .unwrap();
    let Change::Service(service) = convert::service(&object).unwrap() else { panic!() };
    assert_eq!(service.annotations.keys().collect::<Vec<_>>(), ["fairlead.dev/ipvs-scheduler"]);
}
