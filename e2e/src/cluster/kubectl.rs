//! kubectl, as the administrator of a cluster.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::process::{output_of, shown};

/// How kubectl is called for a cluster.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

impl Kubectl {
    /// For the cluster of a state folder.
    pub fn new(program: PathBuf, kubeconfig: PathBuf, folder: &Path) -> Self {
        // the cache in the home folder is keyed by address, which other clusters have had
        Self { program, kubeconfig, cache: folder.join("kubectl-cache") }
    }

    /// A command without arguments yet.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        self.at_home(&mut command);
        command
    }

    /// Gives a command what a call of kubectl in it needs.
    pub fn at_home<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("KUBECONFIG", &self.kubeconfig).env("KUBECACHEDIR", &self.cache)
    }

    /// Runs it to its end, and returns what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        output_of(self.command().args(arguments))
    }

    /// Applies manifests, as a user would.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.feed(&["apply", "-f", "-"], manifests)
    }

    /// Runs it on manifests that it reads from its standard input, and returns what it printed.
    pub fn feed(&self, arguments: &[&str], manifests: &str) -> Result<String> {
        let mut command = self.command();
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("failed to start `{}`", shown(&command)))?;
        let mut input = child.stdin.take().context("a child without a standard input")?;
        // kubectl that ends early says more with its own words than the broken pipe does
        let _ = input.write_all(manifests.as_bytes());
        drop(input);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let begin: String = manifests.chars().take(2000).collect();
            bail!("kubectl refused: {}\n{begin}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
