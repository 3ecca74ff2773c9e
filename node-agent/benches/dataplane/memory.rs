//! The memory of the real agent with a folder of manifests, once everything is in the kernel and in
//! the snapshot.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    cluster::{self, ENDPOINTS},
    namespace::{self, Namespace},
    report::Report,
};

/// Until everything must be programmed; emulated machines are slow.
const LIMIT: Duration = Duration::from_secs(300);
/// The snapshot comes a second after the last change; nothing grows after that.
const REST: Duration = Duration::from_secs(4);

/// Starts the agent, waits until it has done its work, and reads its memory.
pub fn measure(report: &mut Report, services: u32, agent: Option<&Path>) -> Result<()> {
    let agent = agent.context("FAIRLEAD_AGENT does not name the agent's program: run `make bench`")?;
    let scratch = tempfile::tempdir()?;
    let (manifests, state) = (scratch.path().join("manifests"), scratch.path().join("state"));
    fs::create_dir(&manifests)?;
    cluster::write_manifests(&manifests, services)?;
    let namespace = Namespace::enter()?;
    let began = Instant::now();
    let mut agent = Agent(
        Command::new(agent)
            .args(["--log=error", "run", "--force", "--manifests"])
            .arg(&manifests)
            .arg("--state-dir")
            .arg(&state)
            .stdout(Stdio::null())
            .spawn()
            .context("failed to start the agent")?,
    );
    let wanted = (services * (ENDPOINTS + 1)) as usize;
    agent.wait_until(|| Ok(namespace::table()?.len() == wanted))?;
    let programmed = began.elapsed();
    agent.wait_until(|| Ok(state.join("snapshot").exists()))?;
    std::thread::sleep(REST);
    agent.wait_until(|| Ok(true))?;
    namespace::expect(services, ENDPOINTS)?;
    let status = fs::read_to_string(format!("/proc/{}/status", agent.0.id()))?;
    report.median("agent: manifests to kernel", services, &[programmed]);
    report.add("agent: memory (VmRSS)", services, "after sync", mebibytes(&status, "VmRSS:")?, "MiB", 1);
    report.add("agent: memory (VmHWM)", services, "peak", mebibytes(&status, "VmHWM:")?, "MiB", 1);
    drop(agent);
    namespace.leave()
}

/// The running agent, ended with this.
struct Agent(Child);

impl Agent {
    fn wait_until(&mut self, condition: impl Fn() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !condition()? {
            if let Some(status) = self.0.try_wait()? {
                bail!("the agent ended: {status}");
            }
            ensure!(Instant::now() < deadline, "the agent was not done after {} s", LIMIT.as_secs());
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already; there is nothing left to do about it then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn mebibytes(status: &str, field: &str) -> Result<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kibibytes: u32 = line
        .and_then(|line| line.trim().strip_suffix("kB"))
        .with_context(|| format!("no {field} in the status of the agent"))?
        .trim()
        .parse()?;
    Ok(f64::from(kibibytes) / 1024.0)
}
