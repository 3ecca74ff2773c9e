//! The control plane of the test clusters, without nodes.
//!
//! Needs root, for its namespaces, and no kernel with IPVS: `cargo test --features cluster --test control_plane`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fairlead_e2e::cluster::leftovers::{self, Leftover};
use fairlead_e2e::cluster::{Cluster, Cut, Fixture};
use fairlead_e2e::eventually;
use fairlead_e2e::process::output_of;

const RIG: &str = env!("CARGO_BIN_EXE_rig");
const SOON: Duration = Duration::from_secs(20);

/// Asks the API server from this host, and does not wait for long.
fn host_sees(cluster: &Cluster) -> bool {
    cluster.kubectl(&["get", "--raw=/readyz", "--request-timeout=2s"]).is_ok()
}

/// The same from outside the nodes' subnet.
fn client_sees(cluster: &Cluster) -> anyhow::Result<bool> {
    let kubectl = cluster.describe()?.kubectl;
    let mut command = cluster.command_in(&cluster.client()?, kubectl);
    command.env("KUBECONFIG", cluster.kubeconfig());
    Ok(output_of(command.args(["get", "--raw=/readyz", "--request-timeout=2s"])).is_ok())
}

#[test]
fn what_is_applied_is_there_and_the_controllers_act_on_it() {
    let cluster = Fixture::start().unwrap();
    cluster.apply("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}").unwrap();
    eventually("the namespace has its ServiceAccount", SOON, || {
        cluster.kubectl(&["-n", "shop", "get", "serviceaccount", "default"]).is_ok()
    })
    .unwrap();
    let refused = cluster.apply("{apiVersion: v1, kind: Namespace, metadata: {name: UPPER}}").unwrap_err();
    assert!(refused.to_string().contains("UPPER"), "{refused:#}");

    let alice = cluster.kubeconfig_of("alice", "alice", Some("readers")).unwrap();
    let whoami =
        ["--kubeconfig", alice.to_str().unwrap(), "auth", "whoami", "-o", "jsonpath={.status.userInfo}"];
    let whoami = cluster.kubectl(&whoami).unwrap();
    assert!(whoami.contains(r#""username":"alice""#) && whoami.contains("readers"), "{whoami}");
    cluster.check().unwrap();
}

#[test]
fn a_cut_off_api_server_is_silent_and_comes_back() {
    let cluster = Fixture::start().unwrap();
    assert!(host_sees(&cluster) && client_sees(&cluster).unwrap());
    cluster.cut_off_api_server(Cut::Nodes).unwrap();
    assert!(host_sees(&cluster) && !client_sees(&cluster).unwrap());
    cluster.cut_off_api_server(Cut::Everyone).unwrap();
    let silent = cluster.kubectl(&["get", "--raw=/readyz", "--request-timeout=2s"]).unwrap_err().to_string();
    assert!(!silent.contains("refused"), "not dropped but refused: {silent}");
    cluster.restore_api_server().unwrap();
    assert!(host_sees(&cluster) && client_sees(&cluster).unwrap());
    // and once more is no error
    cluster.restore_api_server().unwrap();
}

#[test]
fn a_stopped_api_server_refuses_and_knows_all_when_it_is_back() {
    let cluster = Fixture::start().unwrap();
    cluster.kubectl(&["create", "configmap", "kept", "--from-literal=a=b"]).unwrap();
    cluster.stop_api_server().unwrap();
    let refused = cluster.kubectl(&["get", "--raw=/readyz"]).unwrap_err().to_string();
    assert!(refused.contains("refused"), "{refused}");
    assert!(cluster.stop_api_server().unwrap_err().to_string().contains("already"));
    cluster.start_api_server().unwrap();
    assert_eq!(cluster.kubectl(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"]).unwrap(), "b");
    cluster.check().unwrap();
}

#[test]
fn two_clusters_stand_beside_each_other_and_leave_nothing() {
    let [one, two] = [Fixture::start().unwrap(), Fixture::start().unwrap()];
    one.kubectl(&["create", "namespace", "one"]).unwrap();
    assert!(two.kubectl(&["get", "namespace", "one"]).unwrap_err().to_string().contains("not found"));
    let described = [one.describe().unwrap(), two.describe().unwrap()];
    let folder = one.logs().parent().unwrap().to_owned();
    let [one_id, two_id] = described.map(|described| described.id);

    // what a test has left running in the cluster's namespaces ends with it
    let mut stray = one.command_in(&one.client().unwrap(), "sleep").arg("1000").spawn().unwrap();
    assert!(leftovers::find(&one_id, &folder).contains(&Leftover::Process(stray.id())));
    one.stop().unwrap();
    assert!(!stray.wait().unwrap().success());
    assert_eq!(leftovers::find(&one_id, &folder), []);
    assert!(!folder.exists());
    assert_ne!(leftovers::find(&two_id, Path::new("/nowhere")), []);
    assert!(host_sees(&two));
}

#[test]
fn a_cluster_outlives_its_command_and_a_killed_supervisor_leaves_nothing_that_down_does_not_take() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("cluster");
    let rig =
        |verb: &[&str]| output_of(Command::new(RIG).args(["cluster", "--state"]).arg(&folder).args(verb));
    assert!(rig(&["status"]).unwrap_err().to_string().contains("rig cluster up"));
    let told = rig(&["up"]).unwrap();
    let cluster = Cluster::attach(&folder).unwrap();
    assert!(told.contains(cluster.kubeconfig().to_str().unwrap()), "{told}");
    assert!(rig(&["kubectl", "get", "namespaces", "-o", "name"]).unwrap().contains("kube-system"));
    assert!(rig(&["up"]).unwrap_err().to_string().contains("rig cluster down"));

    let described = cluster.describe().unwrap();
    output_of(Command::new("kill").args(["-9", &described.pid.to_string()])).unwrap();
    eventually("its processes and its network are gone", SOON, || {
        leftovers::find(&described.id, &folder).is_empty()
    })
    .unwrap();
    assert!(Cluster::attach(&folder).is_err());
    rig(&["down"]).unwrap();
    assert!(!folder.exists());

    rig(&["up"]).unwrap();
    let id = Cluster::attach(&folder).unwrap().describe().unwrap().id;
    rig(&["down"]).unwrap();
    assert!(!folder.exists());
    assert_eq!(leftovers::find(&id, &folder), []);
}
