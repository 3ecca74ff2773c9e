//! What the dataplane costs on a real kernel: cold sync, one change, the same rules by `ipvsadm -R`,
//! and the memory of the agent.
//!
//! Runs as root where the kernel has ip_vs; every case in a network namespace of its own, on one
//! thread. Prints a line of JSON as soon as something is measured, and all of it as Markdown at the
//! end. `e2e`'s program `bench` runs it in the machine.

mod cases;
mod cluster;
mod memory;
mod namespace;
mod report;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

use report::Report;

/// Command line.
#[derive(Parser)]
struct Args {
    /// Numbers of Services, each with five endpoints
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000, 10_000])]
    services: Vec<u32>,
    /// The cases to run
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Case::Cold, Case::Change, Case::Restore, Case::Memory])]
    cases: Vec<Case>,
    /// `ipvsadm -R` is not compared beyond so many Services: on an emulated kernel 10,000 take minutes a run
    #[arg(long, default_value_t = 1_000)]
    restore_at_most: u32,
    /// How often a cold sync is repeated; the median counts
    #[arg(long, default_value_t = 5)]
    syncs: usize,
    /// How many changes are measured
    #[arg(long, default_value_t = 500)]
    changes: u32,
    /// The agent's program, for the memory
    #[arg(long, env = "FAIRLEAD_AGENT")]
    agent: Option<PathBuf>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Case {
    /// All objects at once, into an empty kernel
    Cold,
    /// One EndpointSlice changes
    Change,
    /// The same virtual and real servers through netlink and through `ipvsadm -R`
    Restore,
    /// The memory of the running agent
    Memory,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut report = Report::default();
    for case in args.cases {
        for services in args.services.iter().copied() {
            match case {
                Case::Cold => cases::cold_sync(&mut report, services, args.syncs)?,
                Case::Change => cases::single_changes(&mut report, services, args.changes)?,
                Case::Restore if services > args.restore_at_most => {}
                Case::Restore => cases::restore(&mut report, services)?,
                Case::Memory => memory::measure(&mut report, services, args.agent.as_deref())?,
            }
        }
    }
    println!("\n{report}");
    Ok(())
}
