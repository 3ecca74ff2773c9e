//! The reconciler against a kernel in memory that can be told to refuse: order, back-off, restart,
//! drift. What real packets see is tested on a real kernel, in `e2e`.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use fairlead_crds::Scheduler;
use tempfile::TempDir;

use super::{
    kernel::{Base, Found, FoundServer, Kernel, KernelFailure},
    reconciler::{Reconciler, Settings},
    ruleset::{Element, PolicyBit},
    table::Counts,
};
use crate::{
    ipvs::{IpvsOp, VirtualServerKey},
    model::{Backend, Frontend, Protocol, ServicePort, ServicePortName},
    netlink::{KernelError, NetlinkError},
    state::record::Record,
};

#[derive(Debug, Default)]
struct State {
    servers: BTreeMap<VirtualServerKey, (String, BTreeMap<SocketAddr, u32>)>,
    elements: BTreeSet<Element>,
    connections: BTreeMap<SocketAddr, u64>,
    log: Vec<String>,
    refuse: Option<SocketAddr>,
    overrun: bool,
}

/// Survives the reconciler, as the kernel does.
#[derive(Clone, Debug, Default)]
struct Memory(Rc<RefCell<State>>);

impl Kernel for Memory {
    fn ensure_base(&mut self, _: &Base, _: &BTreeSet<Element>) -> Result<Vec<&'static str>, KernelFailure> {
        Ok(Vec::new())
    }

    fn ensure_routes(&mut self, _: &Base) -> Result<bool, KernelFailure> {
        Ok(false)
    }

    fn remove_base(&mut self) -> Result<(), KernelFailure> {
        Ok(())
    }

    fn read(&mut self) -> Result<Found, KernelFailure> {
        let state = self.0.borrow();
        let servers = state.servers.iter().map(|(key, (scheduler, backends))| FoundServer {
            key: *key,
            scheduler: scheduler.clone(),
            backends: backends.iter().map(|(address, weight)| (*address, *weight)).collect(),
        });
        Ok(Found { servers: servers.collect(), elements: state.elements.clone() })
    }

    fn change_servers(&mut self, ops: &[IpvsOp]) -> Result<Vec<Result<(), KernelError>>, KernelFailure> {
        let mut state = self.0.borrow_mut();
        if std::mem::take(&mut state.overrun) {
            return Err(KernelFailure::Ipvs {
                action: "change virtual servers",
                source: NetlinkError::Overrun,
            });
        }
        let refused = |errno| Err(KernelError { errno, message: None });
        let mut verdicts = Vec::new();
        for op in ops {
            state.log.push(op.to_string());
            verdicts.push(match op {
                IpvsOp::AddService { key, scheduler } | IpvsOp::SetService { key, scheduler } => {
                    state.servers.entry(*key).or_default().0 = scheduler.to_string();
                    Ok(())
                }
                IpvsOp::DelService { key } => state
                    .servers
                    .remove(key)
                    .map(|_| ())
                    .ok_or(KernelError { errno: libc::ESRCH, message: None }),
                IpvsOp::AddDest { address, .. } if state.refuse == Some(*address) => refused(libc::ENOMEM),
                IpvsOp::AddDest { key, address, weight } | IpvsOp::SetDest { key, address, weight } => {
                    match state.servers.get_mut(key) {
                        Some((_, backends)) => {
                            backends.insert(*address, *weight);
                            Ok(())
                        }
                        None => refused(libc::ESRCH),
                    }
                }
                IpvsOp::DelDest { key, address } => {
                    match state.servers.get_mut(key).and_then(|(_, backends)| backends.remove(address)) {
                        Some(_) => Ok(()),
                        None => refused(libc::ENOENT),
                    }
                }
            });
        }
        Ok(verdicts)
    }

    fn change_elements(&mut self, remove: &[Element], add: &[Element]) -> Result<(), KernelFailure> {
        let mut state = self.0.borrow_mut();
        for element in remove {
            assert!(state.elements.remove(element), "{element} is not in the kernel");
            state.log.push(format!("remove {element}"));
        }
        for element in add {
            state.elements.insert(*element);
            state.log.push(format!("add {element}"));
        }
        Ok(())
    }

    fn connections(&mut self, _: &VirtualServerKey) -> Result<Vec<(SocketAddr, u64)>, KernelFailure> {
        Ok(self.0.borrow().connections.iter().map(|(address, n)| (*address, *n)).collect())
    }
}

struct Rig {
    kernel: Memory,
    directory: TempDir,
    reconciler: Reconciler<Memory>,
}

const VIP: &str = "10.96.0.10:80";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn settings() -> Settings {
    Settings {
        scheduler: Scheduler::Rr,
        drain_timeout: Duration::from_secs(60),
        base: Base {
            bit: PolicyBit::new(12).unwrap(),
            ipv6: true,
            timeouts: (1, 1, 1),
            node_addresses: vec![],
            pod_cidrs: vec![],
            service_cidrs: vec![],
        },
    }
}

impl Rig {
    fn new() -> Self {
        let (kernel, directory) = (Memory::default(), tempfile::tempdir().unwrap());
        let reconciler = start(&kernel, &directory);
        let mut rig = Self { kernel, directory, reconciler };
        rig.reconciler.set_synced();
        rig
    }

    fn restart(mut self) -> Self {
        drop(self.reconciler);
        self.reconciler = start(&self.kernel, &self.directory);
        self.kernel.0.borrow_mut().log.clear();
        self
    }

    /// A port of Service `a/web` with these backends; none removes it.
    fn set(&mut self, protocol: Protocol, backends: Option<&[&str]>) {
        let name =
            ServicePortName { namespace: "a".into(), service: "web".into(), port: "".into(), protocol };
        let row = backends.map(|backends| {
            Ok(Arc::new(ServicePort {
                name: name.clone(),
                frontends: vec![Frontend::ClusterIP(address(VIP))],
                backends: backends.iter().map(|b| Backend { address: address(b), local: false }).collect(),
                lingering: vec![],
                scheduler: None,
            }))
        });
        self.reconciler.table.set(name, row);
    }

    /// The TCP port with backends in use and others that linger in a slice.
    fn set_lingering(&mut self, backends: &[&str], lingering: &[&str]) {
        self.set(Protocol::Tcp, Some(backends));
        let name = self.reconciler.table.take(9, Instant::now()).pop().expect("the row is due").name;
        let Some(Ok(port)) = self.reconciler.table.desired(&name) else { panic!("the row is refused") };
        let mut port = ServicePort::clone(port);
        port.lingering = lingering.iter().map(|l| address(l)).collect();
        self.reconciler.table.set(name, Some(Ok(Arc::new(port))));
    }

    fn round(&mut self) -> Vec<String> {
        self.reconciler.round(Instant::now());
        std::mem::take(&mut self.kernel.0.borrow_mut().log)
    }

    fn counts(&self) -> Counts {
        self.reconciler.table.counts()
    }

    fn weights(&self) -> Vec<(String, u32)> {
        let state = self.kernel.0.borrow();
        let backends = state.servers.values().flat_map(|(_, backends)| backends);
        backends.map(|(address, weight)| (address.to_string(), *weight)).collect()
    }
}

fn start(kernel: &Memory, directory: &TempDir) -> Reconciler<Memory> {
    Reconciler::start(kernel.clone(), Record::open(directory.path()).unwrap(), settings()).expect("starts")
}

fn position(log: &[String], text: &str) -> usize {
    log.iter().position(|line| line.contains(text)).unwrap_or_else(|| panic!("no {text:?} in {log:#?}"))
}

#[test]
fn a_server_exists_before_the_element_that_leads_to_it_and_after_it() {
    let mut rig = Rig::new();
    rig.set(Protocol::Udp, Some(&["10.244.1.2:53"]));
    let log = rig.round();
    assert!(position(&log, "add cluster-ips") > position(&log, "10.244.1.2:53"));
    rig.set(Protocol::Udp, None);
    let log = rig.round();
    assert!(position(&log, "remove cluster-ips") < position(&log, "delete virtual server"));
    assert!(rig.kernel.0.borrow().servers.is_empty());
    assert!(rig.kernel.0.borrow().elements.is_empty());
}

#[test]
fn a_service_without_backends_is_rejected_and_has_no_server() {
    let mut rig = Rig::new();
    rig.set(Protocol::Tcp, Some(&[]));
    let log = rig.round();
    position(&log, "add no-endpoints");
    assert!(rig.kernel.0.borrow().servers.is_empty());
}

#[test]
fn a_refused_backend_makes_its_row_an_error_until_the_kernel_takes_it() {
    let mut rig = Rig::new();
    rig.kernel.0.borrow_mut().refuse = Some(address("10.244.1.2:80"));
    rig.set(Protocol::Tcp, Some(&["10.244.1.2:80"]));
    let log = rig.round();
    assert!(!log.iter().any(|line| line.contains("add cluster-ips")), "{log:#?}");
    assert_eq!(rig.counts(), Counts { pending: 0, done: 0, error: 1, refused: 0 });
    let reason = rig.reconciler.table.errors().next().unwrap().reason;
    assert!(reason.contains("10.244.1.2:80") && reason.contains("Cannot allocate memory"), "{reason}");
    rig.kernel.0.borrow_mut().refuse = None;
    let later = rig.reconciler.table.next_retry().unwrap();
    rig.reconciler.round(later);
    assert_eq!(rig.counts(), Counts { pending: 0, done: 1, error: 0, refused: 0 });
}

#[test]
fn lost_answers_make_the_kernel_be_read_anew() {
    let mut rig = Rig::new();
    rig.kernel.0.borrow_mut().overrun = true;
    rig.set(Protocol::Tcp, Some(&["10.244.1.2:80"]));
    rig.round();
    assert_eq!(rig.counts().error, 1);
    let later = rig.reconciler.table.next_retry().unwrap();
    rig.reconciler.round(later);
    assert_eq!(rig.counts().done, 1);
    assert_eq!(rig.weights(), [("10.244.1.2:80".into(), 1)]);
}

#[test]
fn a_removed_tcp_backend_drains_until_its_last_connection_ends() {
    let mut rig = Rig::new();
    rig.set(Protocol::Tcp, Some(&["10.244.1.2:80", "10.244.2.2:80"]));
    rig.round();
    rig.kernel.0.borrow_mut().connections.insert(address("10.244.1.2:80"), 1);
    rig.set(Protocol::Tcp, Some(&["10.244.2.2:80"]));
    rig.round();
    assert_eq!(rig.weights(), [("10.244.1.2:80".into(), 0), ("10.244.2.2:80".into(), 1)]);
    rig.reconciler.check_drains().unwrap();
    assert_eq!(rig.weights().len(), 2);
    rig.kernel.0.borrow_mut().connections.clear();
    rig.reconciler.check_drains().unwrap();
    assert_eq!(rig.weights(), [("10.244.2.2:80".into(), 1)]);
    assert!(!rig.reconciler.is_draining());
}

#[test]
fn a_removed_udp_backend_is_cut_at_once() {
    let mut rig = Rig::new();
    rig.set(Protocol::Udp, Some(&["10.244.1.2:53", "10.244.2.2:53"]));
    rig.round();
    rig.set(Protocol::Udp, Some(&["10.244.2.2:53"]));
    rig.round();
    assert_eq!(rig.weights(), [("10.244.2.2:53".into(), 1)]);
}

#[test]
fn a_deleted_service_keeps_its_connections_and_rejects_new_ones() {
    let mut rig = Rig::new();
    rig.set(Protocol::Tcp, Some(&["10.244.1.2:80"]));
    rig.round();
    rig.kernel.0.borrow_mut().connections.insert(address("10.244.1.2:80"), 1);
    rig.set(Protocol::Tcp, None);
    let log = rig.round();
    position(&log, "add no-endpoints");
    assert_eq!(rig.weights(), [("10.244.1.2:80".into(), 0)]);
    rig.kernel.0.borrow_mut().connections.clear();
    rig.reconciler.check_drains().unwrap();
    assert!(rig.kernel.0.borrow().servers.is_empty());
    assert!(rig.kernel.0.borrow().elements.is_empty());
    assert!(!rig.reconciler.is_draining());
}

#[test]
fn a_restart_changes_nothing_that_is_right() {
    let mut rig = Rig::new();
    rig.set(Protocol::Tcp, Some(&["10.244.1.2:80"]));
    rig.round();
    let mut rig = rig.restart();
    rig.set(Protocol::Tcp, Some(&["10.244.1.2:80"]));
    rig.reconciler.set_synced();
    assert_eq!(rig.round(), [""; 0]);
    assert_eq!(rig.counts().done, 1);
    assert!(rig.reconciler.totals.restored > 0);
}

#[test]
fn nothing_is_removed_before_every_source_has_synced() {
    let mut rig = Rig::new();
    rig.set(Protocol::Tcp, Some(&["10.244.1.2:80"]));
    rig.round();
    let mut rig = rig.restart();
    assert_eq!(rig.round(), [""; 0]);
    assert_eq!(rig.weights(), [("10.244.1.2:80".into(), 1)]);
    rig.reconciler.set_synced();
    let log = rig.round();
    position(&log, "remove cluster-ips");
    rig.reconciler.check_drains().unwrap();
    assert!(rig.kernel.0.borrow().servers.is_empty());
    assert!(rig.kernel.0.borrow().elements.is_empty());
    assert!(rig.reconciler.totals.pruned > 0);
}

#[test]
fn a_foreign_virtual_server_is_never_touched() {
    let rig = Rig::new();
    let foreign = VirtualServerKey::Address { protocol: Protocol::Tcp, address: address("192.0.2.9:443") };
    rig.kernel.0.borrow_mut().servers.insert(foreign, ("rr".into(), BTreeMap::new()));
    let mut rig = rig.restart();
    rig.reconciler.set_synced();
    rig.round();
    rig.reconciler.audit().unwrap();
    rig.round();
    assert!(rig.kernel.0.borrow().servers.contains_key(&foreign));
}

#[test]
fn what_others_changed_is_repaired_and_counted() {
    let mut rig = Rig::new();
    rig.set(Protocol::Tcp, Some(&["10.244.1.2:80"]));
    rig.round();
    {
        let mut state = rig.kernel.0.borrow_mut();
        state.servers.clear();
        state.elements.clear();
        state
            .elements
            .insert(Element::ClusterIp { protocol: Protocol::Tcp, address: address("192.0.2.9:1") });
    }
    rig.reconciler.audit().unwrap();
    rig.round();
    assert_eq!(rig.weights(), [("10.244.1.2:80".into(), 1)]);
    let state = rig.kernel.0.borrow();
    assert_eq!(state.elements.len(), 2, "{:?}", state.elements);
    assert_eq!(rig.reconciler.totals.repairs.get("virtual-server"), Some(&1));
    assert_eq!(rig.reconciler.totals.repairs.get("element"), Some(&3));
}

#[test]
fn an_unready_endpoint_keeps_its_connections_without_a_deadline() {
    let mut rig = Rig::new();
    rig.set(Protocol::Tcp, Some(&["10.244.1.2:80"]));
    rig.round();
    rig.kernel.0.borrow_mut().connections.insert(address("10.244.1.2:80"), 1);
    rig.set_lingering(&[], &["10.244.1.2:80"]);
    let log = rig.round();
    position(&log, "add no-endpoints");
    assert_eq!(rig.weights(), [("10.244.1.2:80".into(), 0)]);
    assert!(rig.reconciler.record.contents().drains.is_empty(), "its timer runs");
    // it leaves every slice: now the timer starts
    rig.set_lingering(&[], &[]);
    rig.round();
    assert_eq!(rig.reconciler.record.contents().drains.len(), 1);
    // and ready again
    rig.set(Protocol::Tcp, Some(&["10.244.1.2:80"]));
    rig.round();
    assert_eq!(rig.weights(), [("10.244.1.2:80".into(), 1)]);
    assert!(rig.reconciler.record.contents().drains.is_empty());
}

#[test]
fn a_dead_backend_is_taken_out_although_another_is_refused() {
    let mut rig = Rig::new();
    rig.set(Protocol::Tcp, Some(&["10.244.1.2:80", "10.244.2.2:80"]));
    rig.round();
    rig.kernel.0.borrow_mut().refuse = Some(address("10.244.3.2:80"));
    rig.set(Protocol::Tcp, Some(&["10.244.2.2:80", "10.244.3.2:80"]));
    rig.round();
    assert_eq!(rig.counts().error, 1);
    assert_eq!(rig.weights(), [("10.244.1.2:80".into(), 0), ("10.244.2.2:80".into(), 1)]);
}

#[test]
fn a_row_that_goes_before_the_sync_is_pruned_after_it() {
    let mut rig = Rig::new();
    rig.set(Protocol::Udp, Some(&["10.244.1.2:53"]));
    rig.round();
    let mut rig = rig.restart();
    rig.set(Protocol::Udp, Some(&["10.244.1.2:53"]));
    rig.round();
    rig.set(Protocol::Udp, None);
    rig.round();
    assert_eq!(rig.weights().len(), 1, "removed before the sync");
    rig.reconciler.set_synced();
    rig.round();
    rig.reconciler.check_drains().unwrap();
    assert!(rig.kernel.0.borrow().servers.is_empty());
    assert!(rig.reconciler.is_empty());
}

#[test]
fn a_virtual_ip_that_moves_to_another_service_is_never_unserved() {
    let mut rig = Rig::new();
    rig.set(Protocol::Tcp, Some(&["10.244.1.2:80"]));
    rig.round();
    let name = ServicePortName {
        namespace: "b".into(),
        service: "web".into(),
        port: "".into(),
        protocol: Protocol::Tcp,
    };
    rig.set(Protocol::Tcp, None);
    let port = ServicePort {
        name: name.clone(),
        frontends: vec![Frontend::ClusterIP(address(VIP))],
        backends: vec![Backend { address: address("10.244.1.2:80"), local: false }],
        lingering: vec![],
        scheduler: None,
    };
    rig.reconciler.table.set(name, Some(Ok(Arc::new(port))));
    assert_eq!(rig.round(), [""; 0]);
    assert_eq!(rig.weights(), [("10.244.1.2:80".into(), 1)]);
    assert!(!rig.reconciler.is_draining());
}
