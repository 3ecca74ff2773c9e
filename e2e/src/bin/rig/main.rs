//! `rig`: builds, boots and tests; what the Makefile calls.

mod cluster;
mod inside;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use fairlead_e2e::cluster::image::recipes::Images;
use fairlead_e2e::machine::{self, Machine};
use fairlead_e2e::{packages, suite};

/// The test rig of Fairlead: a machine with a real IPVS kernel, and the tests that run in it.
///
/// Debian packages that are missing are installed with apt-get, as root or with sudo. What is slow to make is kept in
/// $FAIRLEAD_CACHE, by default ~/.cache/fairlead.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Builds the guest tests and runs them in the machine
    Test {
        /// Only the tests whose names contain this
        filter: Option<String>,
        /// Runs them on this host: needs root and a kernel with ip_vs
        #[arg(long)]
        host: bool,
        /// Seconds the tests may take in all, once the machine is up
        #[arg(long, default_value_t = 1200)]
        timeout: u64,
    },
    /// Boots the machine for a command
    #[command(subcommand)]
    Machine(MachineVerb),
    /// Makes the image of operator and agent for release, without Docker
    Image,
    /// A real Kubernetes cluster on this host
    Cluster(cluster::Verbs),
    /// Process 1 of the machine
    #[command(hide = true)]
    GuestInit,
    /// What runs commands in the machine
    #[command(hide = true)]
    GuestServe,
    /// Steps inside a node
    #[command(hide = true)]
    Inside(inside::Step),
    /// Runs test binaries in the machine
    #[command(hide = true)]
    GuestTests {
        #[arg(long)]
        filter: Option<String>,
        binaries: Vec<PathBuf>,
    },
}

#[derive(Subcommand)]
enum MachineVerb {
    /// Makes packages, kernel and initramfs ready, and boots nothing
    Build,
    /// Runs a command as root in the machine, in this folder and with this environment's RUST_* variables
    Run {
        /// Seconds it may take, once the machine is up
        #[arg(long, default_value_t = 600)]
        timeout: u64,
        /// Memory in MiB
        #[arg(long, default_value_t = machine::Options::default().memory_mib)]
        memory: u32,
        /// Virtual CPUs
        #[arg(long, default_value_t = machine::Options::default().cpus)]
        cpus: u32,
        /// The command and its arguments, after `--`
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

fn image() -> Result<ExitCode> {
    let image = Images::release()?;
    let digest = image.reference.split_once('@').map_or(image.reference.as_str(), |(_, digest)| digest);
    println!("archive  {}", image.archive.display());
    println!("digest   {digest}");
    println!(
        "push     skopeo copy --preserve-digests oci-archive:{} docker://REGISTRY/fairlead",
        image.archive.display()
    );
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let verb = Args::parse().verb;
    let done = match verb {
        Verb::GuestInit => machine::guest::main(),
        Verb::Inside(step) => step.run(),
        Verb::GuestServe => machine::guest::serve().map(|()| ExitCode::SUCCESS),
        Verb::Test { filter, host, timeout } => {
            let place = if host { suite::Place::Host } else { suite::Place::Machine };
            suite::run(place, filter.as_deref(), Duration::from_secs(timeout)).map(|()| ExitCode::SUCCESS)
        }
        Verb::GuestTests { filter, binaries } => {
            suite::run_binaries(&binaries, filter.as_deref()).map(|()| ExitCode::SUCCESS)
        }
        Verb::Image => image(),
        Verb::Cluster(verbs) => cluster::run(verbs),
        Verb::Machine(MachineVerb::Build) => {
            Machine::new(machine::Options::default()).map(|_| ExitCode::SUCCESS)
        }
        Verb::Machine(MachineVerb::Run { timeout, memory, cpus, command }) => {
            run(machine::Options { memory_mib: memory, cpus }, command, Duration::from_secs(timeout))
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("rig: error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(options: machine::Options, argv: Vec<String>, timeout: Duration) -> Result<ExitCode> {
    packages::ensure(&[packages::TOOLS])?;
    let env: BTreeMap<_, _> = std::env::vars().filter(|(name, _)| name.starts_with("RUST_")).collect();
    let command = machine::Command { argv, env, cwd: std::env::current_dir()?, timeout };
    let status = Machine::new(options)?.run(&command)?;
    // what does not fit an exit code is a failure all the same
    Ok(u8::try_from(status.0).map_or(ExitCode::FAILURE, ExitCode::from))
}
