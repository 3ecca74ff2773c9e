//! One Service and its slices to its rows: the choice of endpoints and of frontends.
//!
//! Pure, and about one Service at a time; what two Services may dispute is in `claims`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Backend, Family, Frontend, Refusal, Row, ServicePort, ServicePortName};
use crate::watch::{EndpointSlice, Service, ServicePortSpec};

/// Annotation that names the scheduler of a Service's virtual servers.
pub const SCHEDULER_ANNOTATION: &str = "fairlead.dev/ipvs-scheduler";

/// How an endpoint may be used; the better one wins where slices disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// Neither of the below: it only keeps the connections it has.
    Linger,
    /// Terminating, but still serving.
    Fallback,
    /// Ready.
    Ready,
}

/// An endpoint of a service port, merged over all slices.
struct Candidate {
    how: Use,
    local: bool,
}

/// The identity of a port of a Service.
pub(super) fn port_name(service: &Service, port: &ServicePortSpec) -> ServicePortName {
    ServicePortName {
        namespace: service.key.namespace.clone(),
        service: service.key.name.clone(),
        port: port.name.clone(),
        protocol: port.protocol,
    }
}

/// The rows of a Service, one a port. `node` is the name of the node we are on.
pub(super) fn rows<'a>(
    service: &'a Service,
    slices: &(impl Iterator<Item = &'a Arc<EndpointSlice>> + Clone),
    node: &str,
) -> Vec<(ServicePortName, Row)> {
    service
        .ports
        .iter()
        .map(|port| {
            let name = port_name(service, port);
            let row = row(service, port, &name, slices.clone(), node);
            (name, row)
        })
        .collect()
}

fn row<'a>(
    service: &Service,
    port: &ServicePortSpec,
    name: &ServicePortName,
    slices: impl Iterator<Item = &'a Arc<EndpointSlice>>,
    node: &str,
) -> Row {
    if let Some(refusal) = unsupported(service, port) {
        return Err(refusal);
    }
    let scheduler =
        service.annotations.get(SCHEDULER_ANNOTATION).map(|value| value.parse()).transpose().map_err(
            |unknown: fairlead_crds::config::UnknownScheduler| Refusal::Annotation {
                annotation: SCHEDULER_ANNOTATION.to_owned(),
                problem: unknown.to_string(),
            },
        )?;
    let (backends, lingering) = choose(&candidates(service, port, slices, node));
    Ok(Arc::new(ServicePort {
        name: name.clone(),
        frontends: frontends(service, port),
        backends,
        lingering,
        scheduler,
    }))
}

/// What the Service asks for and no dataplane of ours does yet. As upstream, what is asked of
/// external traffic only matters where there is a way in for it.
fn unsupported(service: &Service, port: &ServicePortSpec) -> Option<Refusal> {
    let balanced = !service.load_balancer_ips.is_empty();
    let external = port.node_port.is_some() || !service.external_ips.is_empty() || balanced;
    if service.internal_local {
        Some(Refusal::InternalLocal)
    } else if service.external_local && external {
        Some(Refusal::ExternalLocal)
    } else if service.client_ip_affinity {
        Some(Refusal::Affinity)
    } else if service.source_ranges && balanced {
        Some(Refusal::SourceRanges)
    } else {
        None
    }
}

/// Families that the Service has a cluster IP of; it has nothing in the other.
fn families(service: &Service) -> impl Iterator<Item = Family> + '_ {
    Family::ALL.into_iter().filter(|family| service.cluster_ips.iter().any(|ip| Family::of(*ip) == *family))
}

fn frontends(service: &Service, port: &ServicePortSpec) -> Vec<Frontend> {
    // One address in two roles is one frontend: the balancer's role, which has more rules to it,
    // is entered last and stays.
    let mut by_address: BTreeMap<SocketAddr, Frontend> = BTreeMap::new();
    let mut add = |ips: &[IpAddr], role: fn(SocketAddr) -> Frontend| {
        for ip in ips {
            let address = SocketAddr::new(*ip, port.port);
            by_address.insert(address, role(address));
        }
    };
    add(&service.external_ips, Frontend::ExternalIP);
    add(&service.load_balancer_ips, Frontend::LoadBalancerIP);
    add(&service.cluster_ips, Frontend::ClusterIP);
    let node_ports = port
        .node_port
        .into_iter()
        .flat_map(|number| families(service).map(move |f| Frontend::NodePort(f, number)));
    let mut frontends: Vec<Frontend> = by_address.into_values().chain(node_ports).collect();
    frontends.sort_unstable();
    frontends
}

/// Every address of the service port in any slice, once. Slice ports are matched by name and
/// protocol.
fn candidates<'a>(
    service: &Service,
    port: &ServicePortSpec,
    slices: impl Iterator<Item = &'a Arc<EndpointSlice>>,
    node: &str,
) -> BTreeMap<SocketAddr, Candidate> {
    let families: Vec<Family> = families(service).collect();
    let mut candidates = BTreeMap::new();
    for slice in slices {
        for slice_port in slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol) {
            for endpoint in slice.endpoints.iter().filter(|e| families.contains(&Family::of(e.address))) {
                let how = match endpoint {
                    e if e.ready => Use::Ready,
                    e if e.serving && e.terminating => Use::Fallback,
                    _ => Use::Linger,
                };
                let local = endpoint.node.as_deref().is_none_or(|name| name == node);
                candidates
                    .entry(SocketAddr::new(endpoint.address, slice_port.port))
                    .and_modify(|c: &mut Candidate| {
                        *c = Candidate { how: c.how.max(how), local: c.local || local }
                    })
                    .or_insert(Candidate { how, local });
            }
        }
    }
    candidates
}

/// Ready endpoints, or those that still serve while they terminate, decided for each family on
/// its own; and what is left over.
fn choose(candidates: &BTreeMap<SocketAddr, Candidate>) -> (Vec<Backend>, Vec<SocketAddr>) {
    let best = |family: Family| {
        let of_family = candidates.iter().filter(move |(address, _)| Family::of(address.ip()) == family);
        of_family.map(|(_, candidate)| candidate.how).max().filter(|how| *how != Use::Linger)
    };
    let (best_v4, best_v6) = (best(Family::V4), best(Family::V6));
    let mut backends = Vec::new();
    let mut lingering = Vec::new();
    for (address, candidate) in candidates {
        let best = if address.is_ipv4() { best_v4 } else { best_v6 };
        if Some(candidate.how) == best {
            backends.push(Backend { address: *address, local: candidate.local });
        } else {
            lingering.push(*address);
        }
    }
    (backends, lingering)
}
