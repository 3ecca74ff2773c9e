//! A network namespace for one measurement.

use std::{fs::File, io, os::fd::AsRawFd, process::Command};

use anyhow::{Context, Result, bail, ensure};
use fairlead_node_agent::{
    ipvs::{Client, IpvsOp},
    preflight::{self, Host},
};

/// A fresh network namespace that this thread is in until it is left.
pub struct Namespace {
    before: File,
}

impl Namespace {
    /// Makes one, enters it and prepares it (modules, sysctls) as the agent would. The process must
    /// have one thread: children inherit its namespace.
    pub fn enter() -> Result<Self> {
        let before =
            File::open("/proc/thread-self/ns/net").context("failed to open the network namespace")?;
        // SAFETY: plain system call.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        ensure!(result == 0, "failed to make a network namespace: {}", io::Error::last_os_error());
        let status = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
        ensure!(status.success(), "failed to bring up lo");
        let prepared = preflight::prepare(&Host::default())?;
        if let Some(problem) = prepared.refusals.first() {
            bail!("the kernel cannot be used: {}", problem.message);
        }
        Ok(Self { before })
    }

    /// Empties IPVS and goes back, so that no dying namespace works in the background of the next
    /// measurement.
    pub fn leave(self) -> Result<()> {
        let mut client = Client::open()?;
        let servers = client.stats()?;
        let ops: Vec<_> =
            servers.into_iter().map(|(server, _)| IpvsOp::DelService { key: server.key }).collect();
        for verdict in client.apply(&ops)? {
            verdict?;
        }
        // SAFETY: plain system call on a descriptor that is open.
        let result = unsafe { libc::setns(self.before.as_raw_fd(), libc::CLONE_NEWNET) };
        ensure!(result == 0, "failed to leave a network namespace: {}", io::Error::last_os_error());
        Ok(())
    }
}

/// IPVS as the kernel tells it in text: a line a virtual server and a line a real server.
pub fn table() -> Result<Vec<String>> {
    let text = std::fs::read_to_string("/proc/thread-self/net/ip_vs")
        .context("failed to read /proc/net/ip_vs: is ip_vs loaded?")?;
    Ok(text.lines().skip(3).map(str::to_owned).collect())
}

/// Fails unless IPVS has `services` virtual servers of `backends` real servers each.
pub fn expect(services: u32, backends: u32) -> Result<()> {
    let table = table()?;
    let real = table.iter().filter(|line| line.trim_start().starts_with("->")).count();
    let wanted = ((services * backends) as usize, services as usize);
    let found = (real, table.len() - real);
    ensure!(found == wanted, "IPVS has (real, virtual) servers {found:?}, should have {wanted:?}");
    Ok(())
}
