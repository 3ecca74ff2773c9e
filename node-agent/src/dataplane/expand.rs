//! What a service port needs in the kernel. Pure.
//!
//! Each frontend of a family with backends is a virtual server and the set elements that lead
//! packets to it; each frontend without is an element that gets packets rejected.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use fairlead_crds::Scheduler;

use super::{key::ServerKey, ruleset::Element};
use crate::model::{Family, Frontend, Protocol, ServicePort};

/// A virtual server as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedServer {
    /// Scheduler.
    pub scheduler: Scheduler,
    /// Real servers that take new connections, sorted.
    pub backends: Arc<[SocketAddr]>,
    /// Elements that lead packets to it, added only when it exists: an element without a server is
    /// live and wrong (packets hang, or reach a daemon of the node).
    pub elements: Vec<Element>,
}

/// All that one service port needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Virtual servers.
    pub servers: BTreeMap<ServerKey, WantedServer>,
    /// Elements that depend on no server.
    pub elements: Vec<Element>,
}

/// What of the node and the configuration an expansion depends on.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// Scheduler of Services that ask for none.
    pub scheduler: Scheduler,
    /// The host speaks IPv6.
    pub ipv6: bool,
    /// The node's own addresses: a hostNetwork backend needs no hairpin masquerade.
    pub node_addresses: &'a [IpAddr],
}

/// Expands a service port. `mark` gives the firewall mark of one of its node ports.
pub fn expand(
    port: &ServicePort,
    surroundings: Surroundings<'_>,
    mut mark: impl FnMut(Protocol, u16) -> u32,
) -> Wanted {
    let protocol = port.name.protocol;
    let scheduler = port.scheduler.unwrap_or(surroundings.scheduler);
    let backends = Family::ALL.map(|family| -> Arc<[SocketAddr]> {
        port.backends.iter().map(|b| b.address).filter(|a| Family::of(a.ip()) == family).collect()
    });
    let mut wanted = Wanted::default();
    let served = |frontend: &&Frontend| surroundings.ipv6 || frontend.family() == Family::V4;
    for frontend in port.frontends.iter().filter(served) {
        if let Frontend::ClusterIP(address) = frontend {
            wanted.elements.push(Element::ClusterAddress(address.ip()));
        }
        let [v4, v6] = &backends;
        let backends = if frontend.family() == Family::V4 { v4 } else { v6 };
        let lingers = || port.lingering.iter().any(|a| Family::of(a.ip()) == frontend.family());
        if backends.is_empty() && !lingers() {
            wanted.elements.push(match *frontend {
                Frontend::ClusterIP(address)
                | Frontend::ExternalIP(address)
                | Frontend::LoadBalancerIP(address) => Element::NoEndpoints { protocol, address },
                Frontend::NodePort(family, port) => Element::NoEndpointNodePort { family, protocol, port },
            });
            continue;
        }
        let (key, elements) = match *frontend {
            Frontend::ClusterIP(address) => {
                (ServerKey::Address { protocol, address }, vec![Element::ClusterIp { protocol, address }])
            }
            Frontend::ExternalIP(address) | Frontend::LoadBalancerIP(address) => {
                (ServerKey::Address { protocol, address }, vec![Element::ExternalIp { protocol, address }])
            }
            Frontend::NodePort(family, port) => {
                let mark = mark(protocol, port);
                let elements = vec![
                    Element::NodePortMark { protocol, port, mark },
                    Element::NodePort { family, protocol, port },
                ];
                (ServerKey::NodePort { family, protocol, port, mark }, elements)
            }
        };
        let mut made = WantedServer { scheduler, backends: backends.clone(), elements };
        if backends.is_empty() {
            // Its server is kept for the connections of endpoints that are still in a slice.
            made.elements.clear();
            wanted.elements.push(rejection(&key));
        }
        wanted.servers.insert(key, made);
    }
    let hairpins = port
        .backends
        .iter()
        .filter(|b| b.local && (surroundings.ipv6 || b.address.is_ipv4()))
        .filter(|b| !surroundings.node_addresses.contains(&b.address.ip()))
        .map(|b| Element::Hairpin(b.address.ip()));
    wanted.elements.extend(hairpins);
    wanted.elements.sort_unstable();
    wanted.elements.dedup();
    wanted
}

/// The element that gets new connections to a virtual server rejected.
pub fn rejection(key: &ServerKey) -> Element {
    match *key {
        ServerKey::Address { protocol, address } => Element::NoEndpoints { protocol, address },
        ServerKey::NodePort { family, protocol, port, .. } => {
            Element::NoEndpointNodePort { family, protocol, port }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Backend, ServicePortName};

    const NODE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn expanded(frontends: &[Frontend], backends: &[&str]) -> Wanted {
        let port = ServicePort {
            name: ServicePortName {
                namespace: "a".into(),
                service: "web".into(),
                port: "http".into(),
                protocol: Protocol::Tcp,
            },
            frontends: frontends.to_vec(),
            backends: backends.iter().map(|b| Backend { address: address(b), local: true }).collect(),
            lingering: vec![],
            scheduler: None,
        };
        expand(
            &port,
            Surroundings { scheduler: Scheduler::Rr, ipv6: true, node_addresses: &[NODE] },
            |_, _| 0x1f00_1000,
        )
    }

    #[test]
    fn a_frontend_with_backends_is_a_server_and_the_element_that_leads_to_it() {
        let vip = address("10.96.0.10:80");
        let wanted = expanded(&[Frontend::ClusterIP(vip)], &["10.244.1.2:8080"]);
        let key = ServerKey::Address { protocol: Protocol::Tcp, address: vip };
        let server = &wanted.servers[&key];
        assert_eq!(*server.backends, [address("10.244.1.2:8080")]);
        assert_eq!(server.elements, [Element::ClusterIp { protocol: Protocol::Tcp, address: vip }]);
        assert_eq!(
            wanted.elements,
            [Element::ClusterAddress(vip.ip()), Element::Hairpin([10, 244, 1, 2].into())]
        );
    }

    #[test]
    fn the_family_without_backends_is_rejected_and_the_other_served() {
        let (v4, v6) = (address("10.96.0.10:80"), address("[fd00:96::10]:80"));
        let wanted = expanded(&[Frontend::ClusterIP(v4), Frontend::ClusterIP(v6)], &["10.244.1.2:8080"]);
        assert_eq!(wanted.servers.len(), 1);
        assert!(wanted.elements.contains(&Element::NoEndpoints { protocol: Protocol::Tcp, address: v6 }));
    }

    #[test]
    fn a_node_port_is_one_server_found_by_its_mark() {
        let wanted = expanded(&[Frontend::NodePort(Family::V4, 30_080)], &["10.244.1.2:8080"]);
        let (key, server) = wanted.servers.first_key_value().unwrap();
        let (family, protocol, port) = (Family::V4, Protocol::Tcp, 30_080);
        assert_eq!(*key, ServerKey::NodePort { family, protocol, port, mark: 0x1f00_1000 });
        assert_eq!(
            server.elements,
            [
                Element::NodePortMark { protocol, port, mark: 0x1f00_1000 },
                Element::NodePort { family, protocol, port }
            ]
        );
    }

    #[test]
    fn a_backend_on_the_nodes_own_address_needs_no_hairpin() {
        let wanted = expanded(&[Frontend::ClusterIP(address("10.96.0.10:80"))], &["192.0.2.1:8080"]);
        assert_eq!(wanted.elements, [Element::ClusterAddress([10, 96, 0, 10].into())]);
    }
}
