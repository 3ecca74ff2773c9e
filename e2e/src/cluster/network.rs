//! The network of a cluster.
//!
//! ```text
//!   this host 10.89.N.254 ── fairlead-N ┐
//!   node 10.89.N.10 ── eth0 ────────────┤
//!   node 10.89.N.11 ── tap (QEMU) ──────┼── br0 10.89.N.1 ── router ── 192.168.99.1 ── client 192.168.99.2
//! ```
//!
//! The same in IPv6: fd00:89:N::/64 and fd00:99::/64. The router's namespace is the control plane's too: its API
//! server is at 10.89.N.1:6443, for nodes, pods and this host alike, so that kubectl runs anywhere on the host. The
//! router alone knows the way to the pods of each node, as the routers of a data centre do; nodes send what is not
//! theirs to it. There is no way to the Internet.
//!
//! No namespace has a name in /run/netns: each is a file descriptor of the process that made it, at
//! `/proc/<pid>/fd/<n>` for others, and is gone with that process and with what runs in it, whatever happens. So is
//! this host's end of its link, whose name claims the number N on this host.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use super::control_plane::API_SERVER_PORT;
use crate::ns::{self, Address, Namespace};
use crate::process::output_of;

/// The prefix length of a subnet's IPv4 addresses.
pub const V4_LENGTH: u8 = 24;
/// The prefix length of a subnet's IPv6 addresses.
pub const V6_LENGTH: u8 = 64;

/// The client outside the cluster.
pub const CLIENT: Address = outside(2);
/// The router, as the client sees it.
pub const ROUTER_OUTSIDE: Address = outside(1);

const CONTROL_PLANE: u8 = 1;
const HOST: u8 = 254;
const NODES: std::ops::Range<u8> = 10..HOST;

/// The numbers of clusters on this host; 0 is left to those who use 10.89.0.0/24 for something.
const NUMBERS: std::ops::RangeInclusive<u8> = 1..=99;

const fn outside(n: u8) -> Address {
    Address { v4: Ipv4Addr::new(192, 168, 99, n), v6: Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, n as u16) }
}

/// The subnet of a cluster's nodes, free on this host: 10.89.N.0/24 and fd00:89:N::/64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Subnet(u8);

impl Subnet {
    /// The subnet of a number.
    pub const fn of(number: u8) -> Self {
        Self(number)
    }

    /// The control plane, which is the nodes' router too.
    pub fn control_plane(self) -> Address {
        self.address(CONTROL_PLANE)
    }

    /// This host.
    pub fn host(self) -> Address {
        self.address(HOST)
    }

    /// The URL of the API server.
    pub fn api_server(self) -> String {
        format!("https://{}:{API_SERVER_PORT}", self.control_plane().v4)
    }

    /// The host's device in the subnet.
    pub fn host_device(self) -> String {
        format!("fairlead-{}", self.0)
    }

    /// IPv6 writes the same decimal digits, so that 10.89.12.1 and fd00:89:12::1 are seen to belong together.
    fn address(self, n: u8) -> Address {
        let digits = |n: u8| u16::from(n / 100) << 8 | u16::from(n / 10 % 10) << 4 | u16::from(n % 10);
        Address {
            v4: Ipv4Addr::new(10, 89, self.0, n),
            v6: Ipv6Addr::new(0xfd00, 0x89, digits(self.0), 0, 0, 0, 0, digits(n)),
        }
    }
}

/// A node's place in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Place {
    subnet: Subnet,
    number: u8,
}

impl Place {
    /// The node's addresses, of prefix lengths [`V4_LENGTH`] and [`V6_LENGTH`].
    pub fn address(self) -> Address {
        self.subnet.address(self.number)
    }

    /// The router, which is the control plane.
    pub fn gateway(self) -> Address {
        self.subnet.control_plane()
    }

    /// The bridge's port of the node, in the router's namespace.
    fn port(self) -> String {
        format!("node-{}", self.number)
    }
}

/// A tap device for a machine: QEMU opens it in the router's namespace ([`Network::router`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// The device's name.
    pub device: String,
    /// The address of the machine's network card.
    pub mac: String,
}

/// A cluster's network; gone with the value and with what runs in it.
#[derive(Debug)]
pub struct Network {
    /// The control plane, which is the nodes' router.
    pub router: Namespace,
    /// A client outside the nodes' subnet.
    pub client: Namespace,
    subnet: Subnet,
    places: Mutex<BTreeMap<String, Place>>,
}

impl Network {
    /// Makes the network of the cluster `id`, in the first subnet that is free on this host.
    pub fn new(id: &str) -> Result<Self> {
        let router = Namespace::new("router")?;
        let client = Namespace::new("client")?;
        let subnet = claim(&router)?;
        let network = Self { router, client, subnet, places: Mutex::default() };
        // tells whose it is, should it ever be left
        on_host(&format!("link set {} alias {id}", subnet.host_device()))?;
        network.wire()?;
        Ok(network)
    }

    /// The subnet of the nodes.
    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// The place of a node: the same each time it is asked for.
    pub fn place(&self, node: &str) -> Result<Place> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = places.get(node) {
            return Ok(*place);
        }
        let taken: Vec<_> = places.values().map(|place| place.number).collect();
        let number = NODES.into_iter().find(|number| !taken.contains(number));
        let place = Place { subnet: self.subnet, number: number.context("the subnet of the nodes is full")? };
        places.insert(node.to_owned(), place);
        Ok(place)
    }

    /// Forgets a node that is gone for good: its place is free, the routes to its pods are removed.
    pub fn remove(&self, node: &str) -> Result<()> {
        let removed = self.places.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
        let Some(place) = removed else { return Ok(()) };
        self.delete_port(place)?;
        let [v4, v6] = place.address().both();
        self.router.output(&format!("ip route flush via {v4}"))?;
        self.router.output(&format!("ip -6 route flush via {v6}")).map(drop)
    }

    /// A new namespace for a node, wired, addressed and forwarding; what an earlier one had is unplugged.
    pub fn attach_namespace(&self, node: &str) -> Result<Namespace> {
        let place = self.place(node)?;
        self.delete_port(place)?;
        let namespace = Namespace::new(node)?;
        let port = place.port();
        self.router.ip(&[
            format!("link add {port} type veth peer name eth0 netns {}", namespace.path()),
            format!("link set {port} master br0 up"),
        ])?;
        forward(&namespace)?;
        let address = addresses("eth0", place.address());
        let routes = default_routes(place.gateway());
        namespace.ip(&[vec!["link set eth0 up".to_owned()], address, routes].concat())?;
        Ok(namespace)
    }

    /// A tap device on the bridge for a machine; an earlier one of the node is replaced.
    pub fn attach_tap(&self, node: &str) -> Result<Tap> {
        let place = self.place(node)?;
        self.delete_port(place)?;
        let device = place.port();
        self.router
            .ip(&[format!("tuntap add {device} mode tap"), format!("link set {device} master br0 up")])?;
        Ok(Tap { device, mac: format!("52:54:00:89:{:02x}:{:02x}", self.subnet.0, place.number) })
    }

    /// Has the router send the packets for the pods of a node there, in each family of `ranges`.
    pub fn route_pods(&self, node: &str, ranges: &[String]) -> Result<()> {
        let address = self.place(node)?.address();
        let route = |range: &String| {
            let network = range.split('/').next().unwrap_or_default();
            let network: IpAddr = network.parse().with_context(|| format!("{range} is no range of pods"))?;
            Ok(format!("route replace {range} via {}", address.like(network)))
        };
        let lines: Vec<_> = ranges.iter().map(route).collect::<Result<_>>()?;
        if lines.is_empty() { Ok(()) } else { self.router.ip(&lines) }
    }

    /// Kills whatever still runs in the router's and the client's namespace.
    pub fn end_processes(&self) -> Result<()> {
        ns::end_processes(&[&self.router, &self.client])
    }

    fn delete_port(&self, place: Place) -> Result<()> {
        let port = place.port();
        let listing = self.router.output("ip -o link show")?;
        if listing.contains(&format!(" {port}:")) || listing.contains(&format!(" {port}@")) {
            self.router.ip(&[format!("link delete {port}")])?;
        }
        Ok(())
    }

    fn wire(&self) -> Result<()> {
        let (control_plane, subnet) = (self.subnet.control_plane(), self.subnet);
        forward(&self.router)?;
        // nodes reach each other's pods through the router, by the device they came from: that is meant
        for scope in ["all", "default"] {
            self.router.sysctl(&format!("net/ipv4/conf/{scope}/send_redirects"), "0")?;
        }
        let mut lines = vec![
            "link add br0 type bridge".to_owned(),
            "link set br0 up".to_owned(),
            "link set host master br0 up".to_owned(),
            format!("link add client type veth peer name eth0 netns {}", self.client.path()),
            "link set client up".to_owned(),
        ];
        lines.extend(addresses("br0", control_plane));
        lines.extend(addresses("client", ROUTER_OUTSIDE));
        self.router.ip(&lines)?;
        let mut lines = vec!["link set eth0 up".to_owned()];
        lines.extend(addresses("eth0", CLIENT));
        lines.extend(default_routes(ROUTER_OUTSIDE));
        self.client.ip(&lines)?;
        for line in addresses(&subnet.host_device(), subnet.host()) {
            on_host(&line)?;
        }
        on_host(&format!("link set {} up", subnet.host_device()))
    }
}

/// Claims a subnet: of two clusters at once, one finds that the other's device is there already.
fn claim(router: &Namespace) -> Result<Subnet> {
    for number in NUMBERS {
        let subnet = Subnet::of(number);
        let device = subnet.host_device();
        let range = format!("10.89.{number}.0/24");
        let known = output_of(Command::new("ip").args(["route", "show", "root", &range]))?;
        if !known.trim().is_empty() || Path::new("/sys/class/net").join(&device).exists() {
            continue;
        }
        let link = format!("link add {device} type veth peer name host netns {}", router.path());
        match on_host(&link) {
            Err(error) if format!("{error:#}").contains("File exists") => {}
            result => return result.map(|()| subnet),
        }
    }
    bail!("no subnet of 10.89.0.0/16 is free on this host: take clusters down (`rig cluster down`)")
}

fn on_host(line: &str) -> Result<()> {
    output_of(Command::new("ip").args(line.split_whitespace())).map(drop)
}

fn forward(namespace: &Namespace) -> Result<()> {
    namespace.sysctl("net/ipv4/ip_forward", "1")?;
    namespace.sysctl("net/ipv6/conf/all/forwarding", "1")
}

fn addresses(device: &str, address: Address) -> Vec<String> {
    vec![
        format!("addr add {}/{V4_LENGTH} dev {device}", address.v4),
        format!("addr add {}/{V6_LENGTH} dev {device} nodad", address.v6),
    ]
}

fn default_routes(via: Address) -> Vec<String> {
    via.both().iter().map(|via| format!("route add default via {via}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_of_an_address_show_the_same_digits() {
        let address = Subnet(12).address(254);
        assert_eq!([address.v4.to_string(), address.v6.to_string()], ["10.89.12.254", "fd00:89:12::254"]);
        let address = Subnet(7).control_plane();
        assert_eq!([address.v4.to_string(), address.v6.to_string()], ["10.89.7.1", "fd00:89:7::1"]);
    }

    #[test]
    fn device_names_fit_the_kernels_limit() {
        let subnet = Subnet(*NUMBERS.end());
        let place = Place { subnet, number: NODES.end - 1 };
        assert!(subnet.host_device().len() < 16 && place.port().len() < 16);
    }
}
