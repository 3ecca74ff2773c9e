//! The one process that owns a cluster: everything it starts dies with it.
//!
//! ```text
//!   rig cluster up ── starts ──> rig cluster serve ── threads that keep ──> control plane
//!   Cluster, rig cluster ... ──── socket ──────────────┘            └─────> a node each
//! ```

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use serde_json::{Value, json};

use super::claim::Claim;
use super::control_plane::{ControlPlane, KUBERNETES_SERVICE};
use super::keeper::Keeper;
use super::network::Network;
use super::nodes::Nodes;
use super::pki::Pki;
use super::wire::{self, DESCRIPTION, Description, Request, SOCKET};
use super::{ADMIN, Context, leftovers, programs};
use crate::machine::cache;
use crate::say;

/// A cluster that this process owns; taken down with the value.
#[derive(Debug)]
pub struct Supervisor {
    folder: PathBuf,
    id: String,
    owned: Arc<Owned>,
    listener: Option<thread::JoinHandle<()>>,
    _claim: Claim,
}

/// What the answering threads share.
#[derive(Debug)]
struct Owned {
    context: Context,
    /// None once the cluster is being taken down.
    control_plane: Mutex<Option<Keeper<ControlPlane>>>,
    nodes: Nodes,
    /// Held while the description is written: the last one written is the last one drawn up.
    description: Mutex<()>,
    closing: AtomicBool,
}

impl Supervisor {
    /// Brings a control plane up in `folder`, and answers on its socket from then on. Nodes need the rig's program.
    pub fn start(folder: &Path, rig: Option<&Path>) -> Result<Self> {
        Self::start_without(&[], folder, rig)
    }

    /// The same with a controller manager that does without these controllers.
    pub fn start_without(
        controllers: &'static [&'static str],
        folder: &Path,
        rig: Option<&Path>,
    ) -> Result<Self> {
        let id = fresh_id()?;
        fs::create_dir_all(folder).with_context(|| format!("failed to create {}", folder.display()))?;
        let folder = fs::canonicalize(folder)?;
        let claim = Claim::take(&folder, &id)?;
        match bring_up(controllers, &folder, &id, rig) {
            Ok((owned, listener)) => Ok(Self { folder, id, owned, listener: Some(listener), _claim: claim }),
            Err(error) => {
                leftovers::sweep(&id, &folder).context(format!("{error:#}"))?;
                Err(error)
            }
        }
    }

    /// Takes everything down, and sees to it that nothing is left but files.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let Some(listener) = self.listener.take() else { return Ok(()) };
        self.owned.closing.store(true, Ordering::Release);
        // wakes it; it may have died
        let _ = UnixStream::connect(self.folder.join(SOCKET));
        let _ = listener.join();
        for file in [SOCKET, DESCRIPTION] {
            // a folder that was removed under us is as well
            let _ = fs::remove_file(self.folder.join(file));
        }
        let stopped = self.owned.nodes.stop_all();
        drop(lock(&self.owned.control_plane).take());
        self.owned.context.network.end_processes()?;
        leftovers::sweep(&self.id, &self.folder).and(stopped)
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            say(format_args!("failed to take the cluster down: {error:#}"));
        }
    }
}

fn bring_up(
    without: &'static [&'static str],
    folder: &Path,
    id: &str,
    rig: Option<&Path>,
) -> Result<(Arc<Owned>, thread::JoinHandle<()>)> {
    let programs = programs::control_plane()?;
    let network = Network::new(id)?;
    let pki = Pki::make(&folder.join("pki"), network.subnet(), KUBERNETES_SERVICE)?;
    let context = Context {
        id: id.to_owned(),
        programs,
        pki: Arc::new(pki),
        network: Arc::new(network),
        folder: folder.to_owned(),
    };
    let for_plane = context.clone();
    let control_plane = Keeper::start(move || ControlPlane::start(for_plane, without))?;
    let rig = rig.map(|rig| copy_of(rig, folder)).transpose()?;
    let owned = Owned {
        nodes: Nodes::new(context.clone(), rig)?,
        context,
        control_plane: Mutex::new(Some(control_plane)),
        description: Mutex::new(()),
        closing: AtomicBool::new(false),
    };
    let owned = Arc::new(owned);
    let socket = folder.join(SOCKET);
    let listener = UnixListener::bind(&socket).with_context(|| {
        format!("failed to listen at {} (a path for a socket has at most 107 bytes)", socket.display())
    })?;
    owned.describe()?;
    let answering = Arc::clone(&owned);
    Ok((owned, thread::spawn(move || answer_all(&listener, &answering))))
}

/// Answers clients until the cluster is taken down, each on a thread: some answers take a minute.
fn answer_all(listener: &UnixListener, owned: &Arc<Owned>) {
    for stream in listener.incoming() {
        if owned.closing.load(Ordering::Acquire) {
            return;
        }
        let owned = Arc::clone(owned);
        thread::spawn(move || {
            let answered = stream
                .context("failed to accept a connection")
                .and_then(|stream| wire::answer(&stream, |request| owned.handle(request)));
            if let Err(error) = answered {
                say(format_args!("{error:#}"));
            }
        });
    }
}

impl Owned {
    fn handle(&self, request: Request) -> Result<Value> {
        match request {
            Request::Check => self.control_plane(ControlPlane::check),
            Request::StopApiServer => self.control_plane(ControlPlane::stop_api_server),
            Request::StartApiServer => self.control_plane(ControlPlane::start_api_server),
            Request::Kubeconfig { file, user, group } => {
                Ok(json!(self.context.pki.kubeconfig(&file, &user, group.as_deref())?))
            }
            Request::AddNode(spec) => self.nodes(|nodes| nodes.add(spec)),
            Request::StartNode(name) => self.nodes(|nodes| nodes.start(&name)),
            Request::StopNode(name) => self.nodes(|nodes| nodes.stop(&name)),
            Request::RemoveNode(name) => self.nodes(|nodes| nodes.remove(&name)),
            Request::RunOnNode { name, argv, limit } => Ok(json!(self.nodes.run(&name, &argv, limit)?)),
        }
    }

    fn control_plane(&self, job: fn(&mut ControlPlane) -> Result<()>) -> Result<Value> {
        let keeper = lock(&self.control_plane);
        let keeper = keeper.as_ref().context("the cluster is being taken down")?;
        keeper.ask(job)??;
        Ok(Value::Null)
    }

    /// Changes the nodes, and tells of it in the description.
    fn nodes(&self, job: impl FnOnce(&Nodes) -> Result<()>) -> Result<Value> {
        let done = job(&self.nodes);
        if !self.closing.load(Ordering::Acquire) {
            self.describe()?;
        }
        done.map(|()| Value::Null)
    }

    /// Writes the description anew.
    fn describe(&self) -> Result<()> {
        let _writing = lock(&self.description);
        let Context { id, programs, pki, network, folder } = &self.context;
        let description = Description {
            id: id.clone(),
            pid: std::process::id(),
            kubeconfig: pki.file(ADMIN),
            kubectl: programs.path("kubectl")?,
            subnet: network.subnet(),
            api_server: network.subnet().api_server(),
            router: network.router.path(),
            client: network.client.path(),
            images: self.nodes.images(),
            nodes: self.nodes.describe()?,
        };
        cache::write_file(&folder.join(DESCRIPTION), &serde_json::to_string_pretty(&description)?)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The program as it is now: cargo may replace it while the cluster is up.
fn copy_of(rig: &Path, folder: &Path) -> Result<PathBuf> {
    let copy = folder.join("rig");
    fs::copy(rig, &copy).with_context(|| format!("failed to copy the rig to {}", copy.display()))?;
    Ok(copy)
}

/// An id that no cluster has had on this host.
fn fresh_id() -> Result<String> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("failed to draw an id")?;
    uuid.split('-').next().map(ToOwned::to_owned).ok_or_else(|| anyhow!("the kernel's uuid is empty"))
}
