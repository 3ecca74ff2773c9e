//! The operator on a real control plane whose nodes are simulated.
//!
//! What is real: the API server and the controllers, the operator's program with the rights that the manifests give it,
//! and the code by which agents follow and report (`simulated_nodes`, an example of the agent's crate). What is
//! simulated: the dataplane, and the kubelets, in whose place [`Simulation::tend_pods`] makes pods Ready and lets them
//! go.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use serde_json::{Value, json};

use crate::agent::get_here;
use crate::cluster::{Cluster, Fixture, MARK};
use crate::eventually;
use crate::installation::{AGENT_PODS, NAMESPACE, OPERATOR};
use crate::ns::Process;
use crate::suite;

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");

/// A simulated node has no kubelet that renews its lease: this controller would soon take it for lost.
const WITHOUT: &[&str] = &["node-lifecycle-controller"];

/// A round of kubectl on a busy host.
const SOON: Duration = Duration::from_secs(30);

/// The image that operators hand to the agents unless told otherwise.
pub const IMAGE: &str =
    "registry.example/fairlead@sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// Names of the simulated nodes: this and a number from 0.
pub const PREFIX: &str = "node-";

/// A control plane with Fairlead's API types and the operator's rights, and no operator yet.
#[derive(Debug)]
pub struct Simulation {
    fixture: Fixture,
    programs: &'static Programs,
    operator_kubeconfig: PathBuf,
}

/// A running operator; killed when it goes out of scope.
#[derive(Debug)]
pub struct Operator {
    process: Process,
    address: SocketAddr,
}

#[derive(Debug)]
struct Programs {
    operator: PathBuf,
    simulated_nodes: PathBuf,
}

impl Simulation {
    /// Brings it up.
    pub fn start() -> Result<Self> {
        let programs = Programs::built()?;
        let fixture = Fixture::start_without(WITHOUT)?;
        fixture.kubectl(&["apply", "--server-side", "-k", &format!("{MANIFESTS}/crds")])?;
        fixture.kubectl(&["apply", "--server-side", "-k", &format!("{MANIFESTS}/operator")])?;
        // the rights stay; the operators of a test are its own
        fixture.kubectl(&["-n", NAMESPACE, "delete", OPERATOR])?;
        let operator_kubeconfig = fixture.logs().join("operator.kubeconfig");
        let token = fixture.kubectl(&["-n", NAMESPACE, "create", "token", "fairlead-operator"])?;
        write_kubeconfig(&fixture, &operator_kubeconfig, token.trim())?;
        Ok(Self { fixture, programs, operator_kubeconfig })
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.fixture
    }

    /// Makes Nodes that pods can be scheduled to.
    pub fn add_nodes(&self, count: usize) -> Result<()> {
        self.add_named_nodes(&(0..count).map(|number| format!("{PREFIX}{number}")).collect::<Vec<_>>())
    }

    /// Has the Nodes' status written as kubelets do it all the time, with nothing new in it but the time.
    pub fn beat(&self, count: usize) -> Result<()> {
        let beat = |number| {
            let ready =
                json!({ "type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-02T00:00:00Z" });
            json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": format!("{PREFIX}{number}") },
                "status": { "conditions": [ready] } })
        };
        self.apply_status(&(0..count).map(beat).collect::<Vec<_>>())
    }

    /// The same with these names.
    pub fn add_named_nodes(&self, names: &[String]) -> Result<()> {
        let node = |name: &String, status: Value| {
            json!({ "apiVersion": "v1", "kind": "Node", "status": status,
                "metadata": { "name": name, "labels": { "kubernetes.io/os": "linux" } } })
        };
        let made: Vec<_> = names.iter().map(|name| node(name, json!({}))).collect();
        self.fixture.feed(&["create", "-f", "-"], &list(&made))?;
        let room = json!({ "cpu": "4", "memory": "8Gi", "pods": "110" });
        let status =
            json!({ "capacity": room, "allocatable": room, "conditions": [condition("Ready", true)] });
        self.apply_status(&names.iter().map(|name| node(name, status.clone())).collect::<Vec<_>>())
    }

    /// Starts an operator.
    pub fn operator(&self, identity: &str, image: &str) -> Result<Operator> {
        let address = free_address()?;
        let mut command = Command::new(&self.programs.operator);
        command
            .arg("--kubeconfig")
            .arg(&self.operator_kubeconfig)
            .args(["--identity", identity, "--image", image])
            .args(["--api-servers", &self.fixture.describe()?.api_server])
            .args(["--metrics-bind-address", &address.to_string()]);
        let process = self.run(identity, command)?;
        Ok(Operator { process, address })
    }

    /// Starts an operator, and waits until it leads.
    pub fn leading_operator(&self, identity: &str, image: &str) -> Result<Operator> {
        let operator = self.operator(identity, image)?;
        eventually(&format!("{identity} leads"), SOON, || operator.leads())
            .with_context(|| operator.log())?;
        Ok(operator)
    }

    /// Starts the agents of the first `count` nodes.
    pub fn agents(&self, count: usize, more: &[&str]) -> Result<Process> {
        let mut command = Command::new(&self.programs.simulated_nodes);
        command.arg("--kubeconfig").arg(self.fixture.kubeconfig());
        command.args(["--prefix", PREFIX, "--count", &count.to_string()]).args(more);
        self.run("agents", command)
    }

    /// Does what kubelets would: scheduled pods of the agents turn Ready, and those that are deleted go. Returns how
    /// many are Ready and stay.
    pub fn tend_pods(&self) -> Result<usize> {
        let pods = self.fixture.get(&format!("pods -n {NAMESPACE} -l {AGENT_PODS}"))?;
        let pods = pods.get("items").and_then(Value::as_array).context("a list without items")?;
        let (going, staying): (Vec<_>, Vec<_>) =
            pods.iter().partition(|pod| pod.pointer("/metadata/deletionTimestamp").is_some());
        for pod in going {
            let name = name_of(pod).context("a pod without a name")?;
            self.fixture.kubectl(&["-n", NAMESPACE, "delete", "pod", name, "--force", "--grace-period=0"])?;
        }
        let scheduled = staying.iter().filter(|pod| pod.pointer("/spec/nodeName").is_some());
        let (ready, starting): (Vec<&Value>, Vec<&Value>) = scheduled.partition(|pod| is_ready(pod));
        let started = starting.iter().map(|pod| {
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": name_of(pod), "namespace": NAMESPACE },
                "status": { "phase": "Running", "conditions": [condition("Ready", true)] },
            })
        });
        self.apply_status(&started.collect::<Vec<_>>())?;
        Ok(ready.len() + starting.len())
    }

    /// Waits until each of `count` nodes has a pod that is Ready, doing what kubelets would.
    pub fn tend_until_ready(&self, count: usize, limit: Duration) -> Result<()> {
        let mut ready = Ok(0);
        eventually(&format!("{count} pods are Ready"), limit, || {
            ready = self.tend_pods();
            ready.as_ref().is_ok_and(|ready| *ready == count)
        })
        .with_context(|| format!("{ready:?}"))
    }

    /// How many requests of an API server have written objects of this group or resource.
    pub fn writes(&self, of: &str) -> Result<u64> {
        let metrics = self.fixture.kubectl(&["get", "--raw=/metrics"])?;
        let lines = metrics.lines().filter(|line| is_write(line, of));
        lines
            .map(|line| {
                let value = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a count of requests"
                )]
                value.map(|value| value as u64).with_context(|| format!("no number in {line}"))
            })
            .sum()
    }

    fn apply_status(&self, objects: &[Value]) -> Result<()> {
        if objects.is_empty() {
            return Ok(());
        }
        let as_kubelet = ["apply", "--server-side", "--subresource=status", "--force-conflicts", "-f", "-"];
        self.fixture.feed(&as_kubelet, &list(objects)).map(drop)
    }

    fn run(&self, name: &str, mut command: Command) -> Result<Process> {
        command.env(MARK, &self.fixture.describe()?.id);
        Process::start(name, &mut command, &self.fixture.logs())
    }
}

impl Operator {
    /// Whether it leads.
    pub fn leads(&self) -> bool {
        self.metric("fairlead_operator_leader").is_ok_and(|leads| leads > 0.0)
    }

    /// A metric by its name and labels, as the text has them; 0 where it is not there yet.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let text = self.get("/metrics")?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Ok(value.unwrap_or_default())
    }

    /// The sum of all metrics whose name begins like this.
    pub fn sum(&self, name: &str) -> Result<f64> {
        let text = self.get("/metrics")?;
        let lines = text.lines().filter(|line| line.starts_with(name));
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Memory that it holds, in MiB.
    pub fn memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kib.context("a process without a size")? / 1024)
    }

    /// An HTTP answer, head and body.
    pub fn get(&self, path: &str) -> Result<String> {
        get_here(self.address, path)
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        self.process.is_running()
    }

    /// Kills it without warning.
    pub fn kill(self) -> Result<()> {
        self.process.kill()
    }

    /// Asks it to end.
    pub fn terminate(self) -> Result<ExitStatus> {
        self.process.terminate(SOON)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        self.process.signal(signal)
    }
}

impl Programs {
    /// Builds them, once in a process.
    fn built() -> Result<&'static Self> {
        static BUILT: OnceLock<Result<Programs, String>> = OnceLock::new();
        let built = BUILT.get_or_init(|| Self::build().map_err(|error| format!("{error:#}")));
        built.as_ref().map_err(|error| anyhow!("{error}"))
    }

    fn build() -> Result<Self> {
        // in one call, so that what they share is built once
        let crates = ["-p", "fairlead-operator", "-p", "fairlead-node-agent"];
        let built =
            suite::cargo(&[&["build"], &crates[..], &["--bins", "--example=simulated_nodes"]].concat())?;
        Ok(Self {
            operator: program(&built, "fairlead-operator")?,
            simulated_nodes: program(&built, "simulated_nodes")?,
        })
    }
}

/// The program that cargo's messages speak of.
fn program(messages: &str, name: &str) -> Result<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut programs =
        messages.filter_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?)));
    let program = programs.find(|program| program.file_name().is_some_and(|file| file == name));
    program.with_context(|| format!("cargo built no program called {name}"))
}

fn write_kubeconfig(cluster: &Cluster, file: &Path, token: &str) -> Result<()> {
    let mut config: Value = serde_json::from_str(&fs::read_to_string(cluster.kubeconfig())?)?;
    let user = config.pointer("/users/0/name").cloned().context("a kubeconfig without users")?;
    let users = config.get_mut("users").context("a kubeconfig without users")?;
    *users = json!([{ "name": user, "user": { "token": token } }]);
    fs::write(file, config.to_string()).with_context(|| format!("failed to write {}", file.display()))
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn name_of(object: &Value) -> Option<&str> {
    object.pointer("/metadata/name").and_then(Value::as_str)
}

fn list(items: &[Value]) -> String {
    json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()
}

fn condition(type_: &str, holds: bool) -> Value {
    json!({ "type": type_, "status": if holds { "True" } else { "False" },
        "lastTransitionTime": "2026-01-01T00:00:00Z" })
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    let says =
        |condition: &Value, field: &str, value: &str| condition.get(field).is_some_and(|it| it == value);
    conditions.into_iter().flatten().any(|it| says(it, "type", "Ready") && says(it, "status", "True"))
}

/// Whether a line of the API server's metrics counts writes of a group, or of a resource.
fn is_write(line: &str, of: &str) -> bool {
    const WRITES: [&str; 6] = ["POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"];
    let label = |name: &str, value: &str| line.contains(&format!("{name}=\"{value}\""));
    line.starts_with("apiserver_request_total{")
        && (label("group", of) || label("resource", of))
        && WRITES.iter().any(|verb| label("verb", verb))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_of_a_group_or_resource_are_counted_and_reads_are_not() {
        let line = |verb: &str| {
            format!(
                r#"apiserver_request_total{{code="200",component="apiserver",dry_run="",group="fairlead.dev",resource="servicenetworknodes",scope="resource",subresource="status",verb="{verb}",version="v1alpha1"}} 7"#
            )
        };
        assert!(is_write(&line("APPLY"), "fairlead.dev") && is_write(&line("POST"), "servicenetworknodes"));
        assert!(!is_write(&line("WATCH"), "fairlead.dev") && !is_write(&line("APPLY"), "apps"));
        assert!(!is_write(
            "apiserver_request_duration_seconds_count{verb=\"APPLY\",group=\"apps\"} 1",
            "apps"
        ));
    }

    #[test]
    fn a_program_is_found_by_its_name_among_cargos_messages() {
        let messages = "{\"reason\":\"x\"}\n{\"executable\":\"/a/other\"}\n{\"executable\":\"/a/wanted\"}\n";
        assert_eq!(program(messages, "wanted").unwrap(), Path::new("/a/wanted"));
        assert!(program(messages, "none").is_err());
    }
}
