//! The table of packet cases, against the agent on a real kernel. Run by `rig test`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::float_cmp,
    reason = "a test may panic, and counts are whole"
)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use fairlead_e2e::agent::{Agent, Endpoint, slices};
use fairlead_e2e::ns::{Address, Namespace, PodLinks, Topology, addr};
use fairlead_e2e::traffic::{Client, Outcome, Protocol, Server};

const TABLE: &str = include_str!("packet_cases.txt");

/// Port of the backends on pods, on nodes, and of the frontends.
const POD_PORT: u16 = 8080;
const HOST_PORT: u16 = 9090;
const PORT: u16 = 80;

/// A Service of the table: number and node port make its addresses.
struct Service {
    name: &'static str,
    number: u16,
    target: u16,
    endpoints: &'static [Endpoint],
}

const SERVICES: [Service; 4] = [
    Service {
        name: "web",
        number: 1,
        target: POD_PORT,
        endpoints: &[Endpoint::on("node1", addr::POD1), Endpoint::on("node2", addr::POD3)],
    },
    Service {
        name: "host",
        number: 2,
        target: HOST_PORT,
        endpoints: &[Endpoint::on("node1", addr::NODE1), Endpoint::on("node2", addr::NODE2)],
    },
    Service { name: "empty", number: 3, target: POD_PORT, endpoints: &[] },
    Service {
        name: "unready",
        number: 4,
        target: POD_PORT,
        endpoints: &[Endpoint::on("node1", addr::POD1).unready()],
    },
];

impl Service {
    fn address(&self, v4: [u8; 3], v6: &str) -> [IpAddr; 2] {
        let [a, b, c] = v4;
        let n = self.number;
        [format!("{a}.{b}.{c}.{n}").parse().unwrap(), format!("{v6}::{n}").parse().unwrap()]
    }

    fn frontend(&self, kind: &str) -> ([IpAddr; 2], u16) {
        match kind {
            "ClusterIP" => (self.address([10, 96, 0], "fd00:96"), PORT),
            "OtherPort" => (self.address([10, 96, 0], "fd00:96"), PORT + 1),
            "ExternalIP" => (self.address([203, 0, 113], "2001:db8:1"), PORT),
            "LoadBalancer" => (self.address([198, 51, 100], "2001:db8:2"), PORT),
            "NodePort" => (addr::NODE1.both(), 30000 + self.number),
            other => panic!("no frontend kind {other}"),
        }
    }

    fn yaml(&self) -> String {
        let [cluster4, cluster6] = self.frontend("ClusterIP").0;
        let [external4, external6] = self.frontend("ExternalIP").0;
        let [lb4, lb6] = self.frontend("LoadBalancer").0;
        let ports = Protocol::ALL.map(|protocol| {
            let name = protocol.to_string().to_lowercase();
            let node_port = 30000 + self.number;
            format!("{{name: {name}, protocol: {protocol}, port: {PORT}, nodePort: {node_port}}}")
        });
        let name = self.name;
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: test}}
spec:
  type: LoadBalancer
  clusterIP: {cluster4}
  clusterIPs: [{cluster4}, \"{cluster6}\"]
  ipFamilies: [IPv4, IPv6]
  externalIPs: [{external4}, \"{external6}\"]
  ports: [{}]
status: {{loadBalancer: {{ingress: [{{ip: {lb4}}}, {{ip: \"{lb6}\"}}]}}}}
{}",
            ports.join(", "),
            slices(name, &slice_ports(self.target), self.endpoints)
        )
    }
}

fn slice_ports(target: u16) -> String {
    let ports = Protocol::ALL.map(|protocol| {
        format!("{{name: {}, protocol: {protocol}, port: {target}}}", protocol.to_string().to_lowercase())
    });
    format!("[{}]", ports.join(", "))
}

/// What a line of the table expects.
#[derive(Debug, PartialEq)]
enum Expected {
    /// These backends, each with the source it sees.
    Backends(BTreeMap<String, String>),
    Refused,
}

struct Case<'a> {
    line: usize,
    from: &'a str,
    service: &'a Service,
    kind: &'a str,
    expected: Expected,
}

fn cases() -> Vec<Case<'static>> {
    let lines =
        TABLE.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    lines
        .map(|(index, line)| {
            let words: Vec<_> = line.split_whitespace().collect();
            let [from, service, kind, expected @ ..] = &words[..] else {
                panic!("line {}: {line}", index + 1)
            };
            let expected = if *expected == ["refused"] {
                Expected::Refused
            } else {
                let pairs = expected.iter().map(|pair| pair.split_once('=').expect("backend=source"));
                Expected::Backends(pairs.map(|(b, s)| (b.to_owned(), s.to_owned())).collect())
            };
            let service = SERVICES.iter().find(|s| s.name == *service).expect("a Service of the table");
            Case { line: index + 1, from, service, kind, expected }
        })
        .collect()
}

fn named(name: &str) -> Address {
    match name {
        "pod1" => addr::POD1,
        "pod2" => addr::POD2,
        "pod3" => addr::POD3,
        "node1" => addr::NODE1,
        "node2" => addr::NODE2,
        "gateway1" => addr::GATEWAY1,
        "client" => addr::CLIENT,
        other => panic!("no address is named {other}"),
    }
}

fn namespace<'t>(topology: &'t Topology, name: &str) -> &'t Namespace {
    match name {
        "pod1" => &topology.pod1,
        "pod2" => &topology.pod2,
        "pod3" => &topology.pod3,
        "node1" => &topology.node1,
        "client" => &topology.client,
        other => panic!("no namespace is named {other}"),
    }
}

fn servers(topology: &Topology) -> Vec<Server> {
    let mut servers = Vec::new();
    for protocol in Protocol::ALL {
        for pod in [&topology.pod1, &topology.pod2, &topology.pod3] {
            servers.push(Server::start(pod, pod.name(), protocol, POD_PORT).unwrap());
        }
        for (node, address) in [(&topology.node1, addr::NODE1), (&topology.node2, addr::NODE2)] {
            let at = address.both().map(|ip| SocketAddr::new(ip, HOST_PORT));
            servers.push(Server::at(node, node.name(), protocol, &at).unwrap());
        }
    }
    servers
}

/// What six requests show: round robin over at most three backends asks each at least twice.
fn observed(client: &Client, protocol: Protocol, to: SocketAddr) -> Result<Expected, String> {
    let mut backends = BTreeMap::new();
    for _ in 0..6 {
        match client.ask(protocol, to) {
            Outcome::Answer { server, saw_source } => {
                backends.insert(server, saw_source.to_string());
            }
            Outcome::Refused if backends.is_empty() => return Ok(Expected::Refused),
            // Linux' SCTP takes no notice of ICMP port unreachable (RFC 9260 section 10, ICMP4): an
            // INIT that is rejected is sent again until the client gives up, with kube-proxy too.
            Outcome::TimedOut if backends.is_empty() && protocol == Protocol::Sctp => {
                return Ok(Expected::Refused);
            }
            // The sender of a datagram that netfilter rejects on its own node is told at once.
            Outcome::Other(error) if backends.is_empty() && error.starts_with("Operation not permitted") => {
                return Ok(Expected::Refused);
            }
            other => return Err(other.to_string()),
        }
    }
    Ok(Expected::Backends(backends))
}

fn run(links: PodLinks) {
    let topology = Topology::builder().pod_links(links).build().unwrap();
    let _servers = servers(&topology);
    let mut agent = Agent::new(&topology).unwrap();
    for service in &SERVICES {
        agent.write(&format!("{}.yaml", service.name), &service.yaml()).unwrap();
    }
    agent.start().unwrap();

    let mut count = 0;
    let mut failures = Vec::new();
    for case in cases() {
        let (addresses, port) = case.service.frontend(case.kind);
        for protocol in Protocol::ALL {
            // A rejected SYN may be answered while its sender still holds the socket: then it hears of it at
            // the next one, a second later.
            let patience =
                if protocol == Protocol::Sctp && case.expected == Expected::Refused { 1 } else { 10 };
            let client = Client::in_ns(namespace(&topology, case.from)).limit(Duration::from_secs(patience));
            for address in addresses {
                count += 1;
                let expected = match &case.expected {
                    Expected::Refused => Expected::Refused,
                    Expected::Backends(backends) => Expected::Backends(
                        backends
                            .iter()
                            .map(|(backend, source)| {
                                (backend.clone(), named(source).like(address).to_string())
                            })
                            .collect(),
                    ),
                };
                let to = SocketAddr::new(address, port);
                let seen = observed(&client, protocol, to);
                if seen.as_ref() != Ok(&expected) {
                    let (line, from) = (case.line, case.from);
                    failures.push(format!(
                        "line {line}: {from} -> {protocol} {to}: expected {expected:?}, saw {seen:?}"
                    ));
                }
            }
        }
    }
    println!("{count} packet cases, pods {links:?}");
    assert!(count >= 200, "the table has shrunk to {count} cases");
    assert!(failures.is_empty(), "{} of {count} cases failed:\n{}", failures.len(), failures.join("\n"));
    agent.terminate().unwrap();
}

#[test]
fn packets_go_where_the_table_says_with_routed_pods() {
    run(PodLinks::Routed);
}

#[test]
fn packets_go_where_the_table_says_with_pods_on_a_bridge() {
    run(PodLinks::Bridged);
}
