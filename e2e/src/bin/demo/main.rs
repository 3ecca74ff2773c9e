//! `demo`: Services through real IPVS, shown and checked step by step.
//!
//! ```text
//!   demo ──> cargo build (the agent)
//!        └─> demo machine ──> QEMU ──> demo guest: topology, agent, the steps
//! ```
//!
//! The first process watches the others: whatever they do, something is printed every few seconds.

mod agent;
mod manifests;
mod requests;
mod steps;
mod watched;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use fairlead_e2e::machine::{self, Machine};
use fairlead_e2e::packages;

/// Shows Kubernetes Services going through the kernel's IPVS, without a cluster.
///
/// Builds the node-agent, boots a machine with a real IPVS kernel, and walks through what a Service does there. Every
/// claim it prints is checked; a failed one ends it with status 1.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    stage: Option<Stage>,
}

/// The parts of the demo that run as processes of their own.
#[derive(Subcommand)]
enum Stage {
    /// Packages, kernel, boot
    #[command(hide = true)]
    Machine { agent: PathBuf },
    /// Process 1 of the machine
    #[command(hide = true)]
    GuestInit,
    /// In the machine: what is shown
    #[command(hide = true)]
    Guest { agent: PathBuf },
}

/// Once the machine is up; a slow one takes a minute.
const LIMIT: Duration = Duration::from_secs(300);

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn main() -> ExitCode {
    let done = match Args::parse().stage {
        None => all(),
        Some(Stage::Machine { agent }) => in_machine(&agent),
        Some(Stage::GuestInit) => machine::guest::main(),
        Some(Stage::Guest { agent }) => steps::run(&agent).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("\ndemo: error: {error:#}");
        ExitCode::FAILURE
    })
}

fn all() -> Result<ExitCode> {
    let start = Instant::now();
    println!(
        "\
Fairlead: Kubernetes Services through the kernel's IPVS

This demo builds the node-agent, boots Debian's kernel in QEMU, makes two nodes with three pods in it,
and shows what a Service does there. Your host is not changed, but for Debian packages that may be missing
(QEMU, ipvsadm, nftables, ...). The first run takes several minutes, most of them for building.
"
    );
    println!("{}\n", privileges()?);

    println!("[1/2] Building the node-agent (release)");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--package", "fairlead-node-agent", "--bins"]).current_dir(WORKSPACE);
    // it writes to a pipe, and would take that for a reason to be plain
    cargo.env("CARGO_TERM_COLOR", if std::io::stderr().is_terminal() { "always" } else { "never" });
    if !watched::run(&mut cargo, "building")?.success() {
        bail!("cargo could not build the node-agent: see above");
    }
    println!("      built after {} s\n", start.elapsed().as_secs());

    println!("[2/2] Booting a machine with an IPVS kernel");
    let mut machine = Command::new(std::env::current_exe().context("failed to find the demo's own program")?);
    machine.arg("machine").arg(agent_program()?);
    if !watched::run(&mut machine, "working")?.success() {
        // it has said why
        return Ok(ExitCode::FAILURE);
    }
    println!(
        "\nThe demo took {} s in all. The machine is gone, and all that was in it.",
        start.elapsed().as_secs()
    );
    Ok(ExitCode::SUCCESS)
}

/// Says by which right packages will be installed and who is root in the machine.
fn privileges() -> Result<String> {
    let inside = "Inside the machine the demo is root whoever you are.";
    if rustix::process::geteuid().is_root() {
        return Ok(format!("You are root: missing packages are installed with apt-get. {inside}"));
    }
    if packages::find("sudo").is_some() {
        return Ok(format!(
            "You are not root: if packages are missing, apt-get is run with sudo, which may ask for your password;\n\
             nothing else is. {inside}"
        ));
    }
    let missing = packages::missing_of(&[packages::MACHINE, packages::TOOLS]);
    if missing.is_empty() {
        return Ok(format!("You are not root and need not be: no package is missing. {inside}"));
    }
    bail!(
        "these Debian packages are missing: {}; you are not root and there is no sudo to install them with: \
         run `make demo` as root, or install them first",
        missing.join(", ")
    )
}

/// Where cargo has put the agent: beside this program.
fn agent_program() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(WORKSPACE).join("target"));
    let program = target.join("release/fairlead-node-agent");
    program.canonicalize().with_context(|| format!("cargo built no {}", program.display()))
}

fn in_machine(agent: &Path) -> Result<ExitCode> {
    packages::ensure(&[packages::TOOLS])?;
    let machine = Machine::new(machine::Options::default())?;
    let demo = std::env::current_exe().context("failed to find the demo's own program")?;
    let argv = [&demo, Path::new("guest"), agent];
    let command = machine::Command {
        argv: argv.iter().map(|word| word.display().to_string()).collect(),
        env: BTreeMap::new(),
        cwd: env!("CARGO_MANIFEST_DIR").into(),
        timeout: LIMIT,
    };
    let status = machine.run(&command)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
