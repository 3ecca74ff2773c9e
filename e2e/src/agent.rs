//! The agent under test: its manifests, its process, and what it says of itself.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::eventually;
use crate::ns::{Namespace, Process, Topology, addr};
use crate::suite;

/// Where the agent answers for metrics and readiness.
pub const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
/// Where the agent answers for health.
pub const HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);

/// The agent of node1, with a folder of manifests and a state directory of its own.
#[derive(Debug)]
pub struct Agent<'t> {
    topology: &'t Topology,
    program: PathBuf,
    manifests: PathBuf,
    state: PathBuf,
    process: Option<Process>,
    starts: usize,
}

impl<'t> Agent<'t> {
    /// An agent that is not running yet; the folder holds the Node and the ServiceCIDRs.
    pub fn new(topology: &'t Topology) -> Result<Self> {
        let program = std::env::var_os(suite::AGENT)
            .with_context(|| format!("{} does not name the agent: run `make test`", suite::AGENT))?;
        let agent = Self {
            topology,
            program: program.into(),
            manifests: topology.scratch("manifests")?,
            state: topology.scratch("state")?,
            process: None,
            starts: 0,
        };
        agent.write("node.yaml", &node())?;
        Ok(agent)
    }

    /// Puts a file into the folder, whole at once, as `kubectl` or a ConfigMap would.
    pub fn write(&self, name: &str, content: &str) -> Result<()> {
        let next = self.manifests.join(format!(".{name}.next"));
        fs::write(&next, content).with_context(|| format!("failed to write {}", next.display()))?;
        fs::rename(&next, self.manifests.join(name)).with_context(|| format!("failed to write {name}"))
    }

    /// Takes a file out of the folder.
    pub fn remove(&self, name: &str) -> Result<()> {
        fs::remove_file(self.manifests.join(name)).with_context(|| format!("failed to remove {name}"))
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// Starts the agent and waits until it has programmed everything.
    pub fn start(&mut self) -> Result<()> {
        self.launch(&[])?;
        self.wait_ready()
    }

    /// Starts the agent with further arguments, and does not wait.
    pub fn launch(&mut self, arguments: &[&str]) -> Result<()> {
        self.starts += 1;
        let mut command = self.topology.node1.command(&self.program);
        command.args(["--log", "info,fairlead_node_agent=debug", "run"]);
        command.arg("--manifests").arg(&self.manifests).arg("--state-dir").arg(&self.state).args(arguments);
        self.process = Some(self.topology.start(&format!("agent-{}", self.starts), &mut command)?);
        Ok(())
    }

    /// Waits until everything in the folder is programmed.
    pub fn wait_ready(&self) -> Result<()> {
        let mut last = String::new();
        let ready = eventually("the agent is ready", Duration::from_secs(60), || {
            last = self.get(METRICS, "/readyz").unwrap_or_else(|error| format!("{error:#}"));
            last.starts_with("HTTP/1.1 200")
        });
        ready.with_context(|| format!("/readyz says: {last}"))
    }

    /// Waits until the kernel has what the folder says, by the agent's own comparison.
    pub fn wait_in_step(&self) -> Result<()> {
        let mut last = String::new();
        let in_step = eventually("desired and kernel agree", Duration::from_secs(20), || {
            match self.verb(&["inspect"]) {
                Ok(output) => {
                    last = String::from_utf8_lossy(&output.stdout).into_owned();
                    output.status.success()
                }
                Err(error) => {
                    last = format!("{error:#}");
                    false
                }
            }
        });
        in_step.with_context(|| format!("inspect says: {last}"))
    }

    /// Kills the agent without warning.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the agent is not running")?.kill()
    }

    /// Asks the agent to end, and waits until it does; fails if it does not say that all went well.
    pub fn terminate(&mut self) -> Result<()> {
        let process = self.process.take().context("the agent is not running")?;
        let status = process.terminate(Duration::from_secs(10))?;
        if !status.success() {
            bail!("the agent ended with {status}");
        }
        Ok(())
    }

    /// What the running agent has logged.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Runs another verb of the program in node1, with this agent's state directory.
    pub fn verb(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.topology.node1.command(&self.program);
        command.args(arguments).arg("--state-dir").arg(&self.state);
        command.output().with_context(|| format!("failed to run {arguments:?}"))
    }

    /// An HTTP answer of the agent, head and body.
    pub fn get(&self, address: SocketAddr, path: &str) -> Result<String> {
        get(&self.topology.node1, address, path)
    }

    /// The value of a metric, by its whole name with labels as it is printed.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let text = self.get(METRICS, "/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = line.with_context(|| format!("no metric {name} in\n{text}"))?;
        value.trim().parse().with_context(|| format!("metric {name} is {value:?}"))
    }
}

/// An HTTP answer, head and body, asked for in a namespace.
pub fn get(namespace: &Namespace, address: SocketAddr, path: &str) -> Result<String> {
    namespace.run(|| get_here(address, path))?
}

/// An HTTP answer, head and body, asked for from where this is called.
pub fn get_here(address: SocketAddr, path: &str) -> Result<String> {
    let fetch = || {
        let limit = Duration::from_secs(5);
        let mut stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    fetch().with_context(|| format!("failed to get {path} of {address}"))
}

/// node1 and the ServiceCIDRs of the topology.
fn node() -> String {
    let (node, pods) = (addr::NODE1, "10.244.1.0/24, \"fd00:244:1::/64\"");
    format!(
        "apiVersion: v1
kind: Node
metadata: {{name: node1}}
spec: {{podCIDRs: [{pods}]}}
status:
  addresses:
  - {{type: InternalIP, address: {}}}
  - {{type: InternalIP, address: \"{}\"}}
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {{name: kubernetes}}
spec: {{cidrs: [10.96.0.0/16, \"fd00:96::/112\"]}}
",
        node.v4, node.v6
    )
}

/// A ServiceNetwork with this spec, in YAML's flow style: `{proxy: {mode: IPVS}}`.
pub fn service_network(spec: &str) -> String {
    format!(
        "apiVersion: fairlead.dev/v1alpha1\nkind: ServiceNetwork\nmetadata: {{name: cluster}}\nspec: {spec}\n"
    )
}

/// An EndpointSlice a family for a Service of namespace `test`: `ports` and `endpoints` in YAML's flow
/// style, `endpoints` by the address of each.
pub fn slices(service: &str, ports: &str, endpoints: &[Endpoint]) -> String {
    let of_family = |(kind, v4): (&str, bool)| {
        let list: Vec<_> = endpoints.iter().map(|endpoint| endpoint.yaml(v4)).collect();
        format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {service}-{}
  namespace: test
  labels: {{kubernetes.io/service-name: {service}}}
addressType: {kind}
ports: {ports}
endpoints: [{}]
",
            kind.to_lowercase(),
            list.join(", ")
        )
    };
    [("IPv4", true), ("IPv6", false)].map(of_family).concat()
}

/// An endpoint of [`slices`].
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    address: crate::ns::Address,
    node: &'static str,
    ready: bool,
}

impl Endpoint {
    /// A ready endpoint on a node.
    pub const fn on(node: &'static str, address: crate::ns::Address) -> Self {
        Self { address, node, ready: true }
    }

    /// The same, not ready.
    #[must_use]
    pub const fn unready(mut self) -> Self {
        self.ready = false;
        self
    }

    fn yaml(&self, v4: bool) -> String {
        let address = if v4 { self.address.v4.to_string() } else { self.address.v6.to_string() };
        let Self { node, ready, .. } = self;
        format!("{{addresses: [\"{address}\"], nodeName: {node}, conditions: {{ready: {ready}}}}}")
    }
}

/// The pods of the topology, as endpoints.
pub const PODS: [Endpoint; 3] =
    [Endpoint::on("node1", addr::POD1), Endpoint::on("node1", addr::POD2), Endpoint::on("node2", addr::POD3)];
