//! `inspect`: desired, kernel, and the difference, on a live node.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde::Serialize;

use super::{plan, report};
use crate::{
    bring_up::settings,
    cli::{InspectArgs, Output},
    dataplane::{
        LinuxKernel,
        expected::{Expected, draining},
        kernel::Kernel,
    },
    model::tracker::Model,
    state::{record::Record, snapshot::Snapshot},
};

#[derive(Serialize)]
struct Report {
    expected: Expected,
    /// What the kernel has, `ipvsadm`'s words.
    kernel: Vec<String>,
    draining: Vec<String>,
    differences: Vec<String>,
}

/// Prints the comparison; status 1 when something differs.
pub fn inspect(args: &InspectArgs) -> Result<ExitCode> {
    let directory = &args.state.state_dir;
    let Some(snapshot) = Snapshot::read(directory).context("failed to read the agent's snapshot")? else {
        bail!("no agent has run with state directory {}: name its --state-dir", directory.display());
    };
    let record = Record::read(directory).context("failed to read the agent's record")?;
    let mut model = Model::new(Timestamp::now());
    model.restore(snapshot.into_changes());
    let expected = plan::expected(&mut model, &record.servers)?;
    let settings = settings(&model).context("the snapshot names no node")?;
    let found = LinuxKernel::open(&settings.base)
        .and_then(|mut kernel| kernel.read())
        .context("failed to read the kernel")?;
    let report = Report {
        kernel: found.servers.iter().map(ToString::to_string).collect(),
        draining: draining(&found, &record.servers),
        differences: expected.differences(&found, &record.servers),
        expected,
    };
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Text => print(&report)?,
    }
    Ok(if report.differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(report: &Report) -> Result<()> {
    println!("DESIRED");
    print!("{}", report::expected(&report.expected)?);
    println!("\nKERNEL");
    for line in &report.kernel {
        println!("{line}");
    }
    for line in &report.draining {
        println!("draining: {line}");
    }
    println!("\nDIFFERENCE");
    for line in &report.differences {
        println!("{line}");
    }
    if report.differences.is_empty() {
        println!("none: the kernel has what it should");
    }
    Ok(())
}
