//! Nodes of both kinds in one cluster: what the tests of the product stand on.
//!
//! Needs root; brings up a cluster of its own: `cargo test --features cluster --test nodes`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy exempts test functions, not what they call"
)]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::cluster::node::{Kind, Spec};
use fairlead_e2e::cluster::{Cluster, leftovers, lifecycle};
use fairlead_e2e::eventually;
use fairlead_e2e::machine::cache;
use fairlead_e2e::traffic::{Client, Protocol};

const RIG: &str = env!("CARGO_BIN_EXE_rig");
const MACHINE: &str = "machine";
const NAMESPACES: &str = "namespaces";
const NODES: [&str; 2] = [MACHINE, NAMESPACES];
const PATIENCE: Duration = Duration::from_secs(120);

/// What kubelet would set for the whole host if a namespace node let it.
const KERNEL_SETTINGS: &[&str] = &["kernel/panic", "kernel/panic_on_oops", "vm/overcommit_memory"];

/// A cluster that is taken down, whatever becomes of the test.
struct Guard<'a>(&'a Path);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Err(error) = lifecycle::down(self.0) {
            eprintln!("{error:#}");
        }
    }
}

/// One test: machines take their time to boot, and all of this is about the same two nodes.
#[test]
fn a_machine_and_namespaces_are_nodes_of_one_cluster() {
    let scratch = cache::scratch().unwrap();
    let folder = scratch.path().join("cluster");
    let settings = kernel_settings();
    lifecycle::prepare(&[Kind::Machine, Kind::Namespace], Path::new(RIG)).unwrap();
    let _guard = Guard(&folder);
    let cluster = lifecycle::up(&folder, Path::new(RIG)).unwrap();
    let specs = [Spec::new(MACHINE, Kind::Machine), Spec::new(NAMESPACES, Kind::Namespace)];
    cluster.add_nodes(&specs).unwrap();

    assert_eq!(kernel_settings(), settings, "a node changed this host's kernel");
    for node in NODES {
        serve_on(&cluster, node);
    }
    pods_are_reached_from_everywhere(&cluster);
    short_commands_pass_beside_a_long_one(&cluster);
    what_the_agent_loads_is_not_loaded_and_a_pod_can_load_it(&cluster);
    an_image_that_is_not_there_is_an_error_at_once(&cluster);
    a_node_comes_back_after_a_power_cut_at_the_same_place(&cluster);

    let id = cluster.describe().unwrap().id;
    assert!(lifecycle::down(&folder).unwrap(), "nothing was up in the end");
    assert_eq!(leftovers::find(&id, &folder), []);
}

fn kernel_settings() -> Vec<String> {
    KERNEL_SETTINGS
        .iter()
        .map(|name| fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap())
        .collect()
}

/// A pod of that name that answers with it, on the node of that name.
fn serve_on(cluster: &Cluster, node: &str) {
    let image = cluster.image("traffic").unwrap();
    let pod = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {node}}}, spec: {{nodeName: {node}, \
         terminationGracePeriodSeconds: 1, containers: [{{name: traffic, image: '{image}', \
         imagePullPolicy: IfNotPresent, args: [serve, --tcp=80, --udp=53]}}]}}}}"
    );
    cluster.apply(&pod).unwrap();
    let ready = cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=120s", &format!("pod/{node}")]);
    ready.unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.diagnose()));
}

fn pods_are_reached_from_everywhere(cluster: &Cluster) {
    for to in NODES {
        // after a power cut the API tells of pods that are no more, for a while
        let mut failure = String::new();
        let reached = eventually("a pod is reached from everywhere", PATIENCE, || {
            failure = reach(cluster, to).err().map(|error| format!("{error:#}")).unwrap_or_default();
            failure.is_empty()
        });
        reached.unwrap_or_else(|error| panic!("{error:#}: {failure}\n{}", cluster.diagnose()));
        // and the kubelet's other stream
        cluster.kubectl(&["logs", to]).unwrap();
    }
}

/// Asks a pod from both pods and from outside.
fn reach(cluster: &Cluster, to: &str) -> Result<()> {
    let pod = cluster.get(&format!("pod/{to}"))?;
    let addresses = pod["status"]["podIPs"].as_array().context("a pod without addresses")?;
    ensure!(addresses.len() == 2, "not an address of each family: {addresses:?}");
    for address in addresses {
        let address = address["ip"].as_str().unwrap_or_default().parse()?;
        for (protocol, name, port) in [(Protocol::Tcp, "tcp", 80), (Protocol::Udp, "udp", 53)] {
            let at = SocketAddr::new(address, port);
            for from in NODES {
                let said = cluster.kubectl(&["exec", from, "--", "traffic", "ask", name, &at.to_string()])?;
                ensure!(said.contains(&format!(r#""server":"{to}""#)), "{from} -> {protocol} {at}: {said}");
            }
            let outside = Client::in_ns(&cluster.client()?).ask(protocol, at);
            ensure!(outside.server() == Some(to), "outside -> {protocol} {at}: {outside}");
        }
    }
    Ok(())
}

fn short_commands_pass_beside_a_long_one(cluster: &Cluster) {
    for node in NODES {
        thread::scope(|scope| {
            let begin = Instant::now();
            let long = scope.spawn(|| {
                let ticks = "for i in 1 2 3 4 5 6 7 8; do echo tick; sleep 1; done";
                cluster.run_on(node, &["sh", "-c", ticks], PATIENCE).unwrap()
            });
            assert_eq!(cluster.output_on(node, "hostname").unwrap().trim(), node);
            assert!(begin.elapsed() < Duration::from_secs(8), "a command waited for another on {node}");
            assert_eq!(long.join().unwrap().stdout.matches("tick").count(), 8);
        });
    }
}

fn what_the_agent_loads_is_not_loaded_and_a_pod_can_load_it(cluster: &Cluster) {
    let loaded = || cluster.output_on(MACHINE, "cat /proc/modules").unwrap();
    for module in ["ip_vs", "ip_vs_rr", "br_netfilter"] {
        assert!(!loaded().lines().any(|line| line.starts_with(&format!("{module} "))), "{module} is loaded");
    }
    let image = cluster.image("fairlead").unwrap();
    cluster
        .apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: loader}}, spec: {{nodeName: {MACHINE}, \
             restartPolicy: Never, containers: [{{name: modprobe, image: '{image}', \
             imagePullPolicy: IfNotPresent, command: [modprobe, ip_vs, conn_tab_bits=16], \
             securityContext: {{privileged: true}}, \
             volumeMounts: [{{name: modules, mountPath: /lib/modules, readOnly: true}}]}}], \
             volumes: [{{name: modules, hostPath: {{path: /lib/modules}}}}]}}}}"
        ))
        .unwrap();
    let done = ["wait", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s", "pod/loader"];
    cluster.kubectl(&done).unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.diagnose()));
    assert!(loaded().contains("ip_vs "));
    let bits = cluster.output_on(MACHINE, "cat /sys/module/ip_vs/parameters/conn_tab_bits").unwrap();
    assert_eq!(bits.trim(), "16");
}

fn an_image_that_is_not_there_is_an_error_at_once(cluster: &Cluster) {
    cluster
        .apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: nowhere}}, spec: {{nodeName: {NAMESPACES}, \
             containers: [{{name: nowhere, image: 'fairlead.dev/rig/nowhere:dev'}}]}}}}"
        ))
        .unwrap();
    eventually("kubelet says that the image cannot be had", Duration::from_secs(20), || {
        cluster.get("pod/nowhere").is_ok_and(|pod| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
            waiting == "ErrImagePull" || waiting == "ImagePullBackOff"
        })
    })
    .unwrap();
}

fn a_node_comes_back_after_a_power_cut_at_the_same_place(cluster: &Cluster) {
    for node in NODES {
        let place = || cluster.describe().unwrap().nodes[node].place;
        let before = place();
        cluster.stop_node(node).unwrap();
        assert!(cluster.output_on(node, "true").is_err());
        cluster.start_node(node).unwrap();
        assert_eq!(place(), before);
        assert_eq!(cluster.output_on(node, "hostname").unwrap().trim(), node);
    }
    // what ran there runs again
    pods_are_reached_from_everywhere(cluster);
}
