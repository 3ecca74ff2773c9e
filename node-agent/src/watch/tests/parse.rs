//! Files to objects, and the sentences for what is wrong with them.

use std::path::Path;

use rstest::rstest;

use super::{super::parse, NODE, service};

fn parse(text: &str) -> Result<Vec<String>, Vec<String>> {
    match parse::parse(Path::new("web.yaml"), text) {
        Ok(objects) => Ok(objects.iter().map(|o| format!("{} at {}", o.id, o.position)).collect()),
        Err(errors) => Err(errors.iter().map(ToString::to_string).collect()),
    }
}

#[test]
fn documents_are_separated_as_yaml_does() {
    let text = format!(
        "# a comment\n%YAML 1.2\n---\n{}--- # and another\n\n---\n{NODE}...\n---\n# nothing\n",
        service("a", "10.96.0.1")
    );
    assert_eq!(parse(&text).unwrap(), ["Service default/a at 4:1", "Node node-a at 11:1"]);
}

#[rstest]
#[case("")]
#[case("# nothing\n")]
#[case("---\n")]
#[case("---\n---\n# nothing\n---")]
fn an_empty_file_is_no_error(#[case] text: &str) {
    assert_eq!(parse(text).unwrap(), Vec::<String>::new());
    assert_eq!(parse(&format!("{text}\n---\n{NODE}")).unwrap().len(), 1);
}

#[test]
fn a_marker_inside_a_text_is_no_separator() {
    let text = "\
apiVersion: v1
kind: Service
metadata:
  name: a
  annotations:
    note: |
      ---
      kind: Nonsense
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
";
    assert_eq!(parse(text).unwrap(), ["Service default/a at 1:1"]);
}

#[test]
fn a_list_is_as_good_as_its_items() {
    let text = "\
apiVersion: v1
items:
- apiVersion: v1
  kind: Service
  metadata: {name: a, namespace: shop}
  spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
- apiVersion: networking.k8s.io/v1
  kind: ServiceCIDR
  metadata: {name: kubernetes}
  spec: {cidrs: [10.96.0.0/16]}
kind: List
metadata: {resourceVersion: ''}
";
    assert_eq!(parse(text).unwrap(), ["Service shop/a at 3:3", "ServiceCIDR kubernetes at 7:3"]);
    assert_eq!(parse("{apiVersion: v1, kind: List, items: []}").unwrap(), Vec::<String>::new());
    assert_eq!(parse("{apiVersion: v1, kind: List}").unwrap(), Vec::<String>::new());
}

#[test]
fn json_is_understood_with_tabs_and_all() {
    let text = "{\n\t\"kind\": \"Service\",\n\t\"apiVersion\": \"v1\",\n\t\"metadata\": {\"name\": \"a\", \"creationTimestamp\": null},\n\t\"spec\": {\n\t\t\"clusterIP\": \"10.96.0.1\",\n\t\t\"ports\": [\n\t\t\t{\"port\": 80, \"targetPort\": \"http\"}\n\t\t]\n\t}\n}\n";
    assert_eq!(parse(text).unwrap(), ["Service default/a at 1:1"]);
}

#[test]
fn what_a_cluster_prints_is_understood() {
    let text = "\
apiVersion: v1
kind: Service
metadata:
  creationTimestamp: \"2026-01-01T00:00:00Z\"
  labels:
    component: apiserver
  managedFields: []
  name: kubernetes
  namespace: default
  resourceVersion: \"231\"
  uid: 0a8b
spec:
  clusterIP: 10.96.0.1
  clusterIPs:
  - 10.96.0.1
  internalTrafficPolicy: Cluster
  ipFamilies:
  - IPv4
  ipFamilyPolicy: SingleStack
  ports:
  - name: https
    port: 443
    protocol: TCP
    targetPort: 6443
  sessionAffinity: None
  type: ClusterIP
status:
  loadBalancer: {}
";
    assert_eq!(parse(text).unwrap(), ["Service default/kubernetes at 1:1"]);
}

#[rstest]
#[case::syntax("apiVersion: v1\nkind: Service\nmetadata: {name: a\nspec: {}\n", "web.yaml:4:5: ")]
#[case::wrong_type(
    "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  clusterIP: 10.96.0.1\n  ports:\n  - port: http\n",
    "web.yaml:7:11: expected a whole number"
)]
#[case::wrong_shape(
    "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  clusterIP: 10.96.0.1\n  ports: 80\n",
    "web.yaml:6:10: expected a list"
)]
#[case::second_document(
    "# one\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: None}\n---\nkind: Service\nmetadata: [a]\napiVersion: v1\n",
    "web.yaml:9:11: expected a mapping"
)]
#[case::in_a_list(
    "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: a}\n  spec: {ports: 80}\n",
    "web.yaml:7:17: "
)]
#[case::unknown_kind(
    "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n",
    "web.yaml:2:7: kind \"Deployment\" is not understood here: use Service, EndpointSlice, Node, ServiceCIDR, ServiceNetwork, List"
)]
#[case::unknown_version(
    "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\n",
    "web.yaml:1:13: apiVersion \"discovery.k8s.io/v1beta1\" of EndpointSlice is not understood: use discovery.k8s.io/v1"
)]
#[case::no_kind("apiVersion: v1\nmetadata: {name: a}\n", "web.yaml:1:1: the object has no kind")]
#[case::no_version("kind: Service\nmetadata: {name: a}\n", "web.yaml:1:1: the object has no apiVersion")]
#[case::no_mapping("just text\n", "web.yaml:1:1: ")]
#[case::no_name(
    "apiVersion: v1\nkind: Service\nspec: {clusterIP: 10.96.0.1}\n",
    "web.yaml:1:1: Service: metadata.name: missing: give the object a name"
)]
#[case::bad_port(
    "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80000}]}\n",
    "web.yaml:1:1: Service a: spec.ports[0].port: 80000 is not a port number (1 to 65535)"
)]
#[case::bad_cluster_ip(
    "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: 10.96.0.300, ports: [{port: 80}]}\n",
    "web.yaml:1:1: Service a: spec.clusterIPs: \"10.96.0.300\" is not an IP address that can be a virtual IP"
)]
#[case::bad_policy(
    "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: 10.96.0.1, internalTrafficPolicy: local}\n",
    "web.yaml:1:1: Service a: spec.internalTrafficPolicy: \"local\" is none of Cluster, Local"
)]
#[case::two_ports_of_one_name(
    "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}, {port: 81}]}\n",
    "web.yaml:1:1: Service a: spec.ports[1].name: \"\" is the name of an earlier port: give each its own"
)]
#[case::nobody_allocates_a_cluster_ip(
    "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n",
    "web.yaml:1:1: Service a: spec.clusterIP is missing, and no API server is here to choose one: write it down (None for a headless Service)"
)]
#[case::nobody_allocates_a_node_port(
    "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {type: NodePort, clusterIP: 10.96.0.1, ports: [{port: 80}]}\n",
    "web.yaml:1:1: Service a: spec.ports[0].nodePort is missing, and no API server is here to choose one: write it down"
)]
#[case::slice_without_service(
    "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv4\nendpoints: []\n",
    "web.yaml:1:1: EndpointSlice a: label kubernetes.io/service-name is missing: it says whose endpoints these are"
)]
#[case::duplicate_field("apiVersion: v1\nkind: Service\nkind: Service\n", "web.yaml:3:1: ")]
#[case::misspelt_setting(
    "apiVersion: fairlead.dev/v1alpha1\nkind: ServiceNetwork\nmetadata: {name: cluster}\nspec:\n  proxy:\n    ipvs:\n      shceduler: rr\n",
    "web.yaml:7:7: "
)]
#[case::unknown_scheduler(
    "apiVersion: fairlead.dev/v1alpha1\nkind: ServiceNetwork\nmetadata: {name: cluster}\nspec: {proxy: {ipvs: {scheduler: wlcc}}}\n",
    "web.yaml:4:34: unknown variant `wlcc`, "
)]
#[case::bad_setting(
    "apiVersion: fairlead.dev/v1alpha1\nkind: ServiceNetwork\nmetadata: {name: cluster}\nspec: {proxy: {markBit: 14}}\n",
    "web.yaml:1:1: ServiceNetwork cluster: spec.proxy.markBit "
)]
#[case::another_name(
    "apiVersion: fairlead.dev/v1alpha1\nkind: ServiceNetwork\nmetadata: {name: other}\nspec: {}\n",
    "web.yaml:1:1: ServiceNetwork other: metadata.name "
)]
#[case::nested_list(
    "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: List, items: []}]\n",
    "web.yaml:3:"
)]
#[case::twice(
    "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: None}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: None}\n",
    "web.yaml:6:1: Service default/a is defined in web.yaml:1:1 already: remove one of the two"
)]
fn an_error_says_where_and_what(#[case] text: &str, #[case] wanted: &str) {
    let errors = parse(text).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].starts_with(wanted), "\n   got: {}\nwanted: {wanted}", errors[0]);
    assert!(!errors[0].contains('\n'), "one sentence: {}", errors[0]);
    assert_eq!(errors[0].matches(" line ").count(), 0, "the place is said once: {}", errors[0]);
}

#[test]
fn all_errors_of_a_file_are_said_at_once() {
    let errors = parse("{apiVersion: v1, kind: Pod}\n---\n{apiVersion: v1, kind: Secret}\n").unwrap_err();
    assert_eq!(errors.len(), 2);
    assert!(errors[1].starts_with("web.yaml:3:24: "), "{}", errors[1]);
}

#[test]
fn a_whole_cluster_fits_in_one_list() {
    use std::fmt::Write as _;
    let mut text = "apiVersion: v1\nkind: List\nitems:\n".to_owned();
    for i in 0..10_000 {
        writeln!(
            text,
            "- {{apiVersion: v1, kind: Service, metadata: {{name: s{i}}}, spec: {{clusterIP: 10.96.{}.{}, ports: [{{port: 80}}]}}}}",
            i / 250,
            i % 250 + 1
        )
        .unwrap();
    }
    assert_eq!(parse(&text).unwrap().len(), 10_000);
}
