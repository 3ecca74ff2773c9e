//! Kubernetes objects to what the agent keeps of them.
//!
//! Owns the question "is this object ours?" and the defaults that an API server would have filled
//! in. What an API server refuses is an error here as well, since a folder of manifests has none;
//! what kube-proxy skips with a log line is skipped with a log line.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use k8s_openapi::{
    api::{
        core::v1 as core,
        discovery::v1::{self as discovery, EndpointConditions},
        networking::v1 as networking,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use tracing::warn;

use super::{
    Change, Endpoint, EndpointSlice, Node, ObjectKey, Service, ServiceCidr, ServicePortSpec, SlicePort,
};
use crate::model::{Family, Protocol};

/// Prefix of the annotations that are ours.
pub const ANNOTATION_PREFIX: &str = "fairlead.dev/";
/// Label of an EndpointSlice that names its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Objects with one of these labels belong to somebody else; the EndpointSlice controller copies
/// them from the Service to its slices.
const NOT_OURS: [&str; 2] = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// The autoscaler is about to delete the node (`ToBeDeletedTaint` of cluster-autoscaler).
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// A field has a value that no API server would have let through.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidField {
    /// Path of the field.
    pub field: String,
    /// What is wrong and what to do.
    pub problem: String,
}

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> InvalidField {
    InvalidField { field: field.into(), problem: problem.into() }
}

/// A Service, or its end when it is not ours: headless, ExternalName, left to another proxy.
pub fn service(object: &core::Service) -> Result<Change, InvalidField> {
    let key = object_key(&object.metadata)?;
    let Some(spec) = &object.spec else { return Ok(Change::ServiceGone(key)) };
    let external_name = choice(
        "spec.type",
        spec.type_.as_deref(),
        &[("ClusterIP", false), ("NodePort", false), ("LoadBalancer", false), ("ExternalName", true)],
    )?;
    if external_name || !is_ours(&object.metadata) || !has_cluster_ip(spec) {
        return Ok(Change::ServiceGone(key));
    }

    let cluster_ips = cluster_ips(spec)?;
    let of_our_families = |field: &'static str, ip: &IpAddr| {
        let ours = cluster_ips.iter().any(|c| Family::of(*c) == Family::of(*ip));
        if !ours {
            warn!(service = %key, field, %ip, "ignoring an IP of a family that the Service has no clusterIP of");
        }
        ours
    };
    let external_ips = spec
        .external_ips
        .iter()
        .flatten()
        .filter_map(|text| usable_ip(text, &key, "spec.externalIPs"))
        .filter(|ip| of_our_families("spec.externalIPs", ip))
        .collect();
    let load_balancer_ips = load_balancer_ips(object, &key)
        .into_iter()
        .filter(|ip| of_our_families("status.loadBalancer.ingress", ip))
        .collect();
    let policy = [("Cluster", false), ("Local", true)];
    Ok(Change::Service(Arc::new(Service {
        ports: service_ports(spec)?,
        internal_local: choice(
            "spec.internalTrafficPolicy",
            spec.internal_traffic_policy.as_deref(),
            &policy,
        )?,
        external_local: choice(
            "spec.externalTrafficPolicy",
            spec.external_traffic_policy.as_deref(),
            &policy,
        )?,
        client_ip_affinity: choice(
            "spec.sessionAffinity",
            spec.session_affinity.as_deref(),
            &[("None", false), ("ClientIP", true)],
        )?,
        // Even an unreadable range counts: it was meant to keep somebody out.
        source_ranges: spec
            .load_balancer_source_ranges
            .iter()
            .flatten()
            .any(|range| !range.trim().is_empty()),
        annotations: object
            .metadata
            .annotations
            .iter()
            .flatten()
            .filter(|(name, _)| name.starts_with(ANNOTATION_PREFIX))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        key,
        cluster_ips,
        external_ips,
        load_balancer_ips,
    })))
}

/// An EndpointSlice, or its end when it is not ours: no Service named, or made of host names.
pub fn endpoint_slice(object: &discovery::EndpointSlice) -> Result<Change, InvalidField> {
    let key = object_key(&object.metadata)?;
    let service = label(&object.metadata, SERVICE_NAME_LABEL).filter(|name| !name.is_empty());
    let family = match object.address_type.as_str() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        "FQDN" => None,
        other => return Err(invalid("addressType", format!("{other:?} is none of IPv4, IPv6, FQDN"))),
    };
    let (Some(service), Some(family), true) = (service, family, is_ours(&object.metadata)) else {
        return Ok(Change::SliceGone(key));
    };

    let mut ports = Vec::new();
    for (i, port) in object.ports.iter().flatten().enumerate() {
        let field = |name| format!("ports[{i}].{name}");
        let Some(number) = port.port.filter(|number| *number != 0) else { continue };
        ports.push(SlicePort {
            // An API server defaults both name and protocol, so absent means the same.
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol: protocol(&field("protocol"), port.protocol.as_deref())?,
            port: port_number(&field("port"), number)?,
        });
    }
    Ok(Change::Slice(Arc::new(EndpointSlice {
        service: service.into(),
        ports,
        endpoints: object.endpoints.iter().filter_map(|e| endpoint(e, family, &key)).collect(),
        trigger_time: trigger_time(&object.metadata, &key),
        key,
    })))
}

/// The node.
pub fn node(object: &core::Node) -> Result<Node, InvalidField> {
    let name = object_name(&object.metadata)?;
    let addresses = object.status.iter().flat_map(|s| s.addresses.iter().flatten());
    let of_type = |kind: &'static str| -> Vec<IpAddr> {
        let parse = |address: &core::NodeAddress| {
            let parsed = address.address.parse::<IpAddr>();
            if parsed.is_err() {
                warn!(node = %name, address = address.address, "ignoring a node address that is not an IP");
            }
            parsed.ok().map(|ip| ip.to_canonical())
        };
        addresses.clone().filter(|a| a.type_ == kind).filter_map(parse).collect()
    };
    let mut internal_ips = of_type("InternalIP");
    if internal_ips.is_empty() {
        internal_ips = of_type("ExternalIP");
    }

    let spec = object.spec.as_ref();
    let pod_cidrs = match spec.and_then(|s| s.pod_cidrs.clone()) {
        Some(cidrs) if !cidrs.is_empty() => cidrs,
        _ => spec.and_then(|s| s.pod_cidr.clone()).filter(|cidr| !cidr.is_empty()).into_iter().collect(),
    };
    let being_deleted = object.metadata.deletion_timestamp.is_some()
        || spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|taint| taint.key == TO_BE_DELETED);
    Ok(Node {
        internal_ips,
        pod_cidrs: networks("spec.podCIDRs", &pod_cidrs)?,
        eligible: !being_deleted,
        name,
    })
}

/// A range of cluster IPs.
pub fn service_cidr(object: &networking::ServiceCIDR) -> Result<ServiceCidr, InvalidField> {
    let cidrs = object.spec.iter().flat_map(|s| s.cidrs.iter().flatten()).cloned().collect::<Vec<_>>();
    Ok(ServiceCidr { name: object_name(&object.metadata)?, cidrs: networks("spec.cidrs", &cidrs)? })
}

/// True when a clusterIP is given and is not the `None` of a headless Service.
fn has_cluster_ip(spec: &core::ServiceSpec) -> bool {
    first_cluster_ip(spec).is_some_and(|ip| !ip.is_empty() && ip != "None")
}

/// The primary cluster IP as written.
pub(super) fn first_cluster_ip(spec: &core::ServiceSpec) -> Option<&str> {
    spec.cluster_ip.as_deref().or_else(|| spec.cluster_ips.iter().flatten().next().map(String::as_str))
}

fn cluster_ips(spec: &core::ServiceSpec) -> Result<Vec<IpAddr>, InvalidField> {
    let all = spec.cluster_ips.as_deref().filter(|ips| !ips.is_empty());
    let texts = match (&spec.cluster_ip, all) {
        (Some(first), Some(all)) if all.first() != Some(first) => {
            return Err(invalid("spec.clusterIPs", format!("must begin with spec.clusterIP, {first}")));
        }
        (_, Some(all)) => all.iter().map(String::as_str).collect(),
        (first, None) => first.as_deref().into_iter().collect::<Vec<_>>(),
    };
    texts
        .into_iter()
        .map(|text| match text.trim().parse::<IpAddr>() {
            Ok(ip) if usable(ip) => Ok(ip.to_canonical()),
            _ => Err(invalid(
                "spec.clusterIPs",
                format!("{text:?} is not an IP address that can be a virtual IP"),
            )),
        })
        .collect()
}

fn load_balancer_ips(object: &core::Service, key: &ObjectKey) -> Vec<IpAddr> {
    let status = object.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    status
        .iter()
        .flat_map(|balancer| balancer.ingress.iter().flatten())
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_deref())
        .filter_map(|text| usable_ip(text, key, "status.loadBalancer.ingress"))
        .collect()
}

fn service_ports(spec: &core::ServiceSpec) -> Result<Vec<ServicePortSpec>, InvalidField> {
    let mut ports: Vec<ServicePortSpec> = Vec::new();
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        let field = |name| format!("spec.ports[{i}].{name}");
        let name = port.name.as_deref().unwrap_or_default();
        if ports.iter().any(|other| &*other.name == name) {
            return Err(invalid(
                field("name"),
                format!("{name:?} is the name of an earlier port: give each its own"),
            ));
        }
        ports.push(ServicePortSpec {
            name: name.into(),
            protocol: protocol(&field("protocol"), port.protocol.as_deref())?,
            port: port_number(&field("port"), port.port)?,
            node_port: match port.node_port {
                None | Some(0) => None,
                Some(number) => Some(port_number(&field("nodePort"), number)?),
            },
        });
    }
    Ok(ports)
}

fn endpoint(object: &discovery::Endpoint, family: Family, slice: &ObjectKey) -> Option<Endpoint> {
    // Further addresses of an endpoint were never used by any proxy (kubernetes#106267).
    let address = usable_ip(object.addresses.first()?, slice, "endpoints")?;
    if Family::of(address) != family {
        warn!(%slice, %address, %family, "ignoring an endpoint that is not of its slice's family");
        return None;
    }
    let EndpointConditions { ready, serving, terminating } = object.conditions.clone().unwrap_or_default();
    Some(Endpoint {
        address,
        ready: ready.unwrap_or(true),
        serving: serving.unwrap_or(true),
        terminating: terminating.unwrap_or(false),
        node: object.node_name.as_deref().map(Arc::from),
    })
}

fn trigger_time(metadata: &ObjectMeta, slice: &ObjectKey) -> Option<jiff::Timestamp> {
    let text = metadata.annotations.as_ref()?.get(TRIGGER_TIME)?;
    text.parse().inspect_err(|error| warn!(%slice, %error, "ignoring an unreadable {TRIGGER_TIME}")).ok()
}

fn is_ours(metadata: &ObjectMeta) -> bool {
    NOT_OURS.iter().all(|name| label(metadata, name).is_none())
}

fn label<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(name).map(String::as_str)
}

fn object_key(metadata: &ObjectMeta) -> Result<ObjectKey, InvalidField> {
    Ok(ObjectKey {
        namespace: metadata.namespace.as_deref().filter(|ns| !ns.is_empty()).unwrap_or("default").into(),
        name: object_name(metadata)?,
    })
}

fn object_name(metadata: &ObjectMeta) -> Result<Arc<str>, InvalidField> {
    match metadata.name.as_deref() {
        Some(name) if !name.is_empty() => Ok(name.into()),
        _ => Err(invalid("metadata.name", "missing: give the object a name")),
    }
}

/// Value of a field that has a closed set of values, the first of which is the default.
fn choice<T: Copy + Default>(
    field: &str,
    value: Option<&str>,
    choices: &[(&str, T)],
) -> Result<T, InvalidField> {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(T::default()) };
    choices.iter().find(|(name, _)| *name == value).map(|(_, meaning)| *meaning).ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        invalid(field, format!("{value:?} is none of {}", names.join(", ")))
    })
}

fn protocol(field: &str, value: Option<&str>) -> Result<Protocol, InvalidField> {
    match value {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(invalid(field, format!("{other:?} is none of TCP, UDP, SCTP"))),
    }
}

fn port_number(field: &str, number: i32) -> Result<u16, InvalidField> {
    u16::try_from(number)
        .ok()
        .filter(|number| *number != 0)
        .ok_or_else(|| invalid(field, format!("{number} is not a port number (1 to 65535)")))
}

fn networks(field: &str, texts: &[String]) -> Result<Vec<IpNet>, InvalidField> {
    texts
        .iter()
        .map(|text| match text.parse::<IpNet>() {
            Ok(net) => Ok(net.trunc()),
            Err(_) => Err(invalid(field, format!("{text:?} is not a network such as 10.0.0.0/24"))),
        })
        .collect()
}

/// An IP of a list in which kube-proxy skips what it cannot use.
fn usable_ip(text: &str, object: &ObjectKey, field: &'static str) -> Option<IpAddr> {
    match text.trim().parse::<IpAddr>() {
        Ok(ip) if usable(ip) => Some(ip.to_canonical()),
        _ => {
            warn!(%object, field, value = text, "ignoring what is not a usable IP address");
            None
        }
    }
}

/// False for addresses that no packet may be sent to from another host.
fn usable(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast()
}
