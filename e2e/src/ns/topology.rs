//! The network of a test.
//!
//! ```text
//!   pod1 .2 ┐                                            client 172.16.0.2
//!           ├ node1 192.168.50.1 ──┐                        │
//!   pod2 .3 ┘ 10.244.1.0/24        ├── router (bridge) ─────┘
//!   pod3 .2 ─ node2 192.168.50.2 ──┘   192.168.50.9, 172.16.0.1
//!             10.244.2.0/24
//! ```
//!
//! The same in IPv6 (see [`addr`]). node1 is for the agent under test; node2 only routes for its pod. The router knows
//! the way to the pods of each node, and sends whatever else it knows no way for to node1: that is how the addresses
//! of Services get there, which no device owns.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{LOOPBACK_UP, Namespace, Process, diagnose, end_processes, require_ipvs_kernel};

/// An address in both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Address {
    /// Both, as general addresses, IPv4 first.
    pub const fn both(self) -> [IpAddr; 2] {
        [IpAddr::V4(self.v4), IpAddr::V6(self.v6)]
    }

    /// The one of the family of `other`.
    pub const fn like(self, other: IpAddr) -> IpAddr {
        match other {
            IpAddr::V4(_) => IpAddr::V4(self.v4),
            IpAddr::V6(_) => IpAddr::V6(self.v6),
        }
    }
}

/// The addresses of the topology. Pod ranges and the service range do not overlap: 10.96.0.0/16 and fd00:96::/112, and
/// the documentation ranges 203.0.113.0/24 and 2001:db8::/32, are free for Services.
pub mod addr {
    use super::{Address, Ipv4Addr, Ipv6Addr};

    const fn node(n: u8) -> Address {
        Address {
            v4: Ipv4Addr::new(192, 168, 50, n),
            v6: Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, n as u16),
        }
    }

    const fn pod(node: u8, n: u8) -> Address {
        Address {
            v4: Ipv4Addr::new(10, 244, node, n),
            v6: Ipv6Addr::new(0xfd00, 0x244, node as u16, 0, 0, 0, 0, n as u16),
        }
    }

    const fn outside(n: u8) -> Address {
        Address { v4: Ipv4Addr::new(172, 16, 0, n), v6: Ipv6Addr::new(0xfd00, 0x16, 0, 0, 0, 0, 0, n as u16) }
    }

    /// The node under test: 192.168.50.1, fd00:50::1.
    pub const NODE1: Address = node(1);
    /// The other node: 192.168.50.2, fd00:50::2.
    pub const NODE2: Address = node(2);
    /// The router, on the side of the nodes: 192.168.50.9, fd00:50::9.
    pub const ROUTER: Address = node(9);
    /// The router, on the side of the client: 172.16.0.1, fd00:16::1.
    pub const ROUTER_OUTSIDE: Address = outside(1);
    /// The client outside: 172.16.0.2, fd00:16::2.
    pub const CLIENT: Address = outside(2);
    /// node1 as its pods see it: 10.244.1.1, fd00:244:1::1.
    pub const GATEWAY1: Address = pod(1, 1);
    /// node2 as its pod sees it: 10.244.2.1, fd00:244:2::1.
    pub const GATEWAY2: Address = pod(2, 1);
    /// A pod on node1: 10.244.1.2, fd00:244:1::2.
    pub const POD1: Address = pod(1, 2);
    /// Another pod on node1: 10.244.1.3, fd00:244:1::3.
    pub const POD2: Address = pod(1, 3);
    /// The pod on node2: 10.244.2.2, fd00:244:2::2.
    pub const POD3: Address = pod(2, 2);
}

/// How the pods of a node reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PodLinks {
    /// A veth pair each, routed, as Calico and the ptp plugin do.
    #[default]
    Routed,
    /// Ports of one bridge, `cni0`, as the bridge plugin and flannel do.
    Bridged,
}

/// How the network of a test is to be made.
#[derive(Debug, Clone, Copy, Default)]
pub struct TopologyBuilder {
    pod_links: PodLinks,
}

impl TopologyBuilder {
    /// Chooses how pods reach their node.
    #[must_use]
    pub fn pod_links(mut self, pod_links: PodLinks) -> Self {
        self.pod_links = pod_links;
        self
    }

    /// Makes the network.
    pub fn build(self) -> Result<Topology> {
        require_ipvs_kernel()?;
        let new = |name| Namespace::unwired(name);
        let topology = Topology {
            node1: new("node1")?,
            node2: new("node2")?,
            router: new("router")?,
            client: new("client")?,
            pod1: new("pod1")?,
            pod2: new("pod2")?,
            pod3: new("pod3")?,
            logs: tempfile::Builder::new().prefix("fairlead-topology-").tempdir()?,
        };
        for forwarder in [&topology.node1, &topology.node2, &topology.router] {
            forwarder.sysctl("net/ipv4/ip_forward", "1")?;
            forwarder.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        }
        for namespace in topology.namespaces() {
            // one reject a second a peer is too few for a table of packet cases
            namespace.sysctl("net/ipv4/icmp_ratelimit", "0")?;
            namespace.sysctl("net/ipv6/icmp/ratelimit", "0")?;
        }
        topology.wire(self.pod_links)?;
        Ok(topology)
    }
}

/// Two nodes with pods, a router, and a client outside. Removed with all that runs in it when it goes out of scope;
/// if a test panics meanwhile, the state of its nodes and the logs of its programs are printed first.
#[derive(Debug)]
pub struct Topology {
    /// The node under test.
    pub node1: Namespace,
    /// A node that only routes.
    pub node2: Namespace,
    /// The way out, and the switch between the nodes.
    pub router: Namespace,
    /// A client that is on no node.
    pub client: Namespace,
    /// A pod on node1.
    pub pod1: Namespace,
    /// Another pod on node1.
    pub pod2: Namespace,
    /// A pod on node2.
    pub pod3: Namespace,
    logs: TempDir,
}

impl Topology {
    /// The network with its defaults.
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Starts to describe a network.
    pub fn builder() -> TopologyBuilder {
        TopologyBuilder::default()
    }

    /// A folder that goes with the topology: for configuration and state of the programs in it.
    pub fn scratch(&self, name: &str) -> Result<std::path::PathBuf> {
        let folder = self.logs.path().join(name);
        std::fs::create_dir_all(&folder).with_context(|| format!("failed to create {}", folder.display()))?;
        Ok(folder)
    }

    /// Starts a program made with [`Namespace::command`]; its log is shown if the test fails.
    pub fn start(&self, name: &str, command: &mut Command) -> Result<Process> {
        Process::start(name, command, self.logs.path())
    }

    /// The state of the nodes' dataplanes and the ends of the logs.
    pub fn diagnose(&self) -> String {
        diagnose::report(&[&self.node1, &self.node2], self.logs.path())
    }

    fn namespaces(&self) -> [&Namespace; 7] {
        [&self.node1, &self.node2, &self.router, &self.client, &self.pod1, &self.pod2, &self.pod3]
    }

    /// One batch a namespace: a start of `ip` takes a tenth of a second in the machine. A batch that makes a link comes
    /// before the one of the namespace its far end is in.
    fn wire(&self, links: PodLinks) -> Result<()> {
        let local = [(&self.pod1, addr::POD1), (&self.pod2, addr::POD2)];
        let remote = [(&self.pod3, addr::POD3)];
        self.wire_router()?;
        self.client.ip(&[end_of_link(addr::CLIENT, 24, 64), default_routes(addr::ROUTER_OUTSIDE)].concat())?;
        let node = |address| [end_of_link(address, 24, 64), default_routes(addr::ROUTER)].concat();
        let node1 = [node(addr::NODE1), pod_routes(addr::GATEWAY2, addr::NODE2)].concat();
        let node2 = [node(addr::NODE2), pod_routes(addr::GATEWAY1, addr::NODE1)].concat();
        self.node1.ip(&[node1, links.on_node(addr::GATEWAY1, &local)].concat())?;
        self.node2.ip(&[node2, links.on_node(addr::GATEWAY2, &remote)].concat())?;
        for (pod, address) in local {
            pod.ip(&links.in_pod(addr::GATEWAY1, address))?;
        }
        remote.iter().try_for_each(|(pod, address)| pod.ip(&links.in_pod(addr::GATEWAY2, *address)))
    }

    fn wire_router(&self) -> Result<()> {
        let mut lines =
            vec![LOOPBACK_UP.to_owned(), "link add lan type bridge".to_owned(), "link set lan up".to_owned()];
        for node in [&self.node1, &self.node2] {
            lines.extend(link_to(node));
            lines.push(format!("link set to-{} master lan", node.name()));
        }
        lines.extend(link_to(&self.client));
        lines.extend(addresses("lan", addr::ROUTER, 24, 64));
        lines.extend(addresses("to-client", addr::ROUTER_OUTSIDE, 24, 64));
        lines.extend(pod_routes(addr::GATEWAY1, addr::NODE1));
        lines.extend(pod_routes(addr::GATEWAY2, addr::NODE2));
        lines.extend(default_routes(addr::NODE1));
        self.router.ip(&lines)
    }
}

impl PodLinks {
    /// What makes a node the gateway of its pods.
    fn on_node(self, gateway: Address, pods: &[(&Namespace, Address)]) -> Vec<String> {
        let mut lines = Vec::new();
        if self == Self::Bridged {
            lines.extend(["link add cni0 type bridge".to_owned(), "link set cni0 up".to_owned()]);
            lines.extend(addresses("cni0", gateway, 24, 64));
        }
        for (pod, address) in pods {
            let device = format!("to-{}", pod.name());
            lines.extend(link_to(pod));
            match self {
                Self::Bridged => lines.extend([
                    format!("link set {device} master cni0"),
                    // a pod that is its own backend gets its packets back through the port they came from
                    format!("link set {device} type bridge_slave hairpin on"),
                ]),
                Self::Routed => {
                    lines.extend(addresses(&device, gateway, 32, 128));
                    lines.extend(address.both().map(|address| format!("route add {address} dev {device}")));
                }
            }
        }
        lines
    }

    fn in_pod(self, gateway: Address, address: Address) -> Vec<String> {
        let mut lines = match self {
            Self::Bridged => end_of_link(address, 24, 64),
            Self::Routed => end_of_link(address, 32, 128),
        };
        if self == Self::Routed {
            lines.extend(gateway.both().map(|gateway| format!("route add {gateway} dev eth0")));
        }
        lines.extend(default_routes(gateway));
        lines
    }
}

/// A link to another namespace, where its end is called eth0.
fn link_to(namespace: &Namespace) -> [String; 2] {
    let (name, path) = (namespace.name(), namespace.path());
    [format!("link add to-{name} type veth peer name eth0 netns {path}"), format!("link set to-{name} up")]
}

fn end_of_link(address: Address, v4_length: u8, v6_length: u8) -> Vec<String> {
    let up = [LOOPBACK_UP.to_owned(), "link set eth0 up".to_owned()];
    up.into_iter().chain(addresses("eth0", address, v4_length, v6_length)).collect()
}

fn addresses(device: &str, address: Address, v4_length: u8, v6_length: u8) -> [String; 2] {
    [
        format!("addr add {}/{v4_length} dev {device}", address.v4),
        format!("addr add {}/{v6_length} dev {device} nodad", address.v6),
    ]
}

impl Drop for Topology {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // captured by libtest with the output of this very test
            println!("{}", self.diagnose());
        }
        if let Err(error) = end_processes(&self.namespaces()) {
            eprintln!("{error:#}");
        }
    }
}

fn default_routes(via: Address) -> Vec<String> {
    via.both().iter().map(|via| format!("route add default via {via}")).collect()
}

/// The routes to the pods behind `gateway`, through the node `via`.
fn pod_routes(gateway: Address, via: Address) -> Vec<String> {
    let v4 = Ipv4Addr::from_bits(gateway.v4.to_bits() & !0xff);
    let v6 = Ipv6Addr::from_bits(gateway.v6.to_bits() & !u128::from(u64::MAX));
    vec![format!("route add {v4}/24 via {}", via.v4), format!("route add {v6}/64 via {}", via.v6)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_routed_through_their_node_in_both_families() {
        assert_eq!(
            pod_routes(addr::GATEWAY2, addr::NODE2),
            ["route add 10.244.2.0/24 via 192.168.50.2", "route add fd00:244:2::/64 via fd00:50::2"]
        );
    }

    #[test]
    fn an_address_is_chosen_by_family() {
        let [v4, v6] = addr::POD1.both();
        assert_eq!(addr::CLIENT.like(v4).to_string(), "172.16.0.2");
        assert_eq!(addr::CLIENT.like(v6).to_string(), "fd00:16::2");
    }
}
