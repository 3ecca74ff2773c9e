//! What a test or a user does with a running cluster, from whatever process.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::control_plane::API_SERVER_PORT;
use super::wire::{Description, Request, ask};
use super::{MARK, claim};
use crate::ns::{self, Namespace};
use crate::process::{die_with_parent, output_of, shown};

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
}

impl Cluster {
    /// The cluster that is up in a state folder.
    pub fn attach(folder: &Path) -> Result<Self> {
        let lives = claim::owner(folder)?.is_some_and(|(_, lives)| lives);
        match Description::read(folder)? {
            Some(description) if lives => Ok(Self { folder: std::fs::canonicalize(folder)?, description }),
            _ => bail!("no cluster is up in {}: `rig cluster up` brings one up", folder.display()),
        }
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

    /// A command of kubectl, as the administrator.
    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new(&self.description.kubectl);
        command.env("KUBECONFIG", self.kubeconfig());
        // the one in the home folder is keyed by address, which other clusters have had
        command.env("KUBECACHEDIR", self.folder.join("kubectl-cache"));
        command
    }

    /// Runs kubectl as the administrator, and returns what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        output_of(self.kubectl_command().args(arguments))
    }

    /// Gets objects, by the arguments of `kubectl get`, separated by spaces.
    pub fn get(&self, what: &str) -> Result<serde_json::Value> {
        let arguments: Vec<_> = ["get", "-o", "json"].into_iter().chain(what.split_whitespace()).collect();
        serde_json::from_str(&self.kubectl(&arguments)?).context("failed to read what kubectl printed")
    }

    /// Applies manifests, as a user would.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        let mut command = self.kubectl_command();
        command
            .args(["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("failed to start `{}`", shown(&command)))?;
        // kubectl that ends early says more with its own words than the broken pipe does
        let input = child.stdin.take().context("a child without a standard input")?;
        let _ = { input }.write_all(manifests.as_bytes());
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("kubectl refused: {}\n{manifests}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The namespace of the control plane, which is the nodes' router.
    pub fn router(&self) -> Result<Namespace> {
        Namespace::open("router", &self.description.router)
    }

    /// The namespace of the client outside.
    pub fn client(&self) -> Result<Namespace> {
        Namespace::open("client", &self.description.client)
    }

    /// A command in one of the cluster's namespaces, which ends with the cluster.
    pub fn command_in(&self, namespace: &Namespace, program: impl AsRef<Path>) -> Command {
        let mut command = namespace.command(program);
        die_with_parent(command.env(MARK, &self.description.id));
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
