//! The cluster that is measured: N Services of one TCP port with five ready endpoints each, spread
//! over a hundred nodes of which one is ours.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use anyhow::Result;
use fairlead_crds::{NodeAgentConfig, Scheduler};
use fairlead_node_agent::{
    ipvs::{IpvsOp, VirtualServerKey},
    model::Protocol,
    watch::{
        Change, Endpoint, EndpointSlice, Node, ObjectKey, Service, ServiceCidr, ServicePortSpec, SlicePort,
    },
};

/// Endpoints of a Service.
pub const ENDPOINTS: u32 = 5;
const NODES: u32 = 100;
const NAMESPACE: &str = "bench";
const CLUSTER_IPS: u32 = u32::from_be_bytes([10, 96, 0, 0]);
const PODS: u32 = u32::from_be_bytes([10, 128, 0, 0]);
/// Services in one manifest.
const PER_FILE: u32 = 100;

/// The cluster IP of a Service.
fn cluster_ip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from(CLUSTER_IPS + 1 + service)
}

/// Any pod's address; those of the endpoints at first are the lowest.
fn pod(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(PODS + 1 + number)
}

fn node_of(pod: u32) -> String {
    format!("node-{}", pod % NODES)
}

/// An endpoint on a pod.
pub fn endpoint(number: u32) -> Endpoint {
    Endpoint {
        address: IpAddr::V4(pod(number)),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(node_of(number).into()),
    }
}

/// The slice of a Service, as it is at first.
pub fn slice(service: u32) -> EndpointSlice {
    let first = service * ENDPOINTS;
    EndpointSlice {
        key: ObjectKey { namespace: NAMESPACE.into(), name: format!("service-{service}-0").into() },
        service: format!("service-{service}").into(),
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: (first..first + ENDPOINTS).map(endpoint).collect(),
        trigger_time: None,
    }
}

/// What a source would send.
pub fn objects(services: u32) -> Vec<Change> {
    let mut changes = vec![
        Change::Config(NodeAgentConfig::default().into()),
        Change::Node(Node {
            name: "node-0".into(),
            internal_ips: vec![[192, 0, 2, 1].into()],
            pod_cidrs: vec!["10.128.0.0/24".parse().unwrap_or_default()],
            eligible: true,
        }),
        Change::Cidr(ServiceCidr {
            name: "kubernetes".into(),
            cidrs: vec!["10.96.0.0/16".parse().unwrap_or_default()],
        }),
    ];
    for number in 0..services {
        changes.push(Change::Slice(Arc::new(slice(number))));
        changes.push(Change::Service(Arc::new(Service {
            key: ObjectKey { namespace: NAMESPACE.into(), name: format!("service-{number}").into() },
            cluster_ips: vec![IpAddr::V4(cluster_ip(number))],
            external_ips: vec![],
            load_balancer_ips: vec![],
            ports: vec![ServicePortSpec {
                name: "".into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
            }],
            internal_local: false,
            external_local: false,
            client_ip_affinity: false,
            source_ranges: false,
            annotations: BTreeMap::new(),
        })));
    }
    changes.push(Change::Synced);
    changes
}

/// The same virtual and real servers as operations of IPVS.
pub fn operations(services: u32) -> Vec<IpvsOp> {
    let mut ops = Vec::new();
    for number in 0..services {
        let address = SocketAddr::from((cluster_ip(number), 80));
        let key = VirtualServerKey::Address { protocol: Protocol::Tcp, address };
        ops.push(IpvsOp::AddService { key, scheduler: Scheduler::Rr });
        let first = number * ENDPOINTS;
        ops.extend((first..first + ENDPOINTS).map(|n| IpvsOp::AddDest {
            key,
            address: SocketAddr::from((pod(n), 8080)),
            weight: 1,
        }));
    }
    ops
}

/// The same as input of `ipvsadm -R`.
pub fn ipvsadm_rules(services: u32) -> Result<String> {
    let mut text = String::new();
    for number in 0..services {
        let vip = cluster_ip(number);
        writeln!(text, "-A -t {vip}:80 -s rr")?;
        for n in number * ENDPOINTS..(number + 1) * ENDPOINTS {
            writeln!(text, "-a -t {vip}:80 -r {}:8080 -m -w 1", pod(n))?;
        }
    }
    Ok(text)
}

/// The same as a folder of manifests, with the fields that a real cluster's objects have.
pub fn write_manifests(directory: &Path, services: u32) -> Result<()> {
    let node = "apiVersion: v1\nkind: Node\nmetadata:\n  name: node-0\nspec:\n  podCIDRs:\n  - 10.128.0.0/24\n\
                status:\n  addresses:\n  - type: InternalIP\n    address: 192.0.2.1\n";
    fs::write(directory.join("node.yaml"), node)?;
    for first in (0..services).step_by(PER_FILE as usize) {
        let mut text = String::new();
        for number in first..services.min(first + PER_FILE) {
            write_service(&mut text, number)?;
        }
        fs::write(directory.join(format!("services-{first}.yaml")), text)?;
    }
    Ok(())
}

fn write_service(text: &mut String, number: u32) -> Result<()> {
    let (name, vip) = (format!("service-{number}"), cluster_ip(number));
    writeln!(
        text,
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {NAMESPACE}\nspec:\n  type: \
         ClusterIP\n  clusterIP: {vip}\n  clusterIPs:\n  - {vip}\n  selector:\n    app: {name}\n  ports:\n  - port: \
         80\n    targetPort: 8080\n    protocol: TCP"
    )?;
    writeln!(
        text,
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-0\n  namespace: \
         {NAMESPACE}\n  labels:\n    kubernetes.io/service-name: {name}\naddressType: IPv4\nports:\n- name: \"\"\n  \
         port: 8080\n  protocol: TCP\nendpoints:"
    )?;
    for n in number * ENDPOINTS..(number + 1) * ENDPOINTS {
        writeln!(
            text,
            "- addresses:\n  - {}\n  nodeName: {}\n  conditions:\n    ready: true\n    serving: true\n    terminating: \
             false\n  targetRef:\n    kind: Pod\n    name: {name}-{n}\n    namespace: {NAMESPACE}",
            pod(n),
            node_of(n)
        )?;
    }
    Ok(())
}
