//! The workload of a real cluster (`e2e/cluster/web.yaml`), and how it is asked: from pods, from nodes, from outside.

#![allow(clippy::indexing_slicing, reason = "what is not in a JSON value reads as null: it never panics")]

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::eventually;
use crate::traffic::{Client, Outcome, Protocol};

const MANIFEST: &str = include_str!("../cluster/web.yaml");

/// The namespace of it all.
pub const NAMESPACE: &str = "shop";
/// The ports of the Service: TCP and UDP.
pub const PORTS: [(Protocol, u16); 2] = [(Protocol::Tcp, 80), (Protocol::Udp, 53)];
/// The ports on every node: TCP and UDP.
pub const NODE_PORTS: [(Protocol, u16); 2] = [(Protocol::Tcp, 30080), (Protocol::Udp, 30053)];

/// Emulated nodes take their time.
const PATIENCE: Duration = Duration::from_secs(180);

/// Whom one asks from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// A pod of the node, in a network namespace of its own.
    Pod,
    /// The node itself.
    Node,
}

/// The Service `shop/web` of a cluster.
#[derive(Debug)]
pub struct Shop<'a> {
    cluster: &'a Cluster,
    /// Its addresses, IPv4 first.
    pub cluster_ips: Vec<IpAddr>,
    /// The rig's program, which machine nodes see too.
    traffic: PathBuf,
}

impl<'a> Shop<'a> {
    /// Deploys it with the image of the rig's traffic, and waits until its pods are ready.
    pub fn open(cluster: &'a Cluster) -> Result<Self> {
        cluster.apply(&MANIFEST.replace("IMAGE", &cluster.image("traffic")?))?;
        let service = cluster.get("-n shop service/web")?;
        let addresses = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
        let cluster_ips: Vec<IpAddr> = addresses
            .map(|address| {
                address.as_str().unwrap_or_default().parse().context("a Service without addresses")
            })
            .collect::<Result<_>>()?;
        let shop = Self { cluster, cluster_ips, traffic: program_beside("traffic")? };
        shop.wait_for("deployment/web")?;
        Ok(shop)
    }

    /// Waits until a workload is there in full.
    pub fn wait_for(&self, workload: &str) -> Result<()> {
        let limit = format!("--timeout={}s", PATIENCE.as_secs());
        self.cluster.kubectl(&["-n", NAMESPACE, "rollout", "status", workload, &limit]).map(drop)
    }

    /// The Service's addresses and ports.
    pub fn cluster_ip_ports(&self) -> Vec<(Protocol, SocketAddr)> {
        both(&self.cluster_ips, &PORTS)
    }

    /// The node ports of a node.
    pub fn node_ports(&self, node: &str) -> Result<Vec<(Protocol, SocketAddr)>> {
        let described = self.cluster.describe()?;
        let node = described.nodes.get(node).with_context(|| format!("no node is called {node}"))?;
        Ok(both(&node.place.address().both(), &NODE_PORTS))
    }

    /// Asks from a node, or from a pod on it.
    pub fn ask_from(&self, node: &str, from: From, protocol: Protocol, to: SocketAddr) -> Result<Outcome> {
        let (protocol, to) = (protocol.to_string().to_lowercase(), to.to_string());
        let question = ["ask", &protocol, &to, "--patience", "20"];
        // it fails, with the answer printed, when nobody has answered
        let (printed, said) = match from {
            From::Node => {
                let program = self.traffic.to_string_lossy();
                let output = self.cluster.run_on(node, &[&[&*program], &question[..]].concat(), PATIENCE)?;
                (output.stdout, output.stderr)
            }
            From::Pod => {
                let pod = self.pod_on(node)?;
                let mut kubectl = self.cluster.kubectl_command();
                kubectl.args(["-n", NAMESPACE, "exec", &pod, "--", "/bin/traffic"]).args(question);
                let output = kubectl.output().context("failed to start kubectl")?;
                let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                (text(output.stdout), text(output.stderr))
            }
        };
        serde_json::from_str(printed.trim())
            .with_context(|| format!("asking from {node} ({from:?}) printed {printed:?}: {said}"))
    }

    /// A client outside the nodes' subnet.
    pub fn outside(&self) -> Result<Client> {
        Ok(Client::in_ns(&self.cluster.client()?))
    }

    /// The pod of the Service that runs on a node.
    pub fn pod_on(&self, node: &str) -> Result<String> {
        let pods = self.cluster.get(&format!(
            "-n {NAMESPACE} pods -l app=web --field-selector spec.nodeName={node},status.phase=Running"
        ))?;
        let name = pods["items"][0]["metadata"]["name"].as_str();
        name.map(ToOwned::to_owned).with_context(|| format!("no pod of the Service runs on {node}"))
    }

    /// The names of the Service's pods that are ready.
    pub fn servers(&self) -> Result<Vec<String>> {
        let pods = self.cluster.get(&format!("-n {NAMESPACE} pods -l app=web"))?;
        let ready = |pod: &&Value| {
            let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            conditions.filter(|c| c["type"] == "Ready").any(|c| c["status"] == "True")
        };
        let pods = pods["items"].as_array().into_iter().flatten().filter(ready);
        Ok(pods.filter_map(|pod| pod["metadata"]["name"].as_str()).map(ToOwned::to_owned).collect())
    }

    /// Waits until every frontend answers from outside: ClusterIPs and the ports of all nodes.
    pub fn wait_until_open(&self) -> Result<()> {
        let client = self.outside()?;
        for node in self.cluster.describe()?.nodes.keys() {
            for (protocol, to) in self.node_ports(node)? {
                let mut last = None;
                let answered = eventually(&format!("{protocol} {to} answers"), PATIENCE, || {
                    let outcome = client.ask(protocol, to);
                    let answered = outcome.server().is_some();
                    last = Some(outcome);
                    answered
                });
                if let (Err(error), Some(last)) = (answered, last) {
                    bail!("{error:#}: {last}");
                }
            }
        }
        Ok(())
    }
}

/// Another program of the rig: beside the one that runs, or, of a test, in the folder above.
fn program_beside(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe().context("failed to find the rig's own program")?;
    let places = this.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    let mut found = places.filter(|place| place.is_file());
    found.next().with_context(|| format!("no program {name} beside {}", this.display()))
}

fn both(addresses: &[IpAddr], ports: &[(Protocol, u16)]) -> Vec<(Protocol, SocketAddr)> {
    let each = |address: &IpAddr| {
        let address = *address;
        ports.iter().map(move |(protocol, port)| (*protocol, SocketAddr::new(address, *port)))
    };
    addresses.iter().flat_map(each).collect()
}
