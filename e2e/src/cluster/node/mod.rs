//! Nodes: real kubelets and containerds, of two kinds behind one interface.
//!
//! ```text
//!   Machine     QEMU, Debian's kernel, cgroup v2; two disks: images and containers (unpacked once), programs
//!   Namespace   the host's kernel and its cgroups; namespaces of its own; containerd's content copied
//! ```
//!
//! The steps are the same: a place, made a node by [`prepare`], then containerd and kubelet as commands of its session,
//! then the network of pods once the controller manager has given the node its ranges.

pub mod cgroup;
pub mod config;
pub mod namespace;
pub mod prepare;
mod visible;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::image::recipes::Images;
use super::image::store::{self, Store};
use super::network::{V4_LENGTH, V6_LENGTH};
use super::programs::Programs;
use super::{Context, MARK};
use crate::machine::{self, Booted, Disk, Hardware, Machine, Nic};
use crate::session::serve::PATH;
use crate::session::{Command, Event, Output, Session};

/// What a step of an emulated node may take on a busy host.
const STEP: Duration = Duration::from_secs(120);

/// What a node may take to be known to the API server and to get its ranges of pods.
const REGISTRATION: Duration = Duration::from_secs(180);

/// How long one watch for that lasts: in between it is seen whether kubelet is still there.
const WATCH: Duration = Duration::from_secs(10);

/// What a node is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A kernel of its own, which has IPVS.
    Machine,
    /// The host's kernel.
    Namespace,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machine => "machine",
            Self::Namespace => "namespace",
        })
    }
}

/// A node that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Its name in the cluster.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// Its labels, beside those kubelet sets.
    pub labels: BTreeMap<String, String>,
    /// Processors of a machine.
    pub cpus: u32,
    /// Memory of a machine.
    pub memory_mib: u32,
}

impl Spec {
    /// A node of the usual size.
    pub fn new(name: &str, kind: Kind) -> Self {
        Self { name: name.to_owned(), kind, labels: BTreeMap::new(), cpus: 1, memory_mib: 1024 }
    }
}

/// What all nodes of a cluster share and none changes.
#[derive(Debug)]
pub struct Stock {
    /// The images that are on every node.
    pub images: Images,
    programs: Programs,
    store: Store,
    /// The rig's program.
    rig: PathBuf,
    machines: Mutex<Option<Arc<Machines>>>,
}

/// What machines are made of: the kernel, and the disk of programs.
#[derive(Debug)]
struct Machines {
    machine: Machine,
    programs: PathBuf,
}

impl Stock {
    /// Makes what all nodes need, or finds it in the cache. `rig` is the rig's program.
    pub fn ensure(programs: &Programs, rig: &Path) -> Result<Self> {
        let images = Images::make()?;
        let store = store::ensure(programs, &images.all(), &images.pause, rig)?;
        let (programs, rig) = (programs.clone(), rig.to_owned());
        Ok(Self { images, programs, store, rig, machines: Mutex::default() })
    }

    /// Makes what machines need, or finds it in the cache.
    pub fn ensure_machines(&self) -> Result<()> {
        self.machines().map(drop)
    }

    /// Held meanwhile: of several nodes that start at once, one has it made.
    fn machines(&self) -> Result<Arc<Machines>> {
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = &*machines {
            return Ok(Arc::clone(made));
        }
        let programs = store::programs_disk(&self.programs)?;
        let machine = Machine::of_program(machine::Options::default(), &self.rig)?;
        Ok(Arc::clone(machines.insert(Arc::new(Machines { machine, programs }))))
    }
}

/// A running node; its power is cut when it goes out of scope.
#[derive(Debug)]
pub struct Node {
    spec: Spec,
    context: Context,
    body: Body,
    shell: Shell,
    services: Vec<Service>,
}

/// Runs commands on a node, from any thread; those that run when its power is cut fail. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Shell {
    node: String,
    session: Session,
    env: BTreeMap<String, String>,
}

impl Shell {
    /// Runs a command on the node, as root, to its end.
    pub fn run<S: AsRef<str>>(&self, argv: &[S], limit: Duration) -> Result<Output> {
        self.session.run(&self.command(argv), limit).with_context(|| format!("on {}", self.node))
    }

    /// Writes a file on the node.
    pub fn write(&self, file: &str, content: &str) -> Result<()> {
        let command = Command { input: content.to_owned(), ..self.command(&["tee", file]) };
        let output = self.session.run(&command, STEP)?;
        if !output.status.success() {
            bail!("failed to write {file} on {}: {}", self.node, output.stderr.trim());
        }
        Ok(())
    }

    fn command<S: AsRef<str>>(&self, argv: &[S]) -> Command {
        let argv = argv.iter().map(|word| word.as_ref().to_owned());
        Command { env: self.env.clone(), ..Command::new(argv) }
    }
}

#[derive(Debug)]
enum Body {
    Machine(Booted),
    Namespace(namespace::Body),
}

/// A program of the node that runs all the time.
#[derive(Debug)]
struct Service {
    name: &'static str,
    runs: Arc<AtomicBool>,
}

impl Node {
    /// Starts the node, and returns once it knows the network of its pods: seconds later it is Ready.
    pub fn start(spec: &Spec, context: &Context, stock: &Stock) -> Result<Self> {
        let failed = || format!("failed to start the node {}", spec.name);
        Self::bring_up(spec, context, stock).with_context(failed)
    }

    fn bring_up(spec: &Spec, context: &Context, stock: &Stock) -> Result<Self> {
        let kubeconfig = context.pki.node_kubeconfig(&spec.name)?;
        let (body, session, programs) = match spec.kind {
            Kind::Machine => start_machine(spec, context, stock)?,
            Kind::Namespace => start_namespace(spec, context, stock)?,
        };
        let path = programs.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(":");
        let env = [("PATH", format!("{path}:{PATH}")), (MARK, context.id.clone())];
        let env = env.map(|(name, value)| (name.to_owned(), value)).into();
        let mut node = Self {
            spec: spec.clone(),
            context: context.clone(),
            body,
            shell: Shell { node: spec.name.clone(), session, env },
            services: Vec::new(),
        };
        let cni = programs.last().context("a node without programs")?;
        node.prepare(&node.preparation(stock, cni)?)?;
        node.serve("containerd", vec![format!("--config={}", config::CONTAINERD_CONFIG)])?;
        node.until("containerd listens", || {
            Ok(node.shell.run(&["test", "-S", config::SOCKET], STEP)?.status.success())
        })?;
        let addresses = context.network.place(&spec.name)?.address().both();
        node.serve("kubelet", config::kubelet_arguments(&spec.name, &kubeconfig, addresses, &spec.labels))?;
        node.connect_pods()?;
        Ok(node)
    }

    /// What it was made from.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Runs commands on it.
    pub fn shell(&self) -> &Shell {
        &self.shell
    }

    /// Fails if containerd or kubelet has ended.
    pub fn check(&self) -> Result<()> {
        match self.services.iter().find(|service| !service.runs.load(Ordering::Acquire)) {
            Some(service) => {
                bail!("{} of {} has ended: see its log", service.name, self.spec.name)
            }
            None => Ok(()),
        }
    }

    /// Cuts the node's power. Nothing of it is left but what the API server knows.
    pub fn stop(self) -> Result<()> {
        match self.body {
            Body::Machine(machine) => machine.end(),
            Body::Namespace(mut namespaces) => {
                namespaces.end()?;
                cgroup::remove(&group(&self.context, &self.spec))
            }
        }
    }

    fn preparation(&self, stock: &Stock, cni: &Path) -> Result<prepare::Preparation> {
        let (context, spec) = (&self.context, &self.spec);
        let place = context.network.place(&spec.name)?;
        let group = (spec.kind == Kind::Namespace).then(|| group(context, spec));
        let sandbox = &stock.images.pause.reference;
        let [certificate, key] = context.pki.node_server(&spec.name, place.address())?;
        let ca = context.pki.file("ca.crt");
        let certificates = config::Certificates { ca: &ca, certificate: &certificate, key: &key };
        let files = config::files(sandbox, cni, certificates, group.as_deref());
        let kind = match group {
            None => prepare::Kind::Machine {
                addresses: vec![
                    format!("{}/{V4_LENGTH}", place.address().v4),
                    format!("{}/{V6_LENGTH}", place.address().v6),
                ],
                gateways: place.gateway().both().to_vec(),
            },
            Some(cgroup) => {
                let scratch = context.node_folder(&spec.name)?.join("scratch");
                std::fs::create_dir_all(&scratch)?;
                let mut visible = context.programs.folders();
                visible.extend([context.folder.clone(), stock.store.root.clone()]);
                prepare::Kind::Namespace { content: stock.store.root.clone(), scratch, visible, cgroup }
            }
        };
        Ok(prepare::Preparation { kind, files })
    }

    fn prepare(&self, preparation: &prepare::Preparation) -> Result<()> {
        let rig = match self.body {
            // it has copied the program into the machine's folder
            Body::Machine(_) => self.context.node_folder(&self.spec.name)?.join("rig").display().to_string(),
            Body::Namespace(_) => "/proc/1/exe".to_owned(),
        };
        let input = serde_json::to_string(preparation)?;
        let command = Command { input, ..self.shell.command(&[rig.as_str(), "inside", "prepare"]) };
        let output = self.shell.session.run(&command, STEP)?;
        if !output.status.success() {
            bail!("failed to prepare it: {}", output.stderr.trim());
        }
        Ok(())
    }

    /// Runs a program until the node stops, with what it prints in the log `<node>-<program>.log`.
    fn serve(&mut self, name: &'static str, arguments: Vec<String>) -> Result<()> {
        let file = self.context.logs()?.join(format!("{}-{name}.log", self.spec.name));
        let mut log = File::options().create(true).append(true).open(&file)?;
        let argv: Vec<_> = std::iter::once(name.to_owned()).chain(arguments).collect();
        let running = self.shell.session.start(&self.shell.command(&argv))?;
        let runs = Arc::new(AtomicBool::new(true));
        let until = Arc::clone(&runs);
        thread::spawn(move || {
            let said = loop {
                let Ok(event) = running.next(Instant::now() + STEP) else {
                    break "the node stopped".to_owned();
                };
                match event {
                    Some(Event::Stdout(bytes) | Event::Stderr(bytes)) => {
                        // a full disk shows elsewhere
                        let _ = log.write_all(&bytes);
                    }
                    Some(Event::Exit(code)) => break format!("it ended with {code}"),
                    Some(Event::Failed(why)) => break why,
                    Some(Event::Ready) | None => {}
                }
            };
            until.store(false, Ordering::Release);
            let _ = writeln!(log, "rig: {said}");
        });
        self.services.push(Service { name, runs });
        Ok(())
    }

    /// Waits for the node's ranges of pods, and gives them a network.
    fn connect_pods(&self) -> Result<()> {
        let start = Instant::now();
        let ranges = loop {
            // It fails when the API server is away, and when that is too busy to start a watch at once.
            match self.ranges() {
                Ok(ranges) => break ranges,
                Err(error) if start.elapsed() > REGISTRATION => {
                    return Err(error.context("it has no ranges of pods: see kubelet's log"));
                }
                Err(_) => self.check()?,
            }
            thread::sleep(Duration::from_millis(500));
        };
        self.context.network.route_pods(&self.spec.name, &ranges)?;
        self.shell.write(config::CNI_CONFIG, &config::cni(&ranges)?.to_string())
    }

    /// Waits for a moment, by watches, for the ranges of pods that the node is given: kubectl again and again would
    /// take a third of a processor from the machines that boot.
    fn ranges(&self) -> Result<Vec<String>> {
        let kubectl = self.context.kubectl()?;
        let (node, limit) = (format!("node/{}", self.spec.name), format!("--timeout={}s", WATCH.as_secs()));
        kubectl.run(&["wait", "--for=create", &limit, &node])?;
        let ranges = "jsonpath={.spec.podCIDRs[*]}";
        let ranges = kubectl.run(&["wait", "--for=jsonpath={.spec.podCIDR}", &limit, &node, "-o", ranges])?;
        Ok(ranges.split_whitespace().map(ToOwned::to_owned).collect())
    }

    fn until(&self, what: &str, condition: impl Fn() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !condition()? {
            self.check()?;
            if start.elapsed() > STEP {
                bail!("{what}: not so after {} s", STEP.as_secs());
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

/// The control group of a node's pods.
fn group(context: &Context, spec: &Spec) -> String {
    format!("/{}/{}", context.cgroup(), spec.name)
}

fn start_machine(spec: &Spec, context: &Context, stock: &Stock) -> Result<(Body, Session, Vec<PathBuf>)> {
    let machines = stock.machines()?;
    let Machines { machine, programs } = &*machines;
    let tap = context.network.attach_tap(&spec.name)?;
    let hardware = Hardware {
        options: machine::Options { memory_mib: spec.memory_mib, cpus: spec.cpus },
        disks: vec![
            Disk {
                serial: prepare::CONTENT_SERIAL.to_owned(),
                file: stock.store.disk.clone(),
                writable: true,
            },
            Disk { serial: prepare::PROGRAMS_SERIAL.to_owned(), file: programs.clone(), writable: false },
        ],
        nic: Some(Nic { namespace: context.network.router.clone(), device: tap.device, mac: tap.mac }),
        env: BTreeMap::from([(MARK.to_owned(), context.id.clone())]),
    };
    let booted = machine.boot(&hardware, &context.node_folder(&spec.name)?, &spec.name)?;
    let session = booted.session().clone();
    Ok((Body::Machine(booted), session, vec![prepare::PROGRAMS.into()]))
}

fn start_namespace(spec: &Spec, context: &Context, stock: &Stock) -> Result<(Body, Session, Vec<PathBuf>)> {
    let network = context.network.attach_namespace(&spec.name)?;
    let stderr = File::create(context.logs()?.join(format!("{}-init.log", spec.name)))?;
    let body = namespace::Body::start(&stock.rig, &network, (MARK, &context.id), Stdio::from(stderr))?;
    let session = body.session().clone();
    let hostname = spec.name.clone();
    let preparation = crate::session::serve::Preparation { hostname, modules: None };
    session.prepare(preparation)?.until_ready(STEP)?;
    Ok((Body::Namespace(body), session, context.programs.folders()))
}
