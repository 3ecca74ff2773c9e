//! What a test or a user does with a running cluster, from whatever process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::control_plane::API_SERVER_PORT;
use super::kubectl::Kubectl;
use super::node::Spec;
use super::wire::{Description, Request, ask};
use super::{MARK, claim};
use crate::ns::{self, Namespace};
use crate::process::die_with_parent;
use crate::session::Output;

/// How long a command on a busy emulated node may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// The table that drops the API server's packets.
const CUT: &str = "fairlead-cut";

/// From whom the API server is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Everyone but the control plane itself.
    Everyone,
    /// Nodes, pods and the client outside; this host still sees it.
    Nodes,
}

/// A running cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    folder: PathBuf,
    description: Description,
    kubectl: Kubectl,
}

impl Cluster {
    /// The cluster that is up in a state folder.
    pub fn attach(folder: &Path) -> Result<Self> {
        let lives = claim::owner(folder)?.is_some_and(|(_, lives)| lives);
        let Some(description) = Description::read(folder)?.filter(|_| lives) else {
            bail!("no cluster is up in {}: `rig cluster up` brings one up", folder.display());
        };
        let folder = std::fs::canonicalize(folder)?;
        let Description { kubectl, kubeconfig, .. } = description.clone();
        Ok(Self { kubectl: Kubectl::new(kubectl, kubeconfig, &folder), folder, description })
    }

    /// The cluster as it is described now.
    pub fn describe(&self) -> Result<Description> {
        Description::read(&self.folder)?.context("the cluster was taken down")
    }

    /// The administrator's kubeconfig, good anywhere on this host and in its namespaces.
    pub fn kubeconfig(&self) -> &Path {
        &self.description.kubeconfig
    }

    /// A kubeconfig for a user, of a group or of none. It is called `<file>.kubeconfig`; made on the first call.
    pub fn kubeconfig_of(&self, file: &str, user: &str, group: Option<&str>) -> Result<PathBuf> {
        let [file, user] = [file, user].map(ToOwned::to_owned);
        self.ask(&Request::Kubeconfig { file, user, group: group.map(ToOwned::to_owned) })
    }

    /// kubectl as the administrator.
    pub fn kubectl_command(&self) -> Command {
        self.kubectl.command()
    }

    /// Runs kubectl as the administrator, and returns what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl.run(arguments)
    }

    /// Gets objects, by the arguments of `kubectl get`, separated by spaces.
    pub fn get(&self, what: &str) -> Result<serde_json::Value> {
        let arguments: Vec<_> = ["get", "-o", "json"].into_iter().chain(what.split_whitespace()).collect();
        serde_json::from_str(&self.kubectl(&arguments)?).context("failed to read what kubectl printed")
    }

    /// Applies manifests, as a user would.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.kubectl.apply(manifests)
    }

    /// Runs kubectl on manifests that it reads from its standard input (`-f -`).
    pub fn feed(&self, arguments: &[&str], manifests: &str) -> Result<String> {
        self.kubectl.feed(arguments, manifests)
    }

    /// The namespace of the control plane, which is the nodes' router.
    pub fn router(&self) -> Result<Namespace> {
        Namespace::open("router", &self.description.router)
    }

    /// The namespace of the client outside.
    pub fn client(&self) -> Result<Namespace> {
        Namespace::open("client", &self.description.client)
    }

    /// A command in one of the cluster's namespaces, which ends with the cluster. kubectl works in it, by its path.
    pub fn command_in(&self, namespace: &Namespace, program: impl AsRef<Path>) -> Command {
        let mut command = namespace.command(program);
        self.kubectl.at_home(die_with_parent(command.env(MARK, &self.description.id)));
        command
    }

    /// Drops the API server's packets, in both directions and without a word: it is away as behind a dead link.
    pub fn cut_off_api_server(&self, from: Cut) -> Result<()> {
        self.router()?.nft(&cut(from, self.description.subnet.host()))
    }

    /// Ends [`Self::cut_off_api_server`].
    pub fn restore_api_server(&self) -> Result<()> {
        // declared first, so that deleting it cannot fail
        self.router()?.nft(&format!("table inet {CUT}\ndelete table inet {CUT}"))
    }

    /// Ends the API server: connections to it are refused.
    pub fn stop_api_server(&self) -> Result<()> {
        self.ask(&Request::StopApiServer)
    }

    /// Starts the API server again, and waits until it serves.
    pub fn start_api_server(&self) -> Result<()> {
        self.ask(&Request::StartApiServer)
    }

    /// Fails if a program of the control plane has ended that was not stopped.
    pub fn check(&self) -> Result<()> {
        self.ask(&Request::Check)
    }

    /// The ends of the logs of everything that runs in the cluster, for a failed test.
    pub fn diagnose(&self) -> String {
        ns::diagnose::report(&[], &self.logs())
    }

    /// The folder of the logs.
    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// Adds a node, and waits until it is Ready.
    pub fn add_node(&self, spec: &Spec) -> Result<()> {
        self.ask(&Request::AddNode(spec.clone()))
    }

    /// Adds nodes at once, and waits until all are Ready.
    pub fn add_nodes(&self, specs: &[Spec]) -> Result<()> {
        thread::scope(|scope| {
            let adding: Vec<_> = specs.iter().map(|spec| scope.spawn(|| self.add_node(spec))).collect();
            adding.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread died"))?)
        })
    }

    /// Switches a node off, as a power cut does.
    pub fn stop_node(&self, name: &str) -> Result<()> {
        self.ask(&Request::StopNode(name.to_owned()))
    }

    /// Switches a node on again, and waits until it is Ready.
    pub fn start_node(&self, name: &str) -> Result<()> {
        self.ask(&Request::StartNode(name.to_owned()))
    }

    /// Removes a node for good, from the API too.
    pub fn remove_node(&self, name: &str) -> Result<()> {
        self.ask(&Request::RemoveNode(name.to_owned()))
    }

    /// Runs a command on a node to its end, whatever that is.
    pub fn run_on(&self, node: &str, argv: &[&str], limit: Duration) -> Result<Output> {
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        self.ask(&Request::RunOnNode { name: node.to_owned(), argv, limit })
    }

    /// Runs a command line (words separated by blanks) on a node, and returns what it printed.
    pub fn output_on(&self, node: &str, command_line: &str) -> Result<String> {
        let words: Vec<_> = command_line.split_whitespace().collect();
        let output = self.run_on(node, &words, COMMAND_LIMIT)?;
        if !output.status.success() {
            bail!("`{command_line}` failed on {node} ({}): {}", output.status, output.stderr.trim());
        }
        Ok(output.stdout)
    }

    /// The image of a short name (`fairlead`, `traffic`), which is on every node.
    pub fn image(&self, name: &str) -> Result<String> {
        self.describe()?.images.remove(name).with_context(|| format!("no image {name} is on the nodes"))
    }

    fn ask<T: serde::de::DeserializeOwned>(&self, request: &Request) -> Result<T> {
        ask(&self.folder, request)
    }
}

/// The rules that cut the API server off.
fn cut(from: Cut, host: ns::Address) -> String {
    let [spared_v4, spared_v6] = match from {
        Cut::Everyone => [String::new(), String::new()],
        Cut::Nodes => [format!("ip saddr != {} ", host.v4), format!("ip6 saddr != {} ", host.v6)],
    };
    let [back_v4, back_v6] = [&spared_v4, &spared_v6].map(|spared| spared.replace("saddr", "daddr"));
    format!(
        "table inet {CUT}
delete table inet {CUT}
table inet {CUT} {{
    chain input {{
        type filter hook input priority -300
        iifname != lo meta nfproto ipv4 {spared_v4}tcp dport {API_SERVER_PORT} drop
        iifname != lo meta nfproto ipv6 {spared_v6}tcp dport {API_SERVER_PORT} drop
    }}
    chain output {{
        type filter hook output priority -300
        oifname != lo meta nfproto ipv4 {back_v4}tcp sport {API_SERVER_PORT} drop
        oifname != lo meta nfproto ipv6 {back_v6}tcp sport {API_SERVER_PORT} drop
    }}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_spares_the_host_only_when_it_is_for_nodes() {
        let host = ns::Address { v4: "10.89.1.254".parse().unwrap(), v6: "fd00:89:1::254".parse().unwrap() };
        assert!(!cut(Cut::Everyone, host).contains("10.89.1.254"));
        let nodes = cut(Cut::Nodes, host);
        assert!(nodes.contains("ip saddr != 10.89.1.254 tcp dport 6443 drop"), "{nodes}");
        assert!(nodes.contains("ip6 daddr != fd00:89:1::254 tcp sport 6443 drop"), "{nodes}");
    }
}
