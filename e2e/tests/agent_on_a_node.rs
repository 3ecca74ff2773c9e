//! The agent as an operator of a node meets it: its verbs, its endpoints, what it refuses, what it repairs,
//! and what it never touches. Run by `rig test`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::float_cmp,
    reason = "a test may panic, and counts are whole"
)]

use std::time::Duration;

use fairlead_e2e::agent::{Agent, HEALTH, METRICS, PODS, get, service_network, slices};
use fairlead_e2e::eventually;
use fairlead_e2e::ns::{Topology, addr};
use fairlead_e2e::traffic::{Client, Protocol, Server};

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: test}
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, \"fd00:96::10\"]
  ipFamilies: [IPv4, IPv6]
  ports: [{name: http, protocol: TCP, port: 80, nodePort: 30080}]
";
const PORTS: &str = "[{name: http, protocol: TCP, port: 8080}]";

/// An agent with Service `web` on the three pods, not started yet.
fn prepared(topology: &Topology) -> Agent<'_> {
    let agent = Agent::new(topology).unwrap();
    agent.write("service.yaml", SERVICE).unwrap();
    agent.write("slices.yaml", &slices("web", PORTS, &PODS)).unwrap();
    agent
}

/// Waits for a reason in the agent's log.
fn assert_refused(agent: &Agent<'_>, reason: &str) {
    eventually(reason, Duration::from_secs(20), || agent.log().contains(reason))
        .unwrap_or_else(|error| panic!("{error}: {}", agent.log()));
}

fn serves(topology: &Topology) -> bool {
    let to = "10.96.0.10:80".parse().unwrap();
    Client::in_ns(&topology.pod2).limit(Duration::from_secs(2)).ask(Protocol::Tcp, to).server().is_some()
}

#[test]
fn debians_tools_confirm_what_the_agent_says_it_programmed() {
    let topology = Topology::new().unwrap();
    let mut agent = prepared(&topology);
    agent.start().unwrap();
    let listing = topology.node1.output("ipvsadm -Ln").unwrap();
    for line in
        ["TCP  10.96.0.10:80 rr", "TCP  [fd00:96::10]:80 rr", "FWM  520097792 rr", "FWM  520097792 IPv6 rr"]
    {
        assert!(listing.contains(line), "no {line} in\n{listing}");
    }
    assert_eq!(listing.matches("-> 10.244.1.2:8080").count(), 2, "{listing}");
    let table = topology.node1.output("nft list table inet fairlead").unwrap();
    for text in ["10.96.0.10 . tcp . 80", "tcp . 30080 : 0x1f001000", "192.168.50.1", "10.244.1.0/24"] {
        assert!(table.contains(text), "no {text} in\n{table}");
    }
    let rules = topology.node1.output("ip rule").unwrap();
    assert!(rules.contains("fwmark 0x1000/0x1000 lookup"), "{rules}");
    let routes = topology.node1.output("ip route show table all").unwrap();
    assert!(routes.contains("10.96.0.0/16 dev lo"), "{routes}");
    for (name, value) in
        [("vs/conntrack", "1"), ("vs/expire_nodest_conn", "1"), ("vs/expire_quiescent_template", "1")]
    {
        assert_eq!(topology.node1.read_sysctl(&format!("net/ipv4/{name}")).unwrap(), value, "{name}");
    }
    let inspect = agent.verb(&["inspect", "-o", "json"]).unwrap();
    assert!(inspect.status.success());
    let text = String::from_utf8(inspect.stdout).unwrap();
    assert!(text.contains("\"differences\": []"), "{text}");
}

#[test]
fn health_and_metrics_have_kube_proxys_names() {
    let topology = Topology::new().unwrap();
    let _server = Server::start(&topology.pod1, "pod1", Protocol::Tcp, 8080).unwrap();
    let mut agent = prepared(&topology);
    agent.write("slices.yaml", &slices("web", PORTS, &PODS[..1])).unwrap();
    agent.start().unwrap();
    for path in ["/healthz", "/livez"] {
        let answer = agent.get(HEALTH, path).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"lastUpdated\""), "{answer}");
    }
    assert!(agent.get(METRICS, "/proxyMode").unwrap().ends_with("ipvs"));
    assert!(serves(&topology));
    let connections =
        "fairlead_ipvs_connections_total{namespace=\"test\",service=\"web\",port=\"http\",protocol=\"TCP\"}";
    eventually("IPVS counts the connection", Duration::from_secs(10), || {
        agent.metric(connections).is_ok_and(|count| count >= 1.0)
    })
    .unwrap();
    assert_eq!(agent.metric("fairlead_service_ports{state=\"done\"}").unwrap(), 1.0);
    assert_eq!(agent.metric("fairlead_service_ports{state=\"error\"}").unwrap(), 0.0);
    assert!(agent.metric("kubeproxy_sync_proxy_rules_duration_seconds_count").unwrap() >= 1.0);
    // a node that the autoscaler removes is not eligible: load balancers shall leave it
    agent.remove("node.yaml").unwrap();
    let tainted = "apiVersion: v1
kind: Node
metadata: {name: node1}
spec: {podCIDRs: [10.244.1.0/24], taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}
status: {addresses: [{type: InternalIP, address: 192.168.50.1}]}
";
    agent.write("node.yaml", tainted).unwrap();
    eventually("/healthz says 503", Duration::from_secs(10), || {
        agent.get(HEALTH, "/healthz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 503"))
    })
    .unwrap();
    assert!(agent.get(HEALTH, "/livez").unwrap().starts_with("HTTP/1.1 200"));
}

#[test]
fn a_port_that_asks_for_what_is_not_there_yet_is_an_error_and_the_others_go_on() {
    let topology = Topology::new().unwrap();
    let _server = Server::start(&topology.pod1, "pod1", Protocol::Tcp, 8080).unwrap();
    let mut agent = prepared(&topology);
    let local =
        SERVICE.replace("name: web", "name: local").replace("96.0.10", "96.0.11").replace("::10", "::11");
    let local = local.replace("30080", "30081").replace("spec:\n", "spec:\n  externalTrafficPolicy: Local\n");
    agent.write("local.yaml", &local).unwrap();
    agent.write("slices.yaml", &slices("web", PORTS, &PODS[..1])).unwrap();
    agent.start().unwrap();
    assert_eq!(agent.metric("fairlead_service_ports{state=\"error\"}").unwrap(), 1.0);
    assert!(serves(&topology));
    let listing = topology.node1.output("ipvsadm -Ln").unwrap();
    assert!(!listing.contains("10.96.0.11"), "{listing}");
    let inspect = String::from_utf8(agent.verb(&["inspect"]).unwrap().stdout).unwrap();
    assert!(inspect.contains("not programmed: externalTrafficPolicy Local"), "{inspect}");
}

#[test]
fn a_broken_file_is_told_with_its_place_and_the_last_good_state_stays() {
    let topology = Topology::new().unwrap();
    let _server = Server::start(&topology.pod1, "pod1", Protocol::Tcp, 8080).unwrap();
    let mut agent = prepared(&topology);
    agent.write("slices.yaml", &slices("web", PORTS, &PODS[..1])).unwrap();
    agent.start().unwrap();
    agent.write("service.yaml", &SERVICE.replace("port: 80,", "port: eighty,")).unwrap();
    eventually("the file is reported", Duration::from_secs(10), || {
        agent.get(METRICS, "/readyz").is_ok_and(|answer| answer.contains("service.yaml:9:"))
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", agent.get(METRICS, "/readyz")));
    assert!(serves(&topology));
    assert_eq!(agent.metric("fairlead_source_errors").unwrap(), 1.0);
    agent.write("service.yaml", SERVICE).unwrap();
    agent.wait_ready().unwrap();
}

#[test]
fn what_belongs_to_others_survives_sync_restart_and_cleanup() {
    let topology = Topology::new().unwrap();
    let mut agent = prepared(&topology);
    agent.start().unwrap();
    let node = &topology.node1;
    node.output("ipvsadm -A -t 192.0.2.9:443 -s wlc").unwrap();
    node.output("ipvsadm -a -t 192.0.2.9:443 -r 192.0.2.10:443 -m").unwrap();
    node.output("ipvsadm -A -f 77 -s rr").unwrap();
    node.nft("table inet other {\n set s {\n type ipv4_addr\n elements = { 192.0.2.1 }\n }\n}\n").unwrap();
    node.ip(&["rule add pref 77 fwmark 0x77 lookup 77", "route add 192.0.2.0/24 dev lo table 77"]).unwrap();
    let foreign = || {
        let text = format!(
            "{}{}{}{}",
            node.output("ipvsadm -Ln").unwrap(),
            node.output("nft list tables").unwrap(),
            node.output("ip rule").unwrap(),
            node.output("ip route show table 77").unwrap()
        );
        for part in [
            "192.0.2.9:443 wlc",
            "192.0.2.10:443",
            "FWM  77 rr",
            "table inet other",
            "fwmark 0x77",
            "192.0.2.0/24",
        ] {
            assert!(text.contains(part), "{part} is gone:\n{text}");
        }
        text
    };
    agent.write("slices.yaml", &slices("web", PORTS, &PODS[1..])).unwrap();
    agent.wait_in_step().unwrap();
    foreign();
    agent.kill().unwrap();
    agent.start().unwrap();
    foreign();
    // not while an agent runs
    let refused = agent.verb(&["cleanup"]).unwrap();
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("stop it first"));
    agent.terminate().unwrap();
    let cleaned = agent.verb(&["cleanup"]).unwrap();
    assert!(cleaned.status.success(), "{}", String::from_utf8_lossy(&cleaned.stderr));
    let left = foreign();
    for ours in ["10.96.0.10", "fd00:96::10", "FWM  5200", "fairlead", "proto 108"] {
        assert!(!left.contains(ours), "{ours} is left:\n{left}");
    }
    assert!(!agent.state_dir().exists());
}

#[test]
fn what_others_break_is_repaired_and_counted() {
    let topology = Topology::new().unwrap();
    let _server = Server::start(&topology.pod1, "pod1", Protocol::Tcp, 8080).unwrap();
    let mut agent = prepared(&topology);
    agent.write("slices.yaml", &slices("web", PORTS, &PODS[..1])).unwrap();
    agent.start().unwrap();
    assert!(serves(&topology));
    let node = &topology.node1;
    let repaired = |what: &str, limit: u64| {
        eventually(what, Duration::from_secs(limit), || {
            agent.verb(&["inspect"]).is_ok_and(|output| output.status.success()) && serves(&topology)
        })
        .unwrap();
    };
    // events tell of these at once
    node.output("nft flush ruleset").unwrap();
    repaired("the table is back", 15);
    node.output("ip rule del pref 99").unwrap();
    repaired("the rule is back", 15);
    node.output("nft delete element inet fairlead cluster-ips-4 { 10.96.0.10 . tcp . 80 }").unwrap();
    repaired("the element is back", 15);
    // IPVS tells nobody: the audit finds it
    node.output("ipvsadm -C").unwrap();
    repaired("the virtual servers are back", 60);
    assert!(agent.metric("fairlead_repairs_total{object=\"table\"}").unwrap() >= 1.0);
    assert!(agent.metric("fairlead_repairs_total{object=\"virtual-server\"}").unwrap() >= 1.0);
}

#[test]
fn a_node_with_kube_proxy_is_left_alone_until_it_is_gone() {
    let topology = Topology::new().unwrap();
    let node = &topology.node1;
    node.nft("table ip nat {\n chain KUBE-SERVICES {\n }\n}\n").unwrap();
    let mut agent = prepared(&topology);
    agent.launch(&["--force"]).unwrap();
    assert_refused(&agent, "KubeProxyConflict");
    assert!(!node.output("nft list tables").unwrap().contains("fairlead"));
    assert!(get(node, METRICS, "/metrics").is_err(), "kube-proxy's port was taken");
    node.output("nft delete table ip nat").unwrap();
    agent.wait_ready().unwrap();
}

#[test]
fn a_policy_engine_that_ipvs_would_bypass_refuses_the_node_unless_the_user_says_so() {
    let topology = Topology::new().unwrap();
    topology.node1.nft("table ip filter {\n chain cali-FORWARD {\n }\n}\n").unwrap();
    let mut agent = prepared(&topology);
    agent.launch(&[]).unwrap();
    assert_refused(&agent, "PolicyEngine");
    assert!(!topology.node1.output("nft list tables").unwrap().contains("fairlead"));
    agent.write("network.yaml", &service_network("{proxy: {ipvs: {policyEngine: Ignore}}}")).unwrap();
    agent.wait_ready().unwrap();
}

#[test]
fn a_firewall_that_drops_input_refuses_the_node_until_it_lets_services_in() {
    let topology = Topology::new().unwrap();
    let node = &topology.node1;
    node.nft(
        "table inet firewall {
           chain input {
             type filter hook input priority 0; policy drop;
             ct state established,related accept
             iif lo accept
           }
         }",
    )
    .unwrap();
    let _server = Server::start(&topology.pod1, "pod1", Protocol::Tcp, 8080).unwrap();
    let mut agent = prepared(&topology);
    agent.write("slices.yaml", &slices("web", PORTS, &PODS[..1])).unwrap();
    agent.launch(&[]).unwrap();
    assert_refused(&agent, "HostFirewall");
    // the remedy is told with the rule to add, and works
    assert!(
        agent.log().contains("nft insert rule inet firewall input meta mark and 0x1000 == 0x1000 accept")
    );
    node.output("nft insert rule inet firewall input meta mark and 0x1000 == 0x1000 accept").unwrap();
    agent.wait_ready().unwrap();
    assert!(serves(&topology));
}

#[test]
fn a_node_without_a_default_route_reaches_its_services() {
    let topology = Topology::new().unwrap();
    let _server = Server::start(&topology.pod1, "pod1", Protocol::Tcp, 8080).unwrap();
    topology.node1.output("ip route del default").unwrap();
    topology.node1.output("ip -6 route del default").unwrap();
    let mut agent = prepared(&topology);
    agent.write("slices.yaml", &slices("web", PORTS, &PODS[..1])).unwrap();
    agent.start().unwrap();
    for to in ["10.96.0.10:80", "[fd00:96::10]:80"] {
        let client = Client::in_ns(&topology.node1).limit(Duration::from_secs(5));
        assert_eq!(client.ask(Protocol::Tcp, to.parse().unwrap()).server(), Some("pod1"), "{to}");
    }
    assert_eq!(addr::NODE1.v4.to_string(), "192.168.50.1");
}
