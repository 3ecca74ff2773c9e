//! `tour`: Fairlead on a real cluster, installed as a user does it, shown and checked step by step.
//!
//! ```text
//!   tour ──> images (cargo, Go) ──> cluster of three machine nodes ──> manifests ──> ServiceNetwork ──> traffic
//! ```
//!
//! The cluster stays up when it has ended.

mod steps;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use fairlead_e2e::cluster::lifecycle;

/// Brings up a real cluster with IPVS kernels, installs Fairlead on it, and shows Services at work.
///
/// Every claim it prints is checked; a failed one ends it with status 1. The cluster stays up, with the commands to use
/// it, until `make clean` or `rig cluster down`. Needs root.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The program rig, which owns the cluster
    #[arg(long)]
    rig: PathBuf,
}

fn main() -> ExitCode {
    let done = lifecycle::default_folder().and_then(|folder| steps::run(&folder, &Args::parse().rig));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ntour: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
