//! `cleanup`: removes ours and nothing else.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::{
    cli::CleanupArgs,
    dataplane::{Base, Kernel, LinuxKernel, ServerKey, marks},
    ipvs::{IpvsOp, VirtualServerKey, is_gone},
    state::{record::Record, remove},
};

/// Removes everything that Fairlead programmed; goes on past failures and reports all of them.
pub fn cleanup(args: &CleanupArgs) -> Result<ExitCode> {
    let directory = &args.state.state_dir;
    let record = Record::open(directory).context("failed to take over the agent's record")?;
    let mut kernel = LinuxKernel::open(&Base::default()).context("failed to open the kernel")?;
    let mut failures = Vec::new();

    // Our table first: from then on no new packet is led to a virtual server of ours.
    if let Err(failure) = kernel.remove_base() {
        failures.push(failure.chain());
    }
    let found = kernel.read().context("failed to read the kernel")?;
    let recorded: Vec<_> = record.contents().servers.iter().map(ServerKey::kernel).collect();
    let ours = |key: &VirtualServerKey| match key {
        VirtualServerKey::Fwmark { mark, .. } => marks::is_ours(*mark),
        VirtualServerKey::Address { .. } => recorded.contains(key),
    };
    let ops: Vec<_> = found
        .servers
        .iter()
        .filter(|server| ours(&server.key))
        .map(|server| IpvsOp::DelService { key: server.key })
        .collect();
    let verdicts = kernel.change_servers(&ops).context("failed to remove virtual servers")?;
    let mut removed = 0;
    for (op, verdict) in ops.iter().zip(verdicts) {
        match verdict {
            Ok(()) => removed += 1,
            Err(error) if is_gone(&error) => {}
            Err(error) => failures.push(format!("failed to {op}: {error}")),
        }
    }
    if !failures.is_empty() {
        bail!("some of it is still there; run cleanup again:\n{}", failures.join("\n"));
    }
    // Still locked: no agent may start on files that are about to go.
    remove(directory).context("failed to remove the state files")?;
    drop(record);
    println!("removed {removed} virtual servers, table inet fairlead, and Fairlead's rules and routes");
    Ok(ExitCode::SUCCESS)
}
