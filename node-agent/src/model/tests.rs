//! Manifests in, rows out.
//!
//! Each file of `testdata` is a script: a `-- objects --` section is all that exists from then on,
//! and the `-- rows --` section after it is what the model makes of it. A node `node-a` with
//! 192.0.2.1 and 2001:db8::1, and the default configuration, exist unless the script has its own.

use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddr, path::Path, sync::Arc};

use fairlead_crds::NodeAgentConfig;
use jiff::Timestamp;
use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::watch::{
    Change, Endpoint, EndpointSlice, Node, ObjectId, ObjectKey, Service, ServicePortSpec, SlicePort, parse,
};

#[rstest]
fn rows_are_as_the_script_says(#[files("src/model/testdata/*.txt")] path: std::path::PathBuf) {
    let script = std::fs::read_to_string(&path).unwrap();
    let mut world = World::new();
    let mut checks = 0;
    for (section, line, text) in sections(&script) {
        match section {
            "objects" => world.set(&path, text),
            "rows" => {
                assert_eq!(world.dump(), text, "\n{}:{line}: these rows are wanted (right)", path.display());
                checks += 1;
            }
            other => panic!("{}:{line}: unknown section {other:?}", path.display()),
        }
    }
    assert!(checks > 0, "{} checks nothing", path.display());
}

/// The sections of a script with the number of the line they begin at.
fn sections(script: &str) -> Vec<(&str, usize, &str)> {
    let mut sections: Vec<(&str, usize, &str)> = Vec::new();
    let mut rest = script;
    let mut line = 1;
    while let Some(start) = rest.find("-- ") {
        let (head, body) = rest[start..].split_once('\n').unwrap();
        line += rest[..start].lines().count();
        let name = head.strip_prefix("-- ").and_then(|h| h.strip_suffix(" --")).unwrap();
        let end = body.find("\n-- ").map_or(body.len(), |end| end + 1);
        sections.push((name, line, &body[..end]));
        line += 1 + body[..end].lines().count();
        rest = &body[end..];
    }
    sections
}

/// A model, what it was told, and the rows it gave.
struct World {
    model: Model,
    told: BTreeMap<ObjectId, Change>,
    rows: BTreeMap<ServicePortName, Row>,
}

impl World {
    fn new() -> Self {
        Self { model: Model::new(Timestamp::UNIX_EPOCH), told: BTreeMap::new(), rows: BTreeMap::new() }
    }

    /// Makes these objects all that exist.
    fn set(&mut self, path: &Path, yaml: &str) {
        let mut objects: BTreeMap<ObjectId, Change> = parse::parse(path, yaml)
            .unwrap_or_else(|errors| panic!("{}", errors[0]))
            .into_iter()
            .map(|object| (object.id, object.change))
            .collect();
        if !objects.keys().any(|id| matches!(id, ObjectId::Node(_))) {
            objects.insert(ObjectId::Node("node-a".into()), Change::Node(node()));
        }
        objects.entry(ObjectId::Config).or_insert_with(|| Change::Config(NodeAgentConfig::default().into()));
        for id in self.told.keys().filter(|id| !objects.contains_key(id)) {
            self.model.apply(id.gone().unwrap());
        }
        for change in objects.values() {
            self.model.apply(change.clone());
        }
        self.told = objects;
        take(&mut self.model, &mut self.rows);
    }

    fn dump(&self) -> String {
        let mut text = String::new();
        for (name, row) in &self.rows {
            match row {
                Ok(port) => text.push_str(&dump(port)),
                Err(refusal) => writeln!(text, "{name} refused: {refusal}").unwrap(),
            }
        }
        text
    }
}

fn dump(port: &ServicePort) -> String {
    let mut text = format!("{}\n", port.name);
    for frontend in &port.frontends {
        writeln!(text, "  {frontend}").unwrap();
    }
    for backend in &port.backends {
        writeln!(text, "  -> {}{}", backend.address, if backend.local { " local" } else { "" }).unwrap();
    }
    for address in &port.lingering {
        writeln!(text, "  .. {address}").unwrap();
    }
    if let Some(scheduler) = port.scheduler {
        writeln!(text, "  scheduler {scheduler}").unwrap();
    }
    text
}

/// Brings `rows` up to date, and checks that nothing was given that was known before.
fn take(model: &mut Model, rows: &mut BTreeMap<ServicePortName, Row>) -> Changes {
    let changes = model.take_changes();
    for (name, row) in &changes.rows {
        assert_ne!(row.as_ref(), rows.get(name), "{name} was given again, unchanged");
        match row {
            Some(row) => rows.insert(name.clone(), row.clone()),
            None => rows.remove(name),
        };
    }
    changes
}

fn key(name: &str) -> ObjectKey {
    ObjectKey { namespace: "default".into(), name: name.into() }
}

fn node() -> Node {
    Node {
        name: "node-a".into(),
        internal_ips: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        pod_cidrs: vec!["10.1.0.0/24".parse().unwrap()],
        eligible: true,
    }
}

fn service(name: &str, cluster_ip: &str, external_ips: &[&str], node_port: Option<u16>) -> Service {
    Service {
        key: key(name),
        cluster_ips: vec![cluster_ip.parse().unwrap()],
        external_ips: external_ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        load_balancer_ips: Vec::new(),
        ports: vec![ServicePortSpec { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port }],
        internal_local: false,
        external_local: false,
        client_ip_affinity: false,
        source_ranges: false,
        annotations: BTreeMap::new(),
    }
}

fn slice(name: &str, service: &str, addresses: &[(&str, bool)]) -> EndpointSlice {
    EndpointSlice {
        key: key(name),
        service: service.into(),
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: addresses
            .iter()
            .map(|(address, ready)| Endpoint {
                address: address.parse().unwrap(),
                ready: *ready,
                serving: true,
                terminating: !ready,
                node: Some("node-b".into()),
            })
            .collect(),
        trigger_time: None,
    }
}

/// A model that knows its node and configuration.
fn ready_model() -> Model {
    let mut model = Model::new(Timestamp::UNIX_EPOCH);
    model.apply(Change::Node(node()));
    model.apply(Change::Config(NodeAgentConfig::default().into()));
    model.take_changes();
    model
}

#[test]
fn rows_wait_for_node_and_configuration() {
    let mut model = Model::new(Timestamp::UNIX_EPOCH);
    model.apply(Change::Service(Arc::new(service("web", "10.96.0.1", &[], None))));
    assert!(model.take_changes().is_empty());
    model.apply(Change::Config(NodeAgentConfig::default().into()));
    assert!(model.take_changes().rows.is_empty());
    model.apply(Change::Node(node()));
    let changes = model.take_changes();
    assert_eq!(changes.rows.len(), 1);
    assert_eq!(changes.node.unwrap().addresses, node().internal_ips);
}

#[test]
fn mode_none_takes_all_rows_away() {
    let mut model = ready_model();
    let mut rows = BTreeMap::new();
    model.apply(Change::Service(Arc::new(service("web", "10.96.0.1", &[], None))));
    take(&mut model, &mut rows);
    assert_eq!(rows.len(), 1);

    let mut config = NodeAgentConfig::default();
    config.proxy.mode = fairlead_crds::ProxyMode::None;
    model.apply(Change::Config(config.clone().into()));
    let changes = take(&mut model, &mut rows);
    assert_eq!((rows.len(), changes.config), (0, Some(config)));

    model.apply(Change::Config(NodeAgentConfig::default().into()));
    take(&mut model, &mut rows);
    assert_eq!(rows.len(), 1);
}

#[test]
fn what_says_nothing_new_gives_no_row() {
    let mut model = ready_model();
    let told = [
        Change::Service(Arc::new(service("web", "10.96.0.1", &[], None))),
        Change::Slice(Arc::new(slice("web-1", "web", &[("10.1.0.1", true)]))),
        Change::Node(node()),
        Change::Config(NodeAgentConfig::default().into()),
    ];
    for change in &told {
        model.apply(change.clone());
    }
    assert_eq!(model.take_changes().rows.len(), 1);

    for change in &told {
        model.apply(change.clone());
    }
    assert!(model.take_changes().is_empty());

    // A slice of a Service that does not exist, and one that changes no row.
    model.apply(Change::Slice(Arc::new(slice("other", "other", &[("10.1.0.9", true)]))));
    model.apply(Change::Slice(Arc::new(slice("web-2", "web", &[("10.1.0.1", true)]))));
    assert!(model.take_changes().is_empty());
}

#[test]
fn a_change_touches_its_own_service_only() {
    let mut model = ready_model();
    for name in ["a", "b"] {
        model.apply(Change::Service(Arc::new(service(name, "10.96.0.1", &[], None))));
    }
    model.take_changes();
    model.apply(Change::Slice(Arc::new(slice("b-1", "b", &[("10.1.0.1", true)]))));
    assert_eq!(model.dirty.len(), 1);
}

#[test]
fn a_slice_that_moves_leaves_its_old_service() {
    let mut model = ready_model();
    let mut rows = BTreeMap::new();
    model.apply(Change::Service(Arc::new(service("a", "10.96.0.1", &[], None))));
    model.apply(Change::Service(Arc::new(service("b", "10.96.0.2", &[], None))));
    model.apply(Change::Slice(Arc::new(slice("s", "a", &[("10.1.0.1", true)]))));
    take(&mut model, &mut rows);
    model.apply(Change::Slice(Arc::new(slice("s", "b", &[("10.1.0.1", true)]))));
    take(&mut model, &mut rows);
    let backends: Vec<usize> = rows.values().map(|row| row.as_ref().unwrap().backends.len()).collect();
    assert_eq!(backends, [0, 1]);
}

#[test]
fn node_facts_follow_node_and_service_cidrs() {
    let mut model = ready_model();
    let cidr = |name: &str, net: &str| {
        Change::Cidr(crate::watch::ServiceCidr { name: name.into(), cidrs: vec![net.parse().unwrap()] })
    };
    model.apply(cidr("kubernetes", "10.96.0.0/16"));
    model.apply(cidr("extra", "10.95.0.0/16"));
    let facts = model.take_changes().node.unwrap();
    assert_eq!(facts.service_cidrs, ["10.95.0.0/16".parse().unwrap(), "10.96.0.0/16".parse().unwrap()]);

    model.apply(Change::CidrGone("extra".into()));
    model.apply(Change::Node(Node { eligible: false, ..node() }));
    let facts = model.take_changes().node.unwrap();
    assert_eq!((facts.service_cidrs.len(), facts.eligible), (1, false));
    assert_eq!(model.take_changes().node, None);
}

#[test]
fn trigger_times_are_given_once_and_only_from_our_own_time() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let mut model = Model::new(at(100));
    model.apply(Change::Node(node()));
    model.apply(Change::Config(NodeAgentConfig::default().into()));
    let timed = |name: &str, second| {
        Change::Slice(Arc::new(EndpointSlice { trigger_time: Some(at(second)), ..slice(name, "web", &[]) }))
    };
    model.apply(timed("old", 99));
    model.apply(timed("new", 101));
    model.apply(timed("new", 101));
    assert_eq!(model.take_changes().trigger_times, [at(101)]);
    model.apply(Change::SliceGone(key("new")));
    assert!(model.take_changes().trigger_times.is_empty());
}

#[test]
fn restored_objects_that_no_source_confirms_go_with_synced() {
    let mut before = ready_model();
    before.apply(Change::Service(Arc::new(service("gone", "10.96.0.1", &[], None))));
    before.apply(Change::Service(Arc::new(service("kept", "10.96.0.2", &[], None))));
    before.apply(Change::Slice(Arc::new(slice("kept-old", "kept", &[("10.1.0.1", true)]))));
    before.apply(Change::Synced);

    let mut model = Model::new(Timestamp::UNIX_EPOCH);
    let mut rows = BTreeMap::new();
    model.restore(before.objects());
    assert_eq!((take(&mut model, &mut rows).synced, rows.len()), (false, 2));

    model.apply(Change::Service(Arc::new(service("kept", "10.96.0.2", &[], None))));
    model.apply(Change::Slice(Arc::new(slice("kept-new", "kept", &[("10.1.0.2", true)]))));
    take(&mut model, &mut rows);
    assert_eq!(rows.len(), 2, "nothing goes before Synced");

    model.apply(Change::Synced);
    assert!(take(&mut model, &mut rows).synced);
    let (_, row) = rows.pop_last().unwrap();
    assert!(rows.is_empty());
    let addresses: Vec<SocketAddr> = row.unwrap().backends.iter().map(|b| b.address).collect();
    assert_eq!(addresses, ["10.1.0.2:8080".parse().unwrap()]);
}

#[test]
fn a_snapshot_does_not_overrule_what_the_source_said_already() {
    let mut model = ready_model();
    model.apply(Change::Service(Arc::new(service("web", "10.96.0.2", &[], None))));
    model.restore([
        Change::Node(Node { name: "node-b".into(), ..node() }),
        Change::Service(Arc::new(service("web", "10.96.0.1", &[], None))),
        Change::Service(Arc::new(service("other", "10.96.0.3", &[], None))),
    ]);
    assert_eq!(model.node().unwrap().name, "node-a".into());
    let ips: Vec<_> = model.services().map(|s| s.cluster_ips[0].to_string()).collect();
    assert_eq!(ips, ["10.96.0.3", "10.96.0.2"]);

    model.apply(Change::Synced);
    assert!(model.is_synced());
    assert_eq!(model.services().count(), 1);
}

/// Few names and addresses, so that objects collide, move and come back.
fn any_change() -> impl Strategy<Value = Change> {
    let service_name = prop::sample::select(vec!["a", "b", "c"]);
    let slice_name = prop::sample::select(vec!["s", "t", "u"]);
    let ip = prop::sample::select(vec!["10.1.0.1", "10.1.0.2", "10.1.0.3"]);
    let external = prop::sample::select(vec!["10.96.0.1", "10.96.0.2", "192.0.2.1", "203.0.113.1"]);
    let service_change = (
        service_name.clone(),
        prop::sample::select(vec!["10.96.0.1", "10.96.0.2", "10.96.0.3"]),
        prop::collection::vec(external, 0..2),
        prop::option::of(prop::sample::select(vec![80, 30080])),
        any::<bool>(),
    )
        .prop_map(|(name, cluster_ip, external, node_port, affinity)| {
            let service = service(name, cluster_ip, &external, node_port);
            Change::Service(Arc::new(Service {
                client_ip_affinity: affinity && external.is_empty(),
                ..service
            }))
        });
    let slice_change =
        (slice_name.clone(), service_name.clone(), prop::collection::vec((ip, any::<bool>()), 0..4))
            .prop_map(|(name, service, endpoints)| Change::Slice(Arc::new(slice(name, service, &endpoints))));
    prop_oneof![
        4 => service_change,
        4 => slice_change,
        1 => service_name.prop_map(|name| Change::ServiceGone(key(name))),
        1 => slice_name.prop_map(|name| Change::SliceGone(key(name))),
        1 => prop::sample::select(vec!["192.0.2.1", "192.0.2.2"]).prop_map(|ip| Change::Node(Node {
            internal_ips: vec![ip.parse().unwrap()],
            ..node()
        })),
    ]
}

proptest! {
    /// Whatever the order and the rounds, the rows are those of a model that sees the end only;
    /// except that who holds a disputed address depends on history.
    #[test]
    fn history_decides_disputes_and_nothing_else(
        history in prop::collection::vec((any_change(), prop::bool::weighted(0.3)), 1..60),
    ) {
        let mut model = ready_model();
        let mut rows = BTreeMap::new();
        for (change, end_of_round) in history {
            model.apply(change);
            if end_of_round {
                take(&mut model, &mut rows);
            }
        }
        take(&mut model, &mut rows);

        let mut fresh = Model::new(Timestamp::UNIX_EPOCH);
        let mut from_scratch = BTreeMap::new();
        fresh.restore(model.objects());
        take(&mut fresh, &mut from_scratch);

        prop_assert_eq!(&model.built, &fresh.built);
        prop_assert_eq!(rows.len(), from_scratch.len());
        check_disputes(&model, &rows)?;
        check_disputes(&fresh, &from_scratch)?;
    }
}

/// No two rows have the same address, a refused one lacks just what its refusal says, and nothing
/// free is refused.
fn check_disputes(model: &Model, rows: &BTreeMap<ServicePortName, Row>) -> Result<(), TestCaseError> {
    let node = model.basis.as_ref().unwrap().addresses.clone();
    let claimed: BTreeMap<&ServicePortName, Vec<claims::Claim>> =
        rows.iter().filter_map(|(name, row)| Some((name, claims::of(row.as_ref().ok()?, &node)))).collect();
    for (name, row) in rows {
        let alone = &model.built[name];
        match row {
            Err(Refusal::Conflict { frontend, holder }) => {
                let wanted = claims::of(alone.as_ref().unwrap(), &node);
                prop_assert!(wanted.iter().any(
                    |w| w.frontend() == *frontend && claimed[holder].iter().any(|held| held.collides(w))
                ));
            }
            row => {
                prop_assert_eq!(row, alone);
                let Ok(port) = row else { continue };
                for claim in claims::of(port, &node) {
                    for (other, claims) in &claimed {
                        prop_assert!(*other == name || claims.iter().all(|c| !c.collides(&claim)));
                    }
                }
            }
        }
    }
    Ok(())
}
