//! Fairlead on a real cluster of machine nodes: what an operator of clusters does to it, and what must go on.
//!
//! The cluster is shared: `rig cluster test` brings it up, runs these one after the other, and takes it down. Each test
//! starts from a cluster where Fairlead is installed and Ready, and makes it so if the one before has left it otherwise.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy exempts test functions, not what they call"
)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use fairlead_e2e::cluster::node::{Kind, Spec};
use fairlead_e2e::cluster::{Cluster, Cut};
use fairlead_e2e::installation::{
    AGENT_PODS, AGENTS, Installation, NAMESPACE, OPERATOR, service_network, wait_ready,
};
use fairlead_e2e::patiently;
use fairlead_e2e::shop::{From, Shop};
use fairlead_e2e::suite::CLUSTER;
use fairlead_e2e::traffic::{Protocol, Report, RequestStream};
use serde_json::Value;

/// Emulated nodes take their time; no test passes by waiting longer.
const PATIENCE: Duration = Duration::from_secs(300);
const SECOND: Duration = Duration::from_secs(1);

/// A cluster where everything is as it should be.
struct Stage {
    cluster: Cluster,
    folder: PathBuf,
    nodes: Vec<String>,
}

impl Stage {
    fn ready() -> Self {
        let Some(folder) = std::env::var_os(CLUSTER).map(PathBuf::from) else {
            panic!("these tests need a cluster: run them with `rig cluster test`");
        };
        let cluster = Cluster::attach(&folder).unwrap();
        let nodes = cluster.describe().unwrap().nodes.into_keys().collect();
        let stage = Self { cluster, folder, nodes };
        stage.install(&[]);
        stage.configure("{}");
        stage
    }

    fn installation(&self) -> Installation<'_> {
        let folder = self.folder.join("install");
        Installation::prepare(&self.cluster, &folder).unwrap()
    }

    /// Installs Fairlead as a user does, with further addresses of the API server.
    fn install(&self, more_api_servers: &[String]) -> Installation<'_> {
        let installation = self.installation();
        installation.add_api_servers(more_api_servers).unwrap();
        installation.apply().unwrap();
        self.kubectl(&format!("-n {NAMESPACE} rollout status {OPERATOR} --timeout=300s"));
        installation
    }

    /// Applies a ServiceNetwork, and waits until it holds on every node.
    fn configure(&self, spec: &str) -> Value {
        self.cluster.apply(&service_network(spec)).unwrap();
        self.wait_ready()
    }

    fn wait_ready(&self) -> Value {
        match wait_ready(&self.cluster, self.nodes.len() as u64, PATIENCE) {
            Ok(network) => network,
            Err(error) => panic!("{error:#}\n{}", self.cluster.diagnose()),
        }
    }

    fn shop(&self) -> Shop<'_> {
        let shop = Shop::open(&self.cluster).unwrap();
        shop.wait_until_open().unwrap();
        shop
    }

    fn kubectl(&self, words: &str) -> String {
        let words: Vec<_> = words.split_whitespace().collect();
        self.cluster.kubectl(&words).unwrap()
    }

    fn on(&self, node: &str, words: &str) -> String {
        self.cluster.output_on(node, words).unwrap()
    }

    /// The agents' pods by node: name and how often their containers have restarted.
    fn agents(&self) -> Vec<(String, String, u64)> {
        let pods = self.cluster.get(&format!("-n {NAMESPACE} pods -l {AGENT_PODS}")).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pods = pods["items"].as_array().unwrap().iter();
        pods.map(|pod| {
            let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0);
            (text(&pod["spec"]["nodeName"]), text(&pod["metadata"]["name"]), restarts)
        })
        .collect()
    }

    fn agent_names(&self) -> BTreeSet<String> {
        self.agents().into_iter().map(|(_, name, _)| name).collect()
    }

    fn wait_for_agents(&self) {
        // one that was deleted may still be counted for a moment
        patiently("every agent is ready", PATIENCE, || {
            let set = self.cluster.get(&format!("-n {NAMESPACE} {AGENTS}")).unwrap();
            let status = &set["status"];
            status["numberReady"] == self.nodes.len() && status["updatedNumberScheduled"] == self.nodes.len()
        })
        .unwrap();
    }

    /// The schedulers of all virtual servers of a node, by ipvsadm.
    fn schedulers(&self, node: &str) -> BTreeSet<String> {
        let listing = self.on(node, "ipvsadm -Sn");
        let servers = listing.lines().filter(|line| line.starts_with("-A"));
        let scheduler = |line: &str| line.split(" -s ").nth(1)?.split_whitespace().next().map(str::to_owned);
        servers.filter_map(scheduler).collect()
    }
}

/// A request stream to a port of every node, and a held connection to each, from outside.
struct Traffic(Vec<RequestStream>);

impl Traffic {
    fn start(stage: &Stage, shop: &Shop<'_>) -> Self {
        let client = shop.outside().unwrap().limit(Duration::from_secs(10));
        let ports = stage.nodes.iter().map(|node| shop.node_ports(node).unwrap()[0].1);
        let streams =
            ports.flat_map(|to| [client.requests(Protocol::Tcp, to, 20), client.hold(Protocol::Tcp, to, 5)]);
        let streams: Vec<_> = streams.collect();
        patiently("every stream has begun", PATIENCE, || streams.iter().all(|s| s.so_far().ok > 0)).unwrap();
        Self(streams)
    }

    /// Fails if anything was lost.
    fn end(self) -> Vec<Report> {
        let reports: Vec<_> = self.0.into_iter().map(RequestStream::stop).collect();
        for report in &reports {
            assert!(report.failures.is_empty(), "lost: {report}");
            assert!(report.sent > 5, "no stream to speak of: {report}");
        }
        reports
    }
}

#[test]
fn clusterip_and_nodeport_are_reached_from_pods_nodes_and_outside() {
    let stage = Stage::ready();
    let shop = stage.shop();
    let servers: BTreeSet<_> = shop.servers().unwrap().into_iter().collect();
    for node in &stage.nodes {
        for from in [From::Pod, From::Node] {
            for (protocol, to) in [shop.cluster_ip_ports(), shop.node_ports(node).unwrap()].concat() {
                let outcome = shop.ask_from(node, from, protocol, to).unwrap();
                let server = outcome.server().map(str::to_owned);
                assert!(
                    server.is_some_and(|s| servers.contains(&s)),
                    "{node} {from:?} {protocol} {to}: {outcome}"
                );
            }
        }
        for (protocol, to) in shop.node_ports(node).unwrap() {
            let outcome = shop.outside().unwrap().ask(protocol, to);
            assert!(outcome.server().is_some(), "{protocol} {to}: {outcome}");
        }
        let devices = stage.on(node, "ip -oneline address");
        assert!(shop.cluster_ips.iter().all(|ip| !devices.contains(&format!(" {ip}/"))), "{devices}");
    }
}

#[test]
fn a_change_of_the_scheduler_reaches_every_node_and_loses_nothing() {
    let stage = Stage::ready();
    let shop = stage.shop();
    let pods = stage.agent_names();
    let traffic = Traffic::start(&stage, &shop);
    let network = stage.configure("{proxy: {ipvs: {scheduler: lc}}}");
    for node in &stage.nodes {
        assert_eq!(stage.schedulers(node), BTreeSet::from(["lc".to_owned()]), "{node}");
    }
    traffic.end();
    assert_eq!(stage.agent_names(), pods, "a revision is applied live, without a new pod");
    assert_eq!(network["status"]["effective"]["proxy"]["ipvs"]["scheduler"], "lc");
    let revision = &network["status"]["rollout"]["revision"];
    assert_eq!(network["status"]["rollout"]["lastGood"], *revision);
    for node in &stage.nodes {
        let node = stage.cluster.get(&format!("servicenetworknode/{node}")).unwrap();
        assert_eq!((&node["spec"]["revision"], &node["status"]["revision"]), (revision, revision));
    }
    let events = stage.kubectl("get events -A --field-selector involvedObject.kind=ServiceNetwork");
    assert!(events.lines().count() > 1, "{events}");
}

#[test]
fn a_bad_spec_is_refused_with_a_sentence_and_nothing_changes() {
    let stage = Stage::ready();
    let before = stage.cluster.get("servicenetwork/cluster").unwrap();
    let refused = stage.cluster.apply(&service_network("{proxy: {markBit: 14}}")).unwrap_err().to_string();
    assert!(refused.contains("must be 0 to 7, 12, 13 or 16 to 23"), "{refused}");
    let after = stage.cluster.get("servicenetwork/cluster").unwrap();
    assert_eq!(before["spec"], after["spec"]);
    assert_eq!(before["status"], after["status"]);
}

#[test]
fn an_agents_pod_is_deleted_and_nothing_is_lost() {
    let stage = Stage::ready();
    let shop = stage.shop();
    let (node, pod, _) = stage.agents().remove(0);
    let traffic = Traffic::start(&stage, &shop);
    stage.kubectl(&format!("-n {NAMESPACE} delete pod {pod}"));
    patiently("another agent is there", PATIENCE, || {
        stage.agents().iter().any(|(on, name, _)| *on == node && *name != pod)
    })
    .unwrap();
    stage.wait_for_agents();
    std::thread::sleep(2 * SECOND);
    traffic.end();
}

#[test]
fn the_agents_are_replaced_one_by_one_and_nothing_is_lost() {
    let stage = Stage::ready();
    let shop = stage.shop();
    let before = stage.agent_names();
    let traffic = Traffic::start(&stage, &shop);
    // what an administrator does who adds an API server: it is part of the agents' pods
    let second = format!("https://[{}]:6443", stage.cluster.describe().unwrap().subnet.control_plane().v6);
    stage.install(&[second]);
    let mut most_away = 0;
    patiently("every agent's pod is a new one", 2 * PATIENCE, || {
        let set = stage.cluster.get(&format!("-n {NAMESPACE} {AGENTS}")).unwrap();
        let ready = set["status"]["numberReady"].as_u64().unwrap_or(0);
        most_away = most_away.max(stage.nodes.len() as u64 - ready);
        let now = stage.agent_names();
        now.len() == stage.nodes.len() && now.is_disjoint(&before) && ready == stage.nodes.len() as u64
    })
    .unwrap();
    traffic.end();
    assert_eq!(most_away, 1, "agents away at once");
    stage.wait_ready();
}

#[test]
fn an_api_server_away_for_a_minute_is_not_missed_by_agents_that_restart_meanwhile() {
    let stage = Stage::ready();
    let shop = stage.shop();
    let before = stage.agents();
    let traffic = Traffic::start(&stage, &shop);
    stage.cluster.cut_off_api_server(Cut::Nodes).unwrap();
    std::thread::sleep(5 * SECOND);
    for node in &stage.nodes {
        stage.on(node, "pkill -KILL -x fairlead-node-a");
    }
    std::thread::sleep(55 * SECOND);
    for node in &stage.nodes {
        let agent = stage.on(node, "pgrep -x fairlead-node-a");
        assert!(!agent.trim().is_empty(), "no agent runs on {node} while the API server is away");
    }
    // in a cluster without an API server a node's own health is what a load balancer goes by
    for node in &stage.nodes {
        stage.on(node, "curl -sf http://127.0.0.1:10256/livez");
    }
    stage.cluster.restore_api_server().unwrap();
    traffic.end();
    stage.wait_for_agents();
    stage.wait_ready();
    let restarted = stage.agents();
    for (node, pod, restarts) in &before {
        let now = restarted.iter().find(|(on, _, _)| on == node).unwrap();
        assert!(now.1 == *pod && now.2 > *restarts, "{node}: {now:?}");
    }
    // and they follow again
    stage.kubectl("-n shop scale deployment/web --replicas=1");
    let followed = patiently("one server answers", PATIENCE, || {
        let client = shop.outside().unwrap();
        let to = shop.node_ports(&stage.nodes[0]).unwrap()[0].1;
        let asked: BTreeSet<_> =
            (0..6).filter_map(|_| client.ask(Protocol::Tcp, to).server().map(str::to_owned)).collect();
        asked.len() == 1
    });
    stage.kubectl("-n shop scale deployment/web --replicas=3");
    followed.unwrap();
}

#[test]
fn a_servicenetwork_that_is_deleted_changes_nothing_and_is_adopted_when_it_is_made_again() {
    let stage = Stage::ready();
    let shop = stage.shop();
    let agents = stage.agents();
    let revisions = stage.kubectl(&format!("-n {NAMESPACE} get controllerrevisions -o name"));
    let traffic = Traffic::start(&stage, &shop);
    stage.kubectl("delete servicenetwork cluster");
    std::thread::sleep(10 * SECOND);
    assert_eq!(stage.agents(), agents);
    // a Service made meanwhile works
    stage.kubectl("-n shop expose deployment web --name later --port 80 --target-port 8080");
    let address = stage.kubectl("-n shop get service later -o jsonpath={.spec.clusterIP}");
    let to = format!("{address}:80").parse().unwrap();
    patiently("a new Service is served", PATIENCE, || {
        shop.ask_from(&stage.nodes[0], From::Pod, Protocol::Tcp, to).is_ok_and(|o| o.server().is_some())
    })
    .unwrap();
    stage.kubectl("-n shop delete service later");
    stage.configure("{}");
    traffic.end();
    assert_eq!(stage.agents(), agents, "the same pods, never restarted");
    assert_eq!(stage.kubectl(&format!("-n {NAMESPACE} get controllerrevisions -o name")), revisions);
}

#[test]
fn a_deleted_crd_changes_nothing_and_all_is_well_when_it_is_back() {
    let stage = Stage::ready();
    let shop = stage.shop();
    let agents = stage.agents();
    let traffic = Traffic::start(&stage, &shop);
    stage.kubectl("delete crd servicenetworks.fairlead.dev servicenetworknodes.fairlead.dev");
    std::thread::sleep(15 * SECOND);
    assert_eq!(stage.agents(), agents);
    stage.install(&[]);
    stage.configure("{}");
    traffic.end();
    assert_eq!(stage.agents(), agents, "the same pods, never restarted");
}

#[test]
fn a_node_added_while_the_operator_is_away_takes_the_last_good_revision() {
    let mut stage = Stage::ready();
    stage.configure("{proxy: {ipvs: {scheduler: wlc}}}");
    stage.kubectl(&format!("-n {NAMESPACE} scale {OPERATOR} --replicas=0"));
    patiently("the operator is gone", PATIENCE, || {
        let pods = format!("-n {NAMESPACE} get pods -l app.kubernetes.io/name=fairlead-operator -o name");
        stage.kubectl(&pods).trim().is_empty()
    })
    .unwrap();
    let name = "late";
    stage.cluster.add_node(&Spec::new(name, Kind::Machine)).unwrap();
    stage.nodes.push(name.to_owned());
    patiently("the new node's agent is ready", PATIENCE, || {
        let set = stage.cluster.get(&format!("-n {NAMESPACE} {AGENTS}")).unwrap();
        set["status"]["numberReady"] == stage.nodes.len()
    })
    .unwrap();
    assert_eq!(stage.schedulers(name), BTreeSet::from(["wlc".to_owned()]));
    let nobody = stage.cluster.kubectl(&["get", "servicenetworknode", name]).unwrap_err().to_string();
    assert!(nobody.contains("not found"), "{nobody}");
    let shop = stage.shop();
    for (protocol, to) in shop.cluster_ip_ports() {
        let outcome = shop.ask_from(name, From::Node, protocol, to).unwrap();
        assert!(outcome.server().is_some(), "{protocol} {to}: {outcome}");
    }
    // the operator comes back and finds it
    stage.kubectl(&format!("-n {NAMESPACE} scale {OPERATOR} --replicas=2"));
    stage.wait_ready();
    stage.cluster.remove_node(name).unwrap();
    stage.nodes.pop();
    patiently("the object of the node that is gone is gone too", PATIENCE, || {
        stage.cluster.kubectl(&["get", "servicenetworknode", name]).is_err()
    })
    .unwrap();
    stage.wait_ready();
}

#[test]
fn an_uninstalled_operator_leaves_agents_and_traffic_going() {
    let stage = Stage::ready();
    let shop = stage.shop();
    let agents = stage.agents();
    let traffic = Traffic::start(&stage, &shop);
    stage.kubectl("delete servicenetwork cluster");
    stage.installation().delete().unwrap();
    stage.kubectl("delete crd servicenetworks.fairlead.dev servicenetworknodes.fairlead.dev");
    // what follows Services goes on without them
    stage.kubectl("-n shop scale deployment/web --replicas=4");
    shop.wait_for("deployment/web").unwrap();
    let servers: BTreeSet<_> = shop.servers().unwrap().into_iter().collect();
    assert_eq!(servers.len(), 4);
    let client = shop.outside().unwrap();
    let to = shop.node_ports(&stage.nodes[0]).unwrap()[0].1;
    patiently("all four pods answer", PATIENCE, || {
        let asked: BTreeSet<_> =
            (0..12).filter_map(|_| client.ask(Protocol::Tcp, to).server().map(str::to_owned)).collect();
        asked == servers
    })
    .unwrap();
    assert_eq!(stage.agents(), agents);
    // and it is installed again, over what there is
    stage.install(&[]);
    stage.configure("{}");
    traffic.end();
    stage.kubectl("-n shop scale deployment/web --replicas=3");
    assert_eq!(stage.agents(), agents, "the same pods, never restarted");
}
