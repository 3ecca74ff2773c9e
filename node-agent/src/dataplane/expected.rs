//! What the kernel should hold, as a value: for `plan`, and for `inspect` to compare with.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use serde::Serialize;

use super::{
    expand::{Surroundings, expand},
    kernel::Found,
    key::ServerKey,
    marks::Marks,
    reconciler::Settings,
    ruleset::Element,
};
use crate::model::{Row, ServicePortName};

/// A virtual server as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExpectedServer {
    /// Its key, as `ipvsadm` shows it.
    pub virtual_server: String,
    /// Its scheduler.
    pub scheduler: String,
    /// Its real servers.
    pub backends: Vec<SocketAddr>,
    #[serde(skip)]
    key: ServerKey,
}

/// A service port as it should be, or why it is not programmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExpectedPort {
    /// `namespace/name:port/PROTOCOL`.
    pub service_port: String,
    /// Its virtual servers.
    pub virtual_servers: Vec<ExpectedServer>,
    /// Frontends whose new connections are rejected, for they have no endpoints.
    pub rejected: Vec<String>,
    /// Why it is not programmed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Everything that should be in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Expected {
    /// By service port.
    pub service_ports: Vec<ExpectedPort>,
    /// Elements of the sets of table `inet fairlead`.
    #[serde(serialize_with = "as_text")]
    pub elements: BTreeSet<Element>,
}

fn as_text<S: serde::Serializer>(elements: &BTreeSet<Element>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(elements.iter().map(ToString::to_string))
}

impl Expected {
    /// What these rows need. `known` are virtual servers that exist: node ports keep their marks.
    pub fn of<'a>(
        rows: impl Iterator<Item = (&'a ServicePortName, &'a Row)>,
        settings: &Settings,
        known: &BTreeSet<ServerKey>,
    ) -> Self {
        let mut marks = Marks::restore(settings.base.bit, known.iter());
        let surroundings = Surroundings {
            scheduler: settings.scheduler,
            ipv6: settings.base.ipv6,
            node_addresses: &settings.base.node_addresses,
        };
        let mut expected =
            Self { service_ports: Vec::new(), elements: settings.base.elements().into_iter().collect() };
        for (name, row) in rows {
            let mut port = ExpectedPort {
                service_port: name.to_string(),
                virtual_servers: Vec::new(),
                rejected: Vec::new(),
                error: None,
            };
            match row {
                Err(refusal) => port.error = Some(refusal.to_string()),
                Ok(row) => {
                    let wanted = expand(row, surroundings, |protocol, port| marks.assign(protocol, port));
                    port.rejected = wanted
                        .elements
                        .iter()
                        .filter(|e| e.is_rejection())
                        .map(ToString::to_string)
                        .collect();
                    expected.elements.extend(wanted.elements);
                    for (key, server) in wanted.servers.into_iter().filter(|(_, s)| !s.backends.is_empty()) {
                        expected.elements.extend(server.elements);
                        port.virtual_servers.push(ExpectedServer {
                            virtual_server: key.to_string(),
                            scheduler: server.scheduler.to_string(),
                            backends: server.backends.to_vec(),
                            key,
                        });
                    }
                }
            }
            expected.service_ports.push(port);
        }
        expected
    }

    /// What differs between this and the kernel, a sentence each. `ours` are the virtual servers that
    /// the record names.
    pub fn differences(&self, found: &Found, ours: &BTreeSet<ServerKey>) -> Vec<String> {
        let present: BTreeMap<_, _> = found.servers.iter().map(|server| (server.key, server)).collect();
        let mut differences = Vec::new();
        let mut wanted = BTreeSet::new();
        for server in self.service_ports.iter().flat_map(|port| &port.virtual_servers) {
            wanted.insert(server.key);
            let name = &server.virtual_server;
            let Some(there) = present.get(&server.key.kernel()) else {
                differences.push(format!("virtual server {name} is missing"));
                continue;
            };
            if there.scheduler != server.scheduler {
                let (is, should) = (&there.scheduler, &server.scheduler);
                differences.push(format!("virtual server {name} has scheduler {is}, should have {should}"));
            }
            let weights: BTreeMap<_, _> = there.backends.iter().copied().collect();
            for backend in &server.backends {
                match weights.get(backend) {
                    None => differences.push(format!("real server {backend} of {name} is missing")),
                    Some(0) => differences.push(format!("real server {backend} of {name} has weight 0")),
                    Some(_) => {}
                }
            }
            let extra = weights.iter().filter(|(b, weight)| **weight > 0 && !server.backends.contains(b));
            differences.extend(extra.map(|(b, _)| format!("real server {b} of {name} should not be there")));
        }
        for key in ours.difference(&wanted) {
            if let Some(server) = present.get(&key.kernel())
                && server.backends.iter().any(|(_, weight)| *weight > 0)
            {
                differences.push(format!("virtual server {key} should not be there"));
            }
        }
        let missing = self.elements.difference(&found.elements);
        differences.extend(missing.map(|element| format!("element {element} is missing")));
        let extra = found.elements.difference(&self.elements).filter(|element| !element.is_rejection());
        differences.extend(extra.map(|element| format!("element {element} should not be there")));
        differences
    }
}

/// Backends that keep their connections and take no new ones, as the kernel has them.
pub fn draining(found: &Found, ours: &BTreeSet<ServerKey>) -> Vec<String> {
    let known: BTreeMap<_, _> = ours.iter().map(|key| (key.kernel(), key)).collect();
    let servers = found.servers.iter().filter_map(|server| Some((known.get(&server.key)?, server)));
    let backends = servers.flat_map(|(key, server)| server.backends.iter().map(move |b| (key, b)));
    backends.filter(|(_, (_, weight))| *weight == 0).map(|(key, (b, _))| format!("{b} of {key}")).collect()
}
