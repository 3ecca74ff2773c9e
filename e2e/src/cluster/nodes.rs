//! The nodes of a cluster, each kept by a thread of its own.
//!
//! A node is first a name with a place in the network; it is on or off, and comes back at the same place.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Deserialize;

use super::Context;
use super::image::recipes::Images;
use super::keeper::Keeper;
use super::kubectl::Kubectl;
use super::node::{Node, Spec, Stock};
use super::programs::{self, Programs};
use super::wire::NodeState;
use crate::session::Output;

/// Three machines at once on two cores take three minutes.
const READY_LIMIT: Duration = Duration::from_secs(420);

/// A kubectl takes a tenth of a second of a core that a booting machine could use.
const POLL: Duration = Duration::from_millis(500);

/// The nodes of a cluster.
#[derive(Debug)]
pub struct Nodes {
    context: Context,
    kubectl: Kubectl,
    known: Mutex<BTreeMap<String, Known>>,
    /// The rig's program, which does its part inside nodes.
    rig: Option<PathBuf>,
    /// What it was when the first node was added, whatever is built meanwhile.
    stock: Mutex<Option<(Programs, Arc<Stock>)>>,
}

#[derive(Debug)]
struct Known {
    spec: Spec,
    power: Power,
}

#[derive(Debug)]
enum Power {
    Off,
    /// Being switched on or off.
    Changing,
    On(Keeper<Option<Node>>),
}

impl Nodes {
    /// No nodes yet. Without the rig's program there will never be any.
    pub fn new(context: Context, rig: Option<PathBuf>) -> Result<Self> {
        let kubectl = context.kubectl()?;
        Ok(Self { context, kubectl, known: Mutex::default(), rig, stock: Mutex::default() })
    }

    /// Adds a node, and waits until it is Ready.
    pub fn add(&self, spec: Spec) -> Result<()> {
        let name = spec.name.clone();
        check_name(&name)?;
        match self.lock().entry(name.clone()) {
            Entry::Occupied(_) => bail!("there is a node {name} already"),
            Entry::Vacant(entry) => drop(entry.insert(Known { spec, power: Power::Off })),
        }
        self.start(&name).inspect_err(|_| drop(self.lock().remove(&name)))
    }

    /// Switches a node on, and waits until it is Ready.
    pub fn start(&self, name: &str) -> Result<()> {
        let spec = {
            let mut known = self.lock();
            let known = find(&mut known, name)?;
            match known.power {
                Power::Off => known.power = Power::Changing,
                Power::Changing => bail!("node {name} is being switched on or off: try again"),
                Power::On(_) => bail!("node {name} is on already"),
            }
            known.spec.clone()
        };
        let started = self.boot(spec);
        let (power, result) = match started {
            Ok(keeper) => (Power::On(keeper), Ok(())),
            Err(error) => (Power::Off, Err(error.context(format!("failed to start node {name}")))),
        };
        find(&mut self.lock(), name)?.power = power;
        result
    }

    /// Switches a node off, as a power cut does.
    pub fn stop(&self, name: &str) -> Result<()> {
        let keeper = {
            let mut known = self.lock();
            let power = &mut find(&mut known, name)?.power;
            match std::mem::replace(power, Power::Changing) {
                Power::On(keeper) => keeper,
                Power::Changing => bail!("node {name} is being switched on or off: try again"),
                Power::Off => {
                    *power = Power::Off;
                    bail!("node {name} is off already");
                }
            }
        };
        let stopped = end(&keeper);
        drop(keeper);
        find(&mut self.lock(), name)?.power = Power::Off;
        stopped
    }

    /// Removes a node for good, from the API too.
    pub fn remove(&self, name: &str) -> Result<()> {
        let off = matches!(find(&mut self.lock(), name)?.power, Power::Off);
        if !off {
            self.stop(name)?;
        }
        self.kubectl.run(&["delete", "node", name, "--ignore-not-found"])?;
        self.lock().remove(name);
        self.context.network.remove(name)
    }

    /// Runs a command on a node to its end; several may run at once.
    pub fn run(&self, name: &str, argv: &[String], limit: Duration) -> Result<Output> {
        let shell = {
            let mut known = self.lock();
            let Power::On(keeper) = &find(&mut known, name)?.power else { bail!("node {name} is not on") };
            keeper.ask(|node| node.as_ref().map(|node| node.shell().clone()))?
        };
        shell.with_context(|| format!("node {name} is not on"))?.run(argv, limit)
    }

    /// Switches all nodes off, and forgets them.
    pub fn stop_all(&self) -> Result<()> {
        let known = std::mem::take(&mut *self.lock());
        let on = known.into_values().filter_map(|known| match known.power {
            Power::On(keeper) => Some(thread::spawn(move || end(&keeper))),
            Power::Off | Power::Changing => None,
        });
        let ending: Vec<_> = on.collect();
        let mut ending = ending.into_iter();
        ending.try_for_each(|thread| thread.join().map_err(|_| anyhow!("a node's thread died"))?)
    }

    /// What the cluster's description tells of them.
    pub fn describe(&self) -> Result<BTreeMap<String, NodeState>> {
        let known = self.lock();
        let states = known.iter().map(|(name, known)| {
            let place = self.context.network.place(name)?;
            let running = matches!(known.power, Power::On(_));
            Ok((name.clone(), NodeState { kind: known.spec.kind, place, running }))
        });
        states.collect()
    }

    fn boot(&self, spec: Spec) -> Result<Keeper<Option<Node>>> {
        let name = spec.name.clone();
        let before = self.in_api(&name)?.and_then(|node| node.heartbeat());
        let (context, stock) = self.stock()?;
        let keeper = Keeper::start(move || Node::start(&spec, &context, &stock).map(Some))?;
        let start = Instant::now();
        loop {
            let node = self.in_api(&name)?.unwrap_or_default();
            // what it said before it was switched off does not count
            if node.is_ready() && node.heartbeat() != before {
                return Ok(keeper);
            }
            if start.elapsed() > READY_LIMIT {
                bail!("it is not Ready after {} s: {}", READY_LIMIT.as_secs(), node.ready_message());
            }
            thread::sleep(POLL);
        }
    }

    /// What all nodes share.
    fn stock(&self) -> Result<(Context, Arc<Stock>)> {
        let rig =
            self.rig.as_deref().context("a control plane of a test's own has no nodes: use lifecycle::up")?;
        let mut stock = lock(&self.stock);
        let (programs, stock) = if let Some(made) = &*stock {
            made
        } else {
            let programs = programs::ensure()?;
            let made = Arc::new(Stock::ensure(&programs, rig)?);
            stock.insert((programs, made))
        };
        Ok((Context { programs: programs.clone(), ..self.context.clone() }, Arc::clone(stock)))
    }

    /// The images that are on every node, by their short names.
    pub fn images(&self) -> BTreeMap<String, String> {
        let stock = lock(&self.stock);
        let images = stock.as_ref().map(|(_, stock)| &stock.images);
        let named = images.map(|Images { fairlead, pause, traffic }| {
            [("fairlead", fairlead), ("pause", pause), ("traffic", traffic)]
        });
        named.into_iter().flatten().map(|(name, image)| (name.to_owned(), image.reference.clone())).collect()
    }

    /// The node as the API has it.
    fn in_api(&self, name: &str) -> Result<Option<ApiNode>> {
        let text = self.kubectl.run(&["get", "node", name, "--ignore-not-found", "-o", "json"])?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&text).context("failed to read a node of the API").map(Some)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        lock(&self.known)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A node's name is its host's too: a kubelet called otherwise would register nothing, and not say so.
fn check_name(name: &str) -> Result<()> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ends = name.starts_with('-') || name.ends_with('-');
    if name.is_empty() || name.len() > 63 || ends || !name.chars().all(inner) {
        bail!(
            "a node cannot be called {name:?}: use up to 63 lower case letters, digits and, between them, dashes"
        );
    }
    Ok(())
}

/// Ends a node on the thread that keeps it.
fn end(keeper: &Keeper<Option<Node>>) -> Result<()> {
    keeper.ask(|node| node.take().map_or(Ok(()), Node::stop))?
}

/// What matters here of a Node.
#[derive(Debug, Default, Deserialize)]
struct ApiNode {
    #[serde(default)]
    status: ApiStatus,
}

#[derive(Debug, Default, Deserialize)]
struct ApiStatus {
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    last_heartbeat_time: Option<String>,
    message: Option<String>,
}

impl ApiNode {
    fn ready(&self) -> Option<&Condition> {
        self.status.conditions.iter().find(|condition| condition.kind == "Ready")
    }

    fn is_ready(&self) -> bool {
        self.ready().is_some_and(|ready| ready.status == "True")
    }

    /// When the kubelet itself last told.
    fn heartbeat(&self) -> Option<String> {
        self.ready()?.last_heartbeat_time.clone()
    }

    fn ready_message(&self) -> &str {
        let message = self.ready().and_then(|ready| ready.message.as_deref());
        message.unwrap_or("its kubelet has not reported to the API server")
    }
}

fn find<'a>(known: &'a mut BTreeMap<String, Known>, name: &str) -> Result<&'a mut Known> {
    known.get_mut(name).with_context(|| format!("there is no node {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_a_hosts_name() {
        for name in ["node1", "n", "a-b"] {
            check_name(name).unwrap();
        }
        for name in ["", "Node1", "node_1", "-a", "a-", "a.b", "../etc", &"x".repeat(64)] {
            assert!(check_name(name).unwrap_err().to_string().contains("lower case"), "{name}");
        }
    }

    #[test]
    fn a_node_is_ready_when_its_condition_says_so() {
        let node = |ready: &str| -> ApiNode {
            let text = format!(
                r#"{{"status":{{"conditions":[
                    {{"type":"DiskPressure","status":"False"}},
                    {{"type":"Ready","status":"{ready}","lastHeartbeatTime":"2026-01-02T03:04:05Z","message":"why"}}]}}}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        assert!(node("True").is_ready());
        assert!(!node("Unknown").is_ready() && !ApiNode::default().is_ready());
        assert_eq!(node("False").ready_message(), "why");
        assert_eq!(node("True").heartbeat().unwrap(), "2026-01-02T03:04:05Z");
    }
}
