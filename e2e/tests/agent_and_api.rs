//! The agent and a real API server, without nodes: what it follows, what it tells, and what it does while the API
//! server is away. This host's kernel needs no IPVS: the agent says that it cannot program the node, and goes on.
//!
//! Needs root: `cargo test --features cluster --test agent_and_api`, with FAIRLEAD_AGENT naming the agent's program.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy exempts test functions, not what they call"
)]

use std::fs::{self, File};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use fairlead_e2e::agent::{METRICS, get};
use fairlead_e2e::cluster::{Cluster, Cut, Fixture};
use fairlead_e2e::eventually;
use fairlead_e2e::suite;
use serde_json::{Value, json};
use tempfile::TempDir;

const NODE: &str = "edge-1";
const SOON: Duration = Duration::from_secs(10);
/// Dropped packets are noticed within 20 s; then every address is dialled once, for 5 s.
const NOTICED: Duration = Duration::from_secs(26);

/// An agent in the namespace outside, on whose way to the API server packets can be dropped.
struct Agent<'c> {
    cluster: &'c Cluster,
    state: TempDir,
    process: Option<Child>,
}

impl<'c> Agent<'c> {
    fn of(cluster: &'c Cluster) -> Self {
        for crd in ["servicenetworknodes", "servicenetworks"] {
            let file = format!("{}/../crds/fairlead.dev_{crd}.yaml", env!("CARGO_MANIFEST_DIR"));
            cluster.apply(&fs::read_to_string(file).unwrap()).unwrap();
        }
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE },
            "spec": { "podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.9.0/24"] },
        });
        cluster.apply(&node.to_string()).unwrap();
        cluster.apply("{apiVersion: v1, kind: Namespace, metadata: {name: fairlead-system}}").unwrap();
        let mut agent = Self { cluster, state: tempfile::tempdir().unwrap(), process: None };
        agent.start();
        agent
    }

    fn start(&mut self) {
        let program = suite::agent().unwrap();
        let mut command = self.cluster.command_in(&self.cluster.client().unwrap(), program);
        command.args(["run", "--node-name", NODE, "--kubeconfig"]).arg(self.cluster.kubeconfig());
        command.arg("--state-dir").arg(self.state.path());
        let log =
            File::options().create(true).append(true).open(self.cluster.logs().join("agent.log")).unwrap();
        command.stderr(log);
        self.process = Some(command.spawn().unwrap());
    }

    fn restart(&mut self) {
        let mut process = self.process.take().unwrap();
        let pid = process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert!(process.wait().unwrap().success());
        self.start();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.cluster.logs().join("agent.log")).unwrap()
    }

    fn get(&self, path: &str) -> String {
        get(&self.cluster.client().unwrap(), METRICS, path).unwrap_or_default()
    }

    fn objects(&self, kind: &str) -> Option<u32> {
        let name = format!("fairlead_source_objects{{kind=\"{kind}\"}} ");
        self.get("/metrics").lines().find_map(|line| line.strip_prefix(&name)?.parse().ok())
    }

    fn eventually_follows(&self, services: u32) {
        let mut last = None;
        let follows = eventually("the agent follows", SOON, || {
            last = self.objects("Service");
            last == Some(services)
        });
        follows.unwrap_or_else(|error| panic!("{services} Services: {error}, but {last:?}\n{}", self.log()));
    }

    /// After the API server was away.
    fn eventually_follows_again(&self, services: u32) {
        // the longest pause between two attempts, and the time-out of a dial
        let limit = Duration::from_secs(51);
        let follows = eventually("the agent follows again", limit, || {
            self.objects("Service") == Some(services) && self.not_followed() == 0
        });
        follows.unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
    }

    /// The kinds that /readyz says cannot be followed.
    fn not_followed(&self) -> usize {
        self.get("/readyz").matches("NotFollowing").count()
    }

    fn status(&self) -> Value {
        self.cluster.get(&format!("servicenetworknode {NODE}")).unwrap()
    }

    /// Waits for a condition with this status and reason.
    fn eventually_says(&self, type_: &str, expected: &str) {
        let mut last = String::new();
        let says = eventually(type_, SOON, || {
            let status = self.status();
            let conditions = status["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let found = conditions.iter().find(|condition| condition["type"] == type_);
            last = found
                .map_or_else(String::new, |c| format!("{} {}", c["status"], c["reason"]).replace('"', ""));
            last == expected
        });
        says.unwrap_or_else(|error| panic!("{error}, but {last}, not {expected}\n{}", self.log()));
    }

    fn ask_for(&self, revision: &str) {
        let node = json!({
            "apiVersion": "fairlead.dev/v1alpha1", "kind": "ServiceNetworkNode",
            "metadata": { "name": NODE }, "spec": { "revision": revision },
        });
        self.cluster.apply(&node.to_string()).unwrap();
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A revision with a scheduler, and with a field that no agent knows if there is to be one.
fn revision(name: &str, scheduler: &str, unknown: bool, last_good: bool) -> String {
    let mut revision = json!({
        "apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": 1,
        "metadata": {
            "name": name, "namespace": "fairlead-system",
            "labels": { "fairlead.dev/revision-of": "node-agent" },
        },
        "data": {
            "apiVersion": "config.fairlead.dev/v1alpha1", "kind": "NodeAgentConfig",
            "proxy": { "mode": "IPVS", "markBit": 12, "ipvs": {
                "scheduler": scheduler, "timeouts": { "tcp": "24h", "tcpFin": "2m", "udp": "5m" },
                "drainTimeout": "60s", "policyEngine": "Refuse",
            } },
        },
    });
    if unknown {
        revision["data"]["quic"] = json!({});
    }
    if last_good {
        revision["metadata"]["labels"]["fairlead.dev/last-good"] = json!("true");
    }
    revision.to_string()
}

fn service(name: &str) -> String {
    format!("{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{ports: [{{port: 80}}]}}}}")
}

#[test]
fn a_node_runs_the_revision_it_is_asked_to_and_keeps_it_when_it_cannot_run_another() {
    let cluster = Fixture::start().unwrap();
    cluster.apply("{apiVersion: v1, kind: Namespace, metadata: {name: fairlead-system}}").unwrap();
    cluster.apply(&revision("fairlead-good", "rr", false, true)).unwrap();
    cluster.apply(&revision("fairlead-newer", "quickest", true, false)).unwrap();
    cluster.apply(&revision("fairlead-other", "wrr", false, false)).unwrap();
    let mut agent = Agent::of(&cluster);
    eventually("a node without an operator takes the last good revision", SOON, || {
        agent.log().contains("taking the last good one revision=fairlead-good")
    })
    .unwrap();
    agent.ask_for("fairlead-other");
    agent.eventually_says("Accepted", "True AsExpected");
    agent.ask_for("fairlead-newer");
    agent.eventually_says("Accepted", "False RevisionNotUnderstood");
    agent.eventually_says("Healthy", "False MissingKernelModule");
    agent.ask_for("fairlead-gone");
    agent.eventually_says("Accepted", "False RevisionNotFound");
    cluster.apply(&revision("fairlead-gone", "lc", false, false)).unwrap();
    agent.eventually_says("Accepted", "True AsExpected");

    // Nothing that disappears changes what runs, nor what a restarted agent runs.
    let runs = |log: &str| log.matches("running on another revision").count();
    let before = runs(&agent.log());
    cluster.kubectl(&["delete", "crd", "servicenetworknodes.fairlead.dev"]).unwrap();
    cluster.kubectl(&["-n", "fairlead-system", "delete", "controllerrevision", "--all"]).unwrap();
    agent.restart();
    agent.eventually_follows(1);
    assert_eq!(runs(&agent.log()), before, "{}", agent.log());
}

#[test]
fn dropped_packets_are_noticed_and_what_vanished_meanwhile_is_gone_afterwards() {
    let cluster = Fixture::start().unwrap();
    cluster.apply("{apiVersion: v1, kind: Namespace, metadata: {name: fairlead-system}}").unwrap();
    cluster.apply(&revision("fairlead-good", "rr", false, false)).unwrap();
    let mut agent = Agent::of(&cluster);
    agent.ask_for("fairlead-good");
    agent.eventually_says("Accepted", "True AsExpected");
    cluster.apply(&service("vanishes")).unwrap();
    agent.eventually_follows(2);
    assert_eq!(agent.not_followed(), 0);

    cluster.cut_off_api_server(Cut::Nodes).unwrap();
    let cut = Instant::now();
    eventually("all five watches are given up", NOTICED, || agent.not_followed() == 5).unwrap();
    println!("dropped packets were noticed after {:.1} s", cut.elapsed().as_secs_f32());
    cluster.kubectl(&["delete", "service", "vanishes"]).unwrap();
    for name in ["new-1", "new-2", "new-3"] {
        cluster.apply(&service(name)).unwrap();
    }
    cluster.restore_api_server().unwrap();
    agent.eventually_follows_again(4);

    let told = agent.status()["metadata"]["resourceVersion"].clone();
    cluster.cut_off_api_server(Cut::Nodes).unwrap();
    agent.restart();
    eventually("an agent that starts meanwhile serves from its snapshot", SOON, || {
        agent.log().contains("serving from the snapshot")
    })
    .unwrap();
    cluster.kubectl(&["delete", "service", "new-1"]).unwrap();
    cluster.restore_api_server().unwrap();
    agent.eventually_follows_again(3);
    // Nothing has changed for this node: nothing is written.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(agent.status()["metadata"]["resourceVersion"], told);
}
