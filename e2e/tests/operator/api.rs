//! What the API server itself refuses.

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Table {
    accepted: Vec<Row>,
    refused: Vec<Refused>,
    malformed: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    case: String,
    object: Value,
}

#[derive(Deserialize)]
struct Refused {
    case: String,
    object: Value,
    field: String,
    message: String,
}

/// An object of the table with what every one has in common.
fn complete(object: &Value) -> String {
    let mut whole = serde_json::json!({
        "apiVersion": "fairlead.dev/v1alpha1", "kind": "ServiceNetwork", "metadata": { "name": "cluster" } });
    whole.as_object_mut().unwrap().extend(object.as_object().unwrap().clone());
    whole.to_string()
}

/// The table by which the crate of the API types judges its rules offline goes to the API server.
#[test]
fn the_api_server_judges_as_the_table_of_good_and_bad_objects_says() {
    let table = include_str!("../../../crds/tests/servicenetworks.yaml");
    let Table { accepted, refused, malformed } = serde_saphyr::from_str(table).unwrap();
    let simulation = Simulation::start().unwrap();
    let judge = |object: &Value| {
        let create = ["create", "--dry-run=server", "--validate=strict", "-f", "-"];
        simulation.cluster().feed(&create, &complete(object)).map_err(|error| format!("{error:#}"))
    };
    for Row { case, object } in &accepted {
        judge(object).unwrap_or_else(|said| panic!("{case}: {said}"));
    }
    for Refused { case, object, field, message } in &refused {
        let said = judge(object).expect_err(case);
        assert!(said.contains(field) && said.contains(message), "{case}: {said}");
    }
    for Row { case, object } in &malformed {
        judge(object).expect_err(case);
    }
    println!("{} taken, {} refused, {} malformed", accepted.len(), refused.len(), malformed.len());
}

#[test]
fn an_agent_writes_the_status_of_its_own_node_and_of_no_other() {
    let simulation = Simulation::start().unwrap();
    let cluster = simulation.cluster();
    simulation.add_nodes(2).unwrap();
    let operator = simulation.leading_operator("one", IMAGE).unwrap();
    cluster.apply(&service_network("{}")).unwrap();
    until("both nodes are told", &operator, || told(cluster).len() == 2);
    let [own, other] = [0, 1].map(|number| format!("{PREFIX}{number}"));

    let create = ["-n", NAMESPACE, "create", "token", "fairlead-node-agent"];
    let bound = ["--bound-object-kind=Node", &format!("--bound-object-name={own}")];
    let bound = cluster.kubectl(&[&create[..], &bound[..]].concat()).unwrap();
    let unbound = cluster.kubectl(&create).unwrap();
    let write = |token: &str, node: &str| {
        let mut status = cluster.kubectl_command();
        status.env_remove("KUBECONFIG");
        let ca = cluster.kubeconfig().with_file_name("ca.crt");
        let patch = r#"{"status":{"version":"9.9.9"}}"#;
        status.args(["--server", &cluster.describe().unwrap().api_server, "--token", token.trim()]);
        status.arg("--certificate-authority").arg(ca);
        status.args([
            "patch",
            "servicenetworknode",
            node,
            "--subresource=status",
            "--type=merge",
            "-p",
            patch,
        ]);
        fairlead_e2e::process::output_of(&mut status).map_err(|error| format!("{error:#}"))
    };
    // the policy takes effect some moments after it is there
    until("another node's status is refused", &operator, || write(&bound, &other).is_err());
    let refused = write(&bound, &other).unwrap_err();
    assert!(refused.contains("an agent may write the status of its own node only"), "{refused}");
    assert!(write(&unbound, &own).unwrap_err().contains("own node only"));
    write(&bound, &own).unwrap();
    // and nothing but the status
    assert!(
        cluster
            .kubectl(&[
                "auth",
                "can-i",
                "patch",
                "servicenetworknodes",
                "--as=system:serviceaccount:fairlead-system:fairlead-node-agent"
            ])
            .is_err()
    );
}
