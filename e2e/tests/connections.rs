//! What becomes of connections that are open while Services, endpoints or the agent come and go. Run by
//! `rig test`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::float_cmp,
    reason = "a test may panic, and counts are whole"
)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use fairlead_e2e::agent::{Agent, Endpoint, PODS, service_network, slices};
use fairlead_e2e::eventually;
use fairlead_e2e::ns::{Namespace, Topology};
use fairlead_e2e::traffic::{Client, Conn, Outcome, Protocol, Server};

const TARGET: u16 = 8080;
const SLICE_PORTS: &str = "[{name: tcp, protocol: TCP, port: 8080}, {name: udp, protocol: UDP, port: 8080}, {name: sctp, protocol: SCTP, port: 8080}]";

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

fn cluster_ips() -> [SocketAddr; 2] {
    [at("10.96.0.10", 80), at("fd00:96::10", 80)]
}

fn load_balancer_ip() -> SocketAddr {
    at("203.0.113.7", 80)
}

fn service(load_balancer: bool) -> String {
    let status = if load_balancer { "status: {loadBalancer: {ingress: [{ip: 203.0.113.7}]}}\n" } else { "" };
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: web, namespace: test}}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, \"fd00:96::10\"]
  ipFamilies: [IPv4, IPv6]
  ports:
  - {{name: tcp, protocol: TCP, port: 80, nodePort: 30080}}
  - {{name: udp, protocol: UDP, port: 80, nodePort: 30080}}
  - {{name: sctp, protocol: SCTP, port: 80, nodePort: 30080}}
{status}"
    )
}

/// A node whose agent serves `web` from these endpoints; every pod runs a server.
struct Scene<'t> {
    agent: Agent<'t>,
    topology: &'t Topology,
    _servers: Vec<Server>,
}

impl<'t> Scene<'t> {
    fn new(topology: &'t Topology, endpoints: &[Endpoint]) -> Result<Self> {
        let mut servers = Vec::new();
        for pod in [&topology.pod1, &topology.pod2, &topology.pod3] {
            for protocol in Protocol::ALL {
                servers.push(Server::start(pod, pod.name(), protocol, TARGET)?);
            }
        }
        let agent = Agent::new(topology)?;
        agent.write("service.yaml", &service(true))?;
        let mut scene = Self { agent, topology, _servers: servers };
        scene.endpoints(endpoints)?;
        scene.agent.start()?;
        Ok(scene)
    }

    fn endpoints(&self, endpoints: &[Endpoint]) -> Result<()> {
        self.agent.write("slices.yaml", &slices("web", SLICE_PORTS, endpoints))
    }

    /// Connections that shall survive: from a pod, from the node itself, and from outside, in both families.
    fn connections(&self) -> Vec<(String, Conn)> {
        let mut connections = Vec::new();
        let sources: [&Namespace; 3] = [&self.topology.pod2, &self.topology.node1, &self.topology.client];
        for from in sources {
            for to in cluster_ips() {
                let connection = patient(from).connect(Protocol::Tcp, to).unwrap();
                connections.push((format!("{} -> {to}", from.name()), connection));
            }
        }
        connections
    }
}

fn patient(namespace: &Namespace) -> Client {
    Client::in_ns(namespace).limit(Duration::from_secs(10))
}

/// Asks on every connection, twice, and wants the same server each time as before.
fn assert_alive(connections: &mut [(String, Conn)], when: &str) {
    for (name, connection) in connections {
        let outcome = connection.ask();
        assert!(outcome.server().is_some(), "{name}: {outcome} {when}");
    }
}

/// Waits until a new connection from each place is refused.
fn assert_refused_soon(scene: &Scene<'_>, to: SocketAddr) {
    for from in [&scene.topology.pod2, &scene.topology.node1] {
        let mut last = Outcome::TimedOut;
        eventually("new connections are refused", Duration::from_secs(10), || {
            last = Client::in_ns(from).ask(Protocol::Tcp, to);
            last == Outcome::Refused
        })
        .unwrap_or_else(|error| panic!("{} -> {to}: {last}: {error}", from.name()));
    }
}

#[test]
fn connections_outlive_their_deleted_service_and_new_ones_are_refused() {
    let topology = Topology::new().unwrap();
    let scene = Scene::new(&topology, &PODS).unwrap();
    let mut connections = scene.connections();
    assert_alive(&mut connections, "before the Service was deleted");
    scene.agent.remove("service.yaml").unwrap();
    for to in cluster_ips() {
        assert_refused_soon(&scene, to);
    }
    assert_alive(&mut connections, "after the Service was deleted");
}

#[test]
fn connections_outlive_the_removal_of_their_load_balancer_ip() {
    let topology = Topology::new().unwrap();
    let scene = Scene::new(&topology, &PODS).unwrap();
    let mut connection = patient(&topology.client).connect(Protocol::Tcp, load_balancer_ip()).unwrap();
    assert!(connection.ask().server().is_some());
    scene.agent.write("service.yaml", &service(false)).unwrap();
    let listing = || topology.node1.output("nft list set inet fairlead external-ips-4").unwrap();
    eventually("the address is gone", Duration::from_secs(10), || !listing().contains("203.0.113.7"))
        .unwrap();
    assert!(connection.ask().server().is_some(), "the connection to the removed address was cut");
    // the other addresses of the Service are not touched
    assert!(patient(&topology.client).ask(Protocol::Tcp, cluster_ips()[0]).server().is_some());
}

#[test]
fn a_removed_endpoint_drains_and_gets_no_new_connection() {
    let topology = Topology::new().unwrap();
    let scene = Scene::new(&topology, &PODS[..1]).unwrap();
    let mut connections = scene.connections();
    assert_alive(&mut connections, "before the endpoint was removed");
    scene.endpoints(&PODS[2..]).unwrap();
    let drains = |line: &&str| line.split_whitespace().nth(3) == Some("0");
    eventually("the removed endpoint takes no new connections", Duration::from_secs(20), || {
        let listing = topology.node1.output("ipvsadm -Ln").unwrap();
        let of_pod1 = ["10.244.1.2:8080", "[fd00:244:1::2]:8080"];
        listing.lines().filter(|line| of_pod1.iter().any(|b| line.contains(b))).all(|line| drains(&line))
    })
    .unwrap();
    for to in cluster_ips() {
        eventually("new connections go to the other endpoint", Duration::from_secs(10), || {
            patient(&topology.pod2).ask(Protocol::Tcp, to).server() == Some("pod3")
        })
        .unwrap();
        for _ in 0..5 {
            assert_eq!(patient(&topology.client).ask(Protocol::Tcp, to).server(), Some("pod3"));
        }
    }
    for (name, connection) in &mut connections {
        assert_eq!(connection.ask().server(), Some("pod1"), "{name}");
    }
    // the drain ends with the last connection, long before its deadline
    drop(connections);
    let listing = || topology.node1.output("ipvsadm -Ln").unwrap();
    assert!(listing().contains("10.244.1.2:8080"), "{}", listing());
}

#[test]
fn a_drain_ends_at_its_deadline_also_after_a_restart() {
    let topology = Topology::new().unwrap();
    let mut scene = Scene::new(&topology, &PODS[..1]).unwrap();
    scene.agent.write("network.yaml", &service_network("{proxy: {ipvs: {drainTimeout: 20s}}}")).unwrap();
    scene.agent.wait_in_step().unwrap();
    let mut connection = patient(&topology.pod2).connect(Protocol::Tcp, cluster_ips()[0]).unwrap();
    assert_eq!(connection.ask().server(), Some("pod1"));
    let began = Instant::now();
    scene.endpoints(&PODS[2..]).unwrap();
    scene.agent.wait_in_step().unwrap();
    scene.agent.kill().unwrap();
    scene.agent.start().unwrap();
    // The drain began after this clock, and its deadline is counted in whole seconds.
    if began.elapsed() < Duration::from_secs(17) {
        assert_eq!(connection.ask().server(), Some("pod1"), "the restart ended the drain");
    }
    let listing = || topology.node1.output("ipvsadm -Ln").unwrap();
    eventually("the backend is removed", Duration::from_secs(60), || !listing().contains("10.244.1.2:8080"))
        .unwrap();
    // IPVS forgets it, and the node answers for it: the client is not left hanging
    let outcome = connection.ask();
    assert!(matches!(outcome, Outcome::Reset | Outcome::Refused), "{outcome}");
}

#[test]
fn a_udp_flow_moves_to_another_endpoint_when_its_own_goes() {
    let topology = Topology::new().unwrap();
    let scene = Scene::new(&topology, &PODS[..1]).unwrap();
    for to in cluster_ips() {
        let mut flow =
            Client::in_ns(&topology.pod2).limit(Duration::from_secs(1)).connect(Protocol::Udp, to).unwrap();
        assert_eq!(flow.ask().server(), Some("pod1"));
        scene.endpoints(&PODS[2..]).unwrap();
        eventually("the flow reaches the other endpoint", Duration::from_secs(15), || {
            flow.ask().server() == Some("pod3")
        })
        .unwrap();
        scene.endpoints(&PODS[..1]).unwrap();
        scene.agent.wait_in_step().unwrap();
    }
}

#[test]
fn every_scheduler_is_set_in_place_and_no_connection_notices() {
    let topology = Topology::new().unwrap();
    let scene = Scene::new(&topology, &PODS).unwrap();
    let mut connections = scene.connections();
    for scheduler in "wrr lc wlc lblc lblcr dh sh sed nq fo ovf mh rr".split(' ') {
        let network = service_network(&format!("{{proxy: {{ipvs: {{scheduler: {scheduler}}}}}}}"));
        scene.agent.write("network.yaml", &network).unwrap();
        eventually(scheduler, Duration::from_secs(20), || {
            let listing = topology.node1.output("ipvsadm -Ln").unwrap();
            let servers: Vec<_> = listing.lines().filter(|line| !line.starts_with("  ->")).skip(1).collect();
            servers.iter().filter(|line| line.trim_end().ends_with(&format!(" {scheduler}"))).count() >= 9
        })
        .unwrap();
        assert_alive(&mut connections, scheduler);
        let new = patient(&topology.pod2).ask(Protocol::Tcp, cluster_ips()[0]);
        assert!(new.server().is_some(), "{scheduler}: {new}");
    }
}

#[test]
fn no_request_is_lost_while_the_agent_is_killed_and_started_again() {
    let topology = Topology::new().unwrap();
    let mut scene = Scene::new(&topology, &PODS[..2]).unwrap();
    let mut connections = scene.connections();
    let streams = [
        patient(&topology.pod2).requests(Protocol::Tcp, cluster_ips()[0], 20),
        patient(&topology.client).requests(Protocol::Tcp, load_balancer_ip(), 20),
        patient(&topology.node1).requests(Protocol::Tcp, cluster_ips()[1], 20),
    ];
    std::thread::sleep(Duration::from_secs(1));
    scene.agent.kill().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    // one endpoint goes and one comes while nobody looks
    scene.endpoints(&PODS[1..]).unwrap();
    scene.agent.start().unwrap();
    scene.agent.wait_in_step().unwrap();
    eventually("new connections reach the new endpoint", Duration::from_secs(10), || {
        patient(&topology.pod2).ask(Protocol::Tcp, cluster_ips()[0]).server() == Some("pod3")
    })
    .unwrap();
    for _ in 0..6 {
        let outcome = patient(&topology.client).ask(Protocol::Tcp, cluster_ips()[0]);
        assert!(matches!(outcome.server(), Some("pod2" | "pod3")), "{outcome}");
    }
    scene.agent.terminate().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    for stream in streams {
        let report = stream.stop();
        assert!(report.failures.is_empty() && report.sent > 30, "{report}");
        println!("{report}");
    }
    assert_alive(&mut connections, "after kill, restart and stop of the agent");
}
