//! The guest tests: built on the host, run as root where the kernel has IPVS.
//!
//! They are ordinary test binaries (`tests` of e2e and node-agent, feature `machine`). All of them run in one machine, one after the
//! other; the tests of one binary run beside each other, each in its own namespaces.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::machine::{self, Machine};
use crate::process::{die_with_parent, output_of};
use crate::{ns, packages, say};

/// Names the agent's program to the guest tests.
pub const AGENT: &str = "FAIRLEAD_AGENT";

const AGENT_PROGRAM: &str = "fairlead-node-agent";
const AGENT_CRATE: &str = "fairlead-node-agent";
const FOLDER: &str = env!("CARGO_MANIFEST_DIR");

/// The rig itself, also when cargo has replaced its file meanwhile, and as what runs first in the machine.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// The agent's program, built for the tests.
pub fn agent() -> Result<PathBuf> {
    let agent = std::env::var_os(AGENT).map(PathBuf::from);
    agent
        .with_context(|| format!("{AGENT} does not name the agent's program: run the tests with `make test`"))
}

/// Where the tests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the machine.
    Machine,
    /// On this host, whose kernel has IPVS.
    Host,
}

/// Builds the guest tests and runs those whose names contain `filter`.
pub fn run(place: Place, filter: Option<&str>, timeout: Duration) -> Result<()> {
    packages::ensure(&[packages::TOOLS])?;
    if place == Place::Host {
        ns::require_ipvs_kernel()?;
    }
    let built = Built::make()?;
    let mut argv = vec![THIS_PROGRAM.to_owned(), "guest-tests".into()];
    argv.extend(filter.map(|filter| format!("--filter={filter}")));
    argv.extend(built.tests.iter().map(|test| test.display().to_string()));
    let mut env: BTreeMap<String, String> =
        std::env::vars().filter(|(name, _)| name.starts_with("RUST_")).collect();
    env.insert("CARGO_MANIFEST_DIR".into(), FOLDER.into());
    env.extend(built.agent.map(|agent| (AGENT.to_owned(), agent.display().to_string())));
    match place {
        Place::Machine => {
            let machine = Machine::new(machine::Options::default())?;
            let command = machine::Command { argv, env, cwd: FOLDER.into(), timeout };
            let status = machine.run(&command)?;
            if !status.success() {
                bail!("the guest tests failed ({status})");
            }
        }
        Place::Host => {
            let [rig, words @ ..] = argv.as_slice() else { bail!("an empty command") };
            let status = Command::new(rig).args(words).envs(env).current_dir(FOLDER).status()?;
            if !status.success() {
                bail!("the guest tests failed ({status})");
            }
        }
    }
    Ok(())
}

/// Names the folder of the running cluster to the tests of a cluster.
pub const CLUSTER: &str = "FAIRLEAD_CLUSTER_FOLDER";

/// Runs the tests of a cluster on the one in `folder`, one after the other.
pub fn test_cluster(folder: &Path, filter: Option<&str>) -> Result<std::process::ExitStatus> {
    let mut cargo = cargo_program();
    cargo.args(["test", "-p", "fairlead-e2e", "--features=cluster,machine", "--test=cluster", "--"]);
    cargo.args(["--test-threads=1"]).args(filter).env(CLUSTER, folder);
    cargo.status().context("failed to start cargo")
}

/// What cargo built.
#[derive(Debug, Default, PartialEq, Eq)]
struct Built {
    tests: Vec<PathBuf>,
    agent: Option<PathBuf>,
}

impl Built {
    fn make() -> Result<Self> {
        let start = Instant::now();
        let mut built = Self::default();
        // `--test '*'` would ask for the tests of other features too
        let tests: Vec<_> = guest_tests()?.iter().map(|name| format!("--test={name}")).collect();
        let features = "--features=fairlead-e2e/machine,fairlead-node-agent/machine";
        let mut args = vec!["test", "--no-run", "-p", "fairlead-e2e", "-p", AGENT_CRATE, features];
        args.extend(tests.iter().map(String::as_str));
        built.add(&cargo(&args)?)?;
        built.add(&cargo(&["build", "-p", AGENT_CRATE, "--bins"])?)?;
        say(format_args!("guest tests built in {:.1} s", start.elapsed().as_secs_f32()));
        if built.tests.is_empty() {
            bail!("cargo built no guest tests");
        }
        Ok(built)
    }

    /// Takes up the programs cargo's messages speak of.
    fn add(&mut self, messages: &str) -> Result<()> {
        for line in messages.lines().filter(|line| line.starts_with('{')) {
            let message: Message = serde_json::from_str(line).context("failed to read a message of cargo")?;
            let (Some(program), Some(target)) = (message.executable, message.target) else { continue };
            if target.is_test() {
                self.tests.push(program);
            } else if target.name == AGENT_PROGRAM {
                self.agent = Some(program);
            }
        }
        Ok(())
    }
}

/// The tests that belong in the machine: those that require its feature.
fn guest_tests() -> Result<Vec<String>> {
    let metadata = output_of(cargo_program().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("failed to read cargo's metadata")?;
    Ok(metadata.tests_of("machine"))
}

/// What cargo knows of the workspace.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    targets: Vec<Target>,
}

impl Metadata {
    fn tests_of(self, feature: &str) -> Vec<String> {
        let targets = self.packages.into_iter().flat_map(|package| package.targets);
        let tests = targets.filter(|target| target.required_features.iter().any(|name| name == feature));
        tests.filter(Target::is_test).map(|target| target.name).collect()
    }
}

#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
    #[serde(default, rename = "required-features")]
    required_features: Vec<String>,
}

impl Target {
    fn is_test(&self) -> bool {
        self.kind.iter().any(|kind| kind == "test")
    }
}

fn cargo_program() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(FOLDER);
    command
}

/// Runs cargo and returns its messages, a line of JSON each.
pub fn cargo(args: &[&str]) -> Result<String> {
    let mut command = cargo_program();
    command.args(args).arg("--message-format=json-render-diagnostics");
    // a rig that is ended leaves no build behind
    let output =
        die_with_parent(command.stderr(Stdio::inherit())).output().context("failed to start cargo")?;
    if !output.status.success() {
        bail!("`{}` failed ({})", crate::process::shown(&command), output.status);
    }
    String::from_utf8(output.stdout).context("failed to read the messages of cargo")
}

/// Runs test binaries one after the other, as the machine's command; fails if a test does, or if none ran.
pub fn run_binaries(binaries: &[PathBuf], filter: Option<&str>) -> Result<()> {
    let start = Instant::now();
    let mut sum = Counts::default();
    let mut failed = Vec::new();
    for binary in binaries {
        let mut command = Command::new(binary);
        command.args(filter).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("failed to start {}", binary.display()))?;
        let output = child.stdout.take().context("a child without a standard output")?;
        println!("     Running {}", name(binary));
        for line in BufReader::new(output).split(b'\n') {
            let line = line?;
            sum.add(&String::from_utf8_lossy(&line));
            let mut out = std::io::stdout().lock();
            out.write_all(&line).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush())?;
        }
        if !child.wait()?.success() {
            failed.push(name(binary));
        }
    }
    say(format_args!("{sum} in {} binaries, {:.1} s", binaries.len(), start.elapsed().as_secs_f32()));
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    sum.verdict(filter)
}

fn name(binary: &Path) -> String {
    binary.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The numbers of libtest's closing lines.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Counts {
    fn add(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        for part in rest.split([';', '.']) {
            match part.split_whitespace().collect::<Vec<_>>().as_slice() {
                [count, "passed"] => self.passed += count.parse().unwrap_or(0),
                [count, "failed"] => self.failed += count.parse().unwrap_or(0),
                [count, "ignored"] => self.ignored += count.parse().unwrap_or(0),
                _ => {}
            }
        }
    }

    fn verdict(&self, filter: Option<&str>) -> Result<()> {
        if self.ignored > 0 {
            bail!("{} guest tests are marked #[ignore]: they run or they go", self.ignored);
        }
        match (self.passed, filter) {
            (0, Some(filter)) => bail!("no guest test is called anything like {filter:?}"),
            (0, None) => bail!("no guest test ran"),
            _ => Ok(()),
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "guest tests: {} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_of_several_binaries_add_up() {
        let mut counts = Counts::default();
        counts.add(
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.00s",
        );
        counts.add("test some::test ... ok");
        counts.add("test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s");
        assert_eq!(counts, Counts { passed: 8, failed: 1, ignored: 0 });
    }

    #[test]
    fn no_test_at_all_is_a_failure() {
        assert!(Counts::default().verdict(None).is_err());
        assert!(Counts::default().verdict(Some("dual")).unwrap_err().to_string().contains("dual"));
    }

    #[test]
    fn an_ignored_test_is_a_failure() {
        assert!(Counts { passed: 3, failed: 0, ignored: 1 }.verdict(None).is_err());
    }

    #[test]
    fn the_guest_tests_are_those_of_the_machines_feature() {
        let metadata = r#"{"packages":[
            {"targets":[{"kind":["lib"],"name":"agent"},{"kind":["test"],"name":"nft","required-features":["machine"]}]},
            {"targets":[{"kind":["test"],"name":"plane","required-features":["cluster"]},
                        {"kind":["test"],"name":"golden"}]}]}"#;
        let metadata: Metadata = serde_json::from_str(metadata).unwrap();
        assert_eq!(metadata.tests_of("machine"), ["nft"]);
        assert!(guest_tests().unwrap().contains(&"rig_self".to_owned()));
    }

    #[test]
    fn programs_are_taken_from_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"fairlead-e2e"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"rig_self"},"executable":"/t/rig_self-1"}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"rig"},"executable":"/t/rig"}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"fairlead-node-agent"},"executable":"/t/agent"}
{"reason":"build-finished","success":true}"#;
        let mut built = Built::default();
        built.add(messages).unwrap();
        assert_eq!(built, Built { tests: vec!["/t/rig_self-1".into()], agent: Some("/t/agent".into()) });
    }
}
